"""`partita type`: type text on a VM's keyboard. Root side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from partitions.cli.common import OK, Refusal, Verbs
from partitions.cli.hosts import add_host_option, with_host

if TYPE_CHECKING:
    import argparse

    from partitions.remote import Remote


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "type",
        help="type text on a VM's keyboard",
        description="Type text on the keyboard of a VM, as somebody would who sits at it with a US keyboard: \\n in "
        "TEXT is Enter, \\t Tab, \\e Esc, \\\\ a backslash. TEXT of - is what comes on standard input, as it is. "
        "Characters that a US keyboard has not are typed where the guest's driver takes them; Linux's does not.",
        allow_abbrev=False,
    )
    parser.add_argument("vm", metavar="VM", help="name of a VM")
    parser.add_argument("text", metavar="TEXT", help="what to type; - for standard input")
    add_host_option(parser)
    parser.set_defaults(call=call)


_ESCAPES = {"n": "\n", "t": "\t", "e": "\x1b", "\\": "\\"}


def unescaped(text: str) -> str:
    """What is meant by a text with backslashes in it. Raises `Refusal`."""
    parts = text.split("\\")
    made, place = parts[0], 1
    while place < len(parts):
        part = parts[place]
        if not part and place + 1 < len(parts):  # two in a row
            made += "\\" + parts[place + 1]
            place += 2
            continue
        if not part or part[0] not in _ESCAPES:
            raise Refusal(f'TEXT has "\\{part[:1]}" in it; there are \\n, \\t, \\e, and \\\\ for a backslash')
        made += _ESCAPES[part[0]] + part[1:]
        place += 1
    return made


def call(options: argparse.Namespace) -> int:
    """Type it, a few thousand characters at a time."""
    from partitions.control_protocol import MAX_TEXT

    try:
        text = sys.stdin.read() if options.text == "-" else unescaped(options.text)
    except UnicodeDecodeError as error:
        raise Refusal(f"standard input is no text: {error}") from None

    async def type_all(host: Remote) -> None:
        for at in range(0, len(text), MAX_TEXT):
            await host.ask("type", vm=options.vm, text=text[at : at + MAX_TEXT])

    with_host(options, type_all)
    return OK
