"""Whether something may be reserved: from a pool, and where that is expandable from those around it. Hypervisor.

What is switched on reserves; a pool takes its own reservation of its parent's, and more where more is used in it. So
each level is asked for what its child would take more of it, and nothing is granted that any level has not.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from hypervisor.scheduler.tree import Node, check_figures

Words = Callable[[int], str]
"""An amount for people."""


@attrs.frozen
class Step:
    """A pool that was asked."""

    path: str
    name: str
    free: int
    """What it has that nobody has reserved. Below 0 where it has taken from its parent's already."""
    whole: int
    """What it has in all."""
    limited: bool = False
    """It is its limit that stands against it."""


@attrs.frozen
class Admitted:
    """It may."""

    steps: tuple[Step, ...] = ()


@attrs.frozen
class Refused:
    """It may not: somebody on the way up has not enough."""

    steps: tuple[Step, ...]
    """Who was asked, from the inside; the last one lacks it."""
    need: int
    """Asked of the first."""
    short: int
    """What the last one lacks."""

    @property
    def path(self) -> tuple[str, ...]:
        """The names of those who were asked."""
        return tuple(step.path for step in self.steps)

    @property
    def free(self) -> int:
        """What the last one has."""
        return max(0, self.steps[-1].free)

    def words(self, of: Words = str) -> str:
        """Such as "pool/kid 0 of 2 free -> pool/mom 1 of 6 free -> needs 2"."""
        parts = []
        for step in self.steps:
            kind = "of its limit of" if step.limited else "of"
            parts.append(f"{step.name} {of(max(0, step.free))} {kind} {of(step.whole)} free")
        return " -> ".join([*parts, f"needs {of(self.need)}"])


def admit(pool: Node, amount: int) -> Admitted | Refused:
    """Whether `amount` more may be reserved in a pool. Changes nothing."""
    steps: list[Step] = []
    need = amount
    for node in pool.upwards():
        if need <= 0:
            break
        if node.limit is not None and node.used + need > node.limit:
            left = node.limit - node.used
            steps.append(Step(node.path, node.name, left, node.limit, limited=True))
            return Refused(tuple(steps), amount, need - max(0, left))
        free = node.reservation - node.used
        if node.parent is not None or not node.expandable:
            steps.append(Step(node.path, node.name, free, node.reservation))
        if need > free and not node.expandable:
            return Refused(tuple(steps), amount, need - max(0, free))
        need -= max(0, free)
    return Admitted(tuple(steps))


def commit(node: Node) -> Admitted | Refused:
    """Switch something on that is not inner, if what it has reserved can be granted."""
    assert node.parent is not None, "a root is no machine"
    answer = Admitted() if node.active else admit(node.parent, node.reservation)
    if isinstance(answer, Admitted):
        node.switch(on=True)
    return answer


def release(node: Node) -> None:
    """Switch it off, and give back exactly what it had."""
    node.switch(on=False)


def reservation_used(node: Node) -> int:
    """What is reserved in it by those that are on; reckoned anew, for those who do not trust `Node.used`."""
    if not node.inner:
        return node.reservation if node.active else 0
    return sum(_claim(child) for child in node.children.values())


def _claim(node: Node) -> int:
    used = reservation_used(node)
    return max(node.reservation, used, node.dedicated) if node.inner else used


def rearrange(
    node: Node,
    *,
    reservation: int,
    limit: int | None,
    shares: int,
    expandable: bool | None = None,
    dedicated: int = 0,
    parent: Node | None = None,
) -> Admitted | Refused:
    """Other figures and, with `parent`, another pool, if all of it can be granted; or everything is as before.

    Raises `ResourceError` for what cannot be, whoever has how much.
    """
    home = node.parent
    assert home is not None, "a root has nobody to ask"
    target = home if parent is None else parent
    node.check_move(target)
    check_figures(node.path, reservation, limit, shares)
    if node.inner:
        if node.used > reservation and not (node.expandable if expandable is None else expandable):
            return Refused((Step(node.path, node.name, 0, reservation),), node.used, node.used - reservation)
        if limit is not None and node.used > limit:
            return Refused((Step(node.path, node.name, 0, limit, limited=True),), node.used, node.used - limit)
        claim = max(reservation, node.used, dedicated)
    else:
        claim = reservation if node.active else 0
    before = node.claim
    home.take(-before)
    answer = admit(target, claim)
    home.take(before)
    if isinstance(answer, Admitted):
        node.move(target)
        node.change(reservation=reservation, limit=limit, shares=shares, expandable=expandable, dedicated=dedicated)
    return answer
