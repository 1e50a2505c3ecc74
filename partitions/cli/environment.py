"""Options from the environment: `PARTITA_TIMEOUT` for any verb's --timeout, `PARTITA_RUN_TIMEOUT` for run's. Root side.

The command line wins over a verb's own variable, and that over the general one; an empty variable is one that is not
set. What may be given several times is written as in a shell: `PARTITA_DISK="web=a.img db='my disk.img'"`. A value of a
general variable that this verb does not know is passed over where another verb does.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from partitions.cli.common import Refusal

PREFIX: Final = "PARTITA_"
_WORDS: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def variables(verb: str, action: argparse.Action) -> list[str]:
    """The names of an option's variables, the one that wins first; none for options that do something at once."""
    if not action.option_strings or isinstance(action, argparse._HelpAction) or _kind(action) is None:
        return []
    long = next((option[2:] for option in action.option_strings if option.startswith("--")), action.dest)
    return [f"{PREFIX}{_upper(verb)}_{_upper(long)}", f"{PREFIX}{_upper(long)}"]


def apply(parser: argparse.ArgumentParser, verb: str, given: Sequence[str], environment: Mapping[str, str]) -> None:
    """Make what the environment says the defaults of a verb's options. Raises `Refusal` that names the variable."""
    known: list[str] = []
    for action in parser._actions:
        names = variables(verb, action)
        known += names
        name = next((name for name in names if environment.get(name)), None)
        if name is None or _is_given(action, given):
            continue
        try:
            value = _value(action, name, environment[name])
        except Refusal:
            if name == names[-1] and _another_takes(name, environment[name], verb):
                continue
            raise
        parser.set_defaults(**{action.dest: value})
    for name in environment:
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.88)
            if near and not _is_anothers(name, verb):
                print(f"note: {name} is no option of {verb}; did you mean {near[0]}?", file=sys.stderr)


def show_in_help(parser: argparse.ArgumentParser, verb: str) -> None:
    """Write each option's variable behind what it does, and texts with examples in them as wide as the others."""
    for action in parser._actions:
        if names := variables(verb, action):
            action.help = f"{action.help or ''} [{names[-1]}]".strip()
            parser.epilog = (
                f"In brackets: the environment variable of an option. {PREFIX}{_upper(verb)}_... is for this verb "
                "alone and wins over it; the command line wins over both."
            )
    if parser.formatter_class is argparse.RawDescriptionHelpFormatter:
        parser.description, parser.epilog = _wrapped(parser.description), _wrapped(parser.epilog)


def _wrapped(text: str | None) -> str:
    """Paragraphs as wide as the terminal; those with an indented line in them stay as they are."""
    width = shutil.get_terminal_size().columns - 2
    paragraphs = (text or "").split("\n\n")
    return "\n\n".join(
        part
        if re.search(r"^ ", part, re.MULTILINE)
        else textwrap.fill(part, width, break_long_words=False, break_on_hyphens=False)
        for part in paragraphs
    )


def _upper(name: str) -> str:
    return name.replace("-", "_").upper()


def _is_given(action: argparse.Action, given: Sequence[str]) -> bool:
    """Whether an option is on the command line; options are never abbreviated here."""
    for word in given:
        if word == "--":
            return False
        if word.startswith("--"):
            if word.partition("=")[0] in action.option_strings:
                return True
        elif word.startswith("-") and word[:2] in action.option_strings:
            return True
    return False


def _another_takes(name: str, text: str, verb: str) -> bool:
    """Whether a value of a general variable is one for another verb: `csv` for `--output`, which not all know."""
    from partitions.cli.main import VERBS, parsers

    for other in VERBS:
        for action in parsers(other)[1].choices[other]._actions if other != verb else ():
            if name in variables(other, action)[-1:]:
                with contextlib.suppress(Refusal):
                    _value(action, name, text)
                    return True
    return False


def _is_anothers(name: str, verb: str) -> bool:
    """Whether a variable is meant for another verb."""
    from partitions.cli.main import VERBS

    return any(name.startswith(f"{PREFIX}{_upper(other)}_") for other in VERBS if other != verb)


def _kind(action: argparse.Action) -> str | None:
    if isinstance(action, argparse._CountAction):
        return "count"
    if isinstance(action, argparse.BooleanOptionalAction) or (action.nargs == 0 and isinstance(action.const, bool)):
        return "switch"
    if action.nargs == 0:
        return None
    if isinstance(action, argparse._AppendAction) or isinstance(action.nargs, int):
        return "several"
    return "one"


def _value(action: argparse.Action, name: str, text: str) -> Any:
    match _kind(action):
        case "switch":
            if text.lower() not in _WORDS:
                raise Refusal(f"{name}={text}: must be 1 or 0, or true, yes, on, false, no, off")
            on = _WORDS[text.lower()]
            return on if isinstance(action, argparse.BooleanOptionalAction) or on == action.const else action.default
        case "count":
            if not text.isdecimal():
                raise Refusal(f"{name}={text}: must be a number")
            return int(text)
        case "several":
            words = list(_split(name, text))
            if isinstance(action.nargs, int) and len(words) != action.nargs:
                raise Refusal(f"{name}={text}: must be {action.nargs} words")
            return [_one(action, name, word) for word in words]
        case _:
            return _one(action, name, text)


def _split(name: str, text: str) -> Iterator[str]:
    try:
        yield from shlex.split(text)
    except ValueError as error:
        raise Refusal(f"{name}={text}: {str(error).lower()}") from None


def _one(action: argparse.Action, name: str, text: str) -> Any:
    value: Any = text
    if callable(action.type):
        try:
            value = action.type(text)
        except argparse.ArgumentTypeError as error:
            raise Refusal(f"{name}={text}: {error}") from None
        except (TypeError, ValueError):
            kind = "a number" if action.type in (int, float) else f"a valid {action.metavar or action.dest}"
            raise Refusal(f"{name}={text}: must be {kind}") from None
    if action.choices is not None and value not in action.choices:
        raise Refusal(f"{name}={text}: must be one of {', '.join(map(str, action.choices))}")
    return value
