"""A part of a recording as a recording of its own: the wanted events, their blocks as they are. Root side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hypervisor.trace import TraceEvent
from partitions.recording.event_codec import DROPPED
from partitions.recording.pcapng import BlockReader, BlockType
from partitions.recording.reader import RecordingReader, Wanted

_EVENTS: Final = (BlockType.PACKET, BlockType.CUSTOM, BlockType.HIDDEN)


class RecordingCopier(RecordingReader):
    """Feed it a recording in pieces; after each, `take` gives the blocks that are wanted.

    Blocks that are no events come along, and so does what says that something is missing.
    """

    def __init__(
        self, keep: Callable[[TraceEvent], bool], wanted: Wanted | None = None, *, name: str = "the recording"
    ) -> None:
        """`keep` is asked for each event that `wanted` lets through."""
        super().__init__(wanted, name=name)
        self.kept = 0
        """Events so far."""
        self._keep = keep
        self._copied: list[bytes] = []

    def take(self) -> bytes:
        """Whole blocks, in their order."""
        copied, self._copied = self._copied, []
        return b"".join(copied)

    def _take(self, buffer: bytes, spans: list[tuple[int, int, int, int]], events: list[TraceEvent]) -> None:
        for span in spans:
            kind, _, start, stop = span
            made = len(events)
            missing = self.dropped.packets, self.dropped.events
            super()._take(buffer, [span], events)
            if kind in _EVENTS:
                wanted = [event for event in events[made:] if event.event == DROPPED or self._keep(event)]
                self.kept += len(wanted)
                if not wanted and missing == (self.dropped.packets, self.dropped.events):
                    continue
            self._copied.append(buffer[start - 8 : stop + 4])


class EventHider:
    """A recording in pieces, with the events that are no packets hidden from Wireshark, which reads along.

    Raises `pcapng.Damage` for what is no row of blocks.
    """

    def __init__(self) -> None:
        self._blocks = BlockReader()

    def feed(self, data: bytes) -> bytes:
        """The blocks that are whole now."""
        made = []
        while True:
            buffer, spans, damage = self._blocks.spans(data)
            data = b""
            for kind, _, start, stop in spans:
                head = buffer[start - 8 : start]
                if kind == BlockType.CUSTOM:
                    head = (
                        int(BlockType.HIDDEN).to_bytes(4, "little" if self._blocks.order == "<" else "big") + head[4:]
                    )
                made += [head, buffer[start : stop + 4]]
            if damage is not None:
                raise damage
            if not spans:
                return b"".join(made)
