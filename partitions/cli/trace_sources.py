"""Where `partita trace` gets its events: a file, a growing file, standard input, a running host. Root side."""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from partitions.cli.common import FAILED, USAGE, Refusal
from partitions.cli.trace_views import Enough, View
from partitions.logs import ROOT_NAME, printable, vm_name
from partitions.recording.copier import EventHider
from partitions.recording.reader import RecordingError
from partitions.trace.source import TraceReader

if TYPE_CHECKING:
    from hypervisor.trace import TraceEvent
    from partitions.trace.filters import Filter

CHUNK_BYTES: Final = 1 << 20
FOLLOW_SECONDS: Final = 0.1
"""How often a file that may grow is looked at."""


class Reading:
    """Pieces of a trace in, events to a view; and at the end what a person has to know of what was not there."""

    def __init__(self, view: View, name: str) -> None:
        self.reader = TraceReader(view.wanted(), name=name)
        self.view = view
        self.name = name
        self.read = 0
        self.enough = False
        self._ended = False
        self._damage: RecordingError | None = None

    def take(self, data: bytes) -> bool:
        """One more piece. Returns whether more is wanted."""
        try:
            events: list[TraceEvent] = self.reader.feed(data)
        except RecordingError as error:
            self._damage = error
            return False
        names = self.reader.names
        try:
            for event in events:
                self.read += 1
                self.view.feed(event, vm_name(names, event))
        except Enough:
            self.enough = True
            return False
        return True

    def take_live(self, data: bytes) -> bool:
        """The same, and shown at once."""
        return self.take(data) and self.settle()

    def settle(self) -> bool:
        """There is no more for now: show what there is. Returns whether more is wanted."""
        try:
            self.view.settle()
        except Enough:
            self.enough = True
        return not self.enough

    def end(self) -> None:
        """There is no more: show all, then say what is missing. Raises `Refusal`. A second call does nothing."""
        if self._ended:
            return
        self._ended = True
        if self._damage is None and not self.enough:
            try:
                self.reader.finish()
            except RecordingError as error:
                self._damage = error
        if self._damage is not None and not self.read:
            raise Refusal(str(self._damage), USAGE)
        with contextlib.suppress(Enough):
            self.view.finish()
        sys.stdout.flush()
        for note in self.notes():
            print(f"note: {note}", file=sys.stderr)
        if self._damage is not None:
            raise Refusal(str(self._damage), FAILED)

    def notes(self) -> Iterator[str]:
        """What is not in the trace."""
        if self.reader.dropped:
            yield f"the recorder dropped {self.reader.dropped}: it could not write so fast"
        if self.reader.truncated_at is not None:
            yield f"{self.name} breaks off at byte {self.reader.truncated_at}; all that is whole before it was read"


def open_trace(name: str) -> BinaryIO:
    """The file, or standard input for `-`. Raises `Refusal`."""
    if name == "-":
        return sys.stdin.buffer
    try:
        return open(name, "rb", buffering=0)
    except OSError as error:
        near = _near(Path(name)) if isinstance(error, FileNotFoundError) else ""
        raise Refusal(f"{name}: {error.strerror}{near}") from None


class Copy:
    """A recording, as it comes, in a file or on standard output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.bytes = 0
        self._hider = EventHider() if name == "-" else None
        try:
            self._file = sys.stdout.buffer if name == "-" else open(name, "wb", buffering=0)  # noqa: SIM115  # by close
        except OSError as error:
            raise Refusal(f"-w {name}: {error.strerror}") from None

    def take(self, data: bytes) -> bool:
        """One more piece. A reader that has gone is `BrokenPipeError`, as everywhere."""
        try:
            self._file.write(data if self._hider is None else self._hider.feed(data))
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            self._file.close()
            raise Refusal(f"-w {self.name}: {error.strerror}, after {self.bytes} bytes", FAILED) from None
        self.bytes += len(data)
        return True

    def close(self, what: str = "") -> None:
        """Say what there is now."""
        if self.name != "-":
            self._file.close()
        print(f"note: {what}{self.bytes} bytes recorded", file=sys.stderr)


def tell_nothing_fitted(name: str, condition: Filter) -> None:
    """Perhaps a VM or an event has another name. All of a file is read, for once, to know which there are."""
    from partitions.trace.life_story import unknown

    vms, events = _names_in(name) if os.path.isfile(name) else (set(), set())
    notes = []
    if vms:
        notes += [unknown("VM", vm, sorted(vms)) for vm in sorted((condition.vms or set()) - vms - {ROOT_NAME})]
    if events:
        notes += [unknown("event", event, sorted(events)) for event in condition.event_names if event not in events]
    for note in notes or [f"{name}: nothing in it fits the filter {condition.text}"]:
        print(f"note: {printable(note)}", file=sys.stderr)


def _names_in(path: str) -> tuple[set[str], set[str]]:
    """The VMs of a trace, and its events."""
    reader = TraceReader(name=path)
    events: set[str] = set()
    try:
        with open(path, "rb") as file:
            while data := file.read(CHUNK_BYTES):
                events.update(event.event for event in reader.feed(data))
    except (OSError, RecordingError):
        pass  # said before
    return {name for name in reader.names.values() if not name.startswith("#")}, events


def _near(path: Path) -> str:
    try:
        names = os.listdir(path.parent)
    except OSError:
        return f"; there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f'; did you mean "{path.parent / near[0]}"?' if near else '; "partita run --pcap FILE" records one'


def read_file(reading: Reading, file: BinaryIO, *, follow: bool) -> None:
    """All of it, and with `follow` what comes, until the view has enough. A pipe is read until its end."""
    # A pipe gives what is there; a buffered read would wait for a whole chunk.
    read = file.read1 if hasattr(file, "read1") else file.read
    grows = follow and file.seekable()
    while True:
        try:
            data = read(CHUNK_BYTES)
        except OSError as error:
            raise Refusal(f"{reading.name}: {error.strerror}") from None
        if data:
            if not reading.take(data):
                return
            if not grows:
                sys.stdout.flush()
        elif grows:
            if not reading.settle():
                return
            if os.fstat(file.fileno()).st_size < file.tell():
                raise Refusal(f"{reading.name}: it was cut while it was read; another recording has begun", FAILED)
            time.sleep(FOLLOW_SECONDS)
        else:
            return


async def read_host(take: Callable[[bytes], bool], host: str | None, condition: str, seconds: float | None) -> None:
    """What happens in a running host, until it ends, `take` has enough, or so many seconds have passed."""
    await read_stream(take, host, seconds, "trace", filter=condition or None)


async def read_stream(
    take: Callable[[bytes], bool], host: str | None, seconds: float | None, op: str, **members: Any
) -> None:
    """A stream of a running host's, in the same way."""
    import trio

    from partitions.remote import RemoteError, connect

    try:
        async with connect(host) as remote, remote.stream(op, **members) as stream:
            with trio.move_on_after(float("inf") if seconds is None else seconds):
                while data := await stream.receive():
                    if not take(data):
                        return
    except RemoteError as error:
        raise Refusal(str(error)) from None
