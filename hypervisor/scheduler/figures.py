"""The scheduler's figures for people, under the names that Hyper-V's counters and esxtop's columns have. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.inspect import Branch
from hypervisor.scheduler.settings import CpuTimes

if TYPE_CHECKING:
    from hypervisor.scheduler.driver import CpuScheduler


def counters(times: CpuTimes) -> dict[str, object]:
    """A virtual processor's, over its whole life. Percentages are of one logical processor; waits in nanoseconds.

    What runs in the hypervisor is not modelled, so guest run time is all run time.
    """
    return {
        "% Guest Run Time": _percent(times.run, times),
        "% Hypervisor Run Time": 0.0,
        "% Total Run Time": _percent(times.run, times),
        "CPU Wait Time Per Dispatch": times.wait_per_dispatch,
        "Dispatches": times.dispatches,
        "%RUN": _percent(times.run, times),
        "%RDY": _percent(times.ready + times.capped, times),
        "%MLMTD": _percent(times.capped, times),
        "%WAIT": _percent(times.halted, times),
    }


def branch(times: CpuTimes) -> Branch:
    """Exact figures in nanoseconds, and the same in percent."""
    return Branch(
        {
            "run_ns": times.run,
            "ready_ns": times.ready,
            "capped_ns": times.capped,
            "halted_ns": times.halted,
            "dispatches": times.dispatches,
            "wait_per_dispatch_ns": times.wait_per_dispatch,
            "longest_wait_ns": times.longest_wait,
            "counters": lambda: Branch(counters(times)),
        }
    )


def overview(scheduler: CpuScheduler, working: int) -> Branch:
    """What a scheduler goes by, and how it keeps up. `working`: processors that have ever worked."""
    return Branch(
        {
            "quantum_ms": scheduler.quantum / 1_000_000,
            "switch_us": scheduler.switch_cost / 1_000,
            "contended": scheduler.contended,
            "processors": working,
            "groups": lambda: Branch({str(number): group.name for number, group in scheduler.groups.items()}),
            "wakes": scheduler.wakes,
            "lateness_ns": scheduler.lateness.worst,
            "late_wakes": scheduler.lateness.wakes,
            "let_go_ns": scheduler.lateness.let_go,
        }
    )


def _percent(part: int, times: CpuTimes) -> float:
    return round(100 * part / times.life, 3) if times.life else 0.0
