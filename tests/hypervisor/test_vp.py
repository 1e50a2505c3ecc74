"""Virtual processors: two suspend bits, interrupts that wait for a runner, registers by name."""

from __future__ import annotations

import pytest

from hypervisor.msr import CRASH_NOTIFY, Msr
from hypervisor.pages import PAGE_SHIFT
from hypervisor.status import HvError, HvStatus
from hypervisor.vp_registers import Register
from tests.doubles.bare_hypervisor import BareHypervisor, RecordingRunner


@pytest.fixture
def host() -> BareHypervisor:
    return BareHypervisor()


def test_both_suspend_bits_must_clear(host: BareHypervisor) -> None:
    vp = host.child.vps[0]
    runner = RecordingRunner()
    vp.runner = runner
    assert vp.get_register(Register.EXPLICIT_SUSPEND) == 1
    vp.stop_on_intercept()
    vp.set_register(Register.EXPLICIT_SUSPEND, 0)
    assert vp.suspended
    assert runner.suspensions == []
    vp.set_register(Register.INTERCEPT_SUSPEND, 0)
    assert not vp.suspended
    assert runner.suspensions == [False]
    vp.set_register(Register.EXPLICIT_SUSPEND, 1)
    assert runner.suspensions == [False, True]


def test_who_stopped_a_processor_is_traced(host: BareHypervisor) -> None:
    """Once each time it stops or goes on, and not for a bit that changes nothing."""
    seen: list[tuple[str, str, int]] = []
    host.trace.add_sink(lambda event: seen.append((event.event, event.words, event.fields["vp"])))
    vp = host.child.vps[0]
    vp.set_explicit_suspend(False)
    vp.stop_on_intercept()
    vp.set_explicit_suspend(True)
    vp.clear_intercept_suspend()
    vp.set_explicit_suspend(True)
    vp.set_explicit_suspend(False)
    assert seen == [
        ("vp_resumed", "by its parent", 0),
        ("vp_suspended", "for an intercept", 0),
        ("vp_resumed", "by its parent", 0),
    ]


def test_the_intercept_bit_can_only_be_cleared(host: BareHypervisor) -> None:
    vp = host.child.vps[0]
    for name, value in (
        (Register.INTERCEPT_SUSPEND, 1),
        (Register.INTERCEPT_SUSPEND, 2),
        (Register.EXPLICIT_SUSPEND, 2),
    ):
        with pytest.raises(HvError) as caught:
            vp.set_register(name, value)
        assert caught.value.status is HvStatus.INVALID_PARAMETER
    vp.stop_on_intercept()
    vp.set_register(Register.INTERCEPT_SUSPEND, 1)
    assert vp.intercept_suspend


def test_interrupts_wait_for_a_runner(host: BareHypervisor) -> None:
    vp = host.child.vps[0]
    for vector in (0x30, 0x20, 0x30):
        vp.raise_interrupt(vector)
    runner = RecordingRunner()
    vp.runner = runner
    assert runner.vectors == [0x20, 0x30]
    assert not vp.pending
    assert host.child.counters["interrupts"] == 3


@pytest.mark.parametrize(
    ("name", "width"),
    [
        (0x20000, 64),
        (0x20010, 64),
        (0x30000, 128),
        (0x40000, 64),
        (0x60007, 128),
        (0x70001, 128),
        (0x80001, 64),
        (0x10002, 64),
    ],
)
def test_processor_registers_keep_their_values(host: BareHypervisor, name: int, width: int) -> None:
    vp = host.child.vps[0]
    assert vp.get_register(name) == 0
    vp.set_register(name, (1 << width) - 1)
    assert vp.get_register(name) == (1 << width) - 1
    with pytest.raises(HvError):
        vp.set_register(name, 1 << width)
    vp.reset()
    assert vp.get_register(name) == 0


@pytest.mark.parametrize("name", [2, 0x20012, 0x90005, 0xA0015, 0xB0008, 0xFFFFFFFF])
def test_an_unknown_name_is_a_bad_parameter(host: BareHypervisor, name: int) -> None:
    vp = host.child.vps[0]
    with pytest.raises(HvError):
        vp.get_register(name)
    with pytest.raises(HvError):
        vp.set_register(name, 0)


def test_synthetic_registers_are_the_msrs_under_another_name(host: BareHypervisor) -> None:
    """The parent needs none of the child's privileges; a fault is a bad parameter."""
    host.child.privileges = 0
    vp = host.child.vps[0]
    vp.set_register(Register.GUEST_OS_ID, 9)
    vp.set_register(Register.HYPERCALL, 5 << PAGE_SHIFT | 1)
    vp.set_register(Register.SINT0 + 2, 0xF3)
    vp.set_register(Register.CRASH_CTL, CRASH_NOTIFY)
    assert host.child.guest_os_id == vp.get_register(Register.GUEST_OS_ID) == 9
    assert vp.synic.sints[2] == 0xF3
    assert host.child.crash is not None
    for name, value in ((Register.SINT0, 3), (Register.VP_INDEX, 1), (Register.SIMP, 1 << 64)):
        with pytest.raises(HvError) as caught:
            vp.set_register(name, value)
        assert caught.value.status is HvStatus.INVALID_PARAMETER
    with pytest.raises(HvError):
        vp.get_register(Register.EOI)


def test_deleting_a_processor_uncovers_the_guests_pages(host: BareHypervisor) -> None:
    host.child.memory.write(8 << PAGE_SHIFT, b"beneath")
    host.start_synic(host.child)
    host.write_msr(host.child.vps[0], Msr.VP_ASSIST_PAGE, 11 << PAGE_SHIFT | 1)
    host.child.vps.pop(0).delete()
    assert host.child.memory.read(8 << PAGE_SHIFT, 7) == b"beneath"
    assert all(host.child.overlays.at(gpn) is None for gpn in range(64))
