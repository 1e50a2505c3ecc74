"""What each node gets against the exact division of every other resource, where limits are close to what is its due."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.scheduler import divvy, tree
from tests.vsp_vsc.storage.qos.loads import SECOND, keep_busy, run
from vsp_vsc.storage.qos.mclock import MClock, Node


class Made(NamedTuple):
    """A node to be made; figures in percent of what would be an equal part."""

    reserve: int
    limit: int | None
    """In percent of what would be its due without: 100 is on the edge."""
    weight: int
    below: tuple[Made, ...] = ()


def _random(chance: Random, depth: int) -> tuple[Made, ...]:
    """Siblings, with up to `depth` levels below them."""

    def one() -> Made:
        below = _random(chance, depth - 1) if depth and chance.random() < 0.7 else ()
        limit = chance.randint(85, 115) if chance.random() < 0.6 else None
        return Made(chance.choice((0, 0, 10, 30, 60)), limit, chance.choice((1, 50, 100, 100, 200, 700)), below)

    return tuple(one() for _ in range(chance.randint(1, 4)))


class Both:
    """The same tree twice: to be served, and to be divided."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.clock, self.root = capacity, MClock(capacity), tree.Node.host(capacity)
        self.pairs: list[tuple[Node, tree.Node]] = []
        self.leaves: list[Node] = []

    def add(self, at: tuple[Node, tree.Node], reserve: int, limit: int | None, weight: int, *, leaf: bool) -> None:
        name = str(len(self.pairs))
        node = self.clock.add_node(at[0], name, reserve=reserve, limit=limit, weight=weight)
        copy = at[1].add(name, inner=not leaf, reservation=reserve, limit=limit, shares=weight, active=True)
        self.pairs.append((node, copy))
        if leaf:
            self.leaves.append(node)

    def due(self) -> dict[Node, Fraction]:
        amounts = divvy.entitle(self.root, self.capacity)
        return {node: amounts[copy] for node, copy in self.pairs}


