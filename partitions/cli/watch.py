"""`partita watch`: a run as one picture in the browser, from a recording or while it goes on. Root side."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from partitions.cli.common import FAILED, OK, Refusal, Verbs, port_number, read_filter

if TYPE_CHECKING:
    import argparse

    from partitions.trace.filters import Filter
    from partitions.watch.export import Exported

_PIECE = 1 << 20


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "watch",
        help="see a run as a picture in the browser",
        description="Draw root, hypervisor, children and the channels between them, each request moving hop by hop, "
        "to play, pause and step through: of a recording as one HTML file, which needs nothing but a browser; without "
        "one, of a host that runs, at an address on this machine. `partita run --watch` does so from the first moment. "
        "docs/watch.md tells what is in the picture.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        nargs="?",
        help="what `partita run --pcap RECORDING` has written; --trace's JSON lines will do, without bytes; - is "
        "standard input",
    )
    parser.add_argument(
        "--host",
        metavar="NAME",
        nargs="?",
        const="",
        help="where there is no RECORDING, a running host; the only one by default",
    )
    parser.add_argument(
        "--port", type=port_number, metavar="PORT", help="where a running host is shown; a free port by default"
    )
    parser.add_argument(
        "-O", "--page", metavar="PAGE", help="where the page goes; RECORDING.html beside you by default, - prints it"
    )
    parser.add_argument("--filter", metavar="FILTER", help="such as 'vm=web,time=1.2..1.5': what goes into the page")
    parser.add_argument("--limit", type=int, metavar="N", help="events in the page (20000): a megabyte or two")
    parser.add_argument("--last", action="store_true", help="where there are more, the last of them, not the first")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Make the page, or serve it."""
    _check(options)
    if options.recording is None:
        from partitions.cli.watching import watch_host

        return watch_host(options.host or None, options.port or 0, read_filter(options.filter))
    if options.limit is not None and options.limit < 1:
        raise Refusal("--limit takes a number of events, 1 or more")
    wanted = read_filter(options.filter)
    name = "standard input" if options.recording == "-" else Path(options.recording).name
    made, damage = _export(options, wanted, name)
    _write(options, name, made)
    if damage:
        raise Refusal(damage, FAILED)
    if wanted is not None and not made.events:
        from partitions.cli.trace_sources import tell_nothing_fitted

        tell_nothing_fitted(name if options.recording == "-" else options.recording, wanted)
    return OK


def _write(options: argparse.Namespace, name: str, made: Exported) -> None:
    if options.page == "-":
        sys.stdout.buffer.write(made.page)
        return
    target = Path(options.page or f"{'recording' if options.recording == '-' else Path(name).stem}.html")
    try:
        target.write_bytes(made.page)
    except OSError as error:
        raise Refusal(f"-O {target}: {error.strerror}", FAILED) from None
    rest = f"; {made.left_out:,} more are not in it (--limit, --filter, --last)" if made.left_out else ""
    print(f"{target}: {made.events:,} events, {len(made.page) / 1024:,.0f} KiB{rest}")


def _check(options: argparse.Namespace) -> None:
    """What has no meaning for a host that runs. The other way round a variable of the environment may name a host."""
    if options.recording is None:
        for name, value in (("-O", options.page), ("--last", options.last or None)):
            if value is not None:
                raise Refusal(f"{name} goes with a RECORDING; a host that runs is shown at an address, see --port")


def _pieces(recording: str) -> Iterator[bytes]:
    from partitions.cli.trace_sources import open_trace

    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_trace(recording))
        yield from iter(lambda: file.read(_PIECE), b"")


def _export(options: argparse.Namespace, wanted: Filter | None, name: str) -> tuple[Exported, str]:
    """The page, and what is wrong with the recording behind what is on it. Raises `Refusal` where that is nothing."""
    from partitions.recording.reader import RecordingError, Wanted
    from partitions.trace.source import TraceReader
    from partitions.watch.export import LIMIT, Exporter

    # What comes before a window makes the picture what it is at its beginning, so only what comes after is left away.
    reader = TraceReader(None if wanted is None else Wanted(until=wanted.wanted().until), name=name)
    exporter = Exporter(reader.names, limit=options.limit or LIMIT, last=options.last, wanted=wanted)
    damage = ""
    try:
        for piece in _pieces(options.recording):
            exporter.take(reader.feed(piece))
        reader.finish()
    except RecordingError as error:
        damage = str(error)
    except OSError as error:
        raise Refusal(f"{options.recording}: {error.strerror}") from None
    notes = [] if reader.truncated_at is None else [f"the recording breaks off at byte {reader.truncated_at:,}"]
    if wanted is not None:
        notes.append(f"only {wanted.text}")
    if damage:
        notes.append(damage)
    dropped = reader.dropped.packets + reader.dropped.events
    made = exporter.finish(name, notes, dropped)
    if damage and not made.events:
        raise Refusal(damage)
    return made, damage
