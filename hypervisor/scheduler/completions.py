"""When work can be done at the earliest: until then nobody has to look at the scheduler at all. Hypervisor.

Bounds only grow as time goes on, unless an input takes something away from others (`reset`). So they are looked at
again only when they have come to the top of the heap.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

from hypervisor.scheduler.dispatch import Dispatcher
from hypervisor.scheduler.nodes import Budget, State, Vp


class Completions:
    """Those virtual processors whose work ends."""

    __slots__ = ("_heap", "_machine")

    def __init__(self, machine: Dispatcher) -> None:
        self._machine = machine
        self._heap: list[tuple[int, int, Vp]] = []

    def expect(self, vp: Vp) -> None:
        """`vp` has work that ends."""
        if not vp.awaited:
            vp.awaited = True
            heappush(self._heap, (self._machine.now, vp.serial, vp))

    def reset(self) -> None:
        """Something may now come earlier than it could before."""
        now = self._machine.now
        self._heap = [(now, serial, vp) for serial, vp in sorted((vp.serial, vp) for _, _, vp in self._heap)]

    def earliest(self) -> int | None:
        """No work is done before; None: none is, unless there is an input."""
        heap = self._heap
        never = []
        found = None
        while heap:
            bound, serial, vp = heap[0]
            if vp.left is None or vp.state is State.HALTED:
                heappop(heap)
                vp.awaited = False
                continue
            better = self._bound(vp)
            if better is None:
                never.append(heappop(heap))
            elif better > bound:
                heapreplace(heap, (better, serial, vp))
            else:
                found = bound
                break
        for entry in never:
            heappush(heap, entry)
        return found

    def _bound(self, vp: Vp) -> int | None:
        left = vp.left
        assert left is not None
        begin: int | None
        match vp.state:
            case State.RUNNING if vp.slice in (0, left):
                return vp.start + left
            case State.RUNNING:
                begin = vp.start + vp.slice
                left -= vp.slice
            case State.READY:
                begin = self._machine.soonest()
            case _:
                begin = vp.budget.fill_at if vp.budget is not None and vp.budget.full else None
        if begin is None:
            return None
        end = begin + left
        for budget in vp.budgets:
            if not budget.full:
                return None
            end = max(end, _by_budget(budget, begin, left, budget.left if budget is vp.budget else budget.full))
        return end


def _by_budget(budget: Budget, begin: int, left: int, now_left: int) -> int:
    """When `left` can be done by this budget if it begins at `begin`."""
    full, period = budget.full, budget.period
    until, has = budget.until, max(0, now_left)
    if begin >= until:
        until, has = (begin // period + 1) * period, full
    if left <= has:
        return begin + left
    periods = -(-(left - has) // full)
    return until + (periods - 1) * period + left - has - (periods - 1) * full
