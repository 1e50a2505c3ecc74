"""Guests with network adapters on a switch: the real VSP, VSC and switch in plain memory, no hypervisor."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from hypervisor.clock import ticks
from hypervisor.trace import Trace, TraceEvent
from hypervisor.wire import Guid, WireError
from tests.doubles.storage import PlainPlatform, channel_pair
from tests.doubles.switch import ethernet, mac
from vmbus.channel import Channel
from vmbus.gpadl import GpadlRange
from vmbus.server.opened import ChannelGpadls, HoldCounts, OpenedChannel
from vsp_vsc.network.switch.kinds import SwitchKind
from vsp_vsc.network.switch.ports import Port
from vsp_vsc.network.switch.settings import PortSettings
from vsp_vsc.network.switch.switch import VirtualSwitch
from vsp_vsc.network.vsc import Network, NetworkSettings, open_network
from vsp_vsc.network.vsp import NetworkVsp

PATIENCE_SECONDS = 20
_PRIMARY = 5


class TimedPlatform(PlainPlatform):
    """With a clock."""

    def reference_time(self) -> int:
        return ticks(trio.current_time())


@attrs.define(eq=False, slots=False)
class NetworkGuest:
    """One adapter: the bus between its VSP and its driver is this object, for both."""

    vsp: NetworkVsp
    port: Port
    platform: TimedPlatform
    nursery: trio.Nursery
    events: list[TraceEvent]
    ring_bytes: int
    processors: int = 1
    options: dict[str, object] = attrs.field(factory=dict)
    stopped: list[WireError] = attrs.field(factory=list)
    """Mistakes that made the VSP stop."""
    ends: list[tuple[Channel, Channel]] = attrs.field(factory=list)
    """Host's end and guest's end of each open channel."""
    gpadls: dict[int, tuple[GpadlRange, ...]] = attrs.field(factory=dict)
    _released: dict[int, trio.Event] = attrs.field(factory=dict)
    _served: dict[Channel, trio.Event] = attrs.field(factory=dict)
    _scopes: list[trio.CancelScope] = attrs.field(factory=list)
    _offered: int = 0

    def __attrs_post_init__(self) -> None:
        self._counts = HoldCounts(lambda _channel, gpadl: self._released.setdefault(gpadl, trio.Event()).set())
        self._add, self._sub_channels = trio.open_memory_channel[int](math.inf)

    # --- as the host's bus

    def open(self, index: int = 0) -> Channel:
        """The guest opens a channel; its end."""
        host_end, guest_end = channel_pair(self.ring_bytes)
        opened = OpenedChannel(
            channel_id=_PRIMARY + index,
            target_vp=index,
            user_data=bytes(120),
            version=0x50003,
            memory=self.platform.guest,
            gpadls=ChannelGpadls(
                _PRIMARY + index,
                lambda channel, gpadl: self.gpadls.get(gpadl) if channel == _PRIMARY else None,
                self._counts,
            ),
            subchannel_index=index,
            more=self._offer if not index else None,
        )
        if not index:
            self._offered = 0
        self.ends.append((host_end, guest_end))
        self._served[guest_end] = trio.Event()
        self.nursery.start_soon(self._serve, host_end, guest_end, opened)
        return guest_end

    async def _serve(self, host_end: Channel, guest_end: Channel, opened: OpenedChannel) -> None:
        scope = trio.CancelScope()
        self._scopes.append(scope)
        try:
            with scope:
                await self.vsp.serve(host_end, opened)
        except WireError as fault:
            self.stopped.append(fault)
        finally:
            opened.gpadls.release_all()
            self._served[guest_end].set()

    def _offer(self, count: int) -> None:
        for index in range(self._offered + 1, count + 1):
            self._add.send_nowait(index)
        self._offered = max(self._offered, count)

    def stand_still(self) -> Channel:
        """The VSP reads and says nothing any more, and the channel stays open: the host's end, for a test."""
        for scope in self._scopes:
            scope.cancel()
        return self.ends[0][0]

    def rescind(self) -> None:
        """The host takes the adapter away at once: `serve` is cancelled, and the guest hears of it."""
        for scope in self._scopes:
            scope.cancel()
        for host_end, guest_end in self.ends:
            host_end.close()
            guest_end.close(by_peer=True)
        self.ends.clear()

    # --- as the guest's bus (`vmbus.client.driver_bus.DriverBus`)

    async def create_gpadl(self, gpns: Sequence[int], byte_count: int) -> int:
        await trio.lowlevel.checkpoint()
        gpadl_id = 0xE1E10 + len(self._released)
        self._released[gpadl_id] = trio.Event()
        self.gpadls[gpadl_id] = (GpadlRange(byte_count, 0, tuple(gpns)),)
        return gpadl_id

    async def teardown_gpadl(self, gpadl_id: int) -> None:
        self.gpadls.pop(gpadl_id, None)
        self._counts.ask_back(_PRIMARY, gpadl_id)
        await self._released[gpadl_id].wait()

    async def open_sub_channel(self, *, ring_bytes: int) -> Channel:
        return self.open(await self._sub_channels.receive())

    async def close(self, channel: Channel) -> None:
        for ends in list(self.ends):
            if ends[1] is channel:
                self.ends.remove(ends)
                channel.close()
                ends[0].close(by_peer=True)
        await self._served[channel].wait()

    def start_soon(self, function: object) -> None:
        self.nursery.start_soon(function)  # type: ignore[arg-type]


