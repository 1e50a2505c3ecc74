"""A guest kernel: from the first instruction to a running program, and out again. Child side.

Read `_Kernel.run` first: it is the boot order as one list. Everything that it needs from outside comes through
`Machine`: guest memory, MSRs, CPUID, hypercalls, port I/O and interrupts. What it lacks against a real kernel's boot is
what Python makes needless: no page tables, no descriptor tables, no memory map.

Tasks: one a virtual processor waits for interrupts, one a device runs its driver, and the caller's own runs the
program. All of them end when the program ends. The host may cancel all of it at any time: that is the power cord.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from hypervisor.cpuid import (
    CRASH_MSRS_AVAILABLE,
    DEPRECATE_AUTO_EOI,
    HYPERVISOR_PRESENT,
    LEAF_FEATURES,
    LEAF_LIMITS,
    LEAF_RECOMMENDATIONS,
    LEAF_VENDOR,
    LEAF_VERSION_INFO,
    VENDOR,
)
from hypervisor.machine import Machine, VpStopped
from hypervisor.msr import PAGE_ENABLE, Msr
from hypervisor.pages import PAGE_MASK, PAGE_SHIFT
from hypervisor.privileges import Privilege, privilege_names
from hypervisor.synic.messages import Sint
from partitions import ports
from partitions.child import crash
from partitions.child.bus_options import bus_options
from partitions.child.console import Console
from partitions.child.devices import Devices, OnDriver
from partitions.child.guest import Guest, GuestMain
from partitions.child.interrupts import VMBUS_VECTOR, Interrupts, ProcessorInterrupts
from partitions.child.keeping import Keeper
from partitions.child.pages import PageAllocator
from partitions.child.reference_time import ReferenceTime
from partitions.child.timers import Timers
from partitions.child.told import Told
from partitions.child.winhv import Platform, WinHv
from vmbus.client.service import open_vmbus_client
from vsp_vsc.integration.shutdown.protocol import ShutdownFlags

OS_ID: Final = 0xD041_0000_0001_0000
"""Bit 63: open source; bits 62..48: an OS type that nobody has (Linux is 0x100); below, version 0.1."""
GRACE: Final = 5.0
"""Seconds of the partition's time that a cancelled program has to clean up in."""


class NotAGuest(Exception):
    """This processor is not under a hypervisor that we know, or it may not do what a VMBus guest must do."""


SYNIC_ENABLE: Final = 1
NEEDED: Final = int(
    Privilege.ACCESS_HYPERCALL_MSRS
    | Privilege.ACCESS_VP_INDEX
    | Privilege.ACCESS_SYNIC_MSRS
    | Privilege.ACCESS_APIC_MSRS
    | Privilege.ACCESS_PARTITION_REFERENCE_COUNTER
    | Privilege.POST_MESSAGES
    | Privilege.SIGNAL_EVENTS
)
"""The rights without which there is no VMBus and no clock."""


@attrs.frozen
class Features:
    """What CPUID says that this kernel may use beyond what it needs."""

    tsc_page: bool
    crash_registers: bool
    auto_eoi: bool


async def boot(
    machines: Sequence[Machine],
    main: GuestMain,
    *,
    name: str = "guest",
    args: Mapping[str, Any] | None = None,
    program: Path | None = None,
    grace: float = GRACE,
    resumed: bool = False,
) -> None:
    """Boot a guest on these virtual processors, run `main`, and power off.

    `program` is the file of `main`, to trim tracebacks by; `grace` the seconds that it has to clean up in after the
    power button. `resumed`: memory is that of a past life, which was saved: it stays as it is, and the bus is connected
    to anew, as a system does that wakes from hibernation.

    Ends after power-off, with the exit code told before: 0 when `main` returned None or was cancelled by the power
    button, else the integer that it returned. After an exception: traceback on the console, exit code 1,
    crash registers, and the processor halts until the host ends it. `VpStopped` is let through: the processor is gone.
    """
    kernel = _Kernel(machines, main, name, args or {}, program, grace, resumed)
    try:
        await kernel.run()
    except NotAGuest as problem:
        kernel.console.print(f"kernel: {problem}")
        kernel.power_off(1)
    except Exception as fault:
        _let_through(fault)
        await kernel.die(crash.KERNEL_FAULT, fault)


