"""`partita screenshot`: what a VM shows, as a PNG file. Root side."""

from __future__ import annotations

import base64
import itertools
import os
import sys
from typing import TYPE_CHECKING, BinaryIO, Final

from partitions.cli.common import FAILED, OK, Refusal, Verbs
from partitions.cli.hosts import add_vms, ask
from partitions.cli.output import chosen, plain, show

if TYPE_CHECKING:
    import argparse

COLUMNS: Final = [("VM", plain("vm")), ("WIDTH", plain("width")), ("HEIGHT", plain("height")), ("FILE", plain("path"))]


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "screenshot",
        help="write what a VM's screen shows to a PNG file",
        description="Write what the screen of a VM shows at this moment to a PNG file. A file that is named is "
        "replaced; the one that is not finds a name that is free. Prints the file's name.",
        allow_abbrev=False,
    )
    add_vms(parser, several=False)
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="by default VM.png in this folder, VM-2.png and so on; - for stdout"
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Ask for it, then look for a place: nothing is made where there is no picture."""
    answer = ask(options, "screenshot", vm=options.vm)
    png = base64.b64decode(answer.pop("png"))
    if options.file == "-":
        sys.stdout.flush()
        sys.stdout.buffer.write(png)
        return OK
    try:
        with _open(options.vm, options.file) as file:
            file.write(png)
    except OSError as error:
        raise Refusal(f"{error.filename}: {error.strerror}", FAILED) from None
    show([{**answer, "path": os.path.abspath(file.name)}], COLUMNS, chosen(options))
    return OK


def _open(vm: str, path: str | None) -> BinaryIO:
    """The file that was named, or a new one; two commands at the same time get one each."""
    if path is not None:
        return open(path, "wb")
    for number in itertools.count(1):
        try:
            return open(f"{vm}.png" if number == 1 else f"{vm}-{number}.png", "xb")
        except FileExistsError:
            continue
    raise AssertionError("numbers do not end")
