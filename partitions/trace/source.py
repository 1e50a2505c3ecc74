"""A trace in any of the forms that are written: a recording, or JSON lines, told by its first byte. Root side."""

from __future__ import annotations

from hypervisor.trace import TraceEvent
from partitions.recording.buffer import Dropped
from partitions.recording.json_lines import JsonLinesReader
from partitions.recording.reader import RecordingReader, Wanted


class TraceReader:
    """Feed it pieces of any size; each call gives the events that are whole now, in order, with their VMs' names.

    Raises `RecordingError` for what is no trace, and for damage after all that came before it.
    """

    def __init__(self, wanted: Wanted | None = None, *, name: str = "the trace") -> None:
        """`wanted` is a hint: events beyond it may come. `name` is what errors call it."""
        self._recording = RecordingReader(wanted, name=name)
        self._reader: RecordingReader | JsonLinesReader = self._recording
        self._name = name
        self._begun = False

    def feed(self, data: bytes) -> list[TraceEvent]:
        """What is whole now."""
        if not self._begun and data:
            self._begun = True
            if data[:1] == b"{":
                self._reader = JsonLinesReader(name=self._name)
        return self._reader.feed(data)

    def finish(self) -> None:
        """There is no more."""
        self._reader.finish()

    @property
    def names(self) -> dict[int, str]:
        """Partition ID to VM name, as far as they have come up."""
        return self._reader.names

    @property
    def dropped(self) -> Dropped:
        """What the recorder could not write fast enough."""
        return self._reader.dropped

    @property
    def truncated_at(self) -> int | None:
        """Where the last whole block or line ends, in bytes, if something follows it; known after `finish`."""
        return self._reader.truncated_at
