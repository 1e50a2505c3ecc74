"""The guest's devices: each offer on the bus finds its driver by interface GUID. Child side.

The kernel binds what it has a driver for, one task a device; whatever else is on offer stays free for guest programs
that bring a VSC of their own.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from hypervisor.wire import Guid, WireError
from partitions.child.console import Console
from partitions.child.guest import BusFacts, DeviceChange
from vmbus.channel import Channel
from vmbus.client.driver_bus import DriverBus
from vmbus.client.platform import GuestPlatform
from vmbus.client.service import OfferedDevice, VmbusClient, VmbusError
from vsp_vsc.device import BY_INTERFACE, BY_NAME, DeviceKind, name_of

if TYPE_CHECKING:
    from vsp_vsc.network.vsc import Network
    from vsp_vsc.storage.disk import Disk
    from vsp_vsc.storage.vsc import DiskChange, Storage

KEPT_CHANGES = 64
"""Changes of devices or disks that a program may be behind: then its channel ends, and it can look for itself."""
OnDriver = Callable[[str, Any], None]
"""Hears of each driver that has begun, by its kind's name, before its device says anything."""


class NoSuchDevice(LookupError):
    """The guest has no device of that number, name or interface; the message names what it has."""


class DeviceBusy(RuntimeError):
    """A driver or another program holds the device."""


class Binding(enum.Enum):
    """Where an offer stands."""

    FREE = enum.auto()
    """No driver has it."""
    PROBING = enum.auto()
    """Its driver opens the channel and talks to the device for the first time."""
    BOUND = enum.auto()
    RAW = enum.auto()
    """A guest program opened its channel."""
    FAILED = enum.auto()
    """Its driver gave up."""


@attrs.define(eq=False)
class BoundDevice:
    """One offer and what became of it."""

    offer: OfferedDevice
    state: Binding = Binding.FREE
    storage: Storage | None = None
    driver: Any = None
    """What the VSC gave, while it is bound."""
    channel: Channel | None = None
    bus: DriverBus | None = None
    """What its driver may ask of the bus, while it has a driver that does."""
    problem: str = ""
    probe: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Around a driver's first talk with its device, which may take for ever."""
    unwanted: trio.Event = attrs.field(factory=trio.Event)
    """Set to make the driver let go."""
    released: trio.Event = attrs.field(factory=trio.Event)
    """Set when no driver has it any more."""
    gone: trio.Event = attrs.field(factory=trio.Event)
    """Set when the host has taken it back."""

    def __str__(self) -> str:
        state = f"{self.state.name.lower()}: {self.problem}" if self.problem else self.state.name.lower()
        return f"device {name_of(self.offer.interface)} on channel {self.offer.channel_id} ({state})"

    def release(self) -> None:
        """Make its driver let go, if it has one."""
        if self.state is Binding.PROBING:
            self.probe.cancel()
        else:
            self.unwanted.set()


