"""The guest's interrupt dispatch: channel event flags first, then the message slot. Child side.

One task a virtual processor halts, wakes with a vector and calls what is bound to it. Handlers are synchronous and
short: they ring a bell that a driver's task waits for. All of it runs between two checkpoints, so a handler never sees
half of another one's work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypervisor.machine import Machine
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT
from hypervisor.synic.messages import (
    EVENT_FLAGS_SIZE,
    FLAGS_OFFSET,
    HEADER_SIZE,
    MESSAGE_PENDING,
    PAYLOAD_MAX,
    SLOT_SIZE,
)
from vmbus.protocol.identifiers import SINT, SYNIC_MESSAGE_TYPE

VMBUS_VECTOR = 0xF3
"""The vector that Linux gives SINT2, too (HYPERVISOR_CALLBACK_VECTOR)."""

_NO_FLAGS = bytes(EVENT_FLAGS_SIZE)
_SIZE_OFFSET = 4
# Looking a member up in an enumeration costs as much as the rest of an interrupt.
_EOI, _EOM = int(Msr.EOI), int(Msr.EOM)


def take_flags(slot: memoryview) -> int:
    """All event flags that are set, as one integer, cleared in memory.

    Two steps are enough here, because host and guest share one thread. Where they do not, this function is the one to
    replace by an atomic exchange for each word (facts: a plain read-and-clear would lose flags set in between).
    """
    snapshot = slot.tobytes()
    if snapshot == _NO_FLAGS:
        return 0
    slot[:] = _NO_FLAGS
    return int.from_bytes(snapshot, "little")


class Interrupts:
    """What is bound to which channel, for all processors of the guest."""

    __slots__ = ("event_handlers", "message_handler", "messages_ignored", "spurious", "vectors")

    def __init__(self) -> None:
        self.event_handlers: dict[int, Callable[[], None]] = {}
        """By channel ID."""
        self.message_handler: Callable[[bytes], None] | None = None
        self.vectors: dict[int, Callable[[], None]] = {}
        """Further interrupts of virtual processor 0, such as the power button's."""
        self.messages_ignored = 0
        """Messages of a type nobody asked for."""
        self.spurious = 0
        """Vectors and event flags that are bound to nothing."""

    def unbind_all(self) -> None:
        """From here on interrupts are taken and nothing is done about them."""
        self.event_handlers.clear()
        self.vectors.clear()
        self.message_handler = None

    def dispatch_flags(self, flags: int) -> None:
        """Call the handler of each channel whose bit is set, lowest first; flag 0 is for old versions' page of bits."""
        handlers = self.event_handlers
        while flags:
            lowest = flags & -flags
            flags ^= lowest
            handler = handlers.get(lowest.bit_length() - 1)
            if handler is not None:
                handler()
            elif lowest != 1:
                self.spurious += 1

    def dispatch_message(self, kind: int, payload: bytes) -> None:
        """Hand over a channel message; timer messages and the hypervisor's own have no handler in this kernel."""
        if kind == SYNIC_MESSAGE_TYPE and self.message_handler is not None:
            self.message_handler(payload)
        else:
            self.messages_ignored += 1


class ProcessorInterrupts:
    """SINT2 of one virtual processor: its message slot, its event flags and the loop that waits for interrupts."""

    __slots__ = ("_auto_eoi", "_flags", "_interrupts", "_machine", "_message", "_type", "_vectors")

    def __init__(
        self, machine: Machine, message_page: int, event_page: int, interrupts: Interrupts, *, auto_eoi: bool
    ) -> None:
        self._machine = machine
        self._interrupts = interrupts
        self._auto_eoi = auto_eoi
        start = (message_page << PAGE_SHIFT) + SINT * SLOT_SIZE
        self._message = machine.memory[start : start + SLOT_SIZE]
        self._type = self._message[:4].cast("I")
        start = (event_page << PAGE_SHIFT) + SINT * EVENT_FLAGS_SIZE
        self._flags = machine.memory[start : start + EVENT_FLAGS_SIZE]
        self._vectors: Mapping[int, Callable[[], None]] = interrupts.vectors if machine.vp_index == 0 else {}

    async def run(self) -> None:
        """The interrupt task: halt, take the vector, handle it, end the interrupt; until cancelled."""
        machine = self._machine
        while True:
            vector = await machine.halt()
            if vector == VMBUS_VECTOR:
                self.handle_vmbus()
                if not self._auto_eoi:
                    machine.write_msr(_EOI, 0)
                continue
            handler = self._vectors.get(vector)
            if handler is None:
                self._interrupts.spurious += 1
            else:
                handler()
            machine.write_msr(_EOI, 0)

    def handle_vmbus(self) -> None:
        """Everything SINT2 has: flags first, since data is the frequent case; then messages until none waits."""
        flags = take_flags(self._flags)
        if flags:
            self._interrupts.dispatch_flags(flags)
        while self._type[0]:
            self._take_message()

    def _take_message(self) -> None:
        """Copy out, free the slot, and only then look whether more wait: that bit may be set at any time."""
        slot = self._message
        kind = self._type[0]
        payload = bytes(slot[HEADER_SIZE : HEADER_SIZE + min(slot[_SIZE_OFFSET], PAYLOAD_MAX)])
        self._type[0] = 0
        if slot[FLAGS_OFFSET] & MESSAGE_PENDING:
            self._machine.write_msr(_EOM, 0)
        self._interrupts.dispatch_message(kind, payload)
