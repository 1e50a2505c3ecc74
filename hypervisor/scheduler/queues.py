"""Queues of those that are ready, least tag first, in groups in groups; and the paying for what was served. Hypervisor.

Start-time fair queueing (Goyal 1996) at every level, so a group needs no knowledge of how much it gets: a tag grows by
what was served over the weight, and the least is served next. Deleting from a heap is lazy: an entry counts only while
its owner is queued and has that tag. A stale entry is dropped when it comes to the top, and never put back.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from hypervisor.scheduler.nodes import NEW, SCALE, Place, Queue, Vp
from hypervisor.scheduler.settings import WHOLE

BACKLOG = 100_000_000
"""Nanoseconds of lateness for which a reservation still catches up, and a cap."""

SPARED = 2
"""Quanta of arrears that are spared at most."""

ASTRAY = 2
"""Quanta by which a group may be ahead of its siblings while somebody in it goes on."""

LEAD = 4
"""Quanta by which somebody can be ahead of its siblings."""


def insert(place: Place) -> None:
    """Queue `place`, which is not, and every group above that becomes ready by that.

    Who was idle begins at the present of its siblings: idleness earns nothing. Who has waited for others keeps its
    arrears, a quantum of the lightest at most: so far behind is who was served while that one was. Who could not use
    its share, by a cap or since one processor is less than that, may not save it up: it has a quantum of arrears at
    most, and what is above that is good for going on, and not for getting in front of who waits.
    Who is new pays for its first quantum in advance, as in stride scheduling.
    """
    while True:
        above = place.above
        tag = place.tag
        if tag == NEW:
            tag = above.served + place.step
            place.woken = False
            above.eras += 1
        elif place.woken:
            tag = max(tag, above.served)
            place.woken = False
            above.eras += 1
        elif place.paused:
            tag = max(tag, above.served - place.step)
        elif place.hungry:
            tag = max(tag, above.served - max(place.step, above.reach))
        else:
            most = above.served - place.step
            spared = place.spared if place.era == above.eras else 0
            if tag < most:
                place.spared = min(spared + most - tag, SPARED * max(place.step, above.reach))
                place.era = above.eras
                tag = most
                place.queue.lenient = True
            elif spared and tag > most:
                back = min(spared, tag - most)
                place.spared = spared - back
                tag -= back
        place.hungry = place.paused = False
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
    """Enter a reserved place, which is queued, by when it is due."""
    queue = place.queue
    heappush(queue.owed, (place.due, place.serial, place))
    if len(queue.owed) > queue.debtors:
        queue.owed = _live(queue.owed, 0)
        queue.urgent = _live(queue.urgent, 1)
        queue.debtors = 2 * (len(queue.owed) + len(queue.urgent)) + 64


def _live(entries: list[tuple[int, int, Place]], terms: int) -> list[tuple[int, int, Place]]:
    """Those that count, once each."""
    live = {
        it.serial: entry for entry in entries for it in entry[2:] if it.queued and it.due + terms * it.term == entry[0]
    }
    return sorted(live.values())


def unpark(place: Place) -> None:
    """Those that were owed service when it had no budget are again."""
    parked, place.parked = place.parked, []
    for owed in parked:
        if owed.queued:
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
        if place.queued and place.due == moment:
            heappush(urgent, (moment + place.term, serial, place))
    while urgent:
        moment, _, place = urgent[0]
        if place.queued and place.due + place.term == moment:
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


def keeps(vp: Vp, since: int) -> bool:
    """Whether `vp`, whose slice has ended, goes on although others may be next.

    On several logical processors who is due a whole one must never wait, since it cannot make up for that. It is known
    by arrears although it never waited; or, where nobody has a cap but others do, by a logical processor that was free
    since `since`: then there is enough for all, and others need not have theirs at the beginning of a period.
    """
    if not all(place.queued for place in vp.path):
        return False
    keen = not vp.budgets and vp.queue.domain.spare_at >= since
    for place in vp.path:
        if place.spared and place.era == place.above.eras:
            keen = True
        elif place.tag > place.above.served + ASTRAY * max(place.step, place.above.reach):
            return False
    return keen


def charge(path: tuple[Place, ...], ns: int, instead_of: int = 0) -> None:
    """Charge everybody on `path` with `ns`, in place of what was paid in advance. Who is queued moves."""
    for place in path:
        weight = place.weight
        place.tag += (ns << SCALE) // weight - (instead_of << SCALE) // weight
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
        last = place.tag + (whole << SCALE) // place.weight
        if last > above.served:
            above.served, above.reach = last, place.step
        place.tag += (ns << SCALE) // place.weight
        if place.queued:
            move(place)


def pay_reserve(vp: Vp, place: Place, now: int, ns: int) -> None:
    """`vp` is served for the reserve of `place`, which counts for its own and for all around it.

    Who gets more by its reserve than by its shares is ever further ahead of its siblings, but must not be held to that
    once its shares are worth more. So it is ahead by a few quanta at most, enough not to be served for its shares, too.
    """
    paid = []
    for reserved in vp.reserved[::-1]:
        paid.append(reserved)
        reserved.due = max(reserved.due, now - BACKLOG) + ns * WHOLE // reserved.rate
        if reserved.queued:
            owe(reserved)
        if reserved is place:
            break
    vp.paid = tuple(paid)
    for served in vp.path:
        most = served.above.served + LEAD * served.step
        if served.tag > most:
            served.tag = most
            if served.queued:
                move(served)


def repay_reserve(vp: Vp, ns: int) -> None:
    """So much of it was not used after all."""
    for reserved in vp.paid:
        reserved.due -= ns * WHOLE // reserved.rate
        if reserved.queued:
            owe(reserved)
