"""`partita save`: write the state of a VM to a file and end it. Root side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import VM_COLUMNS, add_vms, ask
from partitions.cli.output import chosen, show

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "save",
        help="write a VM's state to a file and end it",
        description="Write the state of a VM to a file, and end it. `partita start` lets it go on where it was, "
        "`partita run --restore VM=FILE` does so in another host. Disks are not in the file.",
        allow_abbrev=False,
    )
    add_vms(parser, several=False)
    parser.add_argument("file", metavar="FILE", nargs="?", help="by default VM.saved beside the topology")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Save it; the row has the file."""
    path = None if options.file is None else os.path.abspath(options.file)
    show([ask(options, "save", vm=options.vm, path=path)], VM_COLUMNS, chosen(options))
    return OK
