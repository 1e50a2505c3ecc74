"""`partita remove-nic`: take a network adapter away from a VM, while it runs or not. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.add_nic import NIC_COLUMNS
from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import add_vms, ask
from partitions.cli.output import chosen, show

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "remove-nic",
        help="take a network adapter away from a VM",
        description="Take a network adapter away from a VM of a running host, whatever its guest is doing with it. "
        "Prints the adapters that are left.",
        allow_abbrev=False,
    )
    add_vms(parser, several=False)
    parser.add_argument("number", metavar="NIC", type=int, help="its number")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Remove it; a row for each that is left."""
    show(ask(options, "remove-nic", vm=options.vm, number=options.number), NIC_COLUMNS, chosen(options))
    return OK
