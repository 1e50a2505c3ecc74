"""Linux on the synthetic timers: its clock events come from them where a topology offers them, and time goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from partitions.host import ExitReason
from tests.linux_guest import guest

PROCESSORS = 2
STEPS = {
    "devices": "cat /sys/devices/system/clockevents/clockevent[0-9]*/current_device",
    "timer list": "grep -A 4 'Clock Event Device: Hyper-V' /proc/timer_list; grep -c . /proc/timer_list",
    "sleep": "cut -d ' ' -f 1 /proc/uptime; sleep 1; cut -d ' ' -f 1 /proc/uptime",
    "many": "cut -d ' ' -f 1 /proc/uptime; for n in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done;"
    " cut -d ' ' -f 1 /proc/uptime",
    "each": "for cpu in 0 1; do taskset $((1 << cpu)) sleep 0.2 && echo $cpu slept; done",
    "interrupts": "grep -E 'HVS|LOC' /proc/interrupts",
    "complaints": "dmesg | grep -iE 'stall|stuck|lockup|hrtimer: interrupt took|clocksource.*unstable' || true",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> guest.Evidence:
    plan = guest.Plan(steps=STEPS, modules=(), processors=PROCESSORS, synthetic_timers=True)
    return guest.boot(plan, tmp_path_factory.mktemp("timers"))


def test_the_clock_events_are_the_hypervisors(told: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """Each processor has its own timer 0, in direct mode: Linux counts its interrupts as HVS."""
    assert told.exit.reason is ExitReason.POWERED_OFF
    assert told["devices"].splitlines() == ["Hyper-V clockevent"] * PROCESSORS
    assert "Hyper-V clockevent" in told["timer list"]
    (row,) = (line.split() for line in told["interrupts"].splitlines() if "HVS:" in line)
    assert all(int(count) > 0 for count in row[1 : 1 + PROCESSORS])
    evidence("synthetic timers", told["devices"] + "\n" + told["interrupts"])


@pytest.mark.parametrize(("step", "seconds", "most"), [("sleep", 1.0, 4.0), ("many", 0.5, 20.0)])
def test_sleeps_take_their_time(
    told: guest.Evidence, step: str, seconds: float, most: float, evidence: Callable[[str, str], None]
) -> None:
    """Never less, by the guest's own clock; more by what it costs an emulated machine to start ten processes."""
    before, after = map(float, told[step].split())
    assert seconds - 0.02 <= after - before < most
    evidence("synthetic timers", f"{step}: {seconds} s took {after - before:.2f} s")


def test_nothing_stalls(told: guest.Evidence) -> None:
    """Timers fire on each processor, and the kernel's watchdogs have nothing to say."""
    assert told["each"].splitlines() == ["0 slept", "1 slept"]
    assert told["complaints"] == ""
