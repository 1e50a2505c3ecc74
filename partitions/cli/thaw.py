"""`partita thaw`: let a guest's file systems go on. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import Verbs
from partitions.cli.hosts import add_vms, change_vms

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "thaw",
        help="let frozen file systems go on",
        description="Let the file systems of guests go on that `partita freeze` holds still.",
        allow_abbrev=False,
    )
    add_vms(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Thaw them, all at the same time."""
    return change_vms(options, "thaw")
