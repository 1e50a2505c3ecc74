"""`partita doctor`: what this machine has and lacks. Root side."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from partitions.cli.common import OK, Verbs, print_json

if TYPE_CHECKING:
    import argparse

    from partitions.doctor import Finding


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "doctor",
        help="say what this machine has and lacks, and how to get it",
        description="Look at what this machine has of all that some part of partita can use, and say of what it lacks "
        "what that is for and how to get it. A lack is no failure: the exit status is 0.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Print every finding. A lack is no failure: the exit status is 0."""
    from partitions.doctor import examine

    findings = examine()
    if options.json:
        print_json({"findings": findings})
        return OK
    for finding in findings:
        print(describe(finding))
    lacking = [finding.name for finding in findings if finding.state == "missing"]
    print(f"\nMissing: {', '.join(lacking)}." if lacking else "\nNothing is missing.")
    return OK


def describe(finding: Finding) -> str:
    """One finding as lines: all of it where something is missing, one line where not."""
    head = f"{finding.state:<8} {finding.name:<16} {finding.detail}"
    if finding.state == "ok":
        return head
    return "\n".join([head, *_indented("why: ", finding.why), *_indented("get it: ", finding.remedy)])


def _indented(label: str, text: str) -> list[str]:
    margin = " " * 9
    return textwrap.wrap(text, 100, initial_indent=margin + label, subsequent_indent=margin + " " * len(label))
