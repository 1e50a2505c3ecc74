"""Sharing a host's memory: wishes, targets, states, steps."""

from __future__ import annotations

from fractions import Fraction

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsp_vsc.memory.balance import (
    Change,
    Claim,
    HostState,
    Standing,
    Step,
    by_weight,
    host_state,
    pressure,
    step,
    targets,
    taxed,
    wish,
)
from vsp_vsc.memory.protocol import BALLOON_UNIT

MIB = 256
"""Pages."""


def test_a_wish_is_demand_and_its_buffer() -> None:
    """E27: a demand of 1000 MB and a buffer of 20 % make a target of 1200 MB, within minimum and maximum."""
    demand, most = 1000 * MIB, 4096 * MIB
    assert wish(demand, 20, 512 * MIB, most, 0) == 1200 * MIB
    assert wish(demand, 20, 1300 * MIB, most, 0) == 1300 * MIB
    assert wish(demand, 20, 512 * MIB, 1100 * MIB, 0) == 1100 * MIB
    assert wish(None, 20, 512 * MIB, most, 700 * MIB) == 700 * MIB


def test_pressure() -> None:
    """Percent of what it has that it needs."""
    assert pressure(1000, 1200) == 83
    assert pressure(1200, 1000) == 120
    assert pressure(None, 1000) is None


def test_a_limit_below_what_a_vm_was_built_with() -> None:
    """E31: limit 2 GB, RAM 3 GB, all of it wanted, the host free: 1 GB is ballooned all the same."""
    claim = Claim("vm", 512 * MIB, 3072 * MIB, 3072 * MIB, demand=3072 * MIB, limit=2048 * MIB)
    (target,) = targets(65536 * MIB, [claim]).values()
    assert target.pages == 2048 * MIB
    assert not target.contended
    taken, state = 0, HostState.HIGH
    while (found := step(target.pages, standing(3072 * MIB - taken, taken), state, 60000 * MIB)).pages:
        assert found.change is Change.BALLOON
        taken += found.pages
    assert taken == 1024 * MIB - 32 * MIB  # within the slack of a host that has enough
    more = step(target.pages, standing(3072 * MIB - taken, taken), HostState.SOFT, 0)
    assert taken + more.pages == 1024 * MIB


def standing(assigned: int, ballooned: int = 0, least: int = 64 * MIB, room: int = 0) -> Standing:
    """One VM's."""
    return Standing(assigned, ballooned, least, room)


@pytest.mark.parametrize(
    ("tax", "active", "first", "second"),
    [
        ("0", 60, "179", "179"),
        ("3/4", 50, "102", "256"),
        ("3/4", 20, "102", "256"),
        ("3/4", 60, "107.6", "250.4"),
        ("3/4", 90, "125.6", "232.4"),
        ("1/2", 45, "134.333", "223.667"),
    ],
)
def test_a_tax_on_idle_memory(tax: str, active: int, first: str, second: str) -> None:
    """E25: 358 MB for two VMs of 256 MB with equal weights, the second all active, the first in part."""
    scale = 1000
    claims = [
        Claim("idle", 0, 256 * scale, 256 * scale, demand=active * scale, buffer=2000),
        Claim("busy", 0, 256 * scale, 256 * scale, demand=256 * scale),
    ]
    shares = taxed(Fraction(tax))(358 * scale, claims)
    assert abs(shares["idle"] - Fraction(first) * scale) < 1
    assert abs(shares["busy"] - Fraction(second) * scale) < 1


@pytest.mark.parametrize(
    ("active", "first", "second"),
    [((50, 256), "102", "256"), ((60, 256), "107.6", "250.4"), ((90, 256), "125.6", "232.4"), ((0, 0), "179", "179")],
)
def test_what_is_in_use_goes_before_what_is_committed(active: tuple[int, int], first: str, second: str) -> None:
    """E25 again, of VMs that have committed all that they have: what was seen of it in use is what no tax is on."""
    claims = [
        Claim(name, 0, 256_000, 256_000, demand=256_000, active=used * 1000)
        for name, used in zip(("idle", "busy"), active, strict=True)
    ]
    shares = taxed(Fraction(3, 4))(358_000, claims)
    assert abs(shares["idle"] - Fraction(first) * 1000) < 1
    assert abs(shares["busy"] - Fraction(second) * 1000) < 1
    assert [one.wish for one in claims] == [256_000, 256_000], "which is what it is for"


