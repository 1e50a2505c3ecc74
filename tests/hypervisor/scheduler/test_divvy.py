"""Division: reservation, limit and shares, exactly, as the acceptance tables and invariants have it."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.scheduler.divvy import (
    Claim,
    Division,
    Holder,
    State,
    divide,
    entitle,
    entitlements,
    idle_tax_targets,
    rounded,
)
from hypervisor.scheduler.tree import Node

CHEAP = settings(max_examples=80, deadline=None)
amounts = st.one_of(st.just(0), st.integers(0, 50), st.integers(0, 1 << 40))
claims = st.lists(
    st.tuples(amounts, st.none() | amounts, st.integers(1, 10000) | st.sampled_from([1, 100])).map(
        lambda drawn: Claim(drawn[0] if drawn[1] is None else min(drawn[0], drawn[1]), drawn[1], drawn[2])
    ),
    min_size=1,
    max_size=12,
)
capacities = st.one_of(amounts, st.fractions(0, 1 << 20, max_denominator=1000))


@CHEAP
@given(capacities, claims)
def test_sums_bounds_and_optimality(capacity: int | Fraction, wanted: list[Claim]) -> None:
    """I8: the sum is min(C, sum of hi), lo <= E <= hi, and whoever is at neither has the same amount a share.

    Whoever is at his lo would get no more by shares, and whoever is at his hi no less.
    """
    division = divide(capacity, wanted)
    low, high = sum(claim.lo for claim in wanted), sum(claim.hi or 0 for claim in wanted)
    bounded = all(claim.hi is not None for claim in wanted)
    if division.state is State.INSUFFICIENT:
        assert low > capacity
        assert all(low * got == capacity * claim.lo for got, claim in zip(division.amounts, wanted, strict=True))
        assert sum(division.amounts) == capacity
        return
    assert sum(division.amounts) == (min(capacity, high) if bounded else capacity)
    for got, claim in zip(division.amounts, wanted, strict=True):
        assert claim.lo <= got
        assert claim.hi is None or got <= claim.hi
    if division.state is State.UNCONTENDED:
        assert division.lam is None
        assert list(division.amounts) == [claim.hi for claim in wanted]
        return
    assert division.lam is not None
    for got, claim in zip(division.amounts, wanted, strict=True):
        fair = division.lam * claim.weight
        assert got == fair or (got == claim.lo and fair <= got) or (got == claim.hi and fair >= got)


@CHEAP
@given(capacities, claims, st.randoms(use_true_random=False), st.integers(2, 9))
def test_order_and_scale_of_weights_change_nothing(
    capacity: int | Fraction, wanted: list[Claim], shuffle: random.Random, factor: int
) -> None:
    """I7, I8: who is named first gets no more; only ratios of weights count; dividing again gives the same."""
    once = divide(capacity, wanted)
    order = list(range(len(wanted)))
    shuffle.shuffle(order)
    again = divide(capacity, [wanted[place] for place in order])
    assert [again.amounts[order.index(place)] for place in range(len(wanted))] == list(once.amounts)
    scaled = divide(capacity, [claim._replace(weight=claim.weight * factor) for claim in wanted])
    assert scaled.amounts == once.amounts
    if all(amount.denominator == 1 for amount in once.amounts):
        settled = [claim._replace(hi=int(got)) for claim, got in zip(wanted, once.amounts, strict=True)]
        assert divide(capacity, settled).amounts == once.amounts


@CHEAP
@given(capacities, claims, st.data())
def test_more_never_gives_less(capacity: int | Fraction, wanted: list[Claim], data: st.DataObject) -> None:
    """I7: raising somebody's weight, reservation (within what there is) or limit never lowers what he gets."""
    place = data.draw(st.integers(0, len(wanted) - 1))
    mine = wanted[place]
    got = divide(capacity, wanted).amounts[place]
    more = data.draw(st.integers(1, 1000))
    raised = [mine._replace(weight=mine.weight + more)]
    if mine.hi is not None:
        raised.append(mine._replace(hi=mine.hi + more))
    low = sum(claim.lo for claim in wanted)
    if low + more <= capacity and (mine.hi is None or mine.lo + more <= mine.hi):
        raised.append(mine._replace(lo=mine.lo + more))
    for other in raised:
        changed = divide(capacity, [*wanted[:place], other, *wanted[place + 1 :]])
        assert changed.amounts[place] >= got


