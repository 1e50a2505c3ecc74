"""The scheduler's trace events: who gets a logical processor, and why it loses it. Hypervisor.

They are many, so only those get them who ask for this layer by name, and nobody else pays for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from hypervisor.clock import NS_PER_TICK
from hypervisor.scheduler.kernel import Reason
from hypervisor.trace import Layer, Trace, TraceEvent

if TYPE_CHECKING:
    from hypervisor.scheduler.kernel import Vp
    from hypervisor.scheduler.work import VpWork

LOST: dict[Reason, tuple[str, str]] = {
    Reason.SLICE_END: ("slice_end", "its slice is over"),
    Reason.CAPPED: ("capped", "its budget for this period is used up"),
    Reason.PREEMPTED: ("preempt", "another comes before it"),
    Reason.BLOCKED: ("block", "it has no work"),
    Reason.SUSPENDED: ("suspend", "it is suspended"),
}
"""What a loss is called, by its reason, and its words."""


class SchedulerTrace:
    """Makes the events, each with the time at which it happened on the scheduler's clock."""

    def __init__(self, trace: Trace, works: Mapping[Vp, VpWork], now: Callable[[], int]) -> None:
        self._trace = trace
        self._works = works
        self._now = now
        self._since: dict[Vp, int] = {}

    def dispatched(self, node: Vp, lp: int, slice_ns: int) -> None:
        """It has got a logical processor, or goes on there, for so long at most."""
        now = self._now()
        goes_on = self._since.setdefault(node, now) != now
        long = f"for at most {_ms(slice_ns)}" if slice_ns else "until somebody else wants it"
        event, words = ("continue", "keeps") if goes_on else ("dispatch", "gets")
        self._emit(node, now, event, f"{words} LP {lp} {long}", lp=lp, slice_ns=slice_ns)

    def descheduled(self, node: Vp, lp: int, reason: Reason) -> None:
        """It has lost it."""
        now = self._now()
        name, why = LOST[reason]
        ran = now - self._since.pop(node, now)
        self._emit(node, now, name, f"leaves LP {lp} after {_ms(ran)}: {why}", lp=lp, ran_ns=ran)

    def _emit(self, node: Vp, now: int, event: str, words: str, **fields: int) -> None:
        work = self._works.get(node)
        if work is not None:
            index = work.vp.index
            self._trace.emit_scheduler(
                TraceEvent(
                    *(now // NS_PER_TICK, Layer.SCHEDULER, event, work.vp.partition.id),
                    words=f"VP {index} {words}",
                    fields={"vp": index, **fields},
                )
            )


def _ms(ns: int) -> str:
    return f"{ns / 1e6:g} ms"
