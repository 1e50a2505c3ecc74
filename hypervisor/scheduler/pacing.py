"""What everybody busy is due of its domain's logical processors, and what makes it get that. Hypervisor.

Shares alone do not give everybody its part where some are held to less than that, by a cap or by being a single
processor, or raised to more, by a reserve: who is throttled half the time would be far behind its siblings for the
other half, and who can only use a whole logical processor must never wait. So the rule of docs/resources.md, which
`divvy` has for whole trees and in fractions, is computed over who is busy, level by level, and what comes out is each
one's pace. Paces become weights, for turns, and rates, for those whose loss could not be made up for.
"""

from __future__ import annotations

from hypervisor.scheduler.budgets import BACKLOG, places, processors_in
from hypervisor.scheduler.nodes import FINE, NEW, Budget, Domain, Group, Place, Vp
from hypervisor.scheduler.queues import LEAD, move, owe
from hypervisor.scheduler.settings import WHOLE

SUB = 16
"""Paces are in 1/65536 of a logical processor, shifted left by so much."""
LEVEL = 24
"""The level of the water is pace over shares, shifted left by so much."""
LINGERS = 1_000_000
"""Who has been idle for fewer nanoseconds still counts: it may be between two pieces of work."""
GOOD_FOR = 100_000
"""For so many nanoseconds times the number of places are paces good enough, though somebody became busy or idle:
computing them takes a few microseconds each."""


def pace(domain: Domain, now: int) -> None:
    """Compute all paces of a domain anew."""
    domain.stale = False
    domain.strict.clear()
    for budget in [budget for budget in domain.tight if not _counts(places(budget.node)[0], now)]:
        del domain.tight[budget]
    domain.length = min(domain.tight.values(), default=0)
    lps = domain.lps.bit_count()
    count = _bounds(domain.group, now)
    _share(domain.group, min(lps * WHOLE << SUB, domain.group.normal.most), lps, now)
    domain.paced_until = now + min(count * GOOD_FOR, BACKLOG)


def _counts(place: Place, now: int) -> bool:
    """Whether it is busy, or has been just now: then paces are soon to be computed again."""
    if place.busy:
        return True
    if place.idle_since < 0 or now - place.idle_since >= LINGERS:
        return False
    place.queue.domain.stale = True
    return True


def _busy(group: Group, now: int) -> list[tuple[Group | Vp, Place]]:
    """Those in `group` that compete there, with their places."""
    found: list[tuple[Group | Vp, Place]] = []
    for child in group.children.values():
        if isinstance(child, Vp):
            if not child.batch and _counts(child, now):
                found.append((child, child))
        elif child.domain is None and _counts(child.normal, now):
            found.append((child, child.normal))
    return found


def _bounds(group: Group, now: int) -> int:
    """What each in `group` has reserved and can use, from the bottom up. Returns how many were looked at."""
    count, least, most = len(group.children), 0, 0
    for child, place in _busy(group, now):
        if isinstance(child, Vp):
            place.most = (WHOLE if child.cap is None else min(WHOLE, child.cap)) << SUB
            place.least = min(place.floor << SUB, place.most)
        else:
            count += _bounds(child, now)
        least += place.least
        most += place.most
    place = group.normal
    place.most = most if group.cap is None else min(most, group.cap << SUB)
    place.least = min(max(place.floor << SUB, least), place.most)
    return count


