"""What partitions and processors show: timers that run, messages that wait, flags that are set, overlay pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.crash import CrashReport
from hypervisor.inspect import Claim, Histogram, Log2Counts
from hypervisor.interception import remove_all
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT, Access
from hypervisor.processor_registers import ProcessorRegister
from hypervisor.synic.messages import EVENT_FLAGS_SIZE
from hypervisor.synic.timer_registers import message_timer
from tests.doubles.bare_hypervisor import BareHypervisor
from tests.doubles.looking import faults, seen

SINT, PAGE = 2, 8


def started() -> BareHypervisor:
    host = BareHypervisor()
    host.child.vps[0].set_explicit_suspend(False)
    host.start_synic(host.child, sint=SINT, page=PAGE)
    return host


def test_timers_that_are_set() -> None:
    """A processor that never wrote a timer register shows none; those that are set are shown by number."""
    host = started()
    vp = host.child.vps[0]
    assert "timers" not in seen(vp.inspect())
    host.write_msr(vp, Msr.STIMER0_CONFIG + 4, message_timer(SINT, auto_enable=True))
    host.write_msr(vp, Msr.STIMER0_COUNT + 4, 5_000)
    timers = seen(vp.inspect(), "timers")
    assert list(timers["set"]) == ["2"]
    shown = timers["set"]["2"]
    assert (shown["count"], shown["due"], shown["sint"], shown["vector"]) == (5_000, 5_000, SINT, None)


def test_messages_and_flags() -> None:
    """What is in a slot and which flags are set is in the guest's pages, and so its word; what waits is ours."""
    host = started()
    vp = host.child.vps[0]
    host.message_port(host.child, host.root, 1)
    for _ in range(3):
        host.post(host.root, 1, b"hello", 1)
    sint = seen(vp.inspect(), f"synic/sints/{SINT}")
    assert (sint["slot_message_type"], sint["queued_messages"], sint["masked"]) == (Claim(1), 2, False)
    assert seen(vp.inspect(), "synic/queued_messages") == 2
    port = seen(host.child.inspect(), "ports/0x1")
    assert (port["type"], port["sender"], port["post_count"]) == ("message", host.root.id, 3)

    assert sint["event_flags_set"] == Claim("none")
    flags = vp.synic.event_page.view[SINT * EVENT_FLAGS_SIZE : (SINT + 1) * EVENT_FLAGS_SIZE]
    flags[0], flags[255] = 0b1010, 0x80
    assert seen(vp.inspect(), f"synic/sints/{SINT}/event_flags_set") == Claim("1 3 2047")
    flags[:] = b"\xff" * EVENT_FLAGS_SIZE
    assert seen(vp.inspect(), f"synic/sints/{SINT}/event_flags_set").value.endswith("14 15 and 2032 more")


def test_a_partition_in_all_its_states() -> None:
    """Memory in several extents, overlays where nothing is mapped, a crash, registers without a name: no fault."""
    host = started()
    child, vp = host.child, host.child.vps[0]
    assert seen(child.inspect(), "state") == "active"
    child.memory.unmap(3, 2)
    extents = seen(child.inspect(), "memory/extents")
    assert [extent["pages"] for extent in extents.values()] == [3, 64 - 5]
    assert list(extents) == ["0x0", "0x5000"]
    host.write_msr(vp, Msr.SIMP, (0x123456 << PAGE_SHIFT) | 1)
    assert seen(child.inspect(), "overlays/0x123456000") == "SIM page (not mapped)"
    child.crash = CrashReport(child.id, 0, 0, (1, 2, 3, 4, 5), b"\x1b[31mpanic\xff")
    vp.registers[ProcessorRegister.CR3] = 0x1000
    vp.registers[0x30001] = 1 << 100
    vp.pending |= {0x41, 0x30}
    vp.stop_on_intercept()
    shown = seen(child.inspect())
    assert not faults(shown)
    assert shown["crash"] == Claim("\ufffd[31mpanic\ufffd")
    assert shown["vps"]["0"]["registers"] == {"cr3": 0x1000, "0x30001": 1 << 100}
    assert shown["vps"]["0"]["pending_interrupts"] == "0x30 0x41"
    assert (shown["vps"]["0"]["suspended"], shown["vps"]["0"]["explicit_suspend"]) == (True, False)
    vp.delete()
    del child.vps[0]
    remove_all(child)
    assert not faults(seen(child.inspect()))
    child.memory.map_block(0, host.root.memory.extents()[0][1], 0, 1, Access.READ)
    assert seen(child.inspect(), "memory/extents/0x0/rights") == "READ"


@given(st.lists(st.integers(-5, 1 << 60)))
def test_magnitudes(values: list[int]) -> None:
    """Each value is counted once, in the place of its power of two; what is too large is in the last."""
    counts = Log2Counts()
    for value in values:
        counts.add(value)
    histogram = counts.histogram("us")
    assert histogram.total == len(values)
    for number, count in enumerate(histogram.counts):
        last = number == Log2Counts.BUCKETS - 1
        low = 1 << (number - 1) if number else -5
        high = 1 << (61 if last else number)
        assert count == sum(1 for value in values if low <= value < high)
    assert not histogram.counts or histogram.counts[-1]
    assert Log2Counts().histogram("us") == Histogram("us", ())
