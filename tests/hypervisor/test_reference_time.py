"""Reference time never stands for a reader, stops with its processors, and agrees with the TSC page."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT
from hypervisor.reference_time import ReferenceTime, tsc_from_clock, tsc_scale
from tests.doubles.bare_hypervisor import BareHypervisor


@given(st.lists(st.tuples(st.sampled_from(["read", "stop", "go"]), st.integers(0, 3)), max_size=60))
def test_every_reading_is_greater_than_the_last(steps: list[tuple[str, int]]) -> None:
    """On whichever processor, however fast, also across pauses."""
    now = 50
    time = ReferenceTime(lambda: now, running=True)
    last = -1
    for action, passed in steps:
        now += passed
        match action:
            case "read":
                reading = time.read()
                assert reading > last
                last = reading
            case "stop":
                time.set_running(False)
            case _:
                time.set_running(True)


def test_it_stops_only_while_every_processor_is_explicitly_suspended() -> None:
    host = BareHypervisor(vps=2)
    first, second = host.child.vps[0], host.child.vps[1]
    time = host.child.reference_time
    host.time += 100
    assert time.now() == 0, "processors are created suspended"
    first.set_explicit_suspend(False)
    second.set_explicit_suspend(False)
    host.time += 50
    first.set_explicit_suspend(True)
    host.time += 50
    second.stop_on_intercept()
    host.time += 50
    assert time.now() == 150, "an intercept does not stop it"
    second.set_explicit_suspend(True)
    host.time += 1000
    assert time.now() == 150
    second.set_explicit_suspend(False)
    host.time += 5
    assert time.now() == 155
    time.restart()
    assert time.now() == 0


@pytest.mark.parametrize("frequency", [10**9, 2_400_000_000, 1_996_249_000, 10**7])
def test_the_scale_is_exact_to_a_unit(frequency: int) -> None:
    """A day at any frequency is within one unit of 100 ns."""
    for seconds in (0, 1, 3600, 86400):
        assert abs((seconds * frequency * tsc_scale(frequency) >> 64) - seconds * 10**7) <= 1


def test_the_tsc_page_gives_the_reference_time_and_follows_a_pause() -> None:
    host = BareHypervisor()
    vp = host.child.vps[0]
    vp.set_explicit_suspend(False)

    def page() -> tuple[int, int]:
        sequence, _, scale, offset = struct.unpack("<IIQq", host.child.memory.read(6 << PAGE_SHIFT, 24))
        return sequence, (host.read_tsc() * scale >> 64) + offset

    host.time += 12345
    host.write_msr(vp, Msr.REFERENCE_TSC, 6 << PAGE_SHIFT | 1)
    sequence, time = page()
    assert sequence != 0
    assert time == host.child.reference_time.now() == 12345
    host.time += 77
    assert page() == (sequence, 12345 + 77)
    vp.set_explicit_suspend(True)
    host.time += 5000
    vp.set_explicit_suspend(False)
    assert page()[0] != sequence, "readers must start again"
    assert page()[1] == host.child.reference_time.now() == 12345 + 77
    assert tsc_from_clock(3) == 300


def test_the_tsc_pages_sequence_never_says_that_it_is_invalid() -> None:
    """0 sends the guest to the slow counter, and so did 0xFFFFFFFF once; the count passes over both."""
    host = BareHypervisor()
    host.child.registers.tsc_sequence = 0xFFFFFFFD
    seen = []
    for _ in range(3):
        host.write_msr(host.child.vps[0], Msr.REFERENCE_TSC, 6 << PAGE_SHIFT | 1)
        seen.append(int.from_bytes(host.child.memory.read(6 << PAGE_SHIFT, 4), "little"))
    assert seen == [0xFFFFFFFE, 1, 2]
