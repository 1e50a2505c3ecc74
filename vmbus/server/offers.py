"""What the host offers: devices, their offers, and the order and numbers that channels get. Root side."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import attrs

from hypervisor.inspect import Branch
from hypervisor.monitor_page import MAX_LATENCY
from hypervisor.wire import Guid
from vmbus.protocol.features import OfferFlag
from vmbus.protocol.identifiers import MAX_CHANNELS

if TYPE_CHECKING:
    from vmbus.channel import Channel
    from vmbus.server.opened import OpenedChannel


@attrs.frozen
class Offer:
    """A device as the guest is told of it."""

    interface: Guid
    instance: Guid
    flags: int = 0
    """`OfferFlag` bits; those that the guest did not negotiate are masked when the offer is sent."""
    user_defined: bytes = bytes(120)
    mmio_megabytes: int = 0
    subchannel_index: int = 0
    """0 for a primary channel. A subchannel has its primary's interface and instance."""
    monitor_latency: int | None = None
    """In 100 ns: give the channel a monitor ID where the guest has monitor pages. Signals then cost neither side a
    hypercall and come this much later. Hyper-V's network devices have 100 us, its storage none.
    """
    order: int | None = None
    """Place among the offers of one interface; those without come last, by instance."""
    name: str = ""
    """For people."""

    @property
    def key(self) -> OfferKey:
        """No two live offers have the same."""
        return self.interface, self.instance, self.subchannel_index

    @property
    def sort_key(self) -> tuple[str, bool, int, str, int]:
        """Interface, order, instance: so a guest that boots again sees the same channel IDs."""
        return str(self.interface), self.order is None, self.order or 0, str(self.instance), self.subchannel_index

    def subchannel(self, index: int) -> Offer:
        """The offer of a subchannel of this primary."""
        return attrs.evolve(self, subchannel_index=index, name=f"{self} subchannel {index}")

    def inspect(self) -> Branch:
        """What the guest is told."""
        return Branch(
            {
                "name": self.name,
                "interface": str(self.interface),
                "instance": str(self.instance),
                "subchannel": self.subchannel_index,
                "flags": OfferFlag(self.flags).name if self.flags else "none",
                "mmio_megabytes": self.mmio_megabytes,
                "monitor_latency_us": None if self.monitor_latency is None else self.monitor_latency / 10,
            }
        )

    def __str__(self) -> str:
        return self.name or f"{self.interface}/{self.instance}"


OfferKey = tuple[Guid, Guid, int]


class Device(Protocol):
    """What a VSP is to the bus."""

    @property
    def offer(self) -> Offer:
        """What the guest is told."""

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Run while the channel is open; cancelled when the guest closes it.

        Return, or raise `WireError` or `GpaFault`, to stop before that: the guest's fault, which is traced. The channel
        stays open, unserved, until the guest closes it. Any other exception is our own bug and is let through.

        A device that offers subchannels (`OpenedChannel.offer_subchannels`) serves several channels at a time.

        It may be a `PreparedDevice`, a `SavableDevice` and a `LeavingDevice` too.
        """


@runtime_checkable
class PreparedDevice(Protocol):
    """A device that has something to do before the guest hears whether its channel is open."""

    async def prepare(self, opened: OpenedChannel) -> bool:
        """Whether the open succeeds; cancelled when the guest waits for it no more. `serve` follows a yes."""


@runtime_checkable
class SavableDevice(Protocol):
    """A device whose guests can be saved while its channel is open."""

    def save(self, channel_id: int) -> bytes | None:
        """Bytes that describe the session; None while something that it took off the ring is not answered."""

    def load(self, untrusted: bytes) -> object:
        """Check such bytes; what `serve` finds in `OpenedChannel.restored`. Raises `WireError`."""


@runtime_checkable
class LeavingDevice(Protocol):
    """A device that needs notice before it is taken off the bus."""

    async def leave(self) -> None:
        """Answer what it owes, and end on its own, in bounded time. After it the device is rescinded."""


@runtime_checkable
class InspectableDevice(Protocol):
    """A device that shows itself, and what it has under way."""

    def inspect(self) -> Branch:
        """All of it."""

    def inspect_channel(self, channel_id: int) -> Branch:
        """Its session on one open channel. Raises `Gone` where it serves none there."""


class ChannelIds:
    """The lowest free channel ID, 1 to 2047. IDs are given when an offer is sent and come back at release."""

    __slots__ = ("_fresh", "_planned", "_returned")

    def __init__(self) -> None:
        self._fresh = 1
        """This one and all above were never given; a list of them would be most of an idle VM's memory."""
        self._returned: list[int] = []
        self._planned: dict[OfferKey, int] = {}

    def plan(self, wanted: Mapping[OfferKey, int]) -> None:
        """Before any is given: these offers get these IDs, others none of them. ValueError for no ID of a channel."""
        if self._fresh != 1 or not all(1 <= channel_id <= MAX_CHANNELS for channel_id in wanted.values()):
            raise ValueError("channel IDs that cannot be planned")
        self._planned = dict(wanted)
        self._fresh = max(wanted.values(), default=0) + 1
        self._returned = sorted(set(range(1, self._fresh)) - set(wanted.values()))

    def take(self, key: OfferKey) -> int | None:
        """The planned ID, or the lowest free one; None if the guest holds them all."""
        planned = self._planned.pop(key, None)
        if planned is not None:
            return planned
        if self._returned:
            return heapq.heappop(self._returned)
        if self._fresh > MAX_CHANNELS:
            return None
        self._fresh += 1
        return self._fresh - 1

    def give_back(self, channel_id: int) -> None:
        """The guest holds this ID no longer."""
        heapq.heappush(self._returned, channel_id)


def check_offer(offer: Offer, live: Iterable[OfferKey]) -> None:
    """ValueError for an offer that cannot be made: the caller's mistake, not a guest's."""
    if len(offer.user_defined) != 120:
        raise ValueError(f"{offer}: user_defined has {len(offer.user_defined)} bytes, not 120")
    if offer.monitor_latency is not None and not 0 < offer.monitor_latency <= MAX_LATENCY:
        raise ValueError(f"{offer}: a monitor latency of {offer.monitor_latency}, not 1 to {MAX_LATENCY}")
    if offer.key in live:
        raise ValueError(f"{offer}: offered already")
