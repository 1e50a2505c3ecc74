"""`partita reset`: boot VMs again. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import Verbs
from partitions.cli.hosts import add_vms, change_vms

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "reset",
        help="boot VMs again",
        description="Boot VMs again without asking their guests, as the reset button does.",
        allow_abbrev=False,
    )
    add_vms(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Reset them."""
    return change_vms(options, "reset")
