"""How a host shares its memory among VMs whose memory comes and goes: targets, states and steps; pure. Root side.

    demand  --buffer, minimum, maximum-->  wish  --what the host has-->  target  --rate, free memory-->  step

Each VM wishes for its demand and its buffer on top, within its minimum and maximum (Hyper-V's rule). Where the host has
not so much, minimums come first, and the rest is shared by weight among those who still wish for more; or, with a tax
on idle memory, so that an idle page costs its owner as much as several active ones (Waldspurger, OSDI 2002).

All amounts are whole pages. Nobody is ever taken below its minimum, and nobody is given what is not free.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Final

import attrs

from hypervisor.scheduler import divvy
from vsp_vsc.memory.protocol import BALLOON_UNIT

SHRINK_A_TICK: Final = 16 * BALLOON_UNIT
"""Pages that a VM is asked for at a time while nobody needs them."""
GROW_A_TICK: Final = 64 * BALLOON_UNIT
HURRY: Final = 8
"""Times as much where the host runs short."""
_SLACK: Final = 32
"""A VM keeps what it has above its target up to this part of it: demand goes up and down a little all the time."""


class HostState(enum.Enum):
    """How much of the host's memory is free, and what is done about it."""

    HIGH = "high"
    """Enough: what VMs do not need comes back slowly."""
    SOFT = "soft"
    """It comes back in larger pieces."""
    HARD = "hard"
    """All at once."""
    LOW = "low"
    """The same; and what there is, those below their minimum get first."""


_ORDER: Final = (HostState.LOW, HostState.HARD, HostState.SOFT, HostState.HIGH)
_PERMILLE: Final = (10, 20, 40, 60)
"""Free memory that bounds the states from above: low below the first, hard below the second, soft below the third. The
fourth ends the band that hysteresis is measured by."""


def host_state(before: HostState, free: int, total: int) -> HostState:
    """The state at so much free memory. A state is left upwards only a quarter of its band above its threshold."""
    now = sum(1000 * free >= bound * total for bound in _PERMILLE[:3])
    if now > _ORDER.index(before):
        while now > _ORDER.index(before):
            bound, following = _PERMILLE[now - 1], _PERMILLE[now]
            if 4000 * free >= (4 * bound + following - bound) * total:
                break
            now -= 1
    return _ORDER[now]


def wish(demand: int | None, buffer: int, least: int, most: int, assigned: int) -> int:
    """Demand and its buffer in percent, between minimum and maximum; what it has where demand is not known."""
    wanted = assigned if demand is None else -(-demand * (100 + buffer) // 100)
    return max(least, min(wanted, most))


def pressure(demand: int | None, assigned: int) -> int | None:
    """Percent of what it has that it needs: Hyper-V's Current Pressure. None before its guest has said."""
    return None if demand is None or assigned <= 0 else (200 * demand + assigned) // (2 * assigned)


@attrs.frozen
class Claim:
    """What one VM asks of the host, in pages."""

    name: str
    least: int
    most: int
    assigned: int
    demand: int | None = None
    active: int | None = None
    """What its guest uses, where somebody has looked; its demand counts where nobody has."""
    buffer: int = 20
    weight: int = 5000
    limit: int | None = None
    """Of a pool around it: where this is below what the VM was built with, the balloon makes up for it."""

    @property
    def wish(self) -> int:
        """What it would have on an empty host."""
        most = self.most if self.limit is None else min(self.most, self.limit)
        return wish(self.demand, self.buffer, min(self.least, most), most, self.assigned)

    @property
    def in_use(self) -> int:
        """What no tax is on."""
        known = self.demand or 0 if self.active is None else self.active
        return min(known, self.wish)


Divide = Callable[[int, Sequence[Claim]], Mapping[str, int]]
"""Shares pages among claims: each gets no more than its wish, and its minimum first."""


def by_weight(capacity: int, claims: Sequence[Claim]) -> dict[str, int]:
    """Minimums first, then by weight."""
    asked = [divvy.Claim(min(claim.least, claim.wish), claim.wish, claim.weight) for claim in claims]
    return _whole(divvy.divide(capacity, asked), claims)


def taxed(tax: Fraction) -> Divide:
    """By weight where an idle page costs 1 / (1 - tax) active ones."""

    def divide(capacity: int, claims: Sequence[Claim]) -> dict[str, int]:
        holders = [
            divvy.Holder(claim.weight, claim.in_use, min(claim.least, claim.wish), claim.wish) for claim in claims
        ]
        return _whole(divvy.idle_tax_targets(capacity, holders, tax), claims)

    return divide


def _whole(division: divvy.Division, claims: Sequence[Claim]) -> dict[str, int]:
    pages = divvy.rounded(division.amounts, range(len(claims)))
    return {claim.name: count for claim, count in zip(claims, pages, strict=True)}


@attrs.frozen
class Target:
    """Where one VM's memory should go."""

    pages: int
    wish: int

    @property
    def contended(self) -> bool:
        """Whether the host has too little for what it wishes for."""
        return self.pages < self.wish


def targets(capacity: int, claims: Sequence[Claim], divide: Divide = by_weight) -> dict[str, Target]:
    """A target for each; what is left below a unit stays free."""
    wishes = {claim.name: claim.wish for claim in claims}
    if sum(wishes.values()) <= capacity:
        return {name: Target(pages, pages) for name, pages in wishes.items()}
    shares = divide(capacity, claims)
    made = {}
    for claim in claims:
        pages = min(shares[claim.name], wishes[claim.name])
        if pages < wishes[claim.name]:
            pages = max(claim.least, pages // BALLOON_UNIT * BALLOON_UNIT)
        made[claim.name] = Target(pages, wishes[claim.name])
    return made


class Change(enum.Enum):
    """What to do with one VM's memory now."""

    NOTHING = "nothing"
    BALLOON = "balloon"
    UNBALLOON = "unballoon"
    HOT_ADD = "hot add"


@attrs.frozen
class Standing:
    """How one VM is, in pages."""

    assigned: int
    ballooned: int
    least: int
    room: int
    """That can still be added."""
    balloons: bool = True
    """Its driver can give pages, and has not just said that it has none."""
    over: int = 0
    """That a pool around it has above its limit: what of it this VM has above its target, it gives at once."""


@attrs.frozen
class Step:
    """A change and its size."""

    change: Change = Change.NOTHING
    pages: int = 0


def step(target: int, standing: Standing, state: HostState, free: int) -> Step:
    """What brings a VM nearer to its target, with so much of the host's memory free."""
    assigned = standing.assigned
    if target > assigned:
        wanted = min(target - assigned, free, GROW_A_TICK)
        if standing.ballooned:
            pages = min(wanted, standing.ballooned)
            return Step(Change.UNBALLOON, pages) if pages > 0 else Step()
        pages = min(wanted, standing.room) // BALLOON_UNIT * BALLOON_UNIT
        return Step(Change.HOT_ADD, pages) if pages else Step()
    excess = assigned - max(target, standing.least)
    slack = max(BALLOON_UNIT, target // _SLACK) if state is HostState.HIGH else BALLOON_UNIT
    over = min(excess, standing.over)
    if not standing.balloons or (excess < slack and over <= 0):
        return Step()
    most = {HostState.HIGH: SHRINK_A_TICK, HostState.SOFT: SHRINK_A_TICK * HURRY}.get(state, excess)
    pages = min(excess, most) // BALLOON_UNIT * BALLOON_UNIT
    return Step(Change.BALLOON, max(pages, over))
