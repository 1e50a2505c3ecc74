"""Caps: a budget a period, paid in advance, and what happens when it is used up or filled. Hypervisor."""

from __future__ import annotations

from collections.abc import Iterator

from hypervisor.scheduler.nodes import Budget, Group, Place, Vp


def refill(budget: Budget, now: int) -> None:
    """Begin the period that `now` is in. What slices of before still run is paid by it; a debt stays one."""
    begin = now // budget.period * budget.period
    still = budget.ends - budget.running * begin
    debt = min(0, budget.left + still)
    periods = (begin - budget.until) // budget.period
    if debt and periods > 0:
        debt = min(0, debt + periods * budget.full)
    budget.left = budget.full + debt - still
    budget.until = begin + budget.period


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
