"""`partita examples`: list the examples, or copy one to work on. Root side."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from partitions.cli.common import OK, Refusal, Verbs

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "examples",
        help="list the examples, or copy one",
        description="List the examples, in reading order, or copy one to work on. `partita run` takes their names and "
        "numbers; each has a README.md that says what to watch.",
        allow_abbrev=False,
    )
    parser.add_argument("--copy", nargs=2, metavar=("NAME", "DIR"), help="copy an example into a new folder DIR")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """One line an example, or a copy."""
    from partitions.examples import examples

    if options.copy:
        return copy(*options.copy)
    found = examples()
    if not found:
        raise Refusal("this installation has no examples; reinstall partita from its wheel")
    width = max(len(example.name) for example in found)
    for example in found:
        print(f"{example.name:<{width}}  {example.title}".rstrip())
    return OK


def copy(name: str, target: str) -> int:
    """Copy an example's folder without what runs left in it."""
    from partitions.examples import example_names, find_example, near_example

    folder = find_example(name)
    if folder is None:
        near = near_example(name)
        hint = f'did you mean "{near}"?' if near else f"there are {', '.join(example_names())}"
        raise Refusal(f'no example "{name}"; {hint}')
    if Path(target).exists():
        raise Refusal(f'"{target}" exists already; name a new folder')
    try:
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("__pycache__", "*.img", "*.jsonl", "vmlinuz*"))
    except (OSError, shutil.Error) as error:
        raise Refusal(f"cannot copy to {target}: {error}") from None
    print(f"copied {folder.name} to {target}; run it with: partita run {target}")
    return OK