@CHEAP
@given(capacities, claims)
def test_rounding_keeps_the_sum_and_the_bounds(capacity: int | Fraction, wanted: list[Claim]) -> None:
    """Largest remainder: whole amounts, none further than 1 from the exact one, their sum that of the exact ones."""
    division = divide(capacity, wanted)
    whole = rounded(division.amounts, range(len(wanted)))
    assert sum(whole) == math.floor(sum(division.amounts, Fraction(0)))
    for exact, unit, claim in zip(division.amounts, whole, wanted, strict=True):
        assert abs(exact - unit) < 1
        assert claim.hi is None or unit <= claim.hi


@pytest.mark.parametrize(
    ("capacity", "claim"), [(-1, Claim(0, 5, 1)), (9, Claim(-1, 5, 1)), (9, Claim(0, -5, 1)), (9, Claim(0, 5, 0))]
)
def test_what_cannot_be_divided_is_refused(capacity: int, claim: Claim) -> None:
    """In words, and not by dividing by nothing."""
    with pytest.raises(ValueError, match="at least 0, and weights 1"):
        divide(capacity, [Claim(1, 2, 3), claim])


def test_demands_stand_in_for_those_of_the_tree() -> None:
    """As if they had been written into it, and they are not; those of the batch class, too."""
    host = Node.host(100)
    pool = host.add("pool/a", inner=True)
    leaves = [where.add(f"vm/{n}", demand=40, active=True) for n, where in enumerate((pool, pool, host, host))]
    leaves[3].batch = True
    wanted = {leaves[0]: 5, leaves[2]: 20, leaves[3]: None}
    found = entitle(host, 100, demands=wanted)
    assert [node.demand for node in leaves] == [40] * 4
    assert [found[node] for node in leaves] == [5, 40, 20, 35]
    for node, demand in wanted.items():
        node.demand = demand
    assert entitle(host, 100) == found


def test_ties_are_rounded_by_id() -> None:
    """Of equal remainders the lowest ID gets the unit, wherever it stands."""
    thirds = [Fraction(10, 3)] * 3
    assert rounded(thirds, [0, 1, 2]) == [4, 3, 3]
    assert rounded(thirds, [9, 5, 7]) == [3, 4, 3]


def shares(*weights: int) -> list[Claim]:
    return [Claim(0, None, weight) for weight in weights]


@pytest.mark.parametrize(
    ("capacity", "weights", "expected"),
    [
        (100, (100, 200, 700), [10, 20, 70]),
        (100, (500, 250, 250), [50, 25, 25]),
        (100, (2000, 1000, 1000), [50, 25, 25]),
    ],
)
def test_shares_alone(capacity: int, weights: tuple[int, ...], expected: list[int]) -> None:
    """E1 and E10, as entitlement: all busy, so weights decide."""
    assert list(divide(capacity, shares(*weights)).amounts) == expected


LADDER = {
    400: (200, 200, 0),
    500: (250, 250, 0),
    600: (250, 250, 100),
    875: (250, 250, 375),
    1000: (250, 300, 450),
    1200: (250, 380, 570),
    1500: (250, 500, 750),
    1800: (300, 600, 900),
    2000: (Fraction(1000, 3), Fraction(2000, 3), 1000),
    2200: (400, 800, 1000),
    2500: (500, 1000, 1000),
    3000: (Fraction(2000, 3), Fraction(4000, 3), 1000),
}


@pytest.mark.parametrize("throughput", LADDER)
def test_ladder(throughput: int) -> None:
    """E11: RD w100 r250, OLTP w200 r250, DM w300 l1000, with a storage of each speed."""
    division = divide(throughput, [Claim(250, None, 100), Claim(250, None, 200), Claim(0, 1000, 300)])
    assert division.amounts == LADDER[throughput]
    assert (division.state is State.INSUFFICIENT) == (throughput < 500)


