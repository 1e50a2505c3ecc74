"""One running VM: its partition, chipset, VMBus server and devices, from power on to the exit record. Root side.

    run:  partition -> chipset -> devices -> VMBus server -> offers -> backend -> ... -> all of it taken down again

Everything about this VM lives in the one task of `Worker.run`, so there is one place where exceptions of ours end:
there the VM goes off with its traceback kept, and its siblings do not notice. The guest's own ends come in as calls
from port intercepts, crash registers and hypervisor messages, in the middle of the guest's own traps; they note what
happened and cancel the scope that the guest runs in. A reset is the same with another round.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import random
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
import trio

from hypervisor.backend.base import Backend, SavableBackend
from hypervisor.clock import TICKS_PER_SECOND, seconds
from hypervisor.crash import CrashReport
from hypervisor.hypervisor import Hypervisor
from hypervisor.inspect import Branch, Many, shown
from hypervisor.partition import Partition
from hypervisor.privileges import Privilege
from hypervisor.synic.messages import InterceptHeader, MessageType
from partitions.lifecycle import VmEvent
from partitions.ports import COM1_LINE, POWER_BUTTON_VECTOR
from partitions.recording.link import SOCKET, device_name
from partitions.root import saving
from partitions.root.chipset.chipset import Chipset
from partitions.root.chipset.cmos import CmosClock
from partitions.root.chipset.com1 import Com1
from partitions.root.chipset.power import ExitCode, PowerControl, ResetControl
from partitions.root.console import Console
from partitions.root.devices import CONTROLLER, CountedDevice, nic_name, open_devices
from partitions.root.disk_controls import DiskControls
from partitions.root.exits import CannotStart, ExitReason, ExitRecord
from partitions.root.host_network import HostNetwork
from partitions.root.host_resources import HostResources
from partitions.root.hotplug import HotPlug, HotPlugError, follow_plan
from partitions.root.input import Input
from partitions.root.integration import Integration
from partitions.root.saving import CannotRestore, CannotSave, Machine, SavedVm
from partitions.root.statistics import VmStatistics, take_statistics
from partitions.root.vid import VM_PRIVILEGES, Vid, VmPartition
from partitions.root.winhv import HypervisorMessage, WinHv
from partitions.topology_schema import Backend as BackendKind
from partitions.topology_schema import DeviceTable, DiskTable, NicTable, VmTable, numbers_of
from vmbus.channel import ChannelStatistics
from vmbus.protocol.hvsocket import is_socket
from vmbus.server.offers import Device, Offer
from vmbus.server.service import VmbusServer, open_vmbus_server
from vmbus.server.sockets import SocketListeners, seeded_endpoints

if TYPE_CHECKING:
    from partitions.root.screen import Screen
    from partitions.root.sockets import UnixSockets
    from partitions.root.vm_memory import VmMemory

BackendFactory = Callable[[Hypervisor, VmTable], Backend]
"""Makes what executes a VM's processors; called once a start."""

Leaving = Callable[["Worker", VmTable], None]
"""Hears of a VM's end when all that it has counted is still there."""

Report = Callable[[VmEvent], None]
"""Hears STARTED, GUEST_RESET and WAS_RESET as they happen."""

CONSOLE_TAIL_LINES: Final = 20
QUICK_RESETS: Final = 8
"""How often in a row a guest may reset itself within a second of its start before the host makes it wait."""
_QUICK: Final = TICKS_PER_SECOND
_FIRST_REST, _LONGEST_REST = 0.01, 1.0
"""Seconds that it then waits, doubled each time."""
_MODEL_PRIVILEGES: Final = VM_PRIVILEGES | int(Privilege.ACCESS_GUEST_IDLE_MSR | Privilege.ACCESS_STATS_MSR)
_PRIVILEGES: Final = {
    BackendKind.TASK: _MODEL_PRIVILEGES,
    BackendKind.PROCESS: _MODEL_PRIVILEGES,
    # KVM keeps the local APIC, so its registers have no second way in.
    BackendKind.KVM: VM_PRIVILEGES & ~int(Privilege.ACCESS_APIC_MSRS),
}


