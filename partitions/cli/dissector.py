"""`partita dissector`: where the Wireshark dissector is. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import OK, Verbs

if TYPE_CHECKING:
    import argparse

_DESCRIPTION = """\
Print the path of the Wireshark dissector for VMBus, which reads what `partita run --pcap FILE` records.

In a terminal, with Wireshark's tshark 4.0 or later:

    tshark -X lua_script:$(partita dissector) -r FILE
    tshark -X lua_script:$(partita dissector) -r FILE -2 -V -Y 'vmbus.storage.lun == 0'

For Wireshark's window copy the dissector with its parts, once:

    cp -r $(dirname $(partita dissector)) ~/.local/lib/wireshark/plugins/vmbus

Display filters begin with `vmbus.`; docs/wireshark.md has a table of them.
"""


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    from argparse import RawDescriptionHelpFormatter

    parser = verbs.add_parser(
        "dissector",
        help="print the path of the Wireshark dissector for recordings",
        description=_DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Print the path."""
    from partitions.dissector import PATH

    print(PATH)
    return OK
