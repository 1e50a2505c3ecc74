"""`partita inspect`: look inside a running host by path, and change what can be set. Root side."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from partitions.cli.common import FAILED, OK, Refusal, Verbs
from partitions.cli.hosts import add_host_option, ask, with_host

if TYPE_CHECKING:
    from partitions.remote import Remote


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "inspect",
        help="look inside a running host by path",
        description="Show what lives at a path of a running host, such as vm/web/vmbus/channels/1/ring/outgoing; "
        "without a path, where one can go. A branch ends in a slash. docs/inspect.md has the tree.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="where to look")
    parser.add_argument("-r", "--recursive", action="store_true", help="all levels below, not one")
    parser.add_argument("-l", "--levels", type=_levels, metavar="DEPTH", help="so many levels")
    parser.add_argument(
        "-o",
        "--output",
        choices=("tree", "json", "table"),
        metavar="tree|json",
        help="lines for people, or one JSON document (by default where the output is no terminal)",
    )
    parser.add_argument("-u", "--update", metavar="VALUE", help="set the value at PATH; what it is then is printed")
    add_host_option(parser)
    parser.set_defaults(call=call)


def _levels(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a number of levels, 1 or more, is {text!r}")
    return int(text)


def call(options: argparse.Namespace) -> int:
    """Show, or set."""
    if options.update is not None:
        if not options.path:
            raise Refusal("-u needs the PATH of what is to be set; docs/inspect.md lists what can be")
        if options.recursive or options.levels is not None:
            raise Refusal("-u sets one value: it does not go with -r and -l")
        print(ask(options, "update", path=options.path, value=options.update))
        return OK
    depth = options.levels if options.levels is not None else None if options.recursive else 1
    form = options.output or ("tree" if sys.stdout.isatty() else "json")
    if not with_host(options, lambda host: show(host, options.path, depth, "json" if form == "json" else "tree")):
        raise Refusal("the host has ended in the middle of its answer", FAILED)
    return OK


async def show(host: Remote, path: str, depth: int | None, form: str) -> bool:
    """Write the answer as it comes; whether all of it came. Its last line end is the sign of that."""
    last = b""
    async with host.stream("inspect", path=path, depth=depth, form=form) as stream:
        while data := await stream.receive():
            data = last + data
            sys.stdout.buffer.write(data[:-1])
            last = data[-1:]
    whole = last == b"\n"
    sys.stdout.buffer.write(last if form == "json" or not whole else b"")
    sys.stdout.flush()
    return whole