def test_weights_count_only_where_memory_is_short() -> None:
    """Plenty: everybody has his wish. Short: minimums, then by weight; the buffer goes first, as on Hyper-V."""
    small = Claim("small", 100, 4000 * MIB, 0, demand=1000 * MIB, buffer=0, weight=1000)
    large = attrs.evolve(small, name="large", weight=3000)
    assert [one.pages for one in targets(2000 * MIB, [small, large]).values()] == [1000 * MIB, 1000 * MIB]
    short = targets(1200 * MIB, [small, large])
    assert [one.pages for one in short.values()] == [300 * MIB, 900 * MIB]
    assert all(one.contended for one in short.values())


FIGURES = st.builds(
    lambda least, more, part, demand, weight, buffer: Claim(
        name="",
        least=least * BALLOON_UNIT,
        most=(least + more) * BALLOON_UNIT,
        assigned=(least + part * more // 8) * BALLOON_UNIT,
        demand=demand,
        weight=weight,
        buffer=buffer,
    ),
    *(st.integers(1, 64), st.integers(0, 64), st.integers(0, 8), st.none() | st.integers(0, 80_000)),
    *(st.integers(1, 10_000), st.integers(0, 100)),
)


@settings(max_examples=60)
@given(st.lists(FIGURES, min_size=1, max_size=6), st.integers(0, 40_000), st.sampled_from([None, "0", "3/4", "1"]))
def test_memory_is_shared_and_not_made(claims: list[Claim], spare: int, tax: str | None) -> None:
    """I12: targets together are no more than there is, and nobody's is below his minimum or above his wish."""
    named = [attrs.evolve(claim, name=str(number)) for number, claim in enumerate(claims)]
    capacity = sum(claim.least for claim in named) + spare
    found = targets(capacity, named, by_weight if tax is None else taxed(Fraction(tax)))
    assert sum(target.pages for target in found.values()) <= capacity
    for claim in named:
        assert claim.least <= found[claim.name].pages <= claim.wish == found[claim.name].wish


@settings(max_examples=60)
@given(
    st.lists(st.tuples(FIGURES, st.integers(0, 9)), min_size=1, max_size=4),
    st.integers(0, 4000),
    st.randoms(use_true_random=False),
)
def test_steps_keep_the_account(vms: list[tuple[Claim, int]], spare: int, random: object) -> None:
    """I12, over many rounds: assigned and free are all that there is, nobody falls below his minimum by the balancer,
    nothing is given that is not free, and with demands that stay the same everything comes to rest.
    """
    claims = {str(number): attrs.evolve(claim, name=str(number)) for number, (claim, _) in enumerate(vms)}
    ballooned = {name: min(part, 3) * BALLOON_UNIT for name, (_, part) in zip(claims, vms, strict=True)}
    total = sum(claim.assigned for claim in claims.values()) + spare
    state, quiet = HostState.HIGH, 0
    for _ in range(400):
        free = total - sum(claim.assigned for claim in claims.values())
        state = host_state(state, free, total)
        found = targets(total, list(claims.values()))
        moved = False
        for name, claim in claims.items():
            room = max(0, claim.most - claim.assigned - ballooned[name])
            change = step(found[name].pages, Standing(claim.assigned, ballooned[name], claim.least, room), state, free)
            if change.change is Change.NOTHING:
                continue
            moved = True
            sign = -1 if change.change is Change.BALLOON else 1
            claims[name] = attrs.evolve(claim, assigned=claim.assigned + sign * change.pages)
            if change.change is Change.UNBALLOON:
                ballooned[name] -= change.pages
            elif change.change is Change.BALLOON:
                ballooned[name] += change.pages
                assert claims[name].assigned >= claim.least
            if sign > 0:
                assert change.pages <= free
                free -= change.pages
            assert ballooned[name] >= 0
        assert sum(claim.assigned for claim in claims.values()) <= total
        quiet = 0 if moved else quiet + 1
        if quiet > 2:
            return
    raise AssertionError("it never comes to rest")


STATES = [HostState.LOW, HostState.HARD, HostState.SOFT, HostState.HIGH]


@pytest.mark.parametrize(
    ("before", "free", "after"),
    [
        (HostState.HIGH, 40, HostState.HIGH),
        (HostState.HIGH, 39, HostState.SOFT),
        (HostState.HIGH, 19, HostState.HARD),
        (HostState.HIGH, 9, HostState.LOW),
        (HostState.HIGH, -5, HostState.LOW),
        (HostState.SOFT, 44, HostState.SOFT),
        (HostState.SOFT, 45, HostState.HIGH),
        (HostState.HARD, 24, HostState.HARD),
        (HostState.HARD, 25, HostState.SOFT),
        (HostState.LOW, 12, HostState.LOW),
        (HostState.LOW, 13, HostState.HARD),
        (HostState.LOW, 44, HostState.SOFT),
        (HostState.LOW, 500, HostState.HIGH),
    ],
)
def test_states_and_their_hysteresis(before: HostState, free: int, after: HostState) -> None:
    """M4: down at 4, 2 and 1 % free; up again only a quarter of the band above, at 4.5, 2.5 and 1.25 %."""
    assert host_state(before, free, 1000) is after


@given(st.sampled_from(STATES), st.integers(-10, 1000))
def test_a_state_stays_where_it_has_come_to(before: HostState, free: int) -> None:
    """I12: with the same free memory a state does not change twice, and less memory never makes it better."""
    after = host_state(before, free, 1000)
    assert host_state(after, free, 1000) is after
    assert STATES.index(host_state(before, free - 1, 1000)) <= STATES.index(after)


def test_what_is_done_in_each_state() -> None:
    """Gently while nobody needs it, faster when short, all at once when very; nobody gets more than there is."""
    much = standing(1000 * MIB, 100 * MIB)
    sizes = [step(64 * MIB, much, state, 0).pages // MIB for state in reversed(STATES)]
    assert sizes == [32, 256, 936, 936]
    little = standing(100 * MIB, 500 * MIB)
    assert step(300 * MIB, little, HostState.HARD, 50 * MIB) == Step(Change.UNBALLOON, 50 * MIB)
    assert step(300 * MIB, little, HostState.LOW, 5 * MIB) == Step(Change.UNBALLOON, 5 * MIB)
    assert step(300 * MIB, little, HostState.LOW, 0) == Step()


def test_what_is_above_a_limit_comes_back_at_once() -> None:
    """To the page, on a host that has enough, without slack; and no more of it than a VM has above its target."""

    def gives(target: int, over: int, assigned: int = 300 * MIB, **keys: bool) -> int:
        return step(target, Standing(assigned, 0, 64 * MIB, 0, over=over, **keys), HostState.HIGH, 900 * MIB).pages

    assert gives(200 * MIB, 100 * MIB) == 100 * MIB
    assert gives(139 * MIB, 100 * MIB) == 100 * MIB
    assert gives(139 * MIB, 10 * MIB) == 32 * MIB  # and as much as if there were none
    assert gives(200 * MIB, 500 * MIB, 201 * MIB + 1) == MIB + 1
    assert gives(200 * MIB, 1, 201 * MIB) == 1
    assert gives(200 * MIB, 0, 201 * MIB) == 0
    assert gives(300 * MIB, 100 * MIB) == 0
    assert gives(0, 500 * MIB) == 236 * MIB  # to its minimum
    assert gives(200 * MIB, 100 * MIB, balloons=False) == 0


def test_steps_of_growth() -> None:
    """What was ballooned comes back before memory is added; no step is larger than what is free, or than a bound."""
    assert step(500 * MIB, standing(100 * MIB, 10 * MIB, room=900 * MIB), HostState.HIGH, 900 * MIB) == Step(
        Change.UNBALLOON, 10 * MIB
    )
    grown = standing(100 * MIB, room=900 * MIB)
    assert step(500 * MIB, grown, HostState.HIGH, 900 * MIB) == Step(Change.HOT_ADD, 128 * MIB)
    assert step(500 * MIB, grown, HostState.HIGH, 31 * MIB) == Step(Change.HOT_ADD, 30 * MIB)
    assert step(500 * MIB, standing(100 * MIB), HostState.HIGH, 900 * MIB) == Step()
    assert step(0, standing(80 * MIB), HostState.LOW, 0) == Step(Change.BALLOON, 16 * MIB)  # to its minimum
    rests = Standing(500 * MIB, 0, 64 * MIB, 0, balloons=False)
    assert step(100 * MIB, rests, HostState.LOW, 0) == Step()
