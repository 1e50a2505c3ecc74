"""Which virtual processor had which logical one when, out of a trace with the scheduler's layer in it. Root side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hypervisor.trace import TraceEvent


class Slice(NamedTuple):
    """A while on a logical processor."""

    lp: int
    vm: str
    vp: int
    begin: float
    """Seconds on the host's clock."""
    end: float
    why: str
    """What ended it: slice_end, capped, preempt, block, suspend."""


def slices_of(
    events: Iterable[tuple[TraceEvent, str]], *, begin: float = 0.0, end: float = float("inf")
) -> list[Slice]:
    """All that are in a span, cut to it, in the order of their ends. Events come with their VM's name."""
    found: list[Slice] = []
    running: dict[int, tuple[str, int, float]] = {}
    """Who has each logical processor, and since when. One that goes on after its slice is dispatched once more."""

    def close(lp: int, until: float, why: str) -> None:
        vm, vp, since = running.pop(lp)
        if until > begin and since < end:
            found.append(Slice(lp, vm, vp, max(since, begin), min(until, end), why))

    for event, vm in events:
        fields = event.fields
        if event.layer != "scheduler" or not fields or "lp" not in fields:
            continue
        time, lp, who = event.time / 1e7, fields["lp"], (vm, fields["vp"])
        if event.event == "dispatch":
            if lp in running:
                close(lp, time, "slice_end")
            running[lp] = (*who, time)
        else:
            if lp not in running:  # the trace begins in the middle
                running[lp] = (*who, time - fields.get("ran_ns", 0) / 1e9)
            close(lp, time, event.event)
    return found
