"""`partita start`: turn VMs of a running host on. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import Verbs
from partitions.cli.hosts import add_vms, change_vms

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "start",
        help="turn VMs of a running host on",
        description="Turn VMs on; ends when their guests run. A VM that was saved goes on from its file.",
        allow_abbrev=False,
    )
    add_vms(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Turn them on."""
    return change_vms(options, "start")
