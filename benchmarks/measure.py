"""How two things are timed against each other: in turns, in one process, by medians. Both sides.

A machine that others use runs now fast, now slow. Figures from two runs cannot be compared; figures taken in turns can.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Mapping

ROUNDS = 9


def compare(cases: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, float]:
    """The median seconds per operation of each case, over rounds in which every case runs once.

    A case does its work many times over, times it with `time.perf_counter`, and returns seconds per operation. One
    round before the first is thrown away. Garbage is collected between cases and never within one.
    """
    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, case in cases.items():
            gc.collect()
            gc.disable()
            try:
                seconds = case()
            finally:
                gc.enable()
            if number:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def table(medians: Mapping[str, float], baseline: str) -> str:
    """The medians in microseconds and how many times faster than `baseline` each is, as lines of text."""
    width = max(map(len, medians))
    lines = [f"{'case':{width}}  us per operation  times faster"]
    for name, seconds in medians.items():
        lines.append(f"{name:{width}}  {seconds * 1e6:16.3f}  {medians[baseline] / seconds:12.2f}")
    return "\n".join(lines)
