"""`partita copy`: a file of the host's into a guest. Root side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import add_vms, ask
from partitions.cli.output import chosen, plain, show

if TYPE_CHECKING:
    import argparse

COLUMNS: Final = [("VM", plain("vm")), ("PATH", plain("path")), ("BYTES", plain("bytes"))]


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "copy",
        help="copy a file into a guest",
        description="Copy a file of this machine into a guest, which does not need a network for it: Linux with "
        'hv_fcopy_daemon, or a program whose topology says integration = ["file-copy"].',
        allow_abbrev=False,
    )
    add_vms(parser, several=False)
    parser.add_argument("source", metavar="FILE", help="the file here")
    parser.add_argument("path", metavar="PATH", help="its place in the guest; a folder if it ends in a slash")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    parser.add_argument("--parents", action="store_true", help="make the folders that are not")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Copy it; a row with what arrived."""
    row = ask(
        options,
        "copy",
        vm=options.vm,
        source=os.path.abspath(options.source),
        path=options.path,
        overwrite=options.overwrite,
        create_path=options.parents,
    )
    show([row], COLUMNS, chosen(options))
    return OK
