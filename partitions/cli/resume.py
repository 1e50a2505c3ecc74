"""`partita resume`: let VMs go on after a pause. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import Verbs
from partitions.cli.hosts import add_vms, change_vms

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "resume",
        help="let VMs go on after a pause",
        description="Let VMs go on that were paused.",
        allow_abbrev=False,
    )
    add_vms(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Let them go on."""
    return change_vms(options, "resume")
