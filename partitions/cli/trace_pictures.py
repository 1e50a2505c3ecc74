"""What `partita trace` draws: a sequence diagram, a timeline. Root side."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING

import msgspec

from partitions.cli.common import FAILED, USAGE, Refusal
from partitions.trace.sequence import MOST_ROWS, Sequence, SequenceTooLong
from partitions.trace.timeline import Timeline

if TYPE_CHECKING:
    from hypervisor.trace import TraceEvent
    from partitions.recording.reader import Wanted
    from partitions.trace.filters import Filter


class SequencePicture:
    """The diagram of what a filter likes, as Mermaid text or SVG, in a file or on standard output."""

    def __init__(self, wanted: Filter | None, *, svg: bool, output: str | None, most_rows: int = MOST_ROWS) -> None:
        self.fitted = False
        self._sequence = Sequence()
        self._filter = wanted
        self._svg = svg
        self._output = output
        self._most_rows = most_rows

    def wanted(self) -> Wanted | None:
        """Channels have had their names since before the window."""
        if self._filter is None:
            return None
        return msgspec.structs.replace(self._filter.wanted(), layers=None, channels=None, directions=None, since=None)

    def feed(self, event: TraceEvent, vm: str) -> None:
        """One more."""
        fits = self._filter is None or self._filter(event, vm)
        self.fitted = self.fitted or fits
        try:
            self._sequence.feed(event, vm, wanted=fits)
        except SequenceTooLong as error:
            raise Refusal(f"--sequence: {error}", USAGE) from None

    def settle(self) -> None:
        """It is drawn at the end."""

    def finish(self) -> None:
        """Draw it."""
        try:
            text = self._drawn()
        except SequenceTooLong as error:
            raise Refusal(f"--sequence: {error}", USAGE) from None
        if self._output is None:
            sys.stdout.write(text)
            return
        try:
            with open(self._output, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise Refusal(f"-O {self._output}: {error.strerror}", FAILED) from None

    def _drawn(self) -> str:
        diagram = self._sequence.diagram(most_rows=self._most_rows)
        if self._svg:
            from partitions.trace.sequence_svg import svg

            return svg(diagram, title="" if self._filter is None else self._filter.text)
        from partitions.trace.sequence_mermaid import mermaid

        return mermaid(diagram)


class TimelineFile:
    """Chrome trace events of what a filter likes, written as the trace is read. The file is made with the first."""

    def __init__(self, wanted: Filter | None, output: str) -> None:
        self.fitted = False
        self._filter = wanted
        self._name = output
        self._file: IO[bytes] | None = None
        self._timeline = Timeline(self._write)

    def _write(self, data: bytes) -> None:
        if self._file is None:
            try:
                self._file = open(self._name, "wb", buffering=0)  # noqa: SIM115  # closed in finish, or below
            except OSError as error:
                raise Refusal(f"--timeline {self._name}: {error.strerror}") from None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.close()
            raise Refusal(f"--timeline {self._name}: {error.strerror}", FAILED) from None

    def wanted(self) -> Wanted | None:
        """What heads of events decide."""
        return None if self._filter is None else self._filter.wanted()

    def feed(self, event: TraceEvent, vm: str) -> None:
        """One more."""
        if self._filter is None or self._filter(event, vm):
            self.fitted = True
            self._timeline.feed(event, vm)

    def settle(self) -> None:
        """What there is goes into the file."""
        self._timeline.flush()

    def finish(self) -> None:
        """End the file."""
        self._timeline.finish()
        if self._file is not None:
            self._file.close()
