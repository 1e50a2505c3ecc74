"""A virtual processor without a hypervisor: scripted registers, recorded hypercalls, a console."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import attrs
import trio

from hypervisor.clock import seconds, ticks
from hypervisor.hypercall.abi import FAST, CallCode
from hypervisor.machine import GeneralProtection
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_MASK
from hypervisor.privileges import Privilege
from hypervisor.status import HvStatus
from hypervisor.synic.messages import MESSAGE_PENDING, SINT_RESET, SLOT_SIZE
from partitions import ports

T = TypeVar("T")
RIGHTS = sum(
    int(right)
    for right in (
        Privilege.ACCESS_PARTITION_REFERENCE_COUNTER,
        Privilege.ACCESS_SYNIC_MSRS,
        Privilege.ACCESS_APIC_MSRS,
        Privilege.ACCESS_HYPERCALL_MSRS,
        Privilege.ACCESS_VP_INDEX,
        Privilege.POST_MESSAGES,
        Privilege.SIGNAL_EVENTS,
    )
)
CRASH_MSRS = range(Msr.CRASH_P0, Msr.CRASH_CTL + 1)
KNOWN = {
    *(Msr.GUEST_OS_ID, Msr.HYPERCALL, Msr.VP_INDEX, Msr.REFERENCE_TSC, Msr.TIME_REF_COUNT, Msr.EOI, Msr.EOM),
    *(Msr.SCONTROL, Msr.SIEFP, Msr.SIMP, Msr.SINT2, *CRASH_MSRS),
}


@attrs.define(eq=False)
class FakeMachine:
    """One `Machine`. Time is Trio's; messages and flags come from `deliver` and `set_flag`, as the host's would."""

    vp_index: int = 0
    size: int = 4 << 20
    privileges: int = RIGHTS
    features: int = 1 << 10
    hints: int = 1 << 9
    vendor: bytes = b"Microsoft Hv"
    on_post: Callable[[int, bytes], HvStatus] = lambda connection, payload: HvStatus.SUCCESS
    on_signal: Callable[[int], HvStatus] = lambda connection: HvStatus.SUCCESS
    on_port_out: Callable[[int, int], None] = lambda port, value: None

    memory: memoryview = attrs.field(init=False)
    msrs: dict[int, int] = attrs.field(init=False)
    console: bytearray = attrs.field(factory=bytearray, init=False)
    writes: list[tuple[int, int]] = attrs.field(factory=list, init=False)
    """MSRs written, in order."""
    port_writes: list[tuple[int, int, int]] = attrs.field(factory=list, init=False)
    """All but the console's: port, size, value."""
    calls: list[tuple[int, int, int]] = attrs.field(factory=list, init=False)
    button: bool = attrs.field(default=False, init=False)
    queued: deque[bytes] = attrs.field(factory=deque, init=False)
    pending: deque[int] = attrs.field(factory=deque, init=False)
    worked: int = attrs.field(default=0, init=False)
    touches: list[tuple[int, int]] = attrs.field(factory=list, init=False)
    _kick: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.memory = memoryview(bytearray(self.size))
        self.msrs = dict.fromkeys(KNOWN, 0) | {Msr.VP_INDEX: self.vp_index, Msr.SINT2: SINT_RESET}

    # --- Machine

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        match leaf:
            case 1:
                return 0, 0, 1 << 31, 0
            case 0x40000000:
                return 0x40000006, *struct.unpack("<III", self.vendor)
            case 0x40000003:
                return self.privileges & 0xFFFFFFFF, self.privileges >> 32, 0, self.features
            case 0x40000004:
                return self.hints, 0, 0, 0
            case _:
                return 0, 0, 0, 0

    def read_msr(self, msr: int) -> int:
        if msr == Msr.TIME_REF_COUNT:
            return ticks(trio.current_time())
        if msr not in self.msrs:
            raise GeneralProtection(f"read of MSR {msr:#x}")
        return self.msrs[msr]

    def write_msr(self, msr: int, value: int) -> None:
        if msr not in self.msrs:
            raise GeneralProtection(f"write of MSR {msr:#x}")
        self.writes.append((msr, value))
        self.msrs[msr] = value
        if msr == Msr.EOM:
            self._fill_slot()

    def read_tsc(self) -> int:
        return ticks(trio.current_time()) * 100

    def hypercall(self, control: int, input_gpa: int = 0, output_gpa: int = 0) -> int:
        self.calls.append((control, input_gpa, output_gpa))
        match control:
            case CallCode.POST_MESSAGE:
                connection, _, _, size = struct.unpack_from("<IIII", self.memory, input_gpa)
                return self.on_post(connection, bytes(self.memory[input_gpa + 16 : input_gpa + 16 + size]))
            case 0x1005D:
                return self.on_signal(input_gpa)
            case _:
                assert not control & FAST
                return HvStatus.INVALID_HYPERCALL_CODE

    def port_in(self, port: int, size: int) -> int:
        match port:
            case ports.COM1_LINE_STATUS:
                return ports.LINE_STATUS_IDLE
            case ports.POWER:
                return ports.POWER_BUTTON if self.button else 0
            case _:
                return (1 << 8 * size) - 1

    def port_out(self, port: int, size: int, value: int) -> None:
        if port == ports.COM1_TRANSMIT:
            self.console.append(value)
            return
        self.port_writes.append((port, size, value))
        if port == ports.POWER and value & ports.POWER_BUTTON:
            self.button = False
        self.on_port_out(port, value)

    async def execute(self, access: Callable[[], T]) -> T:
        return access()

    async def halt(self) -> int:
        while not self.pending:
            self._kick = trio.Event()
            await self._kick.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self.pending.popleft()

    async def idle(self) -> None:
        while not self.pending:
            self._kick = trio.Event()
            await self._kick.wait()

    async def sleep_until(self, reference_time: int) -> None:
        await trio.sleep_until(seconds(reference_time))

    async def work(self, duration: int) -> None:
        self.worked += duration
        await trio.sleep(seconds(duration))

    def touched(self, gpn: int, count: int) -> None:
        self.touches.append((gpn, count))

    # --- what a host would do

    def interrupt(self, vector: int) -> None:
        if vector not in self.pending:
            self.pending.append(vector)
        self._kick.set()

    def press_button(self) -> None:
        self.button = True
        self.interrupt(ports.POWER_BUTTON_VECTOR)

    def deliver(self, payload: bytes) -> None:
        """A channel message into SINT2's slot; queued while the slot is occupied."""
        self.queued.append(payload)
        self._fill_slot()

    def set_flag(self, channel_id: int) -> None:
        start = (self.msrs[Msr.SIEFP] & ~PAGE_MASK) + 2 * SLOT_SIZE
        self.memory[start + channel_id // 8] |= 1 << channel_id % 8
        self.interrupt(self.msrs[Msr.SINT2] & 0xFF)

    @property
    def text(self) -> str:
        return self.console.decode()

    @property
    def exit_code(self) -> int | None:
        return next((value for port, _, value in self.port_writes if port == ports.EXIT_CODE), None)

    @property
    def is_off(self) -> bool:
        return (ports.POWER, 2, ports.POWER_OFF) in self.port_writes

    def _fill_slot(self) -> None:
        start = (self.msrs[Msr.SIMP] & ~PAGE_MASK) + 2 * SLOT_SIZE
        slot = self.memory[start : start + SLOT_SIZE]
        if any(slot[:4]):
            slot[5] |= MESSAGE_PENDING
        elif self.queued:
            payload = self.queued.popleft()
            slot[16 : 16 + len(payload)] = payload
            slot[4], slot[5] = len(payload), MESSAGE_PENDING if self.queued else 0
            slot[0] = 1
            self.interrupt(self.msrs[Msr.SINT2] & 0xFF)
