"""What a dispatch of the processor scheduler costs, and how that grows with those who wait. Hypervisor.

Busy virtual processors in three levels of groups (8 pools, their VMs, 8 processors each) of random weights, on 64
logical processors with slices of 10 ms, so that each slice of each is an event and nothing is left out. All accounts
are kept, as always, and read at the end: all the time of all logical processors is found in them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from benchmarks.measure import ROUNDS, compare, table
from hypervisor.scheduler.kernel import CpuKernel, Vp

SECOND: Final = 1_000_000_000
LPS: Final = 64
POOLS: Final = 8
VPS_OF_A_VM: Final = 8
WEIGHTS: Final = (100, 200, 400)
SIMULATED: Final = 2
"""Seconds of the machine in a round."""
HOUR: Final = 3600


def pools(vps: int) -> tuple[CpuKernel, list[Vp]]:
    """So many busy virtual processors, in three levels."""
    draw = random.Random(vps)
    kernel = CpuKernel(LPS)
    found = []
    for pool in range(POOLS):
        outer = kernel.add_group(kernel.root, f"pool{pool}", id=pool, shares=draw.choice(WEIGHTS))
        for number in range(vps // POOLS // VPS_OF_A_VM):
            vm = kernel.add_group(outer, f"vm{number}", id=number, shares=draw.choice(WEIGHTS))
            for index in range(VPS_OF_A_VM):
                found.append(kernel.add_vp(vm, f"vp{index}", id=index, shares=draw.choice(WEIGHTS)))
    for vp in found:
        kernel.work(vp, None)
    return kernel, found


def flat(vps: int, lps: int) -> tuple[CpuKernel, list[Vp]]:
    """Equals, in no group."""
    kernel = CpuKernel(lps)
    found = [kernel.add_vp(kernel.root, str(number), id=number) for number in range(vps)]
    for vp in found:
        kernel.work(vp, None)
    return kernel, found


def dispatching(build: Callable[[], tuple[CpuKernel, list[Vp]]]) -> Callable[[], float]:
    """Seconds a dispatch, of this process: there is nothing to wait for in it."""

    def case() -> float:
        kernel, vps = build()
        kernel.advance(SECOND)  # past the beginning, in which all are new
        before = kernel.dispatches
        begin = time.process_time()
        kernel.advance((1 + SIMULATED) * SECOND)
        seconds = time.process_time() - begin
        assert sum(kernel.times(vp).run for vp in vps) == kernel.lps * kernel.now
        return seconds / (kernel.dispatches - before)

    return case


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """The figures, by name."""
    cases = {
        "1024 of 64": dispatching(lambda: pools(1024)),
        "128 of 64": dispatching(lambda: pools(128)),
        "64 of 8": dispatching(lambda: flat(64, 8)),
    }
    medians = compare(cases, rounds)
    print("\na dispatch: virtual processors on logical ones\n" + table(medians, "1024 of 64"))
    slices_a_second = 100
    return {
        "scheduler.dispatch_us": medians["1024 of 64"] * 1e6,
        "scheduler.vs_real_time": 1 / (medians["1024 of 64"] * LPS * slices_a_second),
        "scheduler.growth_128_to_1024": medians["1024 of 64"] / medians["128 of 64"],
        "scheduler.hour_of_64_on_8_s": medians["64 of 8"] * 8 * slices_a_second * HOUR,
    }


if __name__ == "__main__":
    print(measure())
