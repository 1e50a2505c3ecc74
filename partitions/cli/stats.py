"""`partita stats`: what went through the VMs of running hosts. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import add_host_option, all_rows, shown
from partitions.cli.output import Row, add_output_option, chosen, duration, plain, show, size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def _waiting(name: str) -> Callable[[Row], str]:
    """Seconds; nothing where there are none, so that a host without contention has no such column."""
    words = duration(name)
    return lambda row: words(row) if row[name] else ""


COLUMNS: Final = [
    ("HOST", plain("host")),
    ("VM", plain("vm")),
    ("STATE", plain("state")),
    ("UPTIME", duration("uptime")),
    ("CPU", duration("cpu")),
    ("READY", _waiting("ready")),
    ("CAPPED", _waiting("capped")),
    ("MESSAGES", plain("messages")),
    ("PACKETS", plain("packets")),
    ("BYTES", size("bytes")),
    ("HYPERCALLS", plain("hypercalls")),
    ("INTERRUPTS", plain("interrupts")),
    ("FAULTS", plain("faults")),
]


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "stats",
        help="count what went through the VMs of running hosts",
        description="Counters of each VM since its start, or of its last run: messages, packets and bytes on the bus, "
        "hypercalls, interrupts, time of its processors and time that they waited. JSON and CSV have more of them than "
        "the table.",
        allow_abbrev=False,
    )
    parser.add_argument("vm", metavar="VM", nargs="?", help="only this one")
    add_host_option(parser)
    add_output_option(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """A row for each VM."""
    rows = all_rows(options, "stats")
    show(rows, shown(COLUMNS, rows), chosen(options))
    return OK
