"""Caps: a budget a period, paid in advance, and what happens when it is used up or filled. Hypervisor."""

from __future__ import annotations

from collections.abc import Iterator

from hypervisor.scheduler.nodes import Budget, Group, Place, Vp

BACKLOG = 100_000_000
"""Nanoseconds of lateness for which a reservation still catches up, and a cap."""


def refill(budget: Budget, now: int) -> None:
    """Begin the period that `now` is in. What slices of before still run is paid by it; a debt stays one."""
    begin = now // budget.period * budget.period
    place = places(budget.node)[0]
    still = budget.ends - budget.running * begin
    unused = budget.left + still
    budget.short = unused > 0 and place.busy > 0 and place.idle_since < budget.until - budget.period
    debt = min(0, unused)
    periods = (begin - budget.until) // budget.period
    if debt and periods > 0:
        debt = min(0, debt + periods * budget.full)
    if periods > 0:
        budget.credit = 0  # nobody has wanted it
    # No more than can be of use in this period.
    extra = min(budget.credit, budget.period - budget.full if budget.full < budget.period else budget.full)
    budget.credit -= extra
    budget.left = budget.full + debt - still + extra
    budget.until = begin + budget.period


def give_credit(budget: Budget, ns: int) -> None:
    """So much of it was granted and then not run, since the host had other things to do."""
    most = budget.full * max(1, BACKLOG // budget.period)
    budget.credit = min(most, budget.credit + ns)


def places(node: Group | Vp) -> tuple[Place, ...]:
    """Where `node` stands."""
    return (node,) if isinstance(node, Vp) else (node.normal, node.batch)


def within(group: Group) -> Iterator[Group]:
    """`group` and all groups in it."""
    yield group
    for child in group.children.values():
        if isinstance(child, Group):
            yield from within(child)


def processors_in(node: Group | Vp) -> Iterator[Vp]:
    """All virtual processors in it, in the order of ranks at each level whoever was made first."""
    if isinstance(node, Vp):
        yield node
        return
    for _, child in sorted(node.children.items()):
        yield from processors_in(child)


def block(group: Group, now: int, by: int) -> None:
    """`group` has got into, or out of, so many groups without budget: itself or around it."""
    for one in within(group):
        before = one.blocked
        one.blocked += by
        if not before and one.blocked:
            one.blocked_since = now
        elif before and not one.blocked:
            one.blocked_total += now - one.blocked_since


def blocked_for(group: Group, now: int) -> int:
    """How long it has been kept from running by its own budget or by one around it, in all."""
    return group.blocked_total + (now - group.blocked_since if group.blocked else 0)
