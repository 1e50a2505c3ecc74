"""`partita ps`: the VMs of running hosts. Root side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import VM_COLUMNS, add_host_option, all_rows, shown
from partitions.cli.output import add_output_option, chosen, show

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "ps",
        help="list the VMs of running hosts",
        description="List the VMs of one running host, or of all of them.",
        allow_abbrev=False,
    )
    parser.add_argument("vm", metavar="VM", nargs="?", help="only this one")
    add_host_option(parser)
    add_output_option(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """A row for each VM."""
    rows = all_rows(options, "ps")
    form = chosen(options)
    if not rows and form == "table":
        print("no host runs; start one with: partita run TOPOLOGY", file=sys.stderr)
    else:
        show(rows, shown(VM_COLUMNS, rows), form)
    return OK