@attrs.frozen
class HostServices:
    """What the host lends to every worker."""

    hypervisor: Hypervisor
    winhv: WinHv
    vid: Vid
    make_backend: BackendFactory
    folder: Path
    """Where relative paths of images and VSPs start."""
    wall_clock: Callable[[], datetime.datetime]
    """The date that a guest's CMOS clock shows."""
    inline_io: bool
    """Do disk I/O on the Trio thread: the virtual clock would jump while another thread works."""
    network: HostNetwork
    """The switches."""
    resources: HostResources
    """Who has how much of the host, where anybody is told."""
    new_random: Callable[[str], random.Random]
    """Random numbers for a purpose, which a seed makes repeatable."""
    leaving: list[Leaving] = attrs.field(factory=list)
    """Who hears of each VM's end."""
    disk_controls: DiskControls = attrs.field(init=False)
    """Who has how much of the host's I/O."""

    @disk_controls.default
    def _disk_controls(self) -> DiskControls:
        return DiskControls(self.resources, self.hypervisor)


class Worker:
    """One start of one VM. Every method but `run` is synchronous and may be called from anywhere on the Trio thread."""

    def __init__(
        self,
        host: HostServices,
        settings: VmTable,
        console: Console,
        listeners: SocketListeners,
        saved: Callable[[], SavedVm] | None = None,
    ) -> None:
        """`listeners` take the guest's sockets. `saved` gives the state to go on from, in place of a boot; it may raise
        `CannotRestore`.
        """
        self._host = host
        self._saved = saved
        self._backend: Backend | None = None
        self._machine: Machine | None = None
        self._settings = settings
        self._console = console
        self.prepare: Callable[[], None] | None = None
        """Called first of all; may raise `CannotStart`."""
        self._listeners = listeners
        self._unix_sockets: UnixSockets | None = None
        self._report: Report = _nobody
        self.ran = False
        """The guest has been let go at least once."""
        self._life = trio.CancelScope()
        self._round: trio.CancelScope | None = None
        """Around the backend while it runs."""
        self._end: tuple[ExitReason, str] | None = None
        self._failure: BaseException | None = None
        self._crash: CrashReport | None = None
        self._reset_wanted = False
        self._resets_itself = False
        self.resets = 0
        self.started_at = host.hypervisor.clock()
        self._exit_code = ExitCode()
        self._power = PowerControl(lambda: self.end(ExitReason.POWERED_OFF))
        self._built: VmPartition | None = None
        self.server: VmbusServer | None = None
        self.integration: Integration | None = None
        """Heartbeat, shutdown and the like, while there is a partition."""
        self.input: Input | None = None
        """Keyboard and mouse, while there is a partition."""
        self.screen: Screen | None = None
        """While there is a partition that has one."""
        self.memory: VmMemory | None = None
        """Memory that comes and goes, while there is a partition that has that."""
        self._memory_stack = contextlib.ExitStack()
        self._devices: list[CountedDevice] = []
        """All that there are in this run, for the statistics."""
        self._left = ChannelStatistics()
        """What went through the channels of devices that are there no more."""
        self.hotplug: HotPlug | None = None
        """Devices on the bus, and the way to change them, while there is one."""
        self._last_statistics = VmStatistics()

    # --- what others ask for

    def pause(self) -> None:
        """Suspend every processor. Raises `HvError` where the hypervisor refuses."""
        assert self._built is not None
        self._built.suspend()

    def resume(self) -> None:
        """Resume every processor, and have the guest's clock set."""
        assert self._built is not None
        self._built.resume()
        if self.integration is not None:
            self.integration.resumed()

    @property
    def memory_at_start(self) -> int:
        """Bytes that it was built with."""
        return self._settings.memory

    def movable_memory(self) -> VmMemory:
        """Its memory as one that can be changed: the device for that is plugged in where there is none yet.

        Raises `HotPlugError` while the VM has not started yet, or is ending.
        """
        if self.memory is None:
            if self._built is None or self.hotplug is None:
                raise HotPlugError(f"VM {self._settings.name!r} has not started yet")
            memory = self._open_memory(self._built)
            self.hotplug.add(str(memory.device.offer), memory.device)
        assert self.memory is not None
        return self.memory

    def _open_memory(self, built: VmPartition) -> VmMemory:
        from partitions.root.vm_memory import VmMemory

        vid = self._host.vid
        self.memory = memory = VmMemory(self._settings, built, vid)
        self._memory_stack.callback(memory.close)
        self._memory_stack.enter_context(vid.desk.joined(memory))
        return memory

    async def capture(self) -> SavedVm:
        """Suspend every processor and take the state. Raises `CannotSave`, and leaves them suspended either way."""
        why = saving.refusal(self._backend)
        if not why and self.memory is not None:
            why = self.memory.cannot_save
        if why:
            raise CannotSave(why)
        self.pause()
        machine, server = self._machine, self.server
        if machine is None or server is None:
            raise CannotSave("it has not started yet")
        await saving.quiesce(server)
        if self._built is None or self._end is not None:
            raise CannotSave("it has ended meanwhile")
        return saving.capture(machine)

    def reset(self) -> None:
        """Start the guest again in the same partition, with memory and registers as at power on."""
        self._reset_wanted = True
        if self._round is not None:
            self._freeze()
            self._round.cancel()

    def press_power_button(self) -> None:
        """Set the button's status bit and raise its interrupt in processor 0; the rest is the guest's."""
        self._power.press_button()
        if self._built is not None and (first := self._built.partition.vps.get(0)) is not None:
            first.raise_interrupt(POWER_BUTTON_VECTOR)

    def end(self, reason: ExitReason, detail: str = "") -> None:
        """The VM is over; the first reason counts. Called from traps, so it only notes and cancels."""
        if self._end is None:
            self._end = (reason, detail)
        self._freeze()
        (self._round or self._life).cancel()

    @property
    def ending(self) -> bool:
        """Whether the end has been decided on."""
        return self._end is not None

    @property
    def uptime(self) -> float:
        """Seconds since the start; resets and pauses count."""
        return seconds(self._host.hypervisor.clock() - self.started_at)

    def inspect(self) -> dict[str, Any]:
        """What there is while it is on, as children for a branch."""
        server, hotplug, integration, backend = self.server, self.hotplug, self.integration, self._backend
        seen: dict[str, Any] = {
            "worker": Branch(
                {
                    "ran": self.ran,
                    "resets": self.resets,
                    "ending": None if self._end is None else f"{self._end[0].value}: {self._end[1]}",
                    "reset_wanted": self._reset_wanted,
                }
            )
        }
        if backend is not None:
            seen |= {"backend": lambda: shown(backend)}
        if server is not None:
            unix = None if self._unix_sockets is None else self._unix_sockets.inspect
            seen |= {"vmbus": server.inspect, "sockets": functools.partial(server.sockets.inspect, unix)}
        if hotplug is not None:
            seen |= {"devices": Many(hotplug.devices, str)}
        if integration is not None:
            seen |= {"integration": integration.inspect}
        seen |= {"memory": self._inspect_memory if self.memory is None else self.memory.inspect}
        return seen

    def _inspect_memory(self) -> Branch:
        from partitions.root.memory_state import fixed_memory, shown

        return shown(fixed_memory(self._settings))

    def _freeze(self) -> None:
        """The guest sees no other instruction: a processor in a trap is suspended before the trap is answered."""
        if self._built is not None:
            self._built.suspend()

    @property
    def partition(self) -> Partition | None:
        """The hypervisor's record, while there is one."""
        return None if self._built is None else self._built.partition

    def statistics(self) -> VmStatistics:
        """Counters of this start so far; of its end, once it has ended."""
        if self._built is not None:
            self._last_statistics = take_statistics(self._built.partition, self.server, self._devices, self._left)
        return self._last_statistics

    # --- the one task

    async def run(self, report: Report) -> ExitRecord:
        """From power on to the exit record. Raises nothing but cancellation, and takes everything down then, too."""
        self._report = report
        try:
            with self._life, self._host.resources.reserved(self._settings.name):
                await self._run()
        except Exception as error:  # the worker boundary: the only place where exceptions of ours are caught
            self._failure = cause = _only(error)
            if isinstance(cause, CannotStart):
                self._end = (ExitReason.NOT_STARTED, str(cause))
            else:
                self._end = (ExitReason.WORKER_FAILED, f"{type(cause).__name__}: {cause}")
        return self.record()

    def record(self) -> ExitRecord:
        """How it ended; a worker that was cancelled has been turned off."""
        reason, detail = self._end or (ExitReason.TURNED_OFF, "the host ended")
        self._console.flush_line()
        return ExitRecord(
            vm=self._settings.name,
            reason=reason,
            exit_code=self._exit_code.value,
            detail=detail,
            crash=self._crash,
            failure=self._failure,
            console_tail=tuple(self._console.lines()[-CONSOLE_TAIL_LINES:]),
            started_at=self.started_at,
            ended_at=self._host.hypervisor.clock(),
            resets=self.resets,
        )

    async def _run(self) -> None:
        if self.prepare is not None:
            self.prepare()
        try:
            backend = self._host.make_backend(self._host.hypervisor, self._settings)
        except (OSError, SyntaxError, ValueError, NotImplementedError) as error:  # the guest's program, mostly
            raise CannotStart(str(error)) from error
        self._backend = backend
        saved = await self._read_saved(backend)
        await self._host.vid.make_room(self._settings.memory)
        async with contextlib.AsyncExitStack() as stack:
            built = self._open_partition(stack)
            com1, cmos, chipset = self._fit_chipset(stack, backend, built)
            server, hotplug = await self._open_bus(stack, built)
            stack.callback(self._leave)
            self._machine = machine = Machine(
                name=self._settings.name,
                winhv=self._host.winhv,
                built=built,
                server=server,
                console=self._console,
                com1=com1,
                cmos=cmos,
                power=self._power,
                exit_code=self._exit_code,
                chipset=chipset,
            )
            if saved is not None:
                try:
                    saving.restore(machine, saved)
                except CannotRestore as error:
                    raise CannotStart(f"cannot restore: {error}") from error
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow_plan, hotplug, self._settings.device)
                async with self._outer_sockets(server, nursery):
                    await self._rounds(backend, built, chipset, server)
                nursery.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def _outer_sockets(self, server: VmbusServer, nursery: trio.Nursery) -> AsyncIterator[None]:
        """Its Unix sockets, if it has any. Raises `CannotStart`."""
        if self._settings.sockets is None:
            yield
            return
        from partitions.root.sockets import SocketsError, open_unix_sockets

        try:
            opening = open_unix_sockets(self._settings.sockets, self._host.folder, server.sockets, nursery)
            async with opening as self._unix_sockets:
                yield
        except SocketsError as error:
            raise CannotStart(f"sockets: {error}") from None

    def _open_partition(self, stack: contextlib.AsyncExitStack) -> VmPartition:
        """Without software, and suspended. Raises what `Vid.open_partition` does."""
        host, settings = self._host, self._settings
        built = stack.enter_context(
            host.vid.open_partition(
                name=settings.name,
                memory=settings.memory,
                processors=settings.processors,
                privileges=vm_privileges(settings),
                huge_pages=settings.backend is BackendKind.KVM,
            )
        )
        self._built = built
        stack.callback(self._forget_partition)
        host.resources.opened(settings.name, built.id)
        host.winhv.hypervisor_handlers[built.id] = self._stopped_by_hypervisor
        stack.callback(host.winhv.hypervisor_handlers.pop, built.id)
        return built

    def _fit_chipset(
        self, stack: contextlib.AsyncExitStack, backend: Backend, built: VmPartition
    ) -> tuple[Com1, CmosClock, Chipset]:
        """What answers the partition's intercepts, and those of its devices that are new in each run."""
        com1 = Com1(self._console.write_byte, lambda high: backend.set_line(COM1_LINE, high))
        self._console.connect(com1.receive)
        stack.callback(self._console.connect, None)
        cmos = CmosClock(self._host.wall_clock)
        devices = com1, cmos, self._power, ResetControl(self._guest_reset), self._exit_code
        chipset = Chipset(devices, self._host.hypervisor.trace, built.id)
        built.partition.intercepts = chipset
        built.partition.on_crash = self._crashed
        built.partition.on_reset = self._guest_reset
        return com1, cmos, chipset

    async def _open_bus(self, stack: contextlib.AsyncExitStack, built: VmPartition) -> tuple[VmbusServer, HotPlug]:
        """The bus with all devices that the VM has when it is switched on. Raises `CannotStart`."""
        host, settings, partition = self._host, self._settings, built.partition
        self.integration = Integration(
            settings,
            wall_clock=host.wall_clock,
            reference_time=partition.reference_time.now,
            trace=host.hypervisor.trace,
            partition_id=built.id,
            virtual=host.inline_io,
        )
        self.input = Input(settings, partition, host.hypervisor.trace)
        ports = host.winhv.ports_of(built.id, host.vid.paying, first_page=built.first_page)
        stack.callback(ports.close)
        stack.callback(self._memory_stack.close)
        stack.callback(self._close_devices)  # when nobody is served any more
        self.server = server = await stack.enter_async_context(
            open_vmbus_server(
                ports,
                partition.memory,
                partition_id=built.id,
                trace=host.hypervisor.trace,
                shared=settings.backend is not BackendKind.TASK,
                device_names=offered_name,
                listeners=self._listeners,
                new_endpoint=seeded_endpoints(lambda: host.new_random(f"sockets of {settings.name}")),
            )
        )
        self.hotplug = hotplug = HotPlug(server, functools.partial(self._open_more, built.id), self._count)
        more: list[Device] = [*self.integration.devices, *self.input.devices]
        if settings.screen is not None:
            from partitions.root.screen import Screen

            self.screen = Screen(settings, built, host.vid, host.hypervisor.trace)
            stack.callback(self.screen.close)
            more.append(self.screen.device)
        if settings.dynamic_memory is not None:
            more.append(self._open_memory(built).device)
        self._offer_all(hotplug, more)
        return server, hotplug

    async def _read_saved(self, backend: Backend) -> SavedVm | None:
        """The state to go on from. Raises `CannotStart`."""
        if self._saved is None:
            return None
        why = saving.refusal(backend)
        if why:
            raise CannotStart(f"cannot restore: {why}")
        try:
            if self._host.inline_io:
                return self._saved()
            return await trio.to_thread.run_sync(self._saved)
        except CannotRestore as error:
            raise CannotStart(f"cannot restore: {error}") from error

    def _offer_all(self, hotplug: HotPlug, more: Sequence[Device]) -> None:
        """What the VM has when it is switched on. Raises `CannotStart`."""
        try:
            if self._settings.disk:
                hotplug.add(CONTROLLER, self._settings.disk)
            for number, nic in zip(numbers_of(self._settings.nic), self._settings.nic, strict=True):
                hotplug.add(nic_name(number), msgspec.structs.replace(nic, number=number))
            for table in self._settings.device:
                if not table.arrives:
                    hotplug.add(table.vsp, table)
            for device in more:
                hotplug.add(str(device.offer), device)
        except HotPlugError as error:
            raise CannotStart(str(error)) from error

    def _count(self, device: CountedDevice, there: bool) -> None:
        """A device came or has gone; what went through it still counts."""
        if there:
            self._devices.append(device)
        else:
            self._devices.remove(device)
            self._left += device.channel_statistics()

    def _close_devices(self) -> None:
        if self.hotplug is not None:
            self.hotplug.close()

    def _open_more(
        self,
        partition_id: int,
        name: str,
        disks: Sequence[DiskTable],
        tables: Sequence[DeviceTable],
        nics: Sequence[NicTable],
    ) -> contextlib.AbstractContextManager[list[CountedDevice]]:
        """Some devices; a controller's name makes its instance its own."""
        more = msgspec.structs.replace(self._settings, disk=list(disks), device=list(tables), nic=list(nics))
        return open_devices(
            more,
            folder=self._host.folder,
            inline_io=self._host.inline_io,
            trace=self._host.hypervisor.trace,
            partition_id=partition_id,
            network=self._host.network,
            disk_controls=self._host.disk_controls,
            controller_name=name,
        )

    async def _rounds(self, backend: Backend, built: VmPartition, chipset: Chipset, server: VmbusServer) -> None:
        """Run the guest until it ends; once more after each reset."""
        started = VmEvent.STARTED
        clock, quick = self._host.hypervisor.clock, 0
        while True:
            self._reset_wanted = self._resets_itself = False
            if 0 not in built.partition.vps:
                self._end = (ExitReason.STOPPED, "its virtual processor 0 was deleted, and no other begins")
                return
            began = clock()
            with trio.CancelScope() as self._round:
                async with trio.open_nursery() as nursery:
                    if self._saved is not None:
                        self._saved = None  # after a reset it boots as any other
                        assert isinstance(backend, SavableBackend), "asked by `saving.refusal` before"
                        await nursery.start(functools.partial(backend.run, restored=True), built.partition)
                        self.resume()
                    else:
                        await nursery.start(backend.run, built.partition)
                        built.resume()
                    self.ran = True
                    self._report(started)
            self._round = None
            # A guest that fell over: the hypervisor's message has said so, the backend knows the exception.
            self._failure = getattr(backend, "failure", None)
            if self._end is not None:
                return
            if not self._reset_wanted:
                self._end = (ExitReason.STOPPED, "the guest's software ended without powering off")
                return
            self.resets += 1
            started = VmEvent.WAS_RESET
            built.suspend()
            quick = quick + 1 if self._resets_itself and clock() - began < _QUICK else 0
            if quick > QUICK_RESETS:
                # Its memory is cleared each time, and on the virtual clock no time passes for anybody meanwhile.
                await trio.sleep(min(_FIRST_REST * 2 ** (quick - QUICK_RESETS - 1), _LONGEST_REST))
            await server.reset()
            chipset.reset()
            if self.memory is not None:
                self.memory.was_reset()
            self._host.hypervisor.reset_partition(built.partition)

    # --- what happens in the middle of a trap

    def _guest_reset(self) -> None:
        if not self._reset_wanted and self._end is None:
            self._report(VmEvent.GUEST_RESET)
            self._resets_itself = True
            self.reset()

    def _crashed(self, crash: CrashReport) -> None:
        self._crash = crash
        parameters = " ".join(f"{parameter:#x}" for parameter in crash.parameters)
        self.end(ExitReason.CRASHED, _headline(crash.text) or f"crash parameters {parameters}")

    def _stopped_by_hypervisor(self, message: HypervisorMessage) -> None:
        match message.message_type:
            case MessageType.UNMAPPED_GPA | MessageType.GPA_INTERCEPT:
                reason = ExitReason.MEMORY_INTERCEPT
            case MessageType.UNRECOVERABLE_EXCEPTION:
                reason = ExitReason.TRIPLE_FAULT
            case _:
                reason = ExitReason.INTERCEPT
        self.end(reason, _message_words(message))

    def _leave(self) -> None:
        """Runs before anything of it goes."""
        for tell in self._host.leaving:
            tell(self, self._settings)

    def _forget_partition(self) -> None:
        """Runs before the partition goes: what is asked later is answered from the last count."""
        self.statistics()
        self._built = None
        self.server = None
        self._machine = None
        self.hotplug = None
        self.integration = None
        self.input = None
        self.screen = None
        self.memory = None


