"""What holds of mClock whatever the tree and the load: I3 and I13, and that nothing is lost, twice or out of order."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vsp_vsc.storage.qos.loads import SECOND, keep_busy, run, served
from vsp_vsc.storage.qos.mclock import MClock, Node, Phase, Request


class Leaf(NamedTuple):
    reserve: int
    limit: int | None
    weight: int
    cost: int
    depth: int


class Pool(NamedTuple):
    limit: int | None
    weight: int
    leaves: list[Leaf]


limits = st.none() | st.integers(20, 400)
leaves = st.builds(
    Leaf, st.integers(0, 60), limits, st.integers(1, 1000), st.sampled_from((1, 1, 1, 3)), st.integers(1, 4)
)
pools = st.builds(Pool, limits, st.integers(1, 1000), st.lists(leaves, min_size=1, max_size=3))
trees = st.lists(pools, min_size=1, max_size=3)
capacities = st.none() | st.integers(50, 600)


def build(capacity: int | None, tree: list[Pool]) -> tuple[MClock, list[Node]]:
    clock, made = MClock(capacity), []
    for number, pool in enumerate(tree):
        node = clock.add_node(clock.root, f"pool{number}", limit=pool.limit, weight=pool.weight)
        for place, leaf in enumerate(pool.leaves):
            most = leaf.limit
            reserve = leaf.reserve if most is None else min(leaf.reserve, most)
            if capacity is None and most is None and pool.limit is None:
                most = 200  # or the test would never end
            made.append(clock.add_node(node, str(place), reserve=reserve, limit=most, weight=leaf.weight))
            keep_busy(clock, made[-1:], cost=leaf.cost, depth=leaf.depth)
    return clock, made


def ancestors(node: Node | None) -> list[Node]:
    found = []
    while node is not None:
        found.append(node)
        node = node.parent
    return found


@settings(max_examples=30, deadline=None)
@given(capacities, trees)
def test_limits_hold_at_every_level(capacity: int | None, tree: list[Pool]) -> None:
    """I3: what goes in [t, t+X) is at most limit * X, and one request, and two that others had held up."""
    clock, _ = build(capacity, tree)
    by_node: dict[Node, list[tuple[int, int]]] = {}
    for moment, request in run(clock, SECOND // 2):
        for node in ancestors(request.leaf):
            by_node.setdefault(node, []).append((moment, request.cost))
    for node, gone in by_node.items():
        if node.limit is None:
            continue
        largest = max(cost for _, cost in gone)
        total, sums = 0, [0]
        for _, cost in gone:
            total += cost
            sums.append(total)
        for first in range(0, len(gone), 7):
            for last in range(first, len(gone), 5):
                length = gone[last][0] - gone[first][0]
                went = sums[last + 1] - sums[first]
                assert went * SECOND <= node.limit * length + 3 * largest * SECOND + node.limit, (node, first, last)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500), st.lists(st.integers(1, 4), max_size=40))
def test_a_limit_alone_is_strict(limit: int, pauses: list[int]) -> None:
    """I3 and M9: without others, I/Os are 1 / limit apart, whatever the guest does: at most `limit` in any second."""
    clock = MClock()
    disk = clock.add_node(clock.root, "disk", limit=limit)
    now, gone = 0, []
    for pause in pauses:
        keep_busy(clock, [disk], now, depth=pause)
        now += pause * SECOND // 97
        gone += [moment for moment, _ in run(clock, now, again=lambda _: False)]
    assert all(later - earlier >= SECOND // limit for earlier, later in pairwise(gone))


@settings(max_examples=30, deadline=None)
@given(st.integers(100, 1000), st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_reservations_are_kept_and_spaced(capacity: int, reserves: list[int]) -> None:
    """I13: what goes because it is owed is 1/r apart on its own clock; and who waits all the time gets r * X - 2."""
    while sum(reserves) > capacity:
        reserves.pop()
    clock = MClock(capacity)
    nodes = [clock.add_node(clock.root, str(place), reserve=one, weight=1) for place, one in enumerate(reserves)]
    heavy = clock.add_node(clock.root, "heavy", weight=10_000)
    keep_busy(clock, [*nodes, heavy])
    tags: dict[Node, list[int]] = {node: [] for node in nodes}

    def note(request: Request, _: int) -> None:
        if request.phase is Phase.RESERVATION:
            tags[request.leaf].append(request.leaf.due)

    run(clock, SECOND, goes=note)
    for node, reserve in zip(nodes, reserves, strict=True):
        assert node.served >= reserve - 2
        assert all(later - earlier >= (SECOND << 20) // reserve for earlier, later in pairwise(tags[node]))
        assert node.reserved <= reserve + 1


@settings(max_examples=30, deadline=None)
@given(st.integers(50, 1000), st.lists(st.integers(1, 1000), min_size=1, max_size=8), st.integers(0, 7))
def test_who_comes_back_waits_a_round_at_most(capacity: int, weights: list[int], who: int) -> None:
    """I13: a client that comes (back) waits for one request of each other and its own; and then starves nobody."""
    clock = MClock(capacity)
    nodes = [clock.add_node(clock.root, str(place), weight=weight) for place, weight in enumerate(weights)]
    late = nodes[who % len(nodes)]
    others = [node for node in nodes if node is not late]
    if capacity * late.weight > 2 * sum(weights):
        clock.add(late, 1, None, 0)  # one that its share has covered by the time that it comes back
    keep_busy(clock, others)
    run(clock, SECOND // 2, again=lambda request: request.leaf is not late)
    keep_busy(clock, [late], SECOND // 2)
    gone = [request.leaf for _, request in run(clock, SECOND // 2 + len(nodes) * 2 * SECOND // capacity + 1)]
    assert gone.index(late) <= len(others)
    in_a_row = 0
    for leaf in gone[gone.index(late) :]:
        in_a_row = in_a_row + 1 if leaf is late else 0
        if others:
            assert in_a_row <= late.weight * 2 / min(weights) + 2


@settings(max_examples=30, deadline=None)
@given(capacities, trees, st.lists(st.integers(0, 20), max_size=12))
def test_nothing_is_lost(capacity: int | None, tree: list[Pool], withdrawn: list[int]) -> None:
    """Each request goes once, or is withdrawn; those of a disk in their order; and at the end nothing waits."""
    clock, nodes = build(capacity, tree)
    there = [request for node in nodes for request in node.queue.values()]
    gone_away = []
    for place in withdrawn:
        if place < len(there) and there[place].leaf.queue.get(id(there[place])) is not None:
            clock.withdraw(there[place])
            gone_away.append(there[place])
    went = [request for _, request in run(clock, 60 * SECOND, again=lambda _: False)]
    assert len(went) + len(gone_away) == len(there)
    assert {id(request) for request in went} | {id(request) for request in gone_away} == set(map(id, there))
    for node in nodes:
        assert [one for one in went if one.leaf is node] == [
            one for one in there if one.leaf is node and one not in gone_away
        ]
    assert [node.waiting for node in ancestors(nodes[0])] == [0, 0, 0]
    assert clock.next_time() is None


@settings(max_examples=20, deadline=None)
@given(st.integers(100, 1000), st.lists(st.integers(1, 1000), min_size=2, max_size=5), st.integers(2, 9))
def test_only_ratios_of_weights_count(capacity: int, weights: list[int], factor: int) -> None:
    """I7: all weights times the same change nothing; and shares are as weights, to a request each."""

    def shares(scale: int) -> list[int]:
        clock = MClock(capacity)
        nodes = [clock.add_node(clock.root, str(place), weight=one * scale) for place, one in enumerate(weights)]
        keep_busy(clock, nodes)
        run(clock, SECOND)
        return served(nodes)

    plain, scaled = shares(1), shares(factor)
    assert all(abs(one - other) <= 1 for one, other in zip(plain, scaled, strict=True))
    for got, weight in zip(plain, weights, strict=True):
        assert abs(got - capacity * weight / sum(weights)) <= 1 + len(weights) / 2
