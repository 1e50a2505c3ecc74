"""Who sends how much, against water-filling by exact fractions. All frames have 1,500 bytes unless said."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction

import attrs
import pytest

from hypervisor.scheduler.divvy import entitlements
from hypervisor.scheduler.tree import Node
from vsp_vsc.network.shaping.bucket import SECOND, Bucket
from vsp_vsc.network.shaping.tree import Flow, Group, Tree

FRAME = bytes(1500)
BITS = 8 * len(FRAME)
MS = 1_000_000
MBIT = 1_000_000


@attrs.define
class Want:
    """A node as it is asked for. Bits a second."""

    reserve: int = 0
    limit: int | None = None
    weight: int = 100
    demand: int | None = None
    """Of a flow; None is all that it can get."""
    inside: list[Want] = attrs.field(factory=list)
    member: Flow | Group | None = None
    sent: int = 0
    owed: int = 0

    @property
    def most(self) -> int | None:
        """What it could use alone."""
        wants = [one.most for one in self.inside] if self.inside else [self.demand]
        total = None if None in wants else sum(want for want in wants if want is not None)
        return self.limit if total is None else total if self.limit is None else min(total, self.limit)

    @property
    def least(self) -> int:
        """What it is guaranteed: its own reservation, or those in it, as far as there is something to send."""
        least = max(self.reserve, sum(one.least for one in self.inside))
        return least if self.most is None else min(least, self.most)

    def flows(self) -> list[Want]:
        """All below it, or itself."""
        return [flow for one in self.inside for flow in one.flows()] if self.inside else [self]


def water_fill(capacity: Fraction, wants: Sequence[Want]) -> list[Fraction]:
    """clamp(lambda * weight, least, most), with the sum of all that there is."""

    def given(level: Fraction) -> list[Fraction]:
        return [
            max(Fraction(one.least), level * one.weight if one.most is None else min(level * one.weight, one.most))
            for one in wants
        ]

    if all(one.most is not None for one in wants) and sum(one.most or 0 for one in wants) <= capacity:
        return [Fraction(one.most or 0) for one in wants]
    breaks = {Fraction(bound, one.weight) for one in wants for bound in (one.least, one.most) if bound is not None}
    low = max((at for at in {*breaks, Fraction(0)} if sum(given(at)) <= capacity), default=Fraction(0))
    climbing = sum(
        one.weight
        for one in wants
        if low * one.weight >= one.least and (one.most is None or low * one.weight < one.most)
    )
    return given(low + (capacity - sum(given(low))) / climbing if climbing else low)


def entitled(top: Want, capacity: Fraction) -> list[Fraction]:
    """Of each flow, in the order of `flows`."""
    if not top.inside:
        return [capacity]
    parts = water_fill(capacity, top.inside)
    return [due for one, part in zip(top.inside, parts, strict=True) for due in entitled(one, part)]


class Bench:
    """A tree with flows that have always, or now and then, something to send."""

    def __init__(self, capacity: int, top: Want) -> None:
        self.tree = Tree()
        self.now = 0
        self.sent: list[tuple[int, Want, int]] = []
        """When, what, bits."""
        self.top = top
        self._numbers = itertools.count(1)
        switch = Group(next(self._numbers), "switch", weight=100, bucket=Bucket(capacity, 0))
        self.tree.add(self.tree.root, switch)
        self._plant(switch, top.inside)
        self._by_flow = {id(one.member): one for one in top.flows()}

    def _plant(self, parent: Group, wants: list[Want]) -> None:
        for want in wants:
            number = next(self._numbers)
            bucket = Bucket(want.limit, 4 * BITS) if want.limit else None
            kind = Group if want.inside else Flow
            want.member = kind(number, str(number), weight=want.weight, reserve=want.reserve, bucket=bucket)
            self.tree.add(parent, want.member)
            if isinstance(want.member, Group):
                self._plant(want.member, want.inside)

    def run(self, until: int, step: int = MS) -> None:
        """Until that time."""
        while self.now < until:
            for want in self.top.flows():
                assert isinstance(want.member, Flow)
                if want.demand is None:
                    while len(want.member.frames) < 20:
                        self.tree.put(want.member, self.now, FRAME)
                else:
                    want.owed += want.demand * step
                    while want.owed >= BITS * SECOND:
                        want.owed -= BITS * SECOND
                        self.tree.put(want.member, self.now, FRAME)
            self.now += step
            for when, flow, one, _ in self.tree.advance(self.now):
                want = self._by_flow[id(flow)]
                want.sent += 8 * len(one)
                self.sent.append((when, want, 8 * len(one)))

    def rates(self, begin: int, end: int) -> list[float]:
        """Bits a second of each flow in between."""
        found = dict.fromkeys(map(id, self.top.flows()), 0)
        for when, want, bits in self.sent:
            if begin <= when < end:
                found[id(want)] += bits
        return [bits * SECOND / (end - begin) for bits in found.values()]


def by_resources(top: Want, capacity: int) -> list[Fraction]:
    """The same as the host's resource control says it to people."""
    root, leaves = Node.host(capacity), list[Node]()

    def plant(parent: Node, wants: list[Want]) -> None:
        for number, want in enumerate(wants):
            node = parent.add(
                str(number),
                inner=bool(want.inside),
                reservation=want.reserve,
                limit=want.limit,
                shares=want.weight,
                demand=want.demand,
                active=True,
            )
            if want.inside:
                plant(node, want.inside)
            else:
                leaves.append(node)

    plant(root, top.inside)
    due = entitlements(root, capacity)
    return [due[leaf][0] for leaf in leaves]


