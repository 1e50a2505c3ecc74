"""`partita add-disk`: give a VM another disk, while it runs or not. Root side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import add_vms, ask
from partitions.cli.output import chosen, plain, show, size

if TYPE_CHECKING:
    import argparse

DISK_COLUMNS: Final = [
    ("LUN", plain("lun")),
    ("TYPE", plain("type")),
    ("SIZE", size("size")),
    ("BLOCK", plain("block_size")),
    ("READ ONLY", lambda row: "yes" if row["read_only"] else "no"),
    ("PATH", plain("path")),
]


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "add-disk",
        help="give a VM another disk",
        description="Give a VM of a running host another disk; a guest that runs is told, and looks. "
        "The options are the keys of [[vm.disk]] in a topology. Prints the disk with its LUN.",
        allow_abbrev=False,
    )
    add_vms(parser, several=False)
    parser.add_argument("path", metavar="IMAGE", help="a raw image, or an ISO image for a DVD drive")
    parser.add_argument("--size", help="such as 64MiB: the image is made with this size if it is missing")
    parser.add_argument("--read-only", action="store_true", help="the guest must not write it")
    parser.add_argument("--block-size", type=int, choices=(512, 4096), default=512, help="bytes in a block (512)")
    parser.add_argument("--type", choices=("disk", "dvd"), default="disk", help="what it is to the guest (disk)")
    parser.add_argument("--lun", type=int, metavar="N", help="by default one that no disk had before")
    parser.add_argument("--iops-limit", type=int, metavar="N", help="I/Os of 8 KiB a second at most (none)")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Add it; the row has its LUN."""
    disk = ask(
        options,
        "add-disk",
        vm=options.vm,
        path=os.path.abspath(options.path),
        size=options.size,
        read_only=options.read_only,
        block_size=options.block_size,
        type=options.type,
        lun=options.lun,
        iops=None if options.iops_limit is None else {"limit": options.iops_limit},
    )
    show([disk], DISK_COLUMNS, chosen(options))
    return OK
