"""Synthetic timers of a processor: messages in slots, interrupts, suspension, reset, and one queue for all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.machine import GeneralProtection
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT
from hypervisor.synic.messages import MESSAGE_PENDING, SLOT_SIZE, MessageHeader, MessageType
from hypervisor.synic.timer_registers import TimerConfig, TimerMessage, direct_timer, message_timer
from hypervisor.timer_queue import TimerQueue
from hypervisor.vp_registers import Register
from tests.doubles.bare_hypervisor import BareHypervisor, RecordingRunner

MS = 10_000
SINT, PAGE = 2, 8
AUTO = message_timer(SINT, auto_enable=True)
TICKING = message_timer(SINT, periodic=True, auto_enable=True)


class Timed:
    """A child with one running processor whose SynIC is on; its reference time is `now`."""

    def __init__(self) -> None:
        self.host = BareHypervisor()
        self.vp = self.host.child.vps[0]
        self.runner = RecordingRunner()
        self.vp.runner = self.runner
        self.vp.set_explicit_suspend(False)
        self.host.start_synic(self.host.child, sint=SINT, page=PAGE)

    @property
    def now(self) -> int:
        return self.host.child.reference_time.now()

    def timer(self, config: int, count: int, index: int = 0) -> None:
        self.host.write_msr(self.vp, Msr.STIMER0_CONFIG + 2 * index, config)
        self.host.write_msr(self.vp, Msr.STIMER0_COUNT + 2 * index, count)

    def until(self, time: int) -> None:
        """Let time pass, firing each timer at its moment."""
        end = self.host.time + time - self.now
        while (deadline := self.host.timers.deadline()) is not None and deadline <= end:
            self.host.time = max(self.host.time, deadline)
            self.host.timers.fire_due(self.host.time, 100)
        self.host.time = end

    def slot(self) -> bytes:
        return self.host.child.memory.read((PAGE << PAGE_SHIFT) + SINT * SLOT_SIZE, SLOT_SIZE)

    def take(self) -> TimerMessage | None:
        """What a guest does with the slot; None if it is empty."""
        raw = self.slot()
        header = MessageHeader.decode(raw[:16])
        if not header.message_type:
            return None
        assert (header.message_type, header.payload_size) == (MessageType.TIMER_EXPIRED, TimerMessage.SIZE)
        assert header.origination_id == 0
        self.host.child.memory.write((PAGE << PAGE_SHIFT) + SINT * SLOT_SIZE, bytes(4))
        if self.slot()[5] & MESSAGE_PENDING:
            self.host.write_msr(self.vp, Msr.EOM, 0)
        return TimerMessage.decode(raw[16 : 16 + TimerMessage.SIZE])


@pytest.fixture
def timed() -> Timed:
    return Timed()


def test_an_expiration_is_a_message_with_its_times(timed: Timed) -> None:
    """Type 0x80000010 from nobody: index, when it was due, and when it went into the slot; then an interrupt."""
    timed.timer(AUTO, 5 * MS, index=3)
    timed.until(5 * MS - 1)
    assert timed.runner.vectors == []
    timed.until(7 * MS)
    assert timed.runner.vectors == [0xF3]
    assert timed.take() == TimerMessage(3, 0, 5 * MS, 5 * MS)
    assert timed.host.read_msr(timed.vp, Msr.STIMER3_CONFIG) == AUTO
    assert not timed.host.timers


def test_a_direct_timer_interrupts_and_sends_nothing(timed: Timed) -> None:
    timed.timer(direct_timer(0xED, auto_enable=True), 5 * MS)
    timed.until(5 * MS)
    assert timed.runner.vectors == [0xED]
    assert timed.take() is None


def test_a_count_in_the_past_expires_within_the_write(timed: Timed) -> None:
    """The queue has nothing to do with it, so neither has the task that drives it."""
    timed.until(9 * MS)
    timed.timer(direct_timer(0xED, auto_enable=True), 1)
    assert timed.runner.vectors == [0xED]


def test_a_full_slot_holds_one_message_back_and_all_later_ticks(timed: Timed) -> None:
    """What waits says when it was due, and when it was delivered at last; MessagePending asks for the EOM."""
    timed.timer(TICKING, 10 * MS)
    timed.until(95 * MS)
    assert timed.runner.vectors == [0xF3]
    assert timed.vp.synic.queued == 1
    assert timed.slot()[5] & MESSAGE_PENDING
    assert timed.take() == TimerMessage(0, 0, 10 * MS, 10 * MS)
    assert timed.take() == TimerMessage(0, 0, 20 * MS, 95 * MS)
    timed.until(96 * MS)
    third = timed.take()
    assert third is not None
    assert third.expiration_time == 30 * MS
    assert timed.host.child.counters["timer_expirations"] == 3


def test_timers_have_a_buffer_each(timed: Timed) -> None:
    for index in range(4):
        timed.timer(AUTO, 5 * MS, index)
    timed.until(6 * MS)
    taken = [timed.take() for _ in range(5)]
    assert [message.timer_index if message else None for message in taken] == [0, 1, 2, 3, None]


def test_a_message_waits_for_a_synic_that_is_off(timed: Timed) -> None:
    timed.host.write_msr(timed.vp, Msr.SCONTROL, 0)
    timed.timer(AUTO, 5 * MS)
    timed.until(8 * MS)
    assert timed.take() is None
    timed.host.write_msr(timed.vp, Msr.SCONTROL, 1)
    assert timed.take() == TimerMessage(0, 0, 5 * MS, 8 * MS)


def test_a_masked_sint_gets_the_message_without_an_interrupt(timed: Timed) -> None:
    timed.host.write_msr(timed.vp, Msr.SINT2, 1 << 16)
    timed.timer(AUTO, 5 * MS)
    timed.until(5 * MS)
    assert timed.runner.vectors == []
    assert timed.take() is not None


def test_a_bad_configuration_faults_and_changes_nothing(timed: Timed) -> None:
    timed.timer(TICKING, 10 * MS)
    for value in (direct_timer(15), 1 << 20, 1 << 13):
        with pytest.raises(GeneralProtection):
            timed.host.write_msr(timed.vp, Msr.STIMER0_CONFIG, value)
    assert timed.host.read_msr(timed.vp, Msr.STIMER0_CONFIG) == TICKING | TimerConfig.ENABLE


def test_a_suspended_processor_gets_its_expirations_when_it_resumes(timed: Timed) -> None:
    """On an intercept time goes on, and the timer is late; when all processors are suspended, time stands still."""
    timed.timer(direct_timer(0xED, auto_enable=True), 10 * MS)
    timed.vp.stop_on_intercept()
    assert not timed.host.timers
    timed.host.time += 12 * MS
    timed.vp.clear_intercept_suspend()
    assert timed.runner.vectors == [0xED]
    timed.timer(direct_timer(0xED, auto_enable=True), 20 * MS)
    timed.vp.set_explicit_suspend(True)
    timed.host.time += 1000 * MS
    timed.vp.set_explicit_suspend(False)
    assert timed.now == 12 * MS
    timed.until(20 * MS - 1)
    assert timed.runner.vectors == [0xED]
    timed.until(20 * MS)
    assert timed.runner.vectors == [0xED, 0xED]


def test_what_a_parent_sets_in_a_suspended_processor_waits_too(timed: Timed) -> None:
    timed.until(9 * MS)
    timed.vp.stop_on_intercept()
    timed.vp.set_register(Register.STIMER0_CONFIG, direct_timer(0xED, auto_enable=True))
    timed.vp.set_register(Register.STIMER0_COUNT, 1)
    assert timed.runner.vectors == []
    timed.vp.clear_intercept_suspend()
    assert timed.runner.vectors == [0xED]


def test_skipped_ticks_are_counted(timed: Timed) -> None:
    timed.timer(direct_timer(0xED, periodic=True, lazy=True, auto_enable=True), 10 * MS)
    timed.vp.stop_on_intercept()
    timed.host.time += 45 * MS
    timed.vp.clear_intercept_suspend()
    assert timed.runner.vectors == [0xED]
    assert timed.host.child.counters["timer_ticks_skipped"] == 3


def test_reset_and_deletion_stop_the_timers(timed: Timed) -> None:
    for end in (timed.vp.reset, timed.vp.delete):
        timed.timer(TICKING, 10 * MS)
        timed.until(timed.now + 25 * MS)
        assert timed.vp.synic.queued
        end()
        assert not timed.host.timers
        assert not timed.vp.synic.queued
        assert timed.vp.get_register(Register.STIMER0_CONFIG) == 0
        assert not any(timer.waits for timer in timed.vp.timers.state.timers)
        timed.host.start_synic(timed.host.child, sint=SINT, page=PAGE)


def test_timers_by_register_name(timed: Timed) -> None:
    """HvSetVpRegisters reaches them as MSRs do, without the child's privilege."""
    timed.host.child.privileges = 0
    timed.vp.set_register(Register.STIMER0_COUNT + 4, 5 * MS)
    timed.vp.set_register(Register.STIMER0_CONFIG + 4, message_timer(SINT) | TimerConfig.ENABLE)
    assert timed.vp.get_register(Register.STIMER0_COUNT + 4) == 5 * MS
    timed.until(5 * MS)
    message = timed.take()
    assert message is not None
    assert message.timer_index == 2