def hosts(third: int | None) -> dict[str, Fraction]:
    root = Node.host(8000)
    for host, machines in {"1": {"VM1": 1000, "VM2": 2500}, "2": {"VM3": 500, "VM4": 1000}}.items():
        pool = root.add(f"pool/{host}", inner=True, shares=sum(machines.values()))
        for name, weight in machines.items():
            limit = 2000 if name == "VM4" else None
            pool.add(name, shares=weight, limit=limit, demand=third if name == "VM3" else None, active=True)
    return {node.name: amount for node, amount in entitle(root, 8000).items()}


def test_hierarchy_is_not_flat() -> None:
    """E12: 8000 IOPS; what VM3 leaves goes to its own host first, and what VM4's limit leaves to the other."""
    raw = hosts(None)
    assert [round(raw[name]) for name in ("VM1", "VM2", "VM3", "VM4")] == [1600, 4000, 800, 1600]
    idle = hosts(10)
    assert [round(idle[name]) for name in ("VM1", "VM2", "VM3", "VM4")] == [1711, 4279, 10, 2000]


@pytest.mark.parametrize(("shared", "lone"), [((1392, 348), (1392 / 7, 348)), ((1680, 60), (240, 60))])
def test_pie_paradox(shared: tuple[int, int], lone: tuple[float, float]) -> None:
    """E22: 7 VMs in a pool with four times the shares get less each than the one in the other; or the other way."""
    root = Node.host(1740)
    high, low = (root.add(f"pool/{name}", inner=True, shares=part) for name, part in zip("hl", shared, strict=True))
    many = [high.add(f"vm/{number}", active=True) for number in range(7)]
    one = low.add("vm/one", active=True)
    amounts = entitle(root, 1740)
    assert {amounts[vm] for vm in many} == {Fraction(shared[0], 7)}
    assert float(amounts[many[0]]) == pytest.approx(lone[0])
    assert amounts[one] == lone[1]


def worked_tree(limit: int) -> dict[str, Fraction]:
    root = Node.host(6000)
    a = root.add("A", inner=True, reservation=1000, shares=2)
    a.add("a1", shares=1, active=True)
    a.add("a2", shares=1, reservation=1500, active=True)
    b = root.add("B", inner=True, limit=limit, shares=1)
    b.add("b1", shares=1, demand=500, active=True)
    b.add("b2", shares=3, active=True)
    return {node.name: amount for node, amount in entitle(root, 6000).items()}


def test_worked_tree() -> None:
    """Section 2's tree, which docs/resources.md shows: 6000 MHz in two pools, then with a tighter limit on B."""
    assert worked_tree(2000) == {"host": 6000, "A": 4000, "B": 2000, "a1": 2000, "a2": 2000, "b1": 500, "b2": 1500}
    assert worked_tree(1000) == {"host": 6000, "A": 5000, "B": 1000, "a1": 2500, "a2": 2500, "b1": 250, "b2": 750}


def test_infeasible_weights() -> None:
    """E29: a virtual processor uses one logical processor at most, whatever its weight; the others share the rest."""
    busy = [Claim(0, 65536, weight) for weight in (1, 10, 1)]
    assert divide(2 * 65536, busy).amounts == (32768, 65536, 32768)


def test_a_reservation_is_good_below_a_pool_that_has_none() -> None:
    """What an expandable pool took of its parent's for a VM in it counts where its parent's is divided, too."""
    root = Node.host(100)
    pool = root.add("pool/a", inner=True, shares=1)
    kept = pool.add("vm/kept", reservation=60, active=True)
    other = root.add("vm/other", shares=99, active=True)
    amounts = entitle(root, 100)
    assert (amounts[kept], amounts[other]) == (60, 40)
    kept.demand = 10
    amounts = entitle(root, 100)
    assert (amounts[kept], amounts[other]) == (10, 90), "unused, it is lent out"
    held = entitle(root, 100, held=True)
    assert (held[kept], held[other]) == (60, 40), "memory is not"


