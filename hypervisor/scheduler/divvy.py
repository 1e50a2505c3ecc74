"""Who gets how much of something that is short: a clamped proportional share, exact, level by level. Hypervisor.

Of siblings with the amount C together, each gets E = clamp(lambda * weight, lo, hi): lo is what it has reserved and
wants, hi what it wants within its limit, and lambda is such that the sum is C, or all have their hi. The three rules of
resource control follow: a limit holds always; a reservation matters only where the share would be less; shares matter
only where somebody does not get all he wants. Nothing here rounds: amounts are integers or Fractions.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import attrs

from hypervisor.scheduler.tree import Node


class Claim(NamedTuple):
    """What one of several wants."""

    lo: int
    """Guaranteed. More than `hi` counts as `hi`."""
    hi: int | None
    """The most that it takes; None: all that there is."""
    weight: int
    """At least 1."""


class State(enum.Enum):
    """How claims stand to what there is."""

    INSUFFICIENT = "insufficient"
    """Less than is guaranteed: each gets the same part of its guarantee."""
    UNCONTENDED = "uncontended"
    """Everybody gets all he wants, and weights mean nothing."""
    CONTENDED = "contended"


@attrs.frozen
class Division:
    """Who gets how much."""

    amounts: tuple[Fraction, ...]
    """In the order of the claims."""
    state: State
    lam: Fraction | None = None
    """What one share is worth where weights count; None elsewhere."""


def divide(capacity: int | Fraction, claims: Sequence[Claim]) -> Division:
    """Divide `capacity` in O(n log n). The order of the claims changes nothing.

    Raises `ValueError` for what is below 0, and a weight below 1.
    """
    if capacity < 0 or any(lo < 0 or (hi is not None and hi < 0) or weight < 1 for lo, hi, weight in claims):
        raise ValueError(f"{capacity} for {claims}: amounts are at least 0, and weights 1")
    lows = [lo if hi is None else min(lo, hi) for lo, hi, _ in claims]
    total = sum(lows)
    if total > capacity:
        return Division(tuple(Fraction(capacity * lo) / total for lo in lows), State.INSUFFICIENT)
    highs = [hi for _, hi, _ in claims if hi is not None]
    if len(highs) == len(claims) and sum(highs) <= capacity:
        return Division(tuple(map(Fraction, highs)), State.UNCONTENDED)
    lam = _level(Fraction(capacity), claims, lows, total)
    amounts = []
    for lo, (_, hi, weight) in zip(lows, claims, strict=True):
        if lam.numerator * weight <= lo * lam.denominator:
            amounts.append(Fraction(lo))
        elif hi is not None and lam.numerator * weight >= hi * lam.denominator:
            amounts.append(Fraction(hi))
        else:
            amounts.append(lam * weight)
    return Division(tuple(amounts), State.CONTENDED, lam)


def _level(capacity: Fraction, claims: Sequence[Claim], lows: Sequence[int], total: int) -> Fraction:
    """The lambda at which all together take `capacity`, which is between the sums of lo and of hi.

    The sum grows with lambda in straight pieces: where lambda * weight reaches somebody's lo he begins to take more,
    where it reaches his hi he stops.
    """
    # Two different fractions of integers over weights differ by 1 / (w1 * w2) or more, so this many bits order them.
    bits = 2 * max(weight for _, _, weight in claims).bit_length()
    turns = [((lo << bits) // weight, 0, lo, weight) for lo, (_, _, weight) in zip(lows, claims, strict=True)]
    turns += [((hi << bits) // weight, 1, hi, weight) for _, hi, weight in claims if hi is not None]
    turns.sort()
    top, bottom = capacity.numerator, capacity.denominator
    fixed, slope = total, 0
    for _, stops, amount, weight in turns:
        if slope and (top - fixed * bottom) * weight <= amount * slope * bottom:
            break
        if stops:
            fixed, slope = fixed + amount, slope - weight
        else:
            fixed, slope = fixed - amount, slope + weight
    return (capacity - fixed) / slope


def rounded(amounts: Sequence[Fraction], ids: Sequence[int]) -> list[int]:
    """Whole amounts with the same sum, as far as that is whole: the largest remainders are rounded up, ties by ID."""
    whole = [amount.numerator // amount.denominator for amount in amounts]
    left = math.floor(sum(amounts, Fraction(0))) - sum(whole)
    order = sorted(range(len(amounts)), key=lambda index: (whole[index] - amounts[index], ids[index]))
    for index in order[:left]:
        whole[index] += 1
    return whole


# Trees

Demands: TypeAlias = Mapping[Node, int | None]
"""What nodes that are not inner would use now, in place of `Node.demand`."""


class Wish(NamedTuple):
    """What a node wants of its parent."""

    lo: int
    hi: int | None


def wishes(root: Node, *, held: bool = False, demands: Demands | None = None) -> dict[Node, Wish]:
    """From the leaves up: what each node has reserved and wants, and what it wants at most.

    A pool's guarantee is its own or, where that is less, the sum of those in it: what they could not be guaranteed of
    its reservation has been taken from its parent's. `held` is for memory, which nobody gives back that was reserved
    for him, needed or not. `demands` stand in for those that nodes have. A pool with something of its own wants
    nothing of its parent's, and does not count there.
    """
    found: dict[Node, Wish] = {}
    demands = {} if demands is None else demands
    for node in reversed(list(root.walk())):
        hi: int | None
        if not node.inner:
            lo, hi = (node.reservation, demands.get(node, node.demand)) if node.active and not node.batch else (0, 0)
        else:
            below = [found[child] for child in node.children.values() if not child.dedicated]
            wants = [wish.hi for wish in below]
            hi = None if None in wants else sum(want for want in wants if want is not None)
            lo = sum(wish.lo for wish in below)
            own = node.reservation if node.parent is not None else 0
            lo = max(lo, own)
        if held and hi is not None:
            hi = max(lo, hi)
        if node.limit is not None:
            hi = node.limit if hi is None else min(hi, node.limit)
        found[node] = Wish(lo if hi is None else min(lo, hi), hi)
    return found


def entitle(
    root: Node, capacity: int | Fraction, *, held: bool = False, demands: Demands | None = None
) -> dict[Node, Fraction]:
    """What each node is entitled to of `capacity`, by reservation, limit, shares and demand.

    With every demand unbounded it is what each could count on if all wanted everything.
    """
    return {node: amount for node, (amount, _) in entitlements(root, capacity, held=held, demands=demands).items()}


class Due(NamedTuple):
    """What somebody is entitled to, at a moment."""

    amount: Fraction | None
    """In units a second; None where nothing bounds it."""
    contended: bool
    """Whether those directly below it want more than it has for them, so that reserves and weights decide."""


def due(amount: Fraction, division: Division | None, *, bounded: bool) -> Due:
    """Of what `entitlements` found, for a node that something bounds, or nothing."""
    return Due(
        amount if bounded else None, bounded and division is not None and division.state is not State.UNCONTENDED
    )


def entitlements(
    root: Node, capacity: int | Fraction, *, held: bool = False, demands: Demands | None = None
) -> dict[Node, tuple[Fraction, Division | None]]:
    """The same, with how its children stand to each other; None for a node that is not inner."""
    wanted = wishes(root, held=held, demands=demands)
    found: dict[Node, tuple[Fraction, Division | None]] = {}
    whole = set_aside(root, [node for node in wanted if node.dedicated], capacity)
    apart = {node: at_most(own, wanted[node].hi) for node, own in whole.items()}
    amounts = dict(apart)
    batch: dict[Node, list[Node]] = {node: [] for node in apart}
    for node in root.walk():
        amount, division = amounts[node], None
        if node.inner:
            children = [child for child in node.children.values() if not child.dedicated]
            division = divide(amount, [Claim(*wanted[child], child.shares) for child in children])
            amounts.update(zip(children, division.amounts, strict=True))
        elif node.batch and node.active:
            batch[next(above for above in node.upwards() if above in apart)].append(node)
        found[node] = amount, division
    for node in apart:
        for above in () if node.parent is None else node.parent.upwards():
            found[above] = found[above][0] + apart[node], found[above][1]
        if batch[node]:
            left = at_most(whole[node], node.limit) - apart[node]
            _give_leftover(left, batch[node], found, demands or {})
    return found


def set_aside(root: Node, apart: Sequence[Node], capacity: int | Fraction) -> dict[Node, Fraction]:
    """What each of the pools `apart` has of its own, and what that leaves to all others together, at the root."""
    amounts = divide(capacity, [Claim(node.dedicated, node.dedicated, 1) for node in apart]).amounts
    return {root: Fraction(capacity - sum(amounts)), **dict(zip(apart, amounts, strict=True))}


def at_most(amount: Fraction, bound: int | None) -> Fraction:
    """No more than the bound, if there is one."""
    return amount if bound is None else min(amount, Fraction(bound))


def _give_leftover(
    left: Fraction, batch: Sequence[Node], found: dict[Node, tuple[Fraction, Division | None]], demands: Demands
) -> None:
    """The batch class is one level over all pools that share, as there is nothing that pools could promise it."""
    bounds = [(node.limit, demands.get(node, node.demand)) for node in batch]
    limits = [[bound for bound in both if bound is not None] for both in bounds]
    claims = [Claim(0, min(limit, default=None), node.shares) for limit, node in zip(limits, batch, strict=True)]
    for leaf, amount in zip(batch, divide(left, claims).amounts, strict=True):
        for node in leaf.upwards():
            before, division = found[node]
            found[node] = before + amount, division


# Idle memory


class Holder(NamedTuple):
    """Somebody who has memory, or wants it."""

    shares: int
    active: int
    """Of what he has, what he has used lately."""
    minimum: int
    maximum: int


def idle_tax_targets(capacity: int | Fraction, holders: Sequence[Holder], tax: Fraction) -> Division:
    """Who should have how much memory where idle pages cost more than active ones: k = 1 / (1 - tax) of them.

    Each spends mu * shares, an active page costs 1 and an idle one k, within minimum and maximum; mu is such that all
    is given out. A tax of 0 is plain shares; with 1 nobody has an idle page while another lacks an active one. After
    Waldspurger, "Memory Resource Management in VMware ESX Server", section 5.
    """
    if not 0 <= tax <= 1:
        raise ValueError(f"the tax on idle memory must be from 0 to 1, is {tax}")
    least, most = sum(one.minimum for one in holders), sum(one.maximum for one in holders)
    if least > capacity:
        return Division(tuple(Fraction(capacity * one.minimum) / least for one in holders), State.INSUFFICIENT)
    if most <= capacity:
        return Division(tuple(Fraction(one.maximum) for one in holders), State.UNCONTENDED)
    if tax == 1:
        return _active_first(capacity, holders)
    discount = 1 - tax
    curves = [_Curve(one, Fraction(one.active, one.shares), discount) for one in holders]
    lam = _meet(Fraction(capacity), curves, least)
    return Division(tuple(curve.at(lam) for curve in curves), State.CONTENDED, lam)


def _active_first(capacity: int | Fraction, holders: Sequence[Holder]) -> Division:
    """The border case of a whole tax: all active pages by shares, and what is left by shares again."""
    needed = [min(max(one.active, one.minimum), one.maximum) for one in holders]
    if sum(needed) >= capacity:
        claims = [Claim(one.minimum, need, one.shares) for one, need in zip(holders, needed, strict=True)]
        return divide(capacity, claims)
    curves = [_Curve(one, Fraction(0), Fraction(1), one.active) for one in holders]
    lam = _meet(Fraction(capacity), curves, sum(needed))
    return Division(tuple(curve.at(lam) for curve in curves), State.CONTENDED, lam)


class _Curve:
    """How many pages somebody gets for a price: steep for active pages, flatter for idle ones, within bounds."""

    def __init__(self, holder: Holder, knee: Fraction, discount: Fraction, free: int = 0) -> None:
        """`knee` is the price at which all active pages are his; he has `free` pages at the price of nothing."""
        self.holder, self.knee, self.discount, self.free = holder, knee, discount, free

    def raw(self, price: Fraction) -> Fraction:
        shares = self.holder.shares
        return self.free + shares * (min(price, self.knee) + max(price - self.knee, Fraction(0)) * self.discount)

    def at(self, price: Fraction) -> Fraction:
        return min(max(self.raw(price), Fraction(self.holder.minimum)), Fraction(self.holder.maximum))

    def price_of(self, pages: int) -> Fraction:
        """Where `raw` reaches it; 0 if it is there from the beginning."""
        steep = Fraction(pages - self.free, self.holder.shares)
        return max(steep if steep <= self.knee else self.knee + (steep - self.knee) / self.discount, Fraction(0))

    def turns(self) -> list[tuple[Fraction, Fraction]]:
        """Where its slope changes, and by how much."""
        shares, start, end = self.holder.shares, self.price_of(self.holder.minimum), self.price_of(self.holder.maximum)
        if start >= end:
            return []
        flat = shares * self.discount
        if start < self.knee < end:
            return [(start, Fraction(shares)), (self.knee, flat - shares), (end, -flat)]
        slope = flat if start >= self.knee else Fraction(shares)
        return [(start, slope), (end, -slope)]


def _meet(capacity: Fraction, curves: Sequence[_Curve], start: int) -> Fraction:
    """The price at which all curves together, `start` at the price of nothing, come to `capacity`."""
    total, slope, price = Fraction(start), Fraction(0), Fraction(0)
    for turn, change in sorted(turn for curve in curves for turn in curve.turns()):
        if slope and total + slope * (turn - price) >= capacity:
            break
        total += slope * (turn - price)
        price, slope = turn, slope + change
    return price if not slope else price + (capacity - total) / slope