def test_a_processor_that_never_wrote_one_has_no_timers(timed: Timed) -> None:
    """1,024 idle VMs pay for none; reading does not make them."""
    assert timed.host.read_msr(timed.vp, Msr.STIMER2_COUNT) == 0
    assert not timed.vp.has_timers


# --- the queue


class Noted:
    def __init__(self) -> None:
        self.fired = 0

    def fire(self) -> None:
        self.fired += 1


def test_the_queue_stays_small_however_often_a_deadline_moves() -> None:
    """A guest that reprograms its timer for ever does not grow the host's memory."""
    for deadlines in (range(10_000, 0, -1), range(1, 10_001)):
        queue = TimerQueue()
        one, first = Noted(), Noted()
        queue.set(first, 0)
        for deadline in deadlines:
            queue.set(one, deadline)
        assert len(queue) == 2
        assert len(queue._heap) < 200
        assert queue.fire_due(10_000, 10) is False
        assert (first.fired, one.fired) == (1, 1)


def test_the_driver_is_told_of_earlier_deadlines_only() -> None:
    queue, told = TimerQueue(), []
    queue.on_earlier = lambda: told.append(queue.deadline())
    first, second = Noted(), Noted()
    queue.set(first, 100)
    queue.set(second, 200)
    queue.set(second, 50)
    queue.set(second, None)
    queue.set(second, 70)
    assert told == [100, 50, 70]


@given(st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.integers(0, 50)), st.booleans()), max_size=60))
def test_the_queue_against_a_plain_list(moves: list[tuple[int, int | None, bool]]) -> None:
    """Each fires once, at its last deadline or after, and nobody else does."""
    queue, waiting = TimerQueue(), [Noted() for _ in range(5)]
    expected: dict[int, int] = {}
    now = 0
    for index, deadline, fire in moves:
        queue.set(waiting[index], deadline)
        expected.pop(index, None)
        if deadline is not None:
            expected[index] = deadline
        if fire:
            now += 5
            before = [one.fired for one in waiting]
            while queue.fire_due(now, 2):
                pass
            due = {one for one, at in expected.items() if at <= now}
            assert [one.fired - was for one, was in zip(waiting, before, strict=True)] == [
                int(one in due) for one in range(5)
            ]
            expected = {one: at for one, at in expected.items() if one not in due}
        assert queue.deadline() == min(expected.values(), default=None)
        assert len(queue) == len(expected)
