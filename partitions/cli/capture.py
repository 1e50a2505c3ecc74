"""`partita capture`: Ethernet at ports of a running host's switches. Root side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from partitions.cli.common import OK, Refusal, Verbs
from partitions.cli.hosts import add_host_option

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "capture",
        help="record Ethernet at a switch port of a running host",
        description="Record what goes through ports of a running host's switches as pcapng, until Ctrl-C or the end "
        "of the host: `partita capture web/0 | tshark -r -`. A port is a VM and the number of its adapter; lan:host "
        "and lan:uplink are the host's own.",
        allow_abbrev=False,
    )
    parser.add_argument("capture_port", metavar="PORT", nargs="+", help="such as web/0")
    parser.add_argument("-w", "--write", metavar="FILE", default="-", help="by default standard output")
    parser.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="end after that long")
    add_host_option(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Record."""
    if options.write == "-" and sys.stdout.isatty():
        raise Refusal("a capture is bytes and no text; name a file with -w, or a reader: | tshark -r -")
    import trio

    from partitions.cli.trace_sources import Copy, read_stream

    copy = Copy(options.write)

    async def record() -> None:
        await read_stream(copy.take, options.host, options.seconds, "capture", ports=options.capture_port)

    try:
        trio.run(record)
    except KeyboardInterrupt:
        pass
    copy.close()
    return OK
