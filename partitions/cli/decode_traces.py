"""What `partita decode` makes of traces: recordings, JSON lines and a Linux guest's ftrace. Root side."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO, Final

from partitions.cli.common import INTERRUPTED, OK, Refusal, read_filter
from partitions.decode.source import Form
from partitions.logs import printable

if TYPE_CHECKING:
    import argparse

    from partitions.cli.trace_views import Lines
    from partitions.decode.ftrace import FtraceReader
    from partitions.trace.filters import Filter

_CHUNK: Final = 1 << 16


def read_piece(file: BinaryIO, name: str) -> bytes:
    """What is there: a pipe does not wait for a whole chunk."""
    try:
        read: bytes = file.read1(_CHUNK) if hasattr(file, "read1") else file.read(_CHUNK)
    except OSError as error:
        raise Refusal(f"{name}: {error.strerror}") from None
    return read


def form_of(head: bytes) -> Form | None:
    """Which trace begins so; None for what is bytes, digits or a dump."""
    from partitions.decode.ftrace import is_ftrace
    from partitions.decode.source import PCAPNG

    if head.startswith(PCAPNG):
        return Form.RECORDING
    if head.lstrip().startswith(b"{"):
        return Form.JSON
    lines = head.decode("utf-8", "replace").splitlines()
    return Form.FTRACE if any(is_ftrace(line) for line in lines) else None


def check_options(form: Form, options: argparse.Namespace) -> None:
    """Raises `Refusal` for options that are about bytes."""
    for name in ("kind", "device", "direction", "vmbus_version", "features"):
        if getattr(options, name) is not None:
            option = "--as" if name == "kind" else f"--{name.replace('_', '-')}"
            raise Refusal(f"{option} goes with bytes; this is a trace ({form.value}), which says that itself")


def _lines(options: argparse.Namespace, wanted: Filter | None) -> Lines:
    from partitions.cli.trace_views import Lines

    shown = 0 if options.summary else 2 if options.hexdump else 1
    return Lines(sys.stdout, json=options.output == "json", wanted=wanted, bytes_shown=shown)


def show_trace(file: BinaryIO, head: bytes, name: str, options: argparse.Namespace) -> int:
    """A recording or JSON lines: the events, and what their bytes say."""
    from partitions.cli.trace_sources import Reading, tell_nothing_fitted

    wanted = read_filter(options.filter)
    view = _lines(options, wanted)
    reading = Reading(view, name)
    piece = head
    try:
        while piece and reading.take(piece):
            piece = read_piece(file, name)
    except KeyboardInterrupt:
        reading.end()
        return INTERRUPTED
    reading.end()
    if wanted is not None and not view.fitted:
        tell_nothing_fitted(name, wanted)
    return OK


def show_ftrace(file: BinaryIO, head: bytes, name: str, options: argparse.Namespace) -> int:
    """A Linux guest's trace: events as they come, and at the end the story of the bus."""
    from partitions.decode.ftrace import NO_EVENTS, REMEDY, FtraceReader

    reader, view = FtraceReader(), _lines(options, read_filter(options.filter))
    rest = b""
    piece = head
    status = OK
    try:
        while piece:
            *lines, rest = (rest + piece).split(b"\n")
            _take(reader, view, lines)
            view.settle()
            piece = read_piece(file, name)
    except KeyboardInterrupt:
        status = OK if name == "standard input" else INTERRUPTED
    _take(reader, view, [rest] if rest else [])
    view.finish()
    if not reader.story.count:
        raise Refusal(f"{name}: {NO_EVENTS}; {REMEDY}")
    if options.output == "tree":
        print()
        print("\n".join(reader.story.lines()))
        sys.stdout.flush()
    for note in reader.notes():
        print(f"note: {printable(note)}", file=sys.stderr)
    return status


def _take(reader: FtraceReader, view: Lines, lines: list[bytes]) -> None:
    for line in lines:
        event = reader.feed(line.decode("utf-8", "replace").rstrip("\r"))
        if event is not None:
            view.feed(event, event.vm)
