"""Frames that have come and wait for a program. Child side."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import trio

from vmbus.bell import Bell

KEPT_FRAMES = 4096
"""That a program may be behind; what comes then is dropped and counted, as a kernel's backlog does."""


class FrameQueue:
    """Frames for one reader."""

    def __init__(self) -> None:
        self.dropped = 0
        """Frames that came while `KEPT_FRAMES` waited."""
        self._kept: deque[bytes] = deque()
        self._arrived = Bell()
        self._ended: type[trio.EndOfChannel] | type[trio.ClosedResourceError] | None = None
        self._unyielded = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._kept)

    @property
    def closed(self) -> bool:
        """Whether nobody will read it any more."""
        return self._ended is trio.ClosedResourceError

    async def receive_batch(self, limit: int = 256) -> list[bytes]:
        """Up to `limit` frames, at least one. `trio.EndOfChannel` when the device is gone and all are read."""
        await trio.lowlevel.checkpoint_if_cancelled()
        kept = self._kept
        if not kept:
            await self._wait()
        else:
            await trio.lowlevel.cancel_shielded_checkpoint()
        if len(kept) <= limit:
            frames = list(kept)
            kept.clear()
            return frames
        return [kept.popleft() for _ in range(limit)]

    async def receive(self) -> bytes:
        """The next frame. `trio.EndOfChannel` when the device is gone and all are read."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._kept:
            await self._wait()
        else:
            self._unyielded += 1
            if self._unyielded >= 64:
                self._unyielded = 0
                await trio.lowlevel.cancel_shielded_checkpoint()
        return self._kept.popleft()

    def put(self, frames: Sequence[bytes]) -> None:
        """For the driver: these have come."""
        room = KEPT_FRAMES - len(self._kept)
        if len(frames) > room:
            self.dropped += len(frames) - room
            frames = frames[:room]
        self._kept.extend(frames)
        self._arrived.ring()

    def end(self) -> None:
        """For the driver: nothing more will come."""
        self._ended = self._ended or trio.EndOfChannel
        self._arrived.ring()

    def close(self) -> None:
        """For the reader: nothing more is wanted."""
        self._ended = trio.ClosedResourceError
        self._kept.clear()
        self._arrived.ring()

    async def _wait(self) -> None:
        while not self._kept:
            if self._ended is not None:
                raise self._ended
            await self._arrived.wait()