def some_tree(chance: random.Random, depth: int, capacity: int) -> Want:
    """Two to four siblings, some of them pools; reservations fit in what is above."""
    made = Want(limit=capacity)
    left = capacity // 2
    for _ in range(chance.randint(2, 4)):
        reserve = chance.choice([0, 0, chance.randint(0, left)])
        left -= reserve
        inside = some_tree(chance, depth - 1, reserve).inside if depth and chance.random() < 0.5 else []
        made.inside.append(
            Want(
                reserve=reserve,
                limit=chance.choice([None, None, reserve + chance.randint(capacity // 20 + 1, capacity + 2)]),
                weight=100 * chance.randint(1, 10),
                demand=None if inside else chance.choice([None, None, chance.randint(capacity // 50, capacity)]),
                inside=inside,
            )
        )
    return made


@pytest.mark.parametrize("seed", range(12))
def test_delivered_is_entitled(seed: int) -> None:
    """I5, I8 for networks: any tree of pools, any figures: each flow within four frames of the exact water-fill."""
    capacity = 10 * MBIT
    top = some_tree(random.Random(seed), 2, capacity)
    bench = Bench(capacity, top)
    bench.run(2 * SECOND, 2 * MS)
    wanted = entitled(top, min(Fraction(capacity), Fraction(capacity if top.most is None else top.most)))
    assert by_resources(top, capacity) == wanted
    for rate, due in zip(bench.rates(SECOND, 2 * SECOND), wanted, strict=True):
        assert abs(rate - due) <= 4 * BITS, [float(one) for one in wanted]


def test_shares_alone() -> None:
    """1:2:7 of 10 Mbit/s, as E1 for processors."""
    bench = Bench(10 * MBIT, Want(inside=[Want(weight=weight) for weight in (100, 200, 700)]))
    bench.run(SECOND, 5 * MS)
    assert bench.rates(0, SECOND) == pytest.approx([MBIT, 2 * MBIT, 7 * MBIT], abs=2 * BITS)


def test_a_reservation_is_lent_out_and_comes_back_at_once() -> None:
    """While its owner is silent others have it; then the first frame leaves within two of theirs."""
    owner, other = Want(reserve=8 * MBIT, weight=1, demand=0), Want(weight=10_000)
    bench = Bench(10 * MBIT, Want(inside=[owner, other]))
    bench.run(SECOND, 5 * MS)
    assert bench.rates(0, SECOND) == pytest.approx([0, 10 * MBIT], abs=BITS)
    owner.demand = None
    bench.run(2 * SECOND, 5 * MS)
    assert bench.rates(SECOND, 2 * SECOND) == pytest.approx([8 * MBIT, 2 * MBIT], abs=3 * BITS)
    first = min(when for when, want, _ in bench.sent if want is owner)
    assert first - SECOND <= 2 * BITS * SECOND // (10 * MBIT)


def test_who_had_more_than_its_reservation_has_that_at_once_when_another_comes() -> None:
    """What was had by weight, or because nobody else was there, is not held against the reservation."""
    owner, other = Want(reserve=4 * MBIT, weight=1), Want(weight=10_000, demand=0)
    bench = Bench(10 * MBIT, Want(inside=[owner, other]))
    bench.run(SECOND, 5 * MS)
    other.demand = None
    bench.run(SECOND + SECOND // 2, 5 * MS)
    assert bench.rates(SECOND, SECOND + SECOND // 2) == pytest.approx([4 * MBIT, 6 * MBIT], abs=8 * BITS)


def test_who_begins_is_not_behind_those_with_reservations() -> None:
    """One that has much by its reservation and weighs little is far ahead of its share; a newcomer does not wait."""
    owner, newcomer, other = Want(reserve=6 * MBIT, weight=1), Want(demand=0), Want()
    bench = Bench(10 * MBIT, Want(inside=[owner, newcomer, other]))
    bench.run(SECOND, 5 * MS)
    newcomer.demand = 2 * MBIT
    bench.run(SECOND + SECOND // 2, 5 * MS)
    rates = bench.rates(SECOND, SECOND + SECOND // 2)
    assert rates == pytest.approx([6 * MBIT, 2 * MBIT, 2 * MBIT], abs=8 * BITS)


def test_a_reservation_reaches_through_a_pool_that_has_none() -> None:
    """Expandable: what a pool has not reserved for its member comes from above."""
    inside = Want(weight=1, inside=[Want(reserve=7 * MBIT), Want(demand=0)])
    bench = Bench(10 * MBIT, Want(inside=[inside, Want(weight=10_000)]))
    bench.run(SECOND, 5 * MS)
    assert bench.rates(0, SECOND) == pytest.approx([7 * MBIT, 0, 3 * MBIT], abs=4 * BITS)


def test_a_limit_that_is_lifted_leaves_no_debt() -> None:
    """Who was held up for long has no more than its share afterwards."""
    held, other = Want(limit=MBIT), Want()
    bench = Bench(10 * MBIT, Want(inside=[held, other]))
    bench.run(2 * SECOND, 5 * MS)
    assert held.member is not None
    held.member.bucket = None
    bench.tree.changed()
    bench.run(2 * SECOND + SECOND // 2, 5 * MS)
    rates = bench.rates(2 * SECOND, 2 * SECOND + SECOND // 2)
    assert rates == pytest.approx([5 * MBIT, 5 * MBIT], abs=16 * BITS)


def test_what_one_cannot_use_goes_to_the_others() -> None:
    """I2: the wire never rests while anybody has something to send and may."""
    wants = [Want(limit=MBIT), Want(demand=2 * MBIT), Want(weight=1)]
    bench = Bench(10 * MBIT, Want(inside=wants))
    bench.run(SECOND, 5 * MS)
    times = [when for when, _, _ in bench.sent]
    assert all(after - before == BITS * SECOND // (10 * MBIT) for before, after in itertools.pairwise(times))


@pytest.mark.parametrize("seed", range(4))
def test_a_limit_holds_in_every_window_at_every_depth(seed: int) -> None:
    """I3: bits in [t, t+X) <= limit * X + burst, of every pool and every flow."""
    top = some_tree(random.Random(100 + seed), 2, 10 * MBIT)
    bench = Bench(10 * MBIT, top)
    bench.run(SECOND // 2, 2 * MS)

    def check(want: Want) -> None:
        flows = {id(flow) for flow in want.flows()}
        if want.limit and want is not top:
            mine = [(when, bits) for when, flow, bits in bench.sent if id(flow) in flows]
            for first in range(0, len(mine), 7):
                total = 0
                for when, bits in mine[first:]:
                    total += bits
                    assert total * SECOND <= want.limit * (when - mine[first][0]) + 4 * BITS * SECOND
        for one in want.inside:
            check(one)

    check(top)


def test_a_pool_is_served_whatever_its_members_are() -> None:
    """I6: a hundred flows in one pool take nothing from the other's."""
    many = Want(weight=100, inside=[Want(weight=1000) for _ in range(100)])
    one = Want(weight=300, inside=[Want(weight=1)])
    bench = Bench(10 * MBIT, Want(inside=[many, one]))
    bench.run(SECOND, 5 * MS)
    *crowd, alone = bench.rates(0, SECOND)
    assert alone == pytest.approx(7.5 * MBIT, abs=2 * BITS)
    assert max(crowd) - min(crowd) <= BITS


def test_rest_earns_nothing() -> None:
    """I9: after ten silent seconds a flow has no more than its share."""
    sleeper, other = Want(demand=0), Want()
    bench = Bench(MBIT, Want(inside=[sleeper, other]))
    bench.run(10 * SECOND, 100 * MS)
    sleeper.demand = None
    bench.run(11 * SECOND, 10 * MS)
    assert bench.rates(10 * SECOND, 11 * SECOND) == pytest.approx([MBIT / 2, MBIT / 2], abs=2 * BITS)


def test_too_small_a_switch_divides_by_reservations() -> None:
    """A capacity that was lowered below what is reserved: everybody in proportion, nobody nothing."""
    wants = [Want(reserve=6 * MBIT), Want(reserve=2 * MBIT), Want(weight=10_000)]
    bench = Bench(4 * MBIT, Want(inside=wants))
    bench.run(2 * SECOND, 5 * MS)
    assert bench.rates(SECOND, 2 * SECOND) == pytest.approx([3 * MBIT, MBIT, 0], abs=3 * BITS)


def test_the_order_of_making_changes_nothing_but_ties() -> None:
    """I7: any order of siblings, the same amounts."""
    wants = [(0, None, 300), (2 * MBIT, None, 100), (0, MBIT, 500)]
    found = []
    for order in itertools.permutations(wants):
        bench = Bench(10 * MBIT, Want(inside=[Want(reserve, limit, weight) for reserve, limit, weight in order]))
        bench.run(SECOND, 10 * MS)
        found.append(dict(zip(order, bench.rates(0, SECOND), strict=True)))
    for one in found:
        assert one == pytest.approx(found[0], abs=2 * BITS)


def test_stale_entries_do_not_pile_up() -> None:
    """A flow far over its limit is looked at again with each frame of the others."""
    slow, fast = Want(limit=10_000), Want(demand=5 * MBIT)
    bench = Bench(10 * MBIT, Want(inside=[Want(inside=[slow, fast]), Want(demand=MBIT)]))
    bench.run(2 * SECOND, MS)

    def groups(group: Group) -> list[Group]:
        return [
            group,
            *(one for member in group.members.values() if isinstance(member, Group) for one in groups(member)),
        ]

    for group in groups(bench.tree.root):
        assert max(len(group.ready), len(group.urgents), len(group.waiting)) < 100, group.name


def test_what_is_taken_out_is_gone() -> None:
    """Its frames come back to who takes it out, and the others go on."""
    wants = [Want(), Want()]
    bench = Bench(MBIT, Want(inside=[Want(inside=wants)]))
    bench.run(100 * MS)
    member = wants[0].member
    assert isinstance(member, Flow)
    assert len(bench.tree.remove(member)) > 10
    assert bench.tree.queued == len(wants[1].member.frames)  # type: ignore[union-attr]
    before = wants[1].sent
    for when, flow, _, _ in bench.tree.advance(bench.now + 120 * MS):
        assert flow is wants[1].member
        before += BITS
        assert when > 0
    assert before > wants[1].sent
