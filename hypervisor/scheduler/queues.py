"""Queues of those that are ready, least tag first, in groups in groups; and the paying for what was served. Hypervisor.

Start-time fair queueing (Goyal 1996) at every level, so a group needs no knowledge of how much it gets: a tag grows by
what was served over the weight, and the least is served next. Deleting from a heap is lazy: an entry counts only while
its owner is queued and has that tag. A stale entry is dropped when it comes to the top, and never put back.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from hypervisor.scheduler.budgets import BACKLOG, refill
from hypervisor.scheduler.nodes import FINE, NEW, SCALE, Budget, Place, Queue, State, Vp
from hypervisor.scheduler.settings import WHOLE

ARREARS = 4
"""Quanta of arrears that are made up for."""

LEAD = 6
"""Quanta by which somebody can be ahead of its pace, and is held to that; for who is new, at most."""


def insert(place: Place) -> None:
    """Queue `place`, which is not, and every group above that becomes ready by that.

    Who was idle begins at the present of its siblings: idleness earns nothing. Who has waited for others keeps its
    arrears, a few quanta at most. Who is due all it can use (its cap, a whole processor) could never make up for more
    than one; nor shall who was told otherwise.
    Who is new pays for its first quantum in advance, as in stride scheduling.
    """
    while True:
        above = place.above
        tag = place.tag
        if tag == NEW:
            tag = above.served + min(place.quantum * SCALE // (place.shares << FINE), LEAD * place.step)
        elif place.woken:
            tag = max(tag, above.served)
        elif place.bound or place.changed:
            tag = max(tag, above.served - place.step)
        else:
            tag = max(tag, above.served - ARREARS * max(place.step, above.reach))
        place.woken = place.changed = False
        place.tag = tag
        place.queued = True
        heap = above.heap
        heappush(heap, (tag, place.rank, place))
        if len(heap) > above.crowd:
            sweep(above)
        if place.rate:
            owe(place)
        if place.parked:
            unpark(place)
        above.ready += 1
        if above.ready > 1 or above.throttled or above is place.queue.root:
            return
        place = above


def withdraw(place: Place) -> None:
    """Take `place`, which is queued, out; and every group above in which nobody is ready any more."""
    root = place.queue.root
    while True:
        place.queued = False
        above = place.above
        above.ready -= 1
        if above.ready or above is root or not above.queued:
            return
        place = above


def owe(place: Place) -> None:
    """Enter a place with a rate, which is queued, by when it is due."""
    queue = place.queue
    if place.binding is not None:
        place.due = _latest(place, place.binding)
    heappush(queue.owed, (place.due, place.serial, place))
    if len(queue.owed) + len(queue.urgent) > queue.debtors:
        queue.owed = _live(queue.owed, 0)
        queue.urgent = _live(queue.urgent, 1)
        queue.debtors = 2 * (len(queue.owed) + len(queue.urgent)) + 64


def _live(entries: list[tuple[int, int, Place]], terms: int) -> list[tuple[int, int, Place]]:
    """Those that count, once each."""
    live = {
        it.serial: entry
        for entry in entries
        for it in entry[2:]
        if it.queued and it.rate and it.due + terms * it.term == entry[0]
    }
    return sorted(live.values())


def _latest(place: Place, budget: Budget) -> int:
    """When it must be served so that what is left of its budget can be used up, if others get slices before."""
    domain = place.queue.domain
    latest = budget.until - max(0, budget.left) * place.density // place.rate
    return latest if place in domain.strict else latest - (domain.length or domain.quantum)


def shorten(vp: Vp, granted: int, now: int, shortest: int) -> int:
    """How long the slice of `vp` may be, of `granted`, for the sake of those who must begin within it."""
    for place in vp.queue.domain.strict:
        budget = place.binding
        if budget is None or not place.busy or place in vp.path:
            continue
        if isinstance(place, Vp) and place.state is State.RUNNING:
            continue  # goes on where it runs
        left, until = (budget.full, budget.until + budget.period) if place.throttled else (budget.left, budget.until)
        begin = until - left * place.density // place.rate
        if now < begin < now + granted:
            granted = max(begin - now, min(granted, shortest))
    return granted


def unpark(place: Place) -> None:
    """Those that were owed service when it had no budget are again."""
    parked, place.parked = place.parked, []
    for owed in parked:
        if owed.queued and owed.rate:
            owe(owed)


def sweep(above: Place) -> None:
    """Drop the stale entries of a heap."""
    heap = above.heap
    heap[:] = {rank: entry for entry in heap for tag, rank, it in (entry,) if it.queued and it.tag == tag}.values()
    heapify(heap)
    above.crowd = 2 * len(heap) + 32


def forget(place: Place) -> None:
    """`place` leaves the group or the queue that it is in, out of which it was withdrawn: no entry may count again."""
    above = place.above
    above.heap[:] = [entry for entry in above.heap if entry[2] is not place]
    heapify(above.heap)
    for owed in (place.queue.owed, place.queue.urgent):
        owed[:] = [entry for entry in owed if entry[2] is not place]
        heapify(owed)
    while True:
        if place in above.parked:
            above.parked = [it for it in above.parked if it is not place]
        if above is place.queue.root:
            return
        above = above.above


def due(queue: Queue, now: int) -> Place | None:
    """Who is owed service and may be served: of those that are due, the one with the nearest deadline.

    With reserves that fit, nobody is then ever more than a quantum late on one logical processor.
    """
    owed, urgent, root = queue.owed, queue.urgent, queue.root
    while owed and owed[0][0] <= now:
        moment, serial, place = heappop(owed)
        if not place.queued or not place.rate or place.due != moment:
            continue
        if place.binding is not None:
            if now >= place.binding.until:
                refill(place.binding, now)
            place.due = _latest(place, place.binding)
        if place.due > now:
            heappush(owed, (place.due, serial, place))
        else:
            heappush(urgent, (place.due + place.term, serial, place))
    while urgent:
        moment, _, place = urgent[0]
        if place.queued and place.rate and place.due + place.term == moment:
            above = place.above
            while above is not root and above.queued:
                above = above.above
            if above is root:
                return place
            above.parked.append(place)  # until it has a budget again
        heappop(urgent)
    return None


def first(place: Place) -> Vp:
    """The virtual processor to serve next in a group in which somebody is ready."""
    while True:
        heap = place.heap
        tag, _, below = heap[0]
        while not below.queued or below.tag != tag:
            heappop(heap)
            tag, _, below = heap[0]
        if not below.heap:
            assert isinstance(below, Vp)
            return below
        place = below


def charge(path: tuple[Place, ...], ns: int, instead_of: int = 0) -> None:
    """Charge everybody on `path` with `ns`, in place of what was paid in advance. Who is queued moves."""
    for place in path:
        weight = place.weight
        place.tag += ns * SCALE // weight - instead_of * SCALE // weight
        if place.queued:
            move(place)


def move(place: Place) -> None:
    """The tag of a queued place has changed: enter it anew."""
    above = place.above
    heappush(above.heap, (place.tag, place.rank, place))
    if len(above.heap) > above.crowd:
        sweep(above)


def run_on(path: tuple[Place, ...], ns: int, quantum: int) -> None:
    """Charge for `ns` in slices of a quantum that nobody else wanted, as if each had been granted for itself."""
    whole = (ns - 1) // quantum * quantum if ns else 0
    for place in path:
        above = place.above
        last = place.tag + whole * SCALE // place.weight
        if last > above.served:
            above.served, above.reach = last, place.step
        place.tag += ns * SCALE // place.weight
        if place.queued:
            move(place)


def pay_rates(vp: Vp, ns: int, until: int) -> None:
    """`vp` is served for so long: all on its path that are owed service are owed it later.

    However they came by it. But who got more than that by its shares shall not go without for as long afterwards: it
    comes no further ahead than its `lead`.
    """
    paid = []
    for place in vp.owed:
        if place.binding is None:
            before = max(place.due, until - BACKLOG)
            place.due = min(before + ns * WHOLE // place.rate, max(before, until + place.lead))
            paid.append((place, place.due - before))
        if place.queued:
            owe(place)
    vp.paid = tuple(paid)


def repay_rates(vp: Vp, ns: int, unused: int) -> None:
    """So much of that was not used after all."""
    for place, later in vp.paid:
        place.due -= later * unused // ns
    for place in vp.owed:
        if place.queued:
            owe(place)