class _Kernel:
    """One boot: from here everything is set up in order, and torn down in the opposite order."""

    def __init__(
        self,
        machines: Sequence[Machine],
        main: GuestMain,
        name: str,
        args: Mapping[str, Any],
        program: Path | None,
        grace: float,
        resumed: bool,
    ) -> None:
        self.machines = machines
        self.resumed = resumed
        self.keeper = Keeper(machines[0].memory)
        self.past_pages = 0
        """Pages that a past life had, from the first on; the host may look at them until it has heard of us."""
        self.machine = machines[0]
        self.console = Console(self.machine)
        self.main = main
        self.name = name
        self.args = args
        self.program = program
        self.grace = grace
        self.interrupts = Interrupts()
        self.program_scope = trio.CancelScope()
        self.features: Features | None = None
        self.crash_page = 0
        self.exit_code = 0
        self.told = Told(name)
        self.restart = False
        """The host or the program asked for a restart: the way back ends in a reset."""

    async def run(self) -> None:
        """The boot order, the program, and the way back."""
        features = self.find_hypervisor()  # CPUID: "Microsoft Hv", and the rights that a VMBus guest needs
        self.say_who_we_are()  # guest OS ID: without one, hypercalls stay off
        pages = self.take_memory()  # everything above 1 MiB, as one free run
        winhv = self.enable_hypercalls(pages)  # the hypercall page, and a page for input and output each
        time = self.start_time(pages, features)  # reference time: the TSC page where offered, else the MSR
        processors = self.start_synic(pages, features)  # message page, event flags page, Msr.SINT2, on; each processor
        platform = Platform(winhv, pages, self.interrupts, time)
        async with trio.open_nursery() as tasks:
            for processor in processors:  # interrupts on: one task waits on each processor
                tasks.start_soon(processor.run, name=f"{self.name}: interrupts")
            self.bind_power_button(tasks, platform)
            versions, wanted = bus_options(self.args)  # all, and no feature, unless the topology says otherwise
            async with open_vmbus_client(platform, versions=versions, features=wanted) as bus:
                self.forget_past_life(pages)  # with our contact the host let go of it
                await bus.wait_offers_delivered()  # what the host has for us
                bind = self.driver_binder(tasks, platform)  # shutdown requests end the program, as the button does
                devices = Devices(  # drivers by interface GUID, probing
                    bus, platform, self.console, tasks, bind, processors=len(processors), options=self.args
                )
                tasks.start_soon(devices.follow_offers, name=f"{self.name}: hot plug")
                restart = functools.partial(self.restart_in_order, tasks, platform)
                await self.run_program(winhv, platform, devices, restart)  # the guest program, until it ends
                await devices.stop()  # drivers let go of their channels
            tasks.cancel_scope.cancel()  # the bus is unloaded; interrupts off
        time.disable()
        self.stop_synic()
        self.disable_hypercalls()
        self.power_off(self.exit_code)

    # Boot, step by step

    def find_hypervisor(self) -> Features:
        """CPUID, as Linux checks it: present bit, signature, enough leaves; then the rights that all else needs."""
        cpuid = self.machine.cpuid
        if not cpuid(LEAF_VERSION_INFO)[2] & HYPERVISOR_PRESENT:
            raise NotAGuest("no hypervisor here (CPUID 1, ECX bit 31)")
        most, *signature = cpuid(LEAF_VENDOR)
        if struct.pack("<III", *signature) != VENDOR or not LEAF_LIMITS <= most <= 0x4000_FFFF:
            raise NotAGuest("the hypervisor is not of Hyper-V's kind (CPUID 0x40000000)")
        low, high, _, misc = cpuid(LEAF_FEATURES)
        hints = cpuid(LEAF_RECOMMENDATIONS)[0]
        privileges = high << 32 | low
        lacking = NEEDED & ~privileges
        if lacking:
            raise NotAGuest(f"the parent withholds {privilege_names(lacking)}")
        self.features = Features(
            tsc_page=bool(privileges & Privilege.ACCESS_PARTITION_REFERENCE_TSC),
            crash_registers=bool(misc & CRASH_MSRS_AVAILABLE),
            auto_eoi=not hints & DEPRECATE_AUTO_EOI,
        )
        return self.features

    def say_who_we_are(self) -> None:
        """The guest OS ID; a hypervisor answers no calls of strangers."""
        self.machine.write_msr(Msr.GUEST_OS_ID, OS_ID)

    def take_memory(self) -> PageAllocator:
        """Memory is one extent from GPA 0; the low megabyte stays untouched. One page is kept for last words."""
        pages = PageAllocator(self.machine.memory)
        if pages.limit > pages.first:
            if self.resumed:
                self.past_pages = pages.set_aside(self.keeper.used_before)
            else:
                self.keeper.begin()
            pages.on_growth = self.keeper.note_used
        try:
            self.crash_page = pages.allocate(1)
        except MemoryError:
            size = len(self.machine.memory) >> 10
            raise NotAGuest(f"{size} KiB of memory are too little; nothing below 1 MiB is used") from None
        return pages

    def forget_past_life(self, pages: PageAllocator) -> None:
        """Its pages are free now."""
        if self.past_pages:
            pages.free(pages.first, self.past_pages)
            self.past_pages = 0

    def enable_hypercalls(self, pages: PageAllocator) -> WinHv:
        """Choose where the hypercall page appears, and keep what else the register holds."""
        self.set_page(self.machine, Msr.HYPERCALL, pages.allocate(1))
        if not self.machine.read_msr(Msr.HYPERCALL) & PAGE_ENABLE:
            raise NotAGuest("the hypercall page stays off")
        return WinHv(self.machine, pages.allocate(2))

    def start_time(self, pages: PageAllocator, features: Features) -> ReferenceTime:
        """The partition's clock."""
        return ReferenceTime(self.machine, pages.allocate(1) if features.tsc_page else None)

    def start_synic(self, pages: PageAllocator, features: Features) -> list[ProcessorInterrupts]:
        """On each processor, in Linux's order: Msr.SIMP, Msr.SIEFP, Msr.SINT2, SCONTROL."""
        processors = []
        for machine in self.machines:
            if machine.read_msr(Msr.VP_INDEX) != machine.vp_index:
                raise NotAGuest("a processor disagrees with the hypervisor about its number")
            message_page = pages.allocate(2)
            event_page = message_page + 1
            self.set_page(machine, Msr.SIMP, message_page)
            self.set_page(machine, Msr.SIEFP, event_page)
            auto_eoi = Sint.AUTO_EOI if features.auto_eoi else 0
            kept = machine.read_msr(Msr.SINT2) & ~(Sint.VECTOR | Sint.MASKED | Sint.AUTO_EOI)
            machine.write_msr(Msr.SINT2, kept | VMBUS_VECTOR | auto_eoi)
            machine.write_msr(Msr.SCONTROL, machine.read_msr(Msr.SCONTROL) | SYNIC_ENABLE)
            processors.append(
                ProcessorInterrupts(machine, message_page, event_page, self.interrupts, auto_eoi=features.auto_eoi)
            )
            if self.resumed:
                processors[-1].handle_vmbus()  # what a past life did not read is for nobody
        return processors

    def bind_power_button(self, tasks: trio.Nursery, platform: Platform) -> None:
        """From now on a press cancels the program; one that does not end within the grace period is cut off."""

        def pressed() -> None:
            if self.machine.port_in(ports.POWER, 2) & ports.POWER_BUTTON:
                self.machine.port_out(ports.POWER, 2, ports.POWER_BUTTON)
                self.go_down(tasks, platform)

        self.interrupts.vectors[ports.POWER_BUTTON_VECTOR] = pressed

    def driver_binder(self, tasks: trio.Nursery, platform: Platform) -> OnDriver:
        """What this kernel does with drivers that are not for programs alone."""

        def asked(flags: ShutdownFlags, text: str) -> bool:
            if flags & ShutdownFlags.HIBERNATE:
                return False
            self.restart = bool(flags & ShutdownFlags.RESTART)
            self.go_down(tasks, platform)
            return True

        def bind(kind: str, driver: Any) -> None:
            if kind == "shutdown":
                driver.on_request = asked
            elif kind == "kvp":
                self.told.bind(driver)
            elif kind == "time-sync":
                self.told.follow_clock(driver)

        return bind

    def go_down(self, tasks: trio.Nursery, platform: Platform) -> None:
        """Cancel the program; it has the grace period to clean up in."""
        if not self.program_scope.cancel_called:
            self.program_scope.cancel()
            tasks.start_soon(self.cut_off, platform, name=f"{self.name}: grace period")

    def restart_in_order(self, tasks: trio.Nursery, platform: Platform) -> None:
        """The program wants it."""
        self.restart = True
        self.go_down(tasks, platform)

    # The program

    async def run_program(
        self, winhv: WinHv, platform: Platform, devices: Devices, restart: Callable[[], None]
    ) -> None:
        """Run `main` to its end; an exception of its own ends in `die`."""
        timers = Timers(self.machine, platform.reference_time, self.interrupts)
        try:
            with self.program_scope:
                async with trio.open_nursery() as background:
                    guest = Guest(
                        name=self.name,
                        args=self.args,
                        machines=self.machines,
                        console=self.console,
                        winhv=winhv,
                        platform=platform,
                        devices=devices,
                        timers=timers,
                        nursery=background,
                        keeper=self.keeper,
                        restart=restart,
                        told=self.told,
                    )
                    result = await self.main(guest)
                    background.cancel_scope.cancel()
                    if isinstance(result, int):
                        self.exit_code = result & 0xFFFF_FFFF
            timers.stop()
        except Exception as fault:
            _let_through(fault)
            await self.die(crash.PROGRAM_FAULT, fault)

    async def die(self, code: int, fault: Exception) -> None:
        """Oops: say why, tell the host, and halt with everything unbound. Ends only when the host ends it."""
        text = crash.oops(fault, self.program)
        self.interrupts.unbind_all()
        self.console.write(text)
        if self.features is None or not self.features.crash_registers:
            self.power_off(1)
            return
        self.machine.port_out(ports.EXIT_CODE, 4, 1)
        line = crash.fault_line(fault, self.program)
        message = f"{crash.summary(fault)}\n{text}"  # hosts show the first line
        crash.report_crash(self.machine, self.crash_page, code, OS_ID, line, message)
        await trio.sleep_forever()  # the interrupt tasks, if they are still there, halt the processors

    async def cut_off(self, platform: Platform) -> None:
        """The end of the grace period after the power button."""
        await platform.sleep(self.grace)
        self.console.print(f"kernel: the program did not end within {self.grace:g} s of the power button")
        self.power_off(1)

    # The way back

    def stop_synic(self) -> None:
        """In Linux's order: SINT2 masked, both pages taken back, SynIC off."""
        for machine in self.machines:
            machine.write_msr(Msr.SINT2, machine.read_msr(Msr.SINT2) | Sint.MASKED)
            machine.write_msr(Msr.SIMP, 0)
            machine.write_msr(Msr.SIEFP, 0)
            machine.write_msr(Msr.SCONTROL, machine.read_msr(Msr.SCONTROL) & ~SYNIC_ENABLE)

    def disable_hypercalls(self) -> None:
        """Zeroing the guest OS ID turns the hypercall page off by itself; both are written, as Linux does."""
        self.machine.write_msr(Msr.GUEST_OS_ID, 0)
        self.machine.write_msr(Msr.HYPERCALL, 0)

    def power_off(self, exit_code: int) -> None:
        """Tell how it went, then soft off; or reset, where that was asked for."""
        if self.restart:
            self.machine.port_out(ports.RESET, 1, ports.RESET_NOW)
            return
        self.machine.port_out(ports.EXIT_CODE, 4, exit_code)
        self.machine.port_out(ports.POWER, 2, ports.POWER_OFF)

    @staticmethod
    def set_page(machine: Machine, msr: int, page: int) -> None:
        """Point an overlay register at a page and enable it; bits 11..1 are kept as they are."""
        machine.write_msr(msr, machine.read_msr(msr) & (PAGE_MASK ^ PAGE_ENABLE) | page << PAGE_SHIFT | PAGE_ENABLE)


def _let_through(fault: Exception) -> None:
    """A stopped processor runs no code: not even the one that would report a crash."""
    if isinstance(fault, VpStopped):
        raise fault
    if isinstance(fault, ExceptionGroup):
        stopped = fault.subgroup(VpStopped)
        if stopped is not None:
            raise VpStopped(str(stopped)) from fault