def test_processors_of_its_own_are_not_lent() -> None:
    """What a pool has for itself nobody else gets, however idle it is, and it gets nothing else."""
    root = Node.host(4)
    own = root.add("pool/own", inner=True, reservation=2, limit=2, dedicated=2)
    inside = own.add("vm/a", demand=1, active=True)
    other = root.add("vm/b", active=True)
    amounts = entitle(root, 4)
    assert [amounts[node] for node in (root, own, inside, other)] == [3, 1, 1, 2]
    inside.demand = None
    own.change(reservation=2, limit=2, shares=1, dedicated=3)
    amounts = entitle(root, 4)
    assert [amounts[node] for node in (root, own, inside, other)] == [3, 2, 2, 1], "its limit leaves the third idle"
    inside.batch = True
    amounts = entitle(root, 4)
    assert [amounts[node] for node in (root, own, inside, other)] == [3, 2, 2, 1], "and nobody else's batch has it"
    own.change(reservation=0, limit=None, shares=1, dedicated=5)
    assert entitle(root, 4)[other] == 0, "more than there is"


parts = st.lists(
    st.tuples(st.integers(0, 9), st.none() | st.integers(9, 40), st.integers(1, 500), st.none() | st.integers(0, 99)),
    max_size=4,
)


@settings(max_examples=30, deadline=None)
@given(parts, st.lists(st.tuples(parts, st.integers(1, 50), st.none() | st.integers(1, 50)), max_size=3), st.booleans())
def test_each_with_something_of_its_own_is_a_host_by_itself(
    shared: list[tuple[int, int | None, int, int | None]],
    apart: list[tuple[list[tuple[int, int | None, int, int | None]], int, int | None]],
    batch: bool,
) -> None:
    """What is due to whom in such a pool, and beside it, is as if each had a host of its own of that size."""
    sizes = [60, *(own if limit is None else min(own, limit) for _, own, limit in apart)]
    together = Node.host(60 + sum(own for _, own, _ in apart))
    places = [together]
    for number, (_, own, _) in enumerate(apart, 1):
        most = sizes[number]
        places.append(together.add(f"pool/{number}", inner=True, reservation=most, limit=most, dedicated=own))
    expected: list[Fraction] = []
    nodes: list[Node] = []
    sums: list[Fraction] = []
    for place, size, shape in zip(places, sizes, [shared, *(one for one, _, _ in apart)], strict=True):
        alone = Node.host(size)
        for root, made in ((alone, list[Node]()), (place, nodes)):
            for number, (low, limit, weight, demand) in enumerate(shape):
                leaf = root.add(f"vm/{number}", reservation=low, limit=limit, shares=weight, demand=demand, active=True)
                leaf.batch = batch and number % 2 == 1
                made.append(leaf)
        due = entitle(alone, size)
        sums.append(due[alone])
        expected += [due[leaf] for leaf in alone.children.values()]
    found = entitle(together, together.reservation)
    assert [found[node] for node in nodes] == expected
    assert [found[place] for place in places] == [sum(sums), *sums[1:]]


def test_leftover() -> None:
    """E34, as entitlement: two that want 60 and 30 percent have them, however heavy the batch one is; it gets 10."""
    root = Node.host(100)
    pool = root.add("pool/a", inner=True)
    normal = [pool.add("vm/60", demand=60, active=True), root.add("vm/30", demand=30, active=True)]
    batch = pool.add("vm/batch", shares=10000, demand=100, active=True)
    batch.batch = True
    found = entitle(root, 100)
    assert [found[node] for node in (*normal, batch, pool, root)] == [60, 30, 10, 70, 100]


def test_what_is_off_gets_nothing_and_an_empty_pool_neither() -> None:
    """Nothing is set aside for whom nobody switched on; a reservation of a pool is lent out while it is empty."""
    root = Node.host(100)
    root.add("pool/empty", inner=True, reservation=50)
    off = root.add("vm/off", reservation=30)
    on = root.add("vm/on", active=True)
    found = entitlements(root, 100)
    assert (found[off][0], found[on][0]) == (0, 100)
    division = found[root][1]
    assert division is not None
    assert division.state is State.CONTENDED


trees = st.recursive(
    st.tuples(st.integers(0, 40), st.none() | st.integers(40, 90), st.integers(1, 500), st.none() | st.integers(0, 99)),
    lambda inner: st.lists(inner, min_size=1, max_size=4),
    max_leaves=12,
)