def _build(capacity: int, made: Sequence[Made], due: list[Fraction] | None) -> Both:
    """Without limits, or with limits beside what was due without."""
    both = Both(capacity)

    def add(at: tuple[Node, tree.Node], one: Made, part: int) -> None:
        limit = None if due is None or one.limit is None else max(1, int(due[len(both.pairs)] * one.limit / 100))
        reserve = part * one.reserve // 100
        both.add(at, reserve if limit is None else min(reserve, limit), limit, one.weight, leaf=not one.below)
        made_at = both.pairs[-1]
        for child in one.below:
            add(made_at, child, part // len(one.below) * 9 // 10)

    for one in made:
        add((both.clock.root, both.root), one, capacity // len(made) * 9 // 10)
    return both


def _delivered(both: Both, seconds: int) -> dict[Node, Fraction]:
    """A second, once all that is new has settled."""
    keep_busy(both.clock, both.leaves)
    run(both.clock, SECOND)
    before = {node: node.served for node, _ in both.pairs}
    run(both.clock, (1 + seconds) * SECOND)
    return {node: Fraction(node.served - old, seconds) for node, old in before.items()}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from((100, 300, 600)), st.integers(0, 1 << 32))
def test_limits_close_to_the_share(capacity: int, seed: int) -> None:
    """At up to three levels, each node gets in a second what the water-fill says, to some requests: most to one."""
    chance = Random(seed)
    made = _random(chance, chance.randint(0, 2))
    free = _build(capacity, made, None).due()
    both = _build(capacity, made, list(free.values()))
    due = both.due()
    for node, got in _delivered(both, 1).items():
        assert abs(got - due[node]) <= 4, (node, float(due[node]), float(got))


NEAR = [
    # a disk at 85 % of the host, beside reservations that keep taking its moments
    (
        1000,
        [
            Made(0, None, 700, (Made(4, 852, 300), Made(0, 2, 1))),
            Made(0, None, 1, (Made(4, 49, 1), Made(4, 51, 100), Made(0, None, 200))),
        ],
    ),
    # one whose limit is just above its share of its pool
    (
        1000,
        [
            Made(0, None, 50, (Made(0, 1, 200), Made(9, 90, 50), Made(5, None, 300))),
            Made(5, None, 300, (Made(10, 589, 700), Made(0, 237, 300), Made(2, 42, 50))),
        ],
    ),
    # limits that are together all that there is
    (500, [Made(0, 200, 100), Made(0, 300, 100)]),
    (1000, [Made(10, 300, 1), Made(0, 666, 200, (Made(0, None, 100), Made(0, 111, 1))), Made(0, 99, 200)]),
    # several that are due at the same moments over and over, and not for the same part of their time
    (
        1000,
        [Made(0, limit, 700 if limit == 362 else 100) for limit in (15, 212, 44, 362, 23, 242)] + [Made(0, None, 1)],
    ),
]


@pytest.mark.parametrize(("capacity", "made"), NEAR)
def test_limits_that_lost_a_few_percent(capacity: int, made: list[Made]) -> None:
    """Here reserves are percent of the host and limits I/Os a second; each within one a second of its due."""
    both = Both(capacity)

    def add(at: tuple[Node, tree.Node], one: Made) -> None:
        both.add(at, capacity * one.reserve // 100, one.limit, one.weight, leaf=not one.below)
        made_at = both.pairs[-1]
        for child in one.below:
            add(made_at, child)

    for one in made:
        add((both.clock.root, both.root), one)
    due = both.due()
    for node, got in _delivered(both, 2).items():
        assert abs(got - due[node]) <= 1, (node, float(due[node]), float(got))


def test_a_reservation_that_limits_keep_from_use_costs_no_other() -> None:
    """A pool has 400 reserved, and its limit or its disk's lets it have 50: the reservation beside it is kept."""
    for pool_limit, disk_limit in ((50, None), (None, 50), (None, None)):
        clock = MClock(1000)
        pool = clock.add_node(clock.root, "pool", reserve=400, limit=pool_limit, weight=1)
        held = clock.add_node(pool, "held", limit=disk_limit)
        kept = clock.add_node(clock.root, "kept", reserve=300, weight=1)
        heavy = clock.add_node(clock.root, "heavy", weight=10_000)
        keep_busy(clock, [held, kept, heavy])
        run(clock, 2 * SECOND)
        owed = 400 if pool_limit is disk_limit else 50
        assert [held.served, kept.served] == [pytest.approx(2 * owed, abs=3), pytest.approx(600, abs=3)]


def test_no_more_is_owed_than_limits_allow() -> None:
    """What a limit below keeps from being used is not owed to others in the same pool."""
    clock = MClock(100)
    pool, heavy = clock.add_node(clock.root, "pool", weight=1), clock.add_node(clock.root, "heavy", weight=10_000)
    slow, other = clock.add_node(pool, "slow", limit=10), clock.add_node(pool, "other", weight=1)
    two = [clock.add_node(slow, name, reserve=10) for name in "ab"]
    keep_busy(clock, [*two, other, heavy])
    run(clock, 4 * SECOND)
    assert [slow.served, other.served] == [pytest.approx(40, abs=2), pytest.approx(0, abs=2)]


@pytest.mark.parametrize(("cost", "pool"), [(1, False), (2, False), (8, False), (1, True)])
def test_a_limit_beside_requests_of_256_kib(cost: int, pool: bool) -> None:
    """It waits for each of them, for longer than its interval, and yet gets its due; one of them more at most."""
    clock = MClock(None if pool else 500)
    above = clock.add_node(clock.root, "pool", limit=500) if pool else clock.root
    large, small = clock.add_node(above, "large"), clock.add_node(above, "small", limit=261, weight=300)
    keep_busy(clock, [large], cost=32)
    keep_busy(clock, [small], cost=cost)
    run(clock, SECOND)
    for second in range(2, 6):
        before = small.served
        run(clock, second * SECOND)
        assert small.served - before <= 261 + 32
    assert small.served == pytest.approx(5 * 261, abs=64)
    assert small.served + large.served == pytest.approx(2500, abs=32)
