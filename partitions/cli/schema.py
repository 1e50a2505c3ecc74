"""`partita schema`: the JSON Schema of a topology, for editors. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import OK, Verbs, print_json

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "schema",
        help="print the JSON Schema of topology files",
        description="Print the JSON Schema of topology files, by which an editor completes and checks them.",
        allow_abbrev=False,
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Print it."""
    from partitions.topology import schema

    print_json(schema())
    return OK
