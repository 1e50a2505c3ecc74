"""One direction of a cable: rate, delay, jitter, loss, duplicates, overtaking, broken bits. Pure. Root side.

A frame that is sent at `now` has left when those before it have, and its own bits: `max(last, now) + size / rate`. It
arrives `delay + jitter` later, and never before one that was sent earlier, unless `reorder` is on.

Chance. Each frame takes exactly three numbers of 128 bits from the link's own generator, needed or not: one for loss,
one for jitter, one for all else. So what is switched on or off leaves everything else as it was, frame by frame.
"""

from __future__ import annotations

import enum
import heapq
import random

from vsp_vsc.network.shaping.bucket import SECOND
from vsp_vsc.network.shaping.settings import LinkSettings

_BITS = 128
_WORD = 0xFFFFFFFF


class Fate(enum.Enum):
    """What becomes of a frame."""

    ARRIVES = "arrives"
    LOST = "lost"
    FULL = "full"
    """There is no room for it on the way."""


class Link:
    """Nanoseconds; time never goes back."""

    def __init__(self, settings: LinkSettings, chance: random.Random) -> None:
        self.settings = settings
        """May be set anew at any time: for frames that come after."""
        self.sent = self.sent_bytes = self.arrived = self.arrived_bytes = 0
        self.lost = self.full = self.duplicated = self.reordered = self.corrupted = 0
        self.scheduled: int | None = None
        """When somebody comes for the next arrival; theirs to set."""
        self._chance = chance
        self._serial = 0
        self._on_the_way: list[tuple[int, int, bytes]] = []
        self._free_at = 0
        """When the last frame's bits have left."""
        self._last = 0
        """When the last of those that keep their order arrives."""
        self._since_reordered = 0
        self._bad = False

    def send(self, now: int, frame: bytes) -> Fate:
        """A frame enters."""
        settings, draw = self.settings, self._chance.getrandbits
        loss, jitter, rest = draw(_BITS), draw(_BITS), draw(_BITS)
        lost = self._is_lost(settings, loss)
        if len(self._on_the_way) >= settings.limit:
            self.full += 1
            return Fate.FULL
        self.sent += 1
        self.sent_bytes += len(frame)
        left = now
        if settings.rate:
            left = max(self._free_at, now) - (-8 * len(frame) * SECOND // settings.rate)
            self._free_at = left
        if lost:
            self.lost += 1
            return Fate.LOST
        if rest & _WORD < settings.corrupt:
            self.corrupted += 1
            frame = _broken(frame, rest >> 32 & _WORD)
        if not settings.reorder:
            arrival = self._last = max(self._last, left + settings.delay + (jitter * (settings.jitter + 1) >> _BITS))
        elif self._since_reordered < settings.gap - 1 or rest >> 64 & _WORD >= settings.reorder:
            self._since_reordered += 1
            arrival = left + settings.delay + (jitter * (settings.jitter + 1) >> _BITS)
            self._last = max(self._last, arrival)
        else:
            self._since_reordered = 0
            self.reordered += 1
            arrival = left
        self._put(arrival, frame)
        if rest >> 96 < settings.duplicate and len(self._on_the_way) < settings.limit:
            self.duplicated += 1
            self._put(arrival, frame)
        return Fate.ARRIVES

    def change(self, now: int, settings: LinkSettings) -> None:
        """Other settings. With another rate, what had to wait for the old one waits for the new one where that is less.

        So a cable that was slow, or that lost all of the much that was sent, is of use at once.
        """
        before, self.settings = self.settings, settings
        if settings.rate == before.rate:
            return
        free, latest, way = now, 0, []
        for arrival, serial, frame in sorted(self._on_the_way, key=lambda entry: entry[1]):
            if settings.rate:
                free -= -8 * len(frame) * SECOND // settings.rate
            arrival = min(arrival, free + before.delay + before.jitter)
            latest = max(latest, arrival)
            way.append((arrival, serial, frame))
        heapq.heapify(way)
        self._on_the_way = way
        self._free_at, self._last = min(self._free_at, free), min(self._last, latest)

    def _is_lost(self, settings: LinkSettings, drawn: int) -> bool:
        if not settings.to_bad:
            return drawn & _WORD < settings.loss
        leaves = drawn >> 32 & _WORD
        if self._bad:
            self._bad = leaves >= settings.to_good
            return drawn & _WORD < settings.bad_loss
        self._bad = leaves < settings.to_bad
        return drawn & _WORD < settings.loss

    def _put(self, arrival: int, frame: bytes) -> None:
        self._serial += 1
        heapq.heappush(self._on_the_way, (arrival, self._serial, frame))

    @property
    def next_time(self) -> int | None:
        """When the next frame arrives."""
        return self._on_the_way[0][0] if self._on_the_way else None

    def arrivals(self, now: int) -> list[bytes]:
        """Frames that have arrived, in order."""
        way = self._on_the_way
        frames = []
        while way and way[0][0] <= now:
            frame = heapq.heappop(way)[2]
            frames.append(frame)
            self.arrived_bytes += len(frame)
        self.arrived += len(frames)
        return frames

    def __len__(self) -> int:
        """Frames on their way."""
        return len(self._on_the_way)

    def cut(self) -> int:
        """The cable is pulled out: how many frames were on their way."""
        count = len(self._on_the_way)
        self._on_the_way.clear()
        self._free_at = self._last = 0
        return count


def _broken(frame: bytes, drawn: int) -> bytes:
    """With one bit turned over."""
    if not frame:
        return frame
    place = drawn * len(frame) * 8 >> 32
    changed = bytearray(frame)
    changed[place >> 3] ^= 1 << (place & 7)
    return bytes(changed)