class Devices:
    """All offers of this guest, in the order in which they came."""

    def __init__(
        self,
        bus: VmbusClient,
        platform: GuestPlatform,
        console: Console,
        nursery: trio.Nursery,
        on_driver: OnDriver | None = None,
        *,
        processors: int = 1,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`processors` and `options`, the guest's `args`, are for drivers."""
        self._bus = bus
        self._processors = processors
        self._options = options
        self._on_driver = on_driver
        self._platform = platform
        self._console = console
        self._nursery = nursery
        self._devices: dict[int, BoundDevice] = {}
        self._probing = 0
        self._followers: list[trio.MemorySendChannel[DiskChange]] = []
        self._settled = trio.Event()
        self._settled.set()
        self._watchers: list[trio.MemorySendChannel[DeviceChange]] = []
        bus.on_rescind = self._remove
        for offer in bus.offers:
            self._add(offer)

    # What the kernel calls

    async def follow_offers(self) -> None:
        """Task: devices that come while the guest runs; ends with the bus."""
        with contextlib.suppress(trio.EndOfChannel):
            while True:
                offer = await self._bus.next_offer()
                known = self._devices.get(offer.channel_id)
                if known is None or known.offer is not offer:
                    self._add(offer)

    async def stop(self) -> None:
        """End all drivers; returns when each has let go of its channel."""
        for device in self._devices.values():
            device.release()
        for device in list(self._devices.values()):
            await device.released.wait()

    # What guest programs reach through `Guest`

    def facts(self) -> BusFacts:
        """The bus now."""
        return BusFacts(self._bus.version, tuple(device.offer for device in self._devices.values()))

    async def settled(self) -> None:
        """Wait until no driver is still probing."""
        while self._probing:
            await self._settled.wait()

    @property
    def disks(self) -> tuple[Disk, ...]:
        """The disks of all storage devices that have a driver."""
        return tuple(disk for device in self._devices.values() if device.storage for disk in device.storage.disks)

    async def disk(self, number: int) -> Disk:
        """The disk of that number; waits for drivers that are still probing."""
        await self.settled()
        disks = self.disks
        if 0 <= number < len(disks):
            return disks[number]
        if disks:
            there = ", ".join(
                f"disk {index} ({disk.blocks * disk.block_size >> 10} KiB{', read-only' if disk.read_only else ''})"
                for index, disk in enumerate(disks)
            )
            raise NoSuchDevice(f"no disk {number}: this guest has {there}")
        raise NoSuchDevice(f"no disk {number}: this guest has no disks; {self._inventory()}")

    @contextlib.contextmanager
    def disk_changes(self) -> Iterator[trio.MemoryReceiveChannel[DiskChange]]:
        """Disks that come, go or change from now on."""
        send: trio.MemorySendChannel[DiskChange]
        receive: trio.MemoryReceiveChannel[DiskChange]
        send, receive = trio.open_memory_channel(KEPT_CHANGES)
        self._followers.append(send)
        try:
            with send, receive:
                yield receive
        finally:
            if send in self._followers:
                self._followers.remove(send)

    async def rescan_disks(self) -> None:
        """Have every storage driver look which disks there are."""
        await self.settled()
        for device in list(self._devices.values()):
            if device.storage is not None:
                await device.storage.rescan()

    async def network(self, number: int) -> Network:
        """The network adapter of that number, in the order of the offers; waits for drivers that still probe."""
        await self.settled()
        interface = BY_NAME["network"].interface
        devices = [device for device in self._devices.values() if device.offer.interface == interface]
        adapters: list[Network] = [device.driver for device in devices if device.driver is not None]
        if 0 <= number < len(adapters):
            return adapters[number]
        there = f"{len(adapters)} network adapter{'s' if len(adapters) != 1 else ''}" if adapters else "none"
        raise NoSuchDevice(f"no network adapter {number}: this guest has {there}; {self._inventory()}")

    async def driver(self, name: str) -> Any:
        """What the driver of the first device of that kind gives to programs; waits for drivers that still probe."""
        await self.settled()
        device = self._find(name)
        if device.driver is None:
            raise NoSuchDevice(f"{device}")
        return device.driver

    async def open_raw(self, wanted: Guid | str | OfferedDevice, ring_bytes: int, user_data: bytes) -> Channel:
        """Open a channel that no driver holds."""
        device = self._find(wanted)
        if device.channel is not None and device.channel.closed:
            await self.unbind(device.offer)
        if device.state not in (Binding.FREE, Binding.FAILED):
            raise DeviceBusy(f"{device}: unbind it first")
        device.state = Binding.RAW
        try:
            device.channel = await self._bus.open(
                device.offer, outgoing_bytes=ring_bytes, incoming_bytes=ring_bytes, user_data=user_data
            )
        except BaseException:
            device.state = Binding.FREE
            raise
        return device.channel

    async def unbind(self, wanted: Guid | str | OfferedDevice) -> None:
        """Take a device from its driver or from the program that opened it."""
        device = self._find(wanted)
        if device.channel is not None:
            channel, device.channel = device.channel, None
            await self._bus.close(channel)
        elif device.state in (Binding.PROBING, Binding.BOUND):
            device.release()
            await device.released.wait()
        device.state = Binding.FREE
        device.problem = ""

    @property
    def client(self) -> VmbusClient:
        """The bus itself."""
        return self._bus

    def watch(self) -> trio.MemoryReceiveChannel[DeviceChange]:
        """Each device that comes or goes from now on; subchannels are their primaries' business."""
        send, receive = trio.open_memory_channel[DeviceChange](KEPT_CHANGES)
        self._watchers.append(send)
        return receive

    async def departure(self, offer: OfferedDevice) -> None:
        """Until a device is gone and its driver has ended."""
        device = self._devices.get(offer.channel_id)
        if device is not None and device.offer is offer:
            await device.gone.wait()
            await device.released.wait()

    # Inside

    def _add(self, offer: OfferedDevice) -> None:
        """A new offer: start its driver if there is one. A subchannel belongs to its primary's driver."""
        device = BoundDevice(offer)
        self._devices[offer.channel_id] = device
        self._tell(offer, arrived=True)
        kind = BY_INTERFACE.get(offer.interface)
        if kind is None or offer.subchannel_index:
            device.released.set()
            primary = next((one for one in self._devices.values() if one.bus and _same_device(one.offer, offer)), None)
            if primary is not None and primary.bus is not None:
                primary.bus.offered(offer)
            return
        self._begin_probe(device)
        self._nursery.start_soon(self._drive, device, kind, name=f"driver of channel {offer.channel_id}")

    def _remove(self, offer: OfferedDevice) -> None:
        """The host took the device back: its driver ends. The bus has closed its channel already."""
        device = self._devices.pop(offer.channel_id, None)
        if device is not None:
            device.gone.set()
            device.release()
            self._tell(offer, arrived=False)

    def _tell(self, offer: OfferedDevice, *, arrived: bool) -> None:
        if offer.subchannel_index:
            return
        change = DeviceChange(arrived, offer, name_of(offer.interface))
        for watcher in list(self._watchers):
            try:
                watcher.send_nowait(change)
            except (trio.BrokenResourceError, trio.WouldBlock):  # its reader has gone, or does not read
                self._watchers.remove(watcher)
                watcher.close()

    async def _drive(self, device: BoundDevice, kind: DeviceKind) -> None:
        """Task: one device's driver, from the first packet to the last."""
        channel: Channel | None = None
        problem = "its driver ended"
        try:
            with device.probe:
                ring = kind.ring_bytes
                channel = await self._bus.open(device.offer, outgoing_bytes=ring, incoming_bytes=ring)
                if kind.wants_bus:
                    device.bus = DriverBus(
                        self._bus,
                        device.offer,
                        nursery=self._nursery,
                        processors=self._processors,
                        options=self._options,
                    )
                more = () if device.bus is None else (device.bus,)
                async with kind.load_vsc()(channel, self._platform, *more) as driver:
                    device.storage = driver if kind.name == "storage" else None
                    device.driver = driver
                    if kind.name == "storage":
                        driver.on_change = self._tell_followers
                        self._tell_all("added", driver.disks)
                    if self._on_driver is not None:
                        self._on_driver(kind.name, driver)
                    device.state = Binding.BOUND
                    self._end_probe()
                    await device.unwanted.wait()
                    # The host has let go of the rings, and of all pages that packets named, before the driver ends.
                    if not kind.wants_bus:
                        await self._bus.close(channel)
        except* trio.EndOfChannel:
            problem = "its channel was closed"  # the host has taken the device back, which is nobody's failure
        except* (VmbusError, WireError, trio.ClosedResourceError, OSError, MemoryError) as group:
            problem = "; ".join(str(error) or type(error).__name__ for error in group.exceptions)
            self._console.print(f"driver of channel {device.offer.channel_id}: {problem}")
        finally:
            if device.state is Binding.PROBING:
                self._end_probe()
            if device.storage is not None:
                for disk in device.storage.disks:
                    disk.gone = True
                self._tell_all("removed", device.storage.disks)
            device.storage = device.driver = device.bus = None
            device.state = Binding.FAILED
            device.problem = problem
            device.released.set()
            if channel is not None:
                await self._bus.close(channel)

    def _tell_all(self, kind: str, disks: Iterable[Disk]) -> None:
        """A whole controller has come or gone."""
        if self._followers:
            from vsp_vsc.storage.vsc import ChangeKind, DiskChange  # which a guest without disks does not load

            for disk in disks:
                self._tell_followers(DiskChange(ChangeKind(kind), disk))

    def _tell_followers(self, change: DiskChange) -> None:
        for follower in self._followers[:]:
            try:
                follower.send_nowait(change)
            except trio.WouldBlock:
                self._followers.remove(follower)
                follower.close()

    def _begin_probe(self, device: BoundDevice) -> None:
        device.state = Binding.PROBING
        self._probing += 1
        if self._probing == 1:
            self._settled = trio.Event()

    def _end_probe(self) -> None:
        self._probing -= 1
        if not self._probing:
            self._settled.set()

    def _find(self, wanted: Guid | str | OfferedDevice) -> BoundDevice:
        if isinstance(wanted, OfferedDevice):
            device = self._devices.get(wanted.channel_id)
            if device is not None:
                return device
            raise NoSuchDevice(f"channel {wanted.channel_id} is not on offer any more; {self._inventory()}")
        if isinstance(wanted, str):
            interface = BY_NAME[wanted].interface if wanted in BY_NAME else _guid(wanted)
        else:
            interface = wanted
        primaries = (device for device in self._devices.values() if not device.offer.subchannel_index)
        matches = [device for device in primaries if device.offer.interface == interface]
        if not matches:
            raise NoSuchDevice(f"no device {wanted}; {self._inventory()}")
        return next((device for device in matches if device.state is Binding.FREE), matches[0])

    def _inventory(self) -> str:
        if not self._devices:
            return "the host offers nothing"
        return "the host offers " + ", ".join(map(str, self._devices.values()))


def _same_device(one: OfferedDevice, other: OfferedDevice) -> bool:
    """Whether two channels are of one device."""
    return one.interface == other.interface and one.instance == other.instance


def _guid(text: str) -> Guid:
    try:
        return Guid(text)
    except ValueError:
        raise NoSuchDevice(f"{text!r} is neither a GUID nor one of {', '.join(sorted(BY_NAME))}") from None
