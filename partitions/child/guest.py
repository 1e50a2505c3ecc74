"""The guest as a program sees it: devices, time, console, and the bare interface for those who want it. Child side.

A guest program is one file with one function:

    async def main(guest):
        disk = await guest.disk(0)
        print(await disk.read(0, 8))
        await guest.sleep(0.5)

It runs as a Trio task inside the partition, so Trio's own primitives (events, memory channels, nurseries) are fine for
work of its own. Time, files and sockets of the host are not the guest's: use `guest.sleep` and `guest.time` and not
`trio.sleep`, which would go on while the VM is paused. `print` and `guest.print` go to the console. Modules beside the
program cannot be imported; each VM gets a module object of its own, so module variables are not shared between VMs or
over a reset.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import trio

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.machine import Machine
from hypervisor.wire import Guid
from partitions import ports
from partitions.child.console import Console
from partitions.child.timers import Timer, Timers
from partitions.child.winhv import HypercallResult, Platform, WinHv

if TYPE_CHECKING:
    from partitions.child.cpu import Cpu
    from partitions.child.devices import Devices
    from partitions.child.keeping import Keeper
    from partitions.child.memory import Memory
    from partitions.child.net.ip import Ip
    from partitions.child.told import Told
    from vmbus.channel import Channel
    from vmbus.client.service import OfferedDevice, VmbusClient
    from vmbus.client.sockets import GuestSocket
    from vsp_vsc.keyboard.vsc import Keyboard
    from vsp_vsc.mouse.vsc import Mouse
    from vsp_vsc.network.vsc import Network
    from vsp_vsc.storage.disk import Disk
    from vsp_vsc.storage.vsc import DiskChange
    from vsp_vsc.video.vsc import Screen

GuestMain = Callable[["Guest"], Awaitable[object]]
"""A guest program's `main`. None or 0 is success; another integer is its exit code; an exception is a crash."""


@attrs.frozen
class BusFacts:
    """What a guest learned when it connected to the bus."""

    version: str
    """The VMBus version that both ends agreed on, such as "5.3"."""
    offers: tuple[OfferedDevice, ...]
    """Channels on offer now, in the order in which the host offered them."""


@attrs.frozen
class DeviceChange:
    """A device came, or went."""

    arrived: bool
    """Else the host took it back: its channel is closed, and its driver is ending."""
    device: OfferedDevice
    name: str
    """What kind it is, such as "storage"; its interface GUID where the kernel has no name for it."""


