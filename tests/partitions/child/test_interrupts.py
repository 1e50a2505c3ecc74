"""The guest's interrupt dispatch."""

from __future__ import annotations

import pytest
import trio

from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SIZE
from partitions.child.interrupts import VMBUS_VECTOR, Interrupts, ProcessorInterrupts, take_flags
from tests.doubles.machine import FakeMachine

MESSAGES, EVENTS = 0x200, 0x201


def processor(*, auto_eoi: bool = False, vp_index: int = 0) -> tuple[FakeMachine, Interrupts, ProcessorInterrupts]:
    machine = FakeMachine(vp_index=vp_index)
    machine.write_msr(Msr.SIMP, MESSAGES * PAGE_SIZE | 1)
    machine.write_msr(Msr.SIEFP, EVENTS * PAGE_SIZE | 1)
    machine.write_msr(Msr.SINT2, VMBUS_VECTOR)
    machine.writes.clear()
    interrupts = Interrupts()
    return machine, interrupts, ProcessorInterrupts(machine, MESSAGES, EVENTS, interrupts, auto_eoi=auto_eoi)


def test_flags_are_taken_once() -> None:
    """Every bit that was set comes back, and memory holds none afterwards."""
    slot = memoryview(bytearray(256))
    slot[0], slot[255] = 0x81, 0x80
    assert take_flags(slot) == 1 | 1 << 7 | 1 << 2047
    assert take_flags(slot) == 0


def test_each_flag_calls_its_channel_and_unknown_ones_are_counted() -> None:
    """Flag n belongs to channel n; flag 0 is for all of an old version's, and no mistake where nobody wants it."""
    _, interrupts, _ = processor()
    called: list[int] = []
    for channel in (1, 64, 2047):
        interrupts.event_handlers[channel] = lambda channel=channel: called.append(channel)  # type: ignore[misc]
    interrupts.dispatch_flags(1 | 1 << 1 | 1 << 5 | 1 << 64 | 1 << 2047)
    assert called == [1, 64, 2047]
    assert interrupts.spurious == 1
    interrupts.event_handlers[0] = lambda: called.append(0)
    interrupts.dispatch_flags(0b11)
    assert called == [1, 64, 2047, 0, 1]


def test_a_handler_may_unbind_another_channel() -> None:
    """A rescind in the middle of a scan leaves the rest of the scan sound."""
    _, interrupts, _ = processor()
    interrupts.event_handlers[1] = lambda: interrupts.event_handlers.pop(2)  # type: ignore[assignment,return-value]
    interrupts.event_handlers[2] = lambda: pytest.fail("unbound")
    interrupts.dispatch_flags(0b110)
    assert interrupts.spurious == 1


def test_flags_come_before_messages() -> None:
    """Data is frequent and messages are rare, so data goes first, as in Linux."""
    machine, interrupts, vp = processor()
    order: list[str] = []
    interrupts.event_handlers[3] = lambda: order.append("flag")
    interrupts.message_handler = lambda payload: order.append(payload.decode())
    machine.deliver(b"message")
    machine.set_flag(3)
    vp.handle_vmbus()
    assert order == ["flag", "message"]


def test_the_slot_is_free_before_end_of_message_is_written() -> None:
    """A hypervisor that is told too early finds the slot occupied and delivers nothing (TLFS 2.0a, 14.8.3)."""
    machine, interrupts, vp = processor()
    seen: list[bytes] = []
    interrupts.message_handler = seen.append
    for number in range(3):
        machine.deliver(bytes([number]) * 8)
    vp.handle_vmbus()
    assert seen == [bytes([number]) * 8 for number in range(3)]
    assert [msr for msr, _ in machine.writes] == [Msr.EOM, Msr.EOM], "one for each message that left others waiting"


def test_no_end_of_message_where_none_is_awaited() -> None:
    """Writing EOM is a trap; it is needed only where the flags say so."""
    machine, interrupts, vp = processor()
    interrupts.message_handler = lambda payload: None
    machine.deliver(b"alone")
    vp.handle_vmbus()
    assert machine.writes == []


def test_messages_of_other_types_are_dropped_and_counted() -> None:
    """A timer's message has no handler in this kernel, and must not block the slot for ever."""
    machine, interrupts, vp = processor()
    interrupts.message_handler = lambda payload: pytest.fail("not a channel message")
    machine.deliver(b"tick")
    machine.memory[MESSAGES * PAGE_SIZE + 512 + 3] = 0x80
    vp.handle_vmbus()
    assert interrupts.messages_ignored == 1


async def test_interrupts_are_ended_by_hand_or_by_themselves(autojump_clock: trio.testing.MockClock) -> None:
    """With AutoEOI the processor ends SINT2's interrupt; a second end would be one too many. Others end by hand."""
    for auto_eoi in (False, True):
        machine, interrupts, vp = processor(auto_eoi=auto_eoi)
        interrupts.vectors[0x20] = lambda: None
        machine.interrupt(VMBUS_VECTOR)
        machine.interrupt(0x20)
        with trio.move_on_after(1):
            await vp.run()
        assert machine.writes == [(Msr.EOI, 0)] * (1 if auto_eoi else 2)


async def test_further_vectors_belong_to_the_first_processor(autojump_clock: trio.testing.MockClock) -> None:
    """The power button is wired to virtual processor 0; elsewhere its vector is spurious."""
    machine, interrupts, vp = processor(vp_index=1)
    interrupts.vectors[0x20] = lambda: pytest.fail("wrong processor")
    machine.interrupt(0x20)
    with trio.move_on_after(1):
        await vp.run()
    assert interrupts.spurious == 1
