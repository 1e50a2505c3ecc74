"""What a device gets with an open channel, and how long guest pages stay in view. Root side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import TracebackType

import attrs

from hypervisor.memory import GuestMemory
from hypervisor.wire import BadValue
from vmbus.gpadl import GpadlRange

HoldKey = tuple[int, int]
"""Channel ID and GPADL ID."""


class HoldCounts:
    """How many views of each GPADL there are. The guest gets its pages back when the last has gone."""

    __slots__ = ("_counts", "_released", "_wanted_back")

    def __init__(self, released: Callable[[int, int], None]) -> None:
        """`released(channel_id, gpadl_id)` is called when a GPADL that was asked for has no view left."""
        self._counts: Counter[HoldKey] = Counter()
        self._wanted_back: set[HoldKey] = set()
        self._released = released

    def take(self, channel_id: int, gpadl_id: int) -> None:
        """One more view."""
        self._counts[channel_id, gpadl_id] += 1

    def count(self, channel_id: int, gpadl_id: int) -> int:
        """Views that there are."""
        return self._counts.get((channel_id, gpadl_id), 0)

    def wanted_back(self, channel_id: int, gpadl_id: int) -> bool:
        """Whether the guest waits for the last of them to go."""
        return (channel_id, gpadl_id) in self._wanted_back

    def drop(self, channel_id: int, gpadl_id: int) -> None:
        """One view less."""
        key = channel_id, gpadl_id
        self._counts[key] -= 1
        if self._counts[key] == 0:
            del self._counts[key]
            if key in self._wanted_back:
                self._wanted_back.discard(key)
                self._released(channel_id, gpadl_id)

    def ask_back(self, channel_id: int, gpadl_id: int) -> None:
        """Call `released` when there is no view, which may be now."""
        key = channel_id, gpadl_id
        if key in self._counts:
            self._wanted_back.add(key)
        else:
            self._released(channel_id, gpadl_id)


class GpadlHold:
    """Keeps the guest from getting its pages back: GPADL_TORNDOWN waits for `release`. A context manager too."""

    __slots__ = ("_counts", "_key", "gpadl_id", "ranges")

    def __init__(self, counts: HoldCounts, channel_id: int, gpadl_id: int, ranges: tuple[GpadlRange, ...]) -> None:
        counts.take(channel_id, gpadl_id)
        self._counts = counts
        self._key: HoldKey | None = (channel_id, gpadl_id)
        self.gpadl_id = gpadl_id
        self.ranges = ranges

    def release(self) -> None:
        """All views made of `ranges` are gone. Twice is harmless."""
        if self._key is not None:
            key, self._key = self._key, None
            self._counts.drop(*key)

    def __enter__(self) -> GpadlHold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class ChannelGpadls:
    """The GPADLs that a guest made on one channel, as its device sees them."""

    __slots__ = ("_channel_id", "_counts", "_holds", "_ranges")

    def __init__(
        self, channel_id: int, ranges: Callable[[int, int], tuple[GpadlRange, ...] | None], counts: HoldCounts
    ) -> None:
        self._channel_id = channel_id
        self._ranges = ranges
        self._counts = counts
        self._holds: list[GpadlHold] = []

    def ranges(self, untrusted_gpadl_id: int) -> tuple[GpadlRange, ...]:
        """The pages of a GPADL that the guest named, for use before the next await. `BadValue` if there is none."""
        found = self._ranges(self._channel_id, untrusted_gpadl_id)
        if found is None:
            raise BadValue(f"channel {self._channel_id} has no GPADL {untrusted_gpadl_id:#x}")
        return found

    def hold(self, untrusted_gpadl_id: int) -> GpadlHold:
        """The same for longer; released by you, or when `serve` ends. `BadValue` if there is none."""
        hold = GpadlHold(self._counts, self._channel_id, untrusted_gpadl_id, self.ranges(untrusted_gpadl_id))
        self._holds.append(hold)
        return hold

    def release_all(self) -> None:
        """The device has ended, so its views have."""
        for hold in self._holds:
            hold.release()
        self._holds.clear()


@attrs.define(eq=False)
class OpenedChannel:
    """What the guest said when it opened the channel, and what its device may look at."""

    channel_id: int
    target_vp: int
    """Takes the channel's interrupts; follows MODIFY_CHANNEL."""
    user_data: bytes
    """120 bytes of the guest's, for the device."""
    version: int
    """The bus version."""
    memory: GuestMemory
    gpadls: ChannelGpadls
    subchannel_index: int = 0
    """0 on a device's primary channel."""
    restored: object = None
    """What the device's `load` made of its saved state, on a channel that a restored guest had open."""
    _more: Callable[[int], None] | None = attrs.field(default=None, alias="more")

    def offer_subchannels(self, count: int) -> None:
        """Have the guest see subchannels 1 to `count`; those that it sees already stay as they are.

        The same device serves them, each opening in a task of its own and with its own `subchannel_index`. They are
        withdrawn when `serve` of this opening ends. On a primary channel only. ValueError if a guest cannot have that
        many channels; some may be offered then.
        """
        assert self._more is not None, f"channel {self.channel_id} is a subchannel"
        self._more(count)
