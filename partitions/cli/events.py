"""`partita events`: follow the states of VMs. Root side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import add_host_option, with_host
from partitions.cli.output import add_output_option, chosen, write_csv

if TYPE_CHECKING:
    import argparse

    from partitions.remote import Remote


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "events",
        help="follow the states of VMs",
        description="A line for each change of a VM's state from now on: what it was and is, what moved it, who asked "
        "for it, how its run ended. Ends with the host, or at Ctrl-C. JSON is one object a line.",
        allow_abbrev=False,
    )
    parser.add_argument("vm", metavar="VM", nargs="?", help="only of this one")
    add_host_option(parser)
    add_output_option(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Follow until the end."""
    with_host(options, lambda host: follow(host, options.vm, chosen(options)))
    return OK


async def follow(host: Remote, vm: str | None, form: str) -> None:
    """Write each change as it comes."""
    import msgspec

    from partitions.control_protocol import Change

    first = True
    if form == "table":
        name = (await host.hello()).name
    async with host.stream("events", vm=vm) as stream:
        if form == "table":
            print(f"following {name}; Ctrl-C ends", file=sys.stderr, flush=True)
        async for line in stream.lines():
            try:
                change = msgspec.json.decode(line, type=Change)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise host.no_host() from None
            if form == "json":
                print(line.decode())
            elif form == "csv":
                write_csv([_all_of(change)], heading=first)
            else:
                print(words(change))
            first = False
            sys.stdout.flush()


def _all_of(change: Any) -> dict[str, Any]:
    return {name: getattr(change, name) for name in change.__struct_fields__}


def words(change: Any) -> str:
    """A change for people; how a run ended may be in the guest's words, which cannot drive the terminal."""
    from partitions.logs import printable

    by = f", asked by {change.by}" if change.by else ""
    ended = f": {change.words}" if change.words else ""
    lost = f"({change.lost} lost before this)  " if change.lost else ""
    moved = f"{change.before} -> {change.after}".replace("_", " ")
    line = f"{change.time:11.6f}  {change.vm}  {lost}{moved} ({change.cause.replace('_', ' ')}{by}){ended}"
    return printable(line)
