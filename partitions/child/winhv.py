"""WinHv, the hypercall shim: calls as functions, results as `HvStatus`; what drivers stand on. Child side."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import attrs

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.hypercall.abi import CallCode, control_word
from hypervisor.machine import Machine
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.status import HvStatus
from partitions.child.interrupts import Interrupts
from partitions.child.pages import PageAllocator
from partitions.child.reference_time import ReferenceTime
from vmbus.protocol.identifiers import MAX_MESSAGE_BYTES, SYNIC_MESSAGE_TYPE

if TYPE_CHECKING:
    from partitions.child.memory import Memory

_POST_MESSAGE: Final = control_word(CallCode.POST_MESSAGE)
"""0x5C. Slow: the message is too long for registers."""
_SIGNAL_EVENT: Final = control_word(CallCode.SIGNAL_EVENT, fast=True)
"""0x1005D. Connection ID and flag number fit one register."""

_MESSAGE: Final = struct.Struct("<IIII")
"""Connection ID, reserved, message type, payload bytes; the payload follows."""
_STATUS: Final = {int(status): status for status in HvStatus}
"""A dictionary costs a fifth of calling the enumeration."""


@attrs.frozen
class HypercallResult:
    """What one hypercall left behind."""

    status: HvStatus | int
    """A plain integer where the hypervisor answers with a number that has no name."""
    reps: int
    """Repetitions completed, counted from the start of the list."""
    output: bytes
    """The output page's first bytes; indeterminate unless the call succeeded."""


class WinHv:
    """Hypercalls of one virtual processor, through an input and an output page of its own."""

    __slots__ = ("_call", "_input_gpa", "_memory", "_output_gpa", "machine")

    def __init__(self, machine: Machine, first_page: int) -> None:
        """`first_page` is the first of two adjacent pages: input, then output."""
        self.machine = machine
        self._memory = machine.memory
        self._call = machine.hypercall
        self._input_gpa = first_page << PAGE_SHIFT
        self._output_gpa = self._input_gpa + PAGE_SIZE

    def post_message(self, connection_id: int, payload: bytes) -> HvStatus:
        """HvPostMessage. INSUFFICIENT_BUFFERS means: later again. `ValueError` for what no message can carry."""
        size = len(payload)
        if size > MAX_MESSAGE_BYTES:
            raise ValueError(f"a message carries {MAX_MESSAGE_BYTES} bytes, not {size}")
        gpa = self._input_gpa
        _MESSAGE.pack_into(self._memory, gpa, connection_id, 0, SYNIC_MESSAGE_TYPE, size)
        self._memory[gpa + 16 : gpa + 16 + size] = payload
        return _STATUS[self._call(_POST_MESSAGE, gpa) & 0xFFFF]

    def signal_event(self, connection_id: int) -> HvStatus:
        """HvSignalEvent with flag number 0: the ring on the other side has work. The hottest call there is."""
        return _STATUS[self._call(_SIGNAL_EVENT, connection_id) & 0xFFFF]

    def hypercall(self, control: int, untyped_input: bytes = b"", output_bytes: int = 0) -> HypercallResult:
        """Any slow hypercall with input of at most a page: for guest programs that try the interface on purpose.

        `control` is the whole control word: call code, fast bit, variable header size, rep count and start.
        """
        if len(untyped_input) > PAGE_SIZE or not 0 <= output_bytes <= PAGE_SIZE:
            raise ValueError("input and output of a hypercall are at most one page each")
        memory = self._memory
        memory[self._input_gpa : self._input_gpa + len(untyped_input)] = untyped_input
        result = self._call(control, self._input_gpa, self._output_gpa)
        output = bytes(memory[self._output_gpa : self._output_gpa + output_bytes])
        number = result & 0xFFFF
        return HypercallResult(_STATUS.get(number, number), result >> 32 & 0xFFF, output)


class Platform:
    """What the VMBus client and the drivers need of the kernel (`vmbus.client.platform.GuestPlatform`)."""

    __slots__ = ("_interrupts", "_machine", "_memory", "_pages", "_time", "memory", "post_message", "signal_event")

    def __init__(self, winhv: WinHv, pages: PageAllocator, interrupts: Interrupts, time: ReferenceTime) -> None:
        self._machine = winhv.machine
        self._pages = pages
        self._interrupts = interrupts
        self._time = time
        self.memory = winhv.machine.memory
        self._memory: Memory | None = None
        self.post_message: Callable[[int, bytes], HvStatus] = winhv.post_message
        self.signal_event: Callable[[int], HvStatus] = winhv.signal_event

    def allocate_pages(self, count: int) -> int:
        """The first page number of `count` adjacent zeroed pages; `MemoryError`."""
        return self._pages.allocate(count)

    def free_pages(self, gpn: int, count: int) -> None:
        """Give pages back; `ValueError` when they are free already."""
        self._pages.free(gpn, count)

    @property
    def heap(self) -> Memory:
        """The pages by what they are used for, for those who look at that."""
        if self._memory is None:
            from partitions.child.memory import Memory

            self._memory = Memory(self._pages, self)
        return self._memory

    def reference_time(self) -> int:
        """The partition's time in 100 ns units."""
        return self._time.now()

    def touched(self, gpn: int, count: int) -> None:
        """Programs have accessed these pages: what a processor notes by itself, a model guest's kernel says."""
        self._machine.touched(gpn, count)

    async def sleep(self, seconds: float) -> None:
        """Not before so much of the partition's time has gone by; stands still while the VM is paused."""
        await self._machine.sleep_until(self._time.now() + round(seconds * TICKS_PER_SECOND))

    def set_message_handler(self, handler: Callable[[bytes], None] | None) -> None:
        """Who takes the payloads of SINT2's messages; called from the interrupt task."""
        self._interrupts.message_handler = handler

    def set_event_handler(self, channel_id: int, handler: Callable[[], None] | None) -> None:
        """Who is called when the host signals a channel; called from the interrupt task."""
        if handler is None:
            self._interrupts.event_handlers.pop(channel_id, None)
        else:
            self._interrupts.event_handlers[channel_id] = handler