@attrs.define(eq=False)
class Wire:
    """A switch and what is plugged in."""

    switch: VirtualSwitch
    guests: list[NetworkGuest]


@asynccontextmanager
async def adapters(
    count: int = 1,
    *,
    mtu: int = 1500,
    processors: int = 1,
    max_sub_channels: int = 0,
    ring_bytes: int = 128 * 1024,
    memory: int = 16 << 20,
    listen: bool = False,
    settings: PortSettings | None = None,
) -> AsyncIterator[Wire]:
    """VSPs at a switch, each with a guest's memory, and no drivers yet."""
    switch = VirtualSwitch("lan", SwitchKind.PRIVATE, lambda: ticks(trio.current_time()))
    wire = Wire(switch, [])
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for number in range(1, count + 1):
                name = f"vm{number}/0"
                port = Port(name, mac(number), settings or PortSettings(mtu=mtu))
                switch.connect(port)
                events: list[TraceEvent] = []
                trace = Trace(lambda: ticks(trio.current_time()))
                if listen:
                    trace.add_sink(events.append)
                instance = Guid(f"{number:08x}-2222-3333-4444-555555555555")
                vsp = NetworkVsp(port, instance, trace, 1 + number, name, max_sub_channels=max_sub_channels)
                platform = TimedPlatform(memory)
                wire.guests.append(NetworkGuest(vsp, port, platform, nursery, events, ring_bytes, processors))
            yield wire
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def driven(guest: NetworkGuest, settings: NetworkSettings | None = None) -> AsyncIterator[Network]:
    """A guest's driver at work; afterwards nothing of the guest's memory may be in use."""
    free = guest.platform.free_count
    async with open_network(guest.open(), guest.platform, guest, settings) as network:  # type: ignore[arg-type]
        yield network
    assert guest.platform.free_count == free, "pages are lost"
    assert not guest.gpadls


@asynccontextmanager
async def networks(
    count: int = 2, drivers: NetworkSettings | None = None, **more: object
) -> AsyncIterator[tuple[Wire, list[Network]]]:
    """Guests on one switch with their drivers at work."""
    async with adapters(count, **more) as wire, AsyncExitStack() as stack:  # type: ignore[arg-type]
        yield wire, [await stack.enter_async_context(driven(guest, drivers)) for guest in wire.guests]


def frame(to: int, source: int, payload: bytes = b"hello", *, vlan: int = 0) -> bytes:
    """A frame between two of the guests."""
    return ethernet(mac(to), mac(source), payload, vlan=vlan)


__all__ = ["NetworkGuest", "Wire", "adapters", "driven", "ethernet", "frame", "mac", "networks"]