def _share(group: Group, capacity: int, lps: int, now: int) -> int:
    """Divide `capacity` among those in `group`. Returns how dense that is: how much of the time is needed at least."""
    busy = _busy(group, now)
    claims = [(place.least, place.most, place.shares) for _, place in busy]
    paces, level = fill(capacity, claims)
    densest = (capacity >> SUB) // -(-capacity // (WHOLE << SUB)) if capacity else 0
    for (child, place), (low, high, shares), amount in zip(busy, claims, paces, strict=True):
        place.pace = amount
        place.bound = amount >= high
        # On one logical processor nobody loses by another's burst, so a cap need not be spread over its period.
        free = low < amount < high or (lps == 1 and level * shares >> LEVEL >= amount)
        _set_weight(place, shares << FINE if free or not level else max(1, (amount << LEVEL + FINE) // level))
        if isinstance(child, Vp):
            place.density = amount >> SUB
        else:
            place.density = _share(child, amount, lps, now)
        densest = max(densest, place.density)
        _set_rate(child, place, lps, now)
    return densest


def _set_weight(place: Place, weight: int) -> None:
    """From now on it has so much. It stays as far from the present of its siblings, in time."""
    if weight == place.weight:
        return
    if place.tag != NEW:
        above = place.above
        place.tag = above.served + (place.tag - above.served) * place.weight // weight
    place.weigh(weight)
    if place.queued:
        move(place)


def _set_rate(node: Group | Vp, place: Place, lps: int, now: int) -> None:
    """The service that it is owed out of its turn.

    Who has a budget and is due all of it: so much that it is used up before its period ends. Who is due more than half
    of what it can use (of its cap; of a whole logical processor, where there are several), and so makes up for waiting
    more slowly than it falls behind: its pace. Everybody else: its reserve, if it had none of it for a quantum.
    """
    amount, quantum = place.pace >> SUB, place.quantum
    binding: Budget | None = None
    term = lead = 0
    heavy = False
    if node.budget is not None and amount and node.cap is not None and amount >= node.cap:
        binding, rate = node.budget, amount
        if binding.period * (WHOLE - place.density) < quantum * WHOLE:
            place.queue.domain.strict.append(place)
    elif amount and 2 * place.pace > place.most and (node.budget is not None or (lps > 1 and isinstance(node, Vp))):
        rate, heavy, lead = amount, True, LEAD * quantum * WHOLE // amount
        term = 0 if place.bound else quantum
    else:
        rate = min(amount, place.floor)
        if rate:
            term = quantum * WHOLE // rate
            lead = term if amount > rate else LEAD * term
    old = place.rate
    place.lead = lead
    if (rate, term, binding) == (old, place.term, place.binding):
        return
    if old and rate and place.binding is None:
        behind = now + (0 if place.heavy else place.term) - place.due
        place.due = now + (0 if heavy else term) - behind * old // rate
    else:
        place.due = now
    place.rate, place.heavy, place.term, place.binding = rate, heavy, term, binding
    if bool(old) is not bool(rate):
        for vp in processors_in(node):
            vp.owed = tuple(it for it in vp.path if it.rate)
    if rate and place.queued:
        owe(place)


def fill(capacity: int, claims: list[tuple[int, int, int]]) -> tuple[list[int], int]:
    """The water-fill of `divvy.divide` in integers, for often: `claims` are (at least, at most, shares).

    Returns the amounts, off by a few units at most, and the level: the amount of who is bound by neither, over its
    shares; or where nobody is, the least that would be enough for everybody.
    """
    low = sum(claim[0] for claim in claims)
    high = sum(claim[1] for claim in claims)
    if low >= capacity:
        amounts = [capacity * claim[0] // low if low else 0 for claim in claims]
    elif high <= capacity:
        amounts = [claim[1] for claim in claims]
    else:
        bends = [((least << LEVEL) // shares, shares, -least) for least, _, shares in claims]
        bends += [((most << LEVEL) // shares, -shares, most) for _, most, shares in claims]
        bends.sort()
        slope, fixed, level = 0, low, 0
        for level, by, held in bends:
            if fixed + (slope * level >> LEVEL) >= capacity:
                break
            slope += by
            fixed += held
        if slope:  # or any level in between will do
            level = (capacity - fixed << LEVEL) // slope
        return [max(least, min(level * shares >> LEVEL, most)) for least, most, shares in claims], level
    return amounts, max(
        ((amount << LEVEL) // claim[2] for amount, claim in zip(amounts, claims, strict=True)), default=0
    )
