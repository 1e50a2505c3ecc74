"""`partita down`: end a running host with all its VMs. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli import stop
from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import VM_COLUMNS, add_host_option, ask
from partitions.cli.output import add_output_option, chosen, show

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "down",
        help="end a running host with all its VMs",
        description="Stop every VM of a host, as `partita stop --all` does, and end its `partita run`.",
        allow_abbrev=False,
    )
    add_host_option(parser)
    add_output_option(parser)
    stop.add_ways(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Returns when all VMs are off."""
    stop.check(options)
    rows = ask(options, "down", force=options.force, grace=options.grace)
    show(rows, VM_COLUMNS, chosen(options))
    return OK