class Guest:
    """One running guest. Made by the kernel; handed to `main`."""

    def __init__(
        self,
        *,
        name: str,
        args: Mapping[str, Any],
        machines: Sequence[Machine],
        console: Console,
        winhv: WinHv,
        platform: Platform,
        devices: Devices,
        timers: Timers,
        nursery: trio.Nursery,
        keeper: Keeper,
        restart: Callable[[], None],
        told: Told,
    ) -> None:
        self.name = name
        """The VM's name in its topology."""
        self.args = dict(args)
        """The `args` table of the VM's topology entry."""
        self.machines = tuple(machines)
        """The virtual processors, bare: registers, CPUID, hypercalls, ports and all of guest memory."""
        self.platform = platform
        """The kernel's services to drivers: pages, messages, signals. For VSCs that a program brings along."""
        self.nursery = nursery
        """Tasks started here are cancelled when `main` returns."""
        self.console = console
        """COM1; `console.print` takes what Python's `print` takes."""
        self._restart = restart
        self._told = told
        self._winhv = winhv
        self._keeper = keeper
        self._devices = devices
        self._timers = timers
        self._cpus: dict[int, Cpu] = {}

    # Time and work

    def time(self) -> float:
        """Seconds since the partition began, or was reset; stands still while the VM is paused."""
        return self.platform.reference_time() / TICKS_PER_SECOND

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds of the partition's time go by; a pause of the VM makes it longer."""
        await self.platform.sleep(seconds)

    @property
    def timers(self) -> tuple[Timer, ...]:
        """The four synthetic timers of virtual processor 0, which interrupt it. `NoTimers` where the host has none."""
        return self._timers.all()

    async def work(self, seconds: float, *, vp: int = 0) -> None:
        """Keep a virtual processor busy for so many seconds of its CPU time, as a computation would.

        How long that takes is for the host to say: others may be on its processors, and there may be a cap.
        """
        cpu = self._cpus.get(vp)
        if cpu is not None:
            await cpu.run(seconds)
        else:  # who has never asked for `cpu` keeps no accounts
            await self.machines[vp].work(round(seconds * TICKS_PER_SECOND))

    @property
    def cpu(self) -> Cpu:
        """Virtual processor 0: `await guest.cpu.run(0.5)`, `guest.cpu.times()`, `guest.cpu.steal`.

        It counts from when it is first asked for, `guest.work` from then on included.
        """
        return self._cpu(0)

    @property
    def cpus(self) -> tuple[Cpu, ...]:
        """All virtual processors, by number."""
        return tuple(self._cpu(index) for index in range(len(self.machines)))

    def _cpu(self, index: int) -> Cpu:
        cpu = self._cpus.get(index)
        if cpu is None:
            from partitions.child.cpu import Cpu  # which a guest that does not compute does not load

            cpu = self._cpus[index] = Cpu(self.machines[index], self.platform)
        return cpu

    def start_soon(self, function: Callable[..., Awaitable[object]], *arguments: Any, name: object = None) -> None:
        """Run `await function(*arguments)` beside `main`, until that returns. Its crash is the guest's."""
        self.nursery.start_soon(function, *arguments, name=name)

    # Being saved

    def keep(self, data: bytes) -> None:
        """Keep these bytes in the VM's memory in place of those before, for `resume`. ValueError past 575 KiB."""
        self._keeper.keep(data)

    @property
    def kept(self) -> bytes:
        """What was kept last, in this life or the one that was saved; empty at first and after a reset."""
        return self._keeper.kept

    @property
    def memory(self) -> Memory:
        """What this guest's memory is used for, and a program's part of it: `await guest.memory.use(64 << 20)`."""
        return self.platform.heap

    # Console

    def print(self, *values: object, sep: str | None = " ", end: str | None = "\n") -> None:
        """Print to the console; `print` in a guest program does the same."""
        self.console.print(*values, sep=sep, end=end)

    def log(self, *values: object) -> None:
        """Print with the partition's time in front, as kernels do."""
        self.console.print(f"[{self.time():12.6f}]", *values)

    # Devices

    @property
    def disks(self) -> tuple[Disk, ...]:
        """The disks found so far, by number; `await guest.settled()` first to be sure that it is all of them."""
        return self._devices.disks

    async def disk(self, number: int = 0) -> Disk:
        """The disk of that number, once its driver is ready. `NoSuchDevice` says what there is instead."""
        return await self._devices.disk(number)

    async def network(self, number: int = 0) -> Network:
        """The network adapter of that number, once its driver is ready: `mac`, `mtu`, `link_up`, frames out and in.

        `NoSuchDevice` says what there is instead. `ip` gives an IPv4 stack on one.
        """
        return await self._devices.network(number)

    async def ip(self, address: str = "dhcp", *, gateway: str | None = None, nic: int = 0, vlan: int = 0) -> Ip:
        """An IPv4 address on a network adapter, such as `10.0.0.2/24`: pings and UDP sockets, until `main` returns.

        "dhcp" asks who gives addresses out (`NoLease`, an `OSError`). With `vlan` all frames are tagged. `ValueError`
        names what is wrong with the address; `NoSuchDevice`.
        """
        from partitions.child.net.ip import Ip, leased_ip, new_stack  # which a guest without a network does not load

        driver = await self.network(nic)
        if address == "dhcp":
            if gateway is not None or vlan:
                raise ValueError("dhcp: the gateway is the server's to say, and there is no VLAN")
            ip = await leased_ip(driver, self.platform)
        else:
            ip = Ip(driver, self.platform, new_stack(driver, address, gateway, vlan))
        self._told.address(driver.mac, ip.address, ip.gateway)
        self.nursery.start_soon(ip.run, name=f"{self.name}: {ip.address}")
        return ip

    def disk_changes(self) -> AbstractContextManager[trio.MemoryReceiveChannel[DiskChange]]:
        """Disks that come, go or change while the guest runs, from when the block begins:

            with guest.disk_changes() as changes:
                async for change in changes:
                    print(change.kind, change.disk)

        `kind` is "added", "removed" or "changed". A program that falls far behind finds its channel ended.
        """
        return self._devices.disk_changes()

    async def rescan_disks(self) -> None:
        """Look which disks there are, without being told; hosts before version 4.2 of the protocol tell nobody."""
        await self._devices.rescan_disks()

    async def driver(self, name: str) -> Any:
        """What a driver gives to programs, by its device's name.

        "kvp" has `.pools`, "time-sync" has `.now()`, "file-copy" has `.files` and `await .receive()`, "vss" calls the
        `.on_freeze` and `.on_thaw` that it is given, "heartbeat" tells the host of its `.application`.
        `NoSuchDevice` where the host does not offer it, or where its driver gave up.
        """
        return await self._devices.driver(name)

    async def listen(
        self, port: int | Guid, *, backlog: int = 32, ring_bytes: int = 64 * 1024
    ) -> trio.abc.Listener[GuestSocket]:
        """A listener for what the host connects to this port: `await trio.serve_listeners(handler, [listener])`.

        `backlog` connections may wait to be accepted; `ring_bytes` is the size of each of a connection's two rings with
        its control page. `OSError` where somebody listens there already, or where the host's bus has no sockets.
        """
        from vmbus.protocol.hvsocket import service_of

        await trio.lowlevel.checkpoint()
        service = port if isinstance(port, Guid) else service_of(port)
        return self.vmbus.sockets.listen(service, backlog=backlog, ring_bytes=ring_bytes)

    async def connect(self, port: int | Guid, *, ring_bytes: int = 64 * 1024) -> GuestSocket:
        """A stream to whoever listens on this port in the host. `ConnectionRefusedError`, `TimeoutError`, `OSError`."""
        from vmbus.protocol.hvsocket import service_of

        service = port if isinstance(port, Guid) else service_of(port)
        return await self.vmbus.sockets.connect(service, ring_bytes=ring_bytes)

    async def keyboard(self) -> Keyboard:
        """What people type: `await keyboard.read_line()`, `async for event in keyboard`. `NoSuchDevice` without one."""
        keyboard: Keyboard = await self._devices.driver("keyboard")
        return keyboard

    async def mouse(self) -> Mouse:
        """Where people point: `async for report in mouse`. `NoSuchDevice` without one."""
        mouse: Mouse = await self._devices.driver("mouse")
        return mouse

    async def screen(self) -> Screen:
        """What people look at: `screen.fill(...)`, `screen.text(...)`, `await screen.flush()`; or `NoSuchDevice`."""
        screen: Screen = await self._devices.driver("video")
        return screen

    async def settled(self) -> None:
        """Wait until each device that was offered so far has its driver, or has been given up."""
        await self._devices.settled()

    def device_changes(self) -> trio.MemoryReceiveChannel[DeviceChange]:
        """Devices that come and go from now on: `async for change in guest.device_changes()`, or `receive` one.

        What is there already is in `guest.bus.offers`. A device that comes has its driver after `settled`.
        For a program that falls 64 changes behind it ends.
        """
        return self._devices.watch()

    async def departure(self, device: OfferedDevice) -> None:
        """Wait until the host has taken this device back, and until its driver, if it had one, has ended."""
        await self._devices.departure(device)

    @property
    def bus(self) -> BusFacts:
        """The bus as this guest sees it now."""
        return self._devices.facts()

    async def open_channel(
        self,
        device: Guid | str | OfferedDevice,
        *,
        ring_bytes: int = 64 * 1024,
        user_data: bytes = b"",
    ) -> Channel:
        """Open a channel without a driver, for a VSC that the program brings itself.

        `device` is an interface GUID, a known interface's name such as "storage", or an entry of `guest.bus.offers`.
        `NoSuchDevice` says what there is instead, `DeviceBusy` that a driver holds it: `unbind` it first. `ring_bytes`
        is the size of each of the two rings with its control page.
        """
        return await self._devices.open_raw(device, ring_bytes, user_data)

    async def unbind(self, device: Guid | str | OfferedDevice) -> None:
        """Take the kernel's driver, or the program's own channel, off a device; `open_channel` can have it then."""
        await self._devices.unbind(device)

    # The bare interface

    @property
    def vmbus(self) -> VmbusClient:
        """The kernel's client of the bus: contacts made, features, GPADLs, MODIFY_CHANNEL."""
        return self._devices.client

    @property
    def machine(self) -> Machine:
        """Virtual processor 0."""
        return self.machines[0]

    def hypercall(self, control: int, data: bytes = b"", output_bytes: int = 0) -> HypercallResult:
        """A slow hypercall with this control word and input, answered as status, repetitions done and output bytes."""
        return self._winhv.hypercall(control, data, output_bytes)

    async def restart(self) -> NoReturn:
        """Boot again in order: this program is cancelled, drivers let go, the bus is left, and then the VM is reset."""
        self._restart()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def reset(self) -> NoReturn:
        """Restart the VM at once through the chipset's reset register; does not return."""
        self.machine.port_out(ports.RESET, 1, ports.RESET_NOW)
        await trio.sleep_forever()
        raise AssertionError("unreachable")