def grow(node: Node, shape: object) -> None:
    for number, below in enumerate(shape if isinstance(shape, list) else [shape]):
        if isinstance(below, list):
            grow(node.add(f"pool/{number}", inner=True, shares=10 + number, reservation=number), below)
        else:
            low, limit, weight, demand = below
            node.add(f"vm/{number}", reservation=low, limit=limit, shares=weight, demand=demand, active=True)


@settings(max_examples=40, deadline=None)
@given(trees, st.integers(0, 400), st.booleans())
def test_trees_add_up(shape: object, capacity: int, held: bool) -> None:
    """I8 at each level: what is in a pool gets the pool's amount or all that it wants, and nobody more than that."""
    root = Node.host(capacity)
    grow(root, shape)
    found = entitlements(root, capacity, held=held)
    for node, (amount, division) in found.items():
        assert node.limit is None or amount <= node.limit
        if division is not None:
            assert sum(found[child][0] for child in node.children.values()) <= amount
            if division.state is not State.UNCONTENDED:
                assert sum(found[child][0] for child in node.children.values()) == amount
        elif not held and node.demand is not None:
            assert amount <= node.demand


def tax(tau: Fraction, memory: int, first: Holder, second: Holder) -> list[float]:
    division: Division = idle_tax_targets(memory, [first, second], tau)
    assert sum(division.amounts) == memory
    return [round(float(amount), 1) for amount in division.amounts]


@pytest.mark.parametrize(
    ("tau", "active", "expected"),
    [
        (Fraction(0), 20, [179, 179]),
        (Fraction(3, 4), 20, [102, 256]),
        (Fraction(3, 4), 50, [102, 256]),
        (Fraction(3, 4), 60, [107.6, 250.4]),
        (Fraction(3, 4), 90, [125.6, 232.4]),
        (Fraction(1, 2), 45, [134.3, 223.7]),
    ],
)
def test_idle_tax(tau: Fraction, active: int, expected: list[float]) -> None:
    """E25: 358 MB for two VMs of equal shares and at most 256; the second uses all it has, the first `active`."""
    assert tax(tau, 358, Holder(1, active, 0, 256), Holder(1, 256, 0, 256)) == expected


def test_idle_tax_other_cases() -> None:
    """The checks of the law in appendix A; a whole tax gives no idle page while an active one is lacking."""
    k4 = Fraction(3, 4)
    assert tax(k4, 300, Holder(1, 50, 0, 300), Holder(1, 50, 0, 300)) == [150, 150]
    assert tax(k4, 300, Holder(1, 50, 0, 300), Holder(1, 250, 0, 300)) == [90, 210]
    assert tax(Fraction(1), 300, Holder(1, 50, 0, 300), Holder(1, 260, 0, 300)) == [50, 250]
    assert tax(Fraction(1), 400, Holder(1, 50, 0, 300), Holder(3, 250, 0, 400)) == [75, 325]
    assert tax(k4, 300, Holder(1, 0, 120, 300), Holder(1, 300, 0, 300)) == [120, 180]
    short = idle_tax_targets(100, [Holder(1, 0, 150, 200), Holder(1, 0, 50, 200)], k4)
    assert (short.state, short.amounts) == (State.INSUFFICIENT, (75, 25))
    assert idle_tax_targets(500, [Holder(1, 9, 0, 200)], k4).state is State.UNCONTENDED


@CHEAP
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(0, 99), st.integers(0, 50), st.integers(50, 120)), min_size=1),
    st.integers(0, 600),
    st.sampled_from([Fraction(0), Fraction(1, 3), Fraction(3, 4), Fraction(1)]),
)
def test_idle_tax_gives_all_out_within_bounds(raw: list[tuple[int, int, int, int]], memory: int, tau: Fraction) -> None:
    """The sum is what there is, or all maxima; nobody is below his minimum where there is enough for that."""
    holders = [Holder(*one) for one in raw]
    division = idle_tax_targets(memory, holders, tau)
    assert sum(division.amounts) == min(memory, sum(one.maximum for one in holders))
    if division.state is not State.INSUFFICIENT:
        assert all(one.minimum <= got <= one.maximum for one, got in zip(holders, division.amounts, strict=True))
    if tau == 0 and division.state is State.CONTENDED:
        plain = divide(memory, [Claim(one.minimum, one.maximum, one.shares) for one in holders])
        assert plain.amounts == division.amounts
