"""`partita keys`: press keys of a VM's keyboard. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import add_host_option, ask

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "keys",
        help="press keys of a VM's keyboard",
        description="Press keys of a VM's keyboard, one KEYS after the other: keys by name, those that are held down "
        "together joined by dashes, as ctrl-alt-del, alt-f2, shift-a, enter.",
        allow_abbrev=False,
    )
    parser.add_argument("vm", metavar="VM", help="name of a VM")
    parser.add_argument("keys", metavar="KEYS", nargs="+", help="keys that go down together, as ctrl-alt-del")
    add_host_option(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Press and let go."""
    ask(options, "keys", vm=options.vm, keys=options.keys)
    return OK