def vm_privileges(settings: VmTable) -> int:
    """What a VM of this topology entry may do."""
    wanted = settings.synthetic_timers
    if wanted is None:
        wanted = settings.backend is not BackendKind.KVM
    return _PRIVILEGES[settings.backend] | (int(Privilege.ACCESS_SYNTHETIC_TIMER_MSRS) if wanted else 0)


def offered_name(offer: Offer) -> str:
    """What traces and recordings call whatever is offered so."""
    return SOCKET.name if is_socket(offer.flags) else device_name(offer.interface)


def _nobody(event: VmEvent) -> None:
    """Nobody listens before `run`."""


def _headline(text: str) -> str:
    """The line of a crash's text that says what happened: a kernel sends the end of its log, with the panic in it."""
    lines = text.strip().splitlines()
    return next((line for line in lines if "panic" in line.lower()), lines[0] if lines else "")


def _message_words(message: HypervisorMessage) -> str:
    if message.message_type == MessageType.UNRECOVERABLE_EXCEPTION:
        return f"on processor {InterceptHeader.decode(message.payload).vp_index}"
    try:
        return MessageType(message.message_type).name.lower().replace("_", " ")
    except ValueError:
        return f"hypervisor message {message.message_type:#x}"


def _only(error: BaseException) -> BaseException:
    """The exception inside groups that hold nothing else: groups come from nurseries and say nothing to a person."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
