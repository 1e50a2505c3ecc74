"""How `partita decode` shows bytes: as a tree, as a line, as a JSON document. Root side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import msgspec

from partitions.cli.common import FAILED, OK, Refusal, print_json, spelled_out
from partitions.decode.field import Field
from partitions.decode.hexdump import hexdump
from partitions.decode.kinds import KINDS, Context, guess, guess_device
from partitions.decode.packet import payload_span
from partitions.decode.source import Form, Source, SourceError, from_digits
from partitions.decode.text import plain, render
from partitions.logs import printable, wants_colour

if TYPE_CHECKING:
    import argparse


class Decoded(NamedTuple):
    """Bytes, what they were taken for, and their tree."""

    data: bytes
    kind: str
    device: str
    assumed: list[str]
    field: Field


def decode(source: Source, options: argparse.Namespace, context: Context) -> Decoded:
    """Tell what the bytes are, unless somebody has said it. Raises `Refusal`."""

    data, kind, assumed = source.data, options.kind, []
    if kind is None:
        found = guess(data)
        if found is None:
            size = f"{len(data)} byte{'s' * (len(data) != 1)}{'' if any(data) else ', all zero'}"
            raise Refusal(
                f"{size} ({source.words}), and they look like nothing that is known here; say what they are with --as: "
                + ", ".join(KINDS)
            )
        kind = found.kind
        assumed.append(f"{KINDS[kind].words}: {found.why}")
    device = context.device
    if not device and kind in ("packet", "payload"):
        device = _device(data, kind)
        if device:
            assumed.append(f"of {device}: so its payload looks")
    field = KINDS[kind].decode(data, msgspec.structs.replace(context, device=device))
    return Decoded(data, kind, device, assumed, field)


def show(source: Source, options: argparse.Namespace, context: Context) -> int:
    """One unit, as the options say. Returns the exit status. Raises `Refusal`."""
    if options.filter is not None:
        raise Refusal("--filter goes with a trace, and these are bytes")
    made = decode(source, options, context)
    if options.output == "json":
        print_json(_document(made))
    elif options.summary:
        print(_line(made))
    else:
        if made.assumed:
            print(f"taken for {', '.join(made.assumed)} (--as and --device decide)")
        if source.words not in ("hexadecimal digits", "numbers"):
            print(f"read as {source.words}")
        _print_tree(made, bytes_first=options.hexdump)
    return FAILED if made.field.faults else OK


def show_lines(file: BinaryIO, name: str, options: argparse.Namespace, context: Context) -> int:
    """A unit in each line; what cannot be read is told with its line, and the rest goes on."""

    status, number = OK, 0
    for number, line in enumerate(iter(file.readline, b""), 1):
        text = line.decode("utf-8", "replace").strip()
        if not text or text.startswith("#"):
            continue
        place = f"{name}, line {number}"
        try:
            made = decode(Source(Form.BYTES, from_digits(text, place), place), options, context)
        except (SourceError, Refusal) as error:
            print(f"error: {error}", file=sys.stderr)
            status = FAILED
            continue
        if options.output == "json":
            print(spelled_out(msgspec.json.encode({"line": number, **_document(made)}).decode()))
        elif options.summary:
            print(_line(made))
        else:
            print(f"line {number}")
            _print_tree(made, bytes_first=options.hexdump)
        status = FAILED if made.field.faults else status
        sys.stdout.flush()
    if not number:
        raise Refusal(f"{name}: it is empty")
    return status


def _device(data: bytes, kind: str) -> str:

    start, end = payload_span(data) if kind == "packet" else (0, len(data))
    return guess_device(data[start:end])


def _document(made: Decoded) -> dict[str, Any]:

    return {
        "kind": made.kind,
        **({"device": made.device} if made.device else {}),
        **({"assumed": made.assumed} if made.assumed else {}),
        "words": _words(made),
        "faults": [f"{one.name} at {one.offset}: {one.fault}" for one in made.field.faults],
        "data": made.data.hex(),
        "fields": plain(made.field),
    }


def _words(made: Decoded) -> str:
    """The unit in one line; a packet's with what its device makes of it."""
    payload = made.field.find("payload") if made.kind == "packet" else None
    return ": ".join(filter(None, (made.field.words, payload.words if payload is not None else "")))


def _line(made: Decoded) -> str:

    faults = made.field.faults
    return printable(_words(made) + (f"  ! {faults[0].fault}" if faults else ""))


def _print_tree(made: Decoded, *, bytes_first: bool) -> None:

    if bytes_first:
        print("\n".join(hexdump(made.data)) + "\n")
    for line in render(made.field, made.data, colour=wants_colour(sys.stdout)):
        print(line)
