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


class Pause(NamedTuple):
    """A while in which a virtual processor had work and was not on a logical one."""

    vm: str
    length: float
    """Seconds."""
    limited: bool
    """Whether it had just used up a limit; else its slice was over."""


def pauses_of(slices: Iterable[Slice]) -> list[Pause]:
    """What lies between two slices of one who had not done his work. Waits after a sleep are not in a trace."""
    found: list[Pause] = []
    last: dict[tuple[str, int], Slice] = {}
    for one in sorted(slices, key=lambda one: one.begin):
        before = last.get((one.vm, one.vp))
        if before is not None and before.why in ("slice_end", "capped", "preempt") and one.begin > before.end:
            found.append(Pause(one.vm, one.begin - before.end, before.why == "capped"))
        last[one.vm, one.vp] = one
    return found


def slices_of(
    events: Iterable[tuple[TraceEvent, str]], *, begin: float = 0.0, end: float = float("inf")
) -> list[Slice]:
    """All that are in a span, cut to it, in the order of their ends. Events come with their VM's name."""
    found: list[Slice] = []
    running: dict[int, tuple[str, int, float]] = {}
    """Who has each logical processor, and since when; one that goes on after its slice has it as before."""

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
        elif event.event == "continue":
            running.setdefault(lp, (*who, time))
        else:
            if lp not in running:  # the trace begins in the middle
                running[lp] = (*who, time - fields.get("ran_ns", 0) / 1e9)
            close(lp, time, event.event)
    return found
