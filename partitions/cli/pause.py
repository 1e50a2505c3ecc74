"""`partita pause`: stop VMs' processors and time. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import Verbs
from partitions.cli.hosts import add_vms, change_vms

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "pause",
        help="stop VMs' processors and time",
        description="Stop the processors of VMs, and with them their time. `partita resume` lets them go on.",
        allow_abbrev=False,
    )
    add_vms(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Suspend them."""
    return change_vms(options, "pause")
