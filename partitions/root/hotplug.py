"""Devices that come and go while a VM runs: each with what it opened, by a name that its host gave it. Root side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import attrs
import msgspec
import trio

from hypervisor.inspect import Branch, counters
from partitions.root.devices import CountedDevice
from partitions.root.disk_state import DeviceError
from partitions.topology_schema import DeviceTable, DiskTable, NicTable
from vmbus.server.offers import Device

if TYPE_CHECKING:
    from vmbus.server.service import VmbusServer
    from vmbus.server.slots import OfferedChannel

Pluggable: TypeAlias = Device | DeviceTable | DiskTable | NicTable | Sequence[DiskTable]
"""A VSP, or the table of one; an adapter; or the disks of a SCSI controller of their own, the first at LUN 0."""

OpenTables: TypeAlias = Callable[
    [str, Sequence[DiskTable], Sequence[DeviceTable], Sequence[NicTable]],
    contextlib.AbstractContextManager[list[CountedDevice]],
]
"""Makes the devices of tables; `DeviceError`. The text makes the controller's instance its own."""


class HotPlugError(Exception):
    """A device that cannot be added or removed; the text says why."""


@attrs.define(eq=False)
class Plugged:
    """One device on the bus."""

    device: CountedDevice
    offered: OfferedChannel
    opened: contextlib.ExitStack
    """What it holds on the host: images, files."""
    leaving: bool = False

    def inspect(self) -> Branch:
        """Where it is on the bus, what went through it, and what it shows of itself."""
        state = self.offered.state
        return Branch(
            {
                "offer": self.offered.offer.inspect,
                "channel": self.offered.channel_id,
                "channel_state": None if state is None else state.value,
                "leaving": self.leaving,
                "statistics": lambda: counters(msgspec.structs.asdict(self.device.channel_statistics())),
                **self.device.inspect().children,
            }
        )


class HotPlug:
    """The devices of one run of a VM, by name, and the way to change them. Closed before the bus's server is gone."""

    def __init__(
        self, server: VmbusServer, open_tables: OpenTables, count: Callable[[CountedDevice, bool], None]
    ) -> None:
        """`count` hears of each device that comes, and, with False, of each that has gone, for the VM's statistics."""
        self._server = server
        self._open_tables = open_tables
        self._count = count
        self._plugged: dict[str, Plugged] = {}

    @property
    def devices(self) -> Mapping[str, Plugged]:
        """By name; those that are leaving are still here. For looking at only."""
        return MappingProxyType(self._plugged)

    def close(self) -> None:
        """The VM is off and serves nobody: close what its devices hold."""
        for plugged in self._plugged.values():
            plugged.opened.close()
        self._plugged.clear()

    def add(self, name: str, what: Pluggable) -> None:
        """Put a device on the bus; the guest is told at once, or when it asks. Raises `HotPlugError`."""
        if name in self._plugged:
            raise HotPlugError(f"there is a device {name!r} already")
        with contextlib.ExitStack() as opened:
            device = self._make(name, what, opened)
            try:
                offered = self._server.offer(device)
            except ValueError as error:
                raise HotPlugError(str(error)) from error
            self._plugged[name] = Plugged(device, offered, opened.pop_all())
        self._count(device, True)

    async def remove(self, name: str) -> None:
        """Take a device from the bus, whatever the guest is doing with it. Raises `HotPlugError`.

        A device that wants to take its leave of the guest has a bounded time for it. Returns when it serves the guest
        no longer and has closed what it held; the guest may take as long as it likes to notice. Cancelled, the device
        goes all the same, and what it holds is closed with the VM.
        """
        plugged = self._plugged.get(name)
        if plugged is None or plugged.leaving:
            there = ", ".join(repr(known) for known, other in self._plugged.items() if not other.leaving) or "none"
            raise HotPlugError(f"there is no device {name!r}; there are: {there}")
        plugged.leaving = True
        try:
            await plugged.device.leave()
        finally:
            if self._plugged.get(name) is plugged:  # the VM has not ended meanwhile
                self._server.rescind(plugged.offered)
        await self._server.wait_stopped(plugged.device)
        plugged.opened.close()
        if self._plugged.get(name) is plugged:
            del self._plugged[name]
            self._count(plugged.device, False)

    def _make(self, name: str, what: Pluggable, opened: contextlib.ExitStack) -> CountedDevice:
        disks: Sequence[DiskTable] = ()
        tables: Sequence[DeviceTable] = ()
        nics: Sequence[NicTable] = ()
        match what:
            case DiskTable():
                disks = [what]
            case DeviceTable():
                tables = [what]
            case NicTable():
                nics = [what]
            case Sequence() if all(isinstance(one, DiskTable) for one in what):
                disks = what
            case _ if hasattr(what, "offer") and hasattr(what, "serve"):
                return CountedDevice(what)
            case _:
                kinds = "a DeviceTable, DiskTables or a VSP with an offer and a serve"
                raise HotPlugError(f"device {name!r}: must be {kinds}, is {what!r}")
        try:
            made = opened.enter_context(self._open_tables(name, disks, tables, nics))
        except DeviceError as error:
            raise HotPlugError(str(error)) from error
        if not made:
            raise HotPlugError(f"device {name!r}: a controller without disks")
        return made[0]


async def follow_plan(hotplug: HotPlug, tables: Sequence[DeviceTable]) -> None:
    """Plug devices in and pull them out at the times that their tables give, from now on. Raises `HotPlugError`."""
    async with trio.open_nursery() as nursery:
        for table in tables:
            if table.arrives or table.leaves is not None:
                nursery.start_soon(_come_and_go, hotplug, table)


async def _come_and_go(hotplug: HotPlug, table: DeviceTable) -> None:
    if table.arrives:
        await trio.sleep(table.arrives)
        hotplug.add(table.vsp, table)
    if table.leaves is not None:
        await trio.sleep(table.leaves - table.arrives)
        if table.vsp in hotplug.devices:  # unless somebody was faster
            await hotplug.remove(table.vsp)
