"""`partita connect-nic`: plug a VM's network adapter into a switch, or pull its cable out. Root side."""

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
        "connect-nic",
        help="plug a VM's network adapter into a switch, or pull its cable",
        description="Plug the cable of a VM's network adapter into a switch of its host, or pull it out if no switch "
        "is given; its guest sees the link go down and up. Prints the adapter.",
        allow_abbrev=False,
    )
    add_vms(parser, several=False)
    parser.add_argument("number", metavar="NIC", type=int, help="its number")
    parser.add_argument("switch", metavar="SWITCH", nargs="?", help="none: the cable hangs loose")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Plug it; its row."""
    nic = ask(options, "connect-nic", vm=options.vm, number=options.number, switch=options.switch)
    show([nic], NIC_COLUMNS, chosen(options))
    return OK
