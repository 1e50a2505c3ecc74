"""Admission: who may start, what is refused, and that all of it comes back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.scheduler.admission import Admitted, Refused, admit, commit, rearrange, release, reservation_used
from hypervisor.scheduler.tree import Node, ResourceError

LP = 65536


def power_on(pool: Node, name: str, amount: int) -> Admitted | Refused:
    return commit(pool.add(name, reservation=amount))


def start_all(pool: Node, amounts: list[int]) -> None:
    for number, amount in enumerate(amounts):
        assert isinstance(power_on(pool, f"vm/{number}", amount), Admitted)


def test_reserve_above_limit_is_refused() -> None:
    """E3: a reserve of 0xC000 (75 %) with a cap of 0x8000 cannot be; nothing has changed."""
    root = Node.host(LP)
    with pytest.raises(ResourceError, match=r"vm/a.reserve: must not be above its limit of 32768, is 49152"):
        root.add("vm/a", reservation=0xC000, limit=0x8000)
    assert (0xC000 / LP, root.children) == (0.75, {})


@pytest.mark.parametrize("value", [-1, float("nan"), 1e308, 0.5, True, "5", None])
@pytest.mark.parametrize("key", ["reservation", "limit", "shares"])
def test_a_figure_that_is_no_amount_is_refused(key: str, value: Any) -> None:
    """And nothing is there, or has changed. Without a limit is none."""
    if key == "limit" and value is None:
        return
    host = Node.host(100)
    vm = host.add("vm/a", active=True)
    pool = host.add("pool/a", inner=True)
    with pytest.raises(ResourceError):
        host.add("vm/b", **{key: value})
    figures: dict[str, Any] = {"reservation": 5, "limit": 10, "shares": 7, key: value}
    for node in (vm, pool):
        with pytest.raises(ResourceError):
            rearrange(node, **figures)
        assert (node.reservation, node.limit, node.shares) == (0, None, 100)
    assert (list(host.children), host.used) == (["vm/a", "pool/a"], 0)


def test_reserves_above_the_host_are_refused() -> None:
    """E3: reserves whose sum is above the logical processors."""
    root = Node.host(LP)
    start_all(root, [0xC000])
    answer = power_on(root, "vm/b", 0x8000)
    assert isinstance(answer, Refused)
    assert (answer.need, answer.free, answer.short) == (0x8000, 0x4000, 0x4000)


def test_the_sixth_vm_does_not_start() -> None:
    """E4: four processors, VMs of four with a reserve of 20 %: five start, the sixth is refused though all idle."""
    root = Node.host(4 * LP)
    each = 4 * (LP * 20 // 100)
    start_all(root, [each] * 5)
    assert isinstance(power_on(root, "vm/6", each), Refused)


def test_percent_of_the_system() -> None:
    """E6: eight processors at 25 % on a host of 16 have an eighth of it."""
    root = Node.host(16 * LP)
    start_all(root, [8 * (LP // 4)])
    assert root.used * 8 == 16 * LP


def test_fixed_pools() -> None:
    """E17: 12 GHz in pools that are not expandable: what one has left, the other cannot have."""
    root = Node.host(12)
    pools = []
    for number, (reserve, running) in enumerate([(4, [2, 2]), (4, [1, 2]), (3, [3])]):
        pool = root.add(f"pool/RP{number + 1}", inner=True, reservation=reserve, expandable=False)
        start_all(pool, running)
        pools.append(pool)
    assert [pool.used for pool in pools] == [4, 3, 3]
    assert [pool.reservation - pool.used for pool in pools] == [0, 1, 0]
    assert (root.used, root.reservation - root.used) == (11, 1)
    answer = power_on(pools[0], "vm/6", 2)
    assert isinstance(answer, Refused)
    assert answer.words() == "pool/RP1 0 of 4 free -> needs 2"


def test_expandable_pools() -> None:
    """E18: 16 GHz; RP1 and RP3 take of the host what they lack, until it has nothing left."""
    root = Node.host(16)
    first = root.add("pool/RP1", inner=True, reservation=4)
    second = root.add("pool/RP2", inner=True, reservation=5, expandable=False)
    third = root.add("pool/RP3", inner=True, reservation=5)
    for pool, running in ((first, [2, 2, 2]), (second, [1, 2]), (third, [3, 2])):
        start_all(pool, running)
    assert [pool.used for pool in (first, second, third)] == [6, 3, 5]
    assert (root.used, root.reservation - root.used) == (16, 0)
    answer = power_on(third, "vm/9", 2)
    assert isinstance(answer, Refused)
    assert answer.words() == "pool/RP3 0 of 5 free -> host 0 of 16 free -> needs 2"


def mother_and_child(running: list[int]) -> tuple[Node, Node]:
    root = Node.host(100)
    mother = root.add("pool/mom", inner=True, reservation=6, expandable=False)
    child = mother.add("pool/kid", inner=True, reservation=2)
    start_all(mother, running)
    assert isinstance(power_on(child, "vm/k1", 2), Admitted)
    return mother, child


def test_a_child_takes_of_its_mother() -> None:
    """E20: with M1 alone running, K2 powers on by what the mother has free; beside M1 and M2 it is refused."""
    mother, child = mother_and_child([1])
    assert mother.reservation - mother.used == 3
    assert isinstance(power_on(child, "vm/k2", 2), Admitted)
    mother, child = mother_and_child([1, 2])
    assert mother.reservation - mother.used == 1
    answer = power_on(child, "vm/k2", 2)
    assert isinstance(answer, Refused)
    assert answer.words() == "pool/kid 0 of 2 free -> pool/mom 1 of 6 free -> needs 2"
    assert (answer.path, answer.need, answer.free) == (("pool/mom/pool/kid", "pool/mom"), 2, 1)


def test_a_limit_stands_above_reservations() -> None:
    """Limit before reservation: nothing is reserved in a pool beyond what it may ever have."""
    root = Node.host(100)
    pool = root.add("pool/a", inner=True, limit=10)
    start_all(pool, [8])
    answer = admit(pool, 3)
    assert isinstance(answer, Refused)
    assert answer.words() == "pool/a 2 of its limit of 10 free -> needs 3"


def test_what_a_pool_has_taken_already_is_not_asked_for_twice() -> None:
    """A pool that uses more than it has reserved asks its parent for what is new, and for no more."""
    root = Node.host(7)
    pool = root.add("pool/a", inner=True, reservation=4)
    start_all(pool, [2, 2, 2])
    assert isinstance(admit(pool, 1), Admitted)
    assert isinstance(admit(pool, 2), Refused)


def test_figures_below_what_is_used_are_refused() -> None:
    """A pool's limit, or the reservation of one that does not grow, is not set below what runs in it."""
    root = Node.host(100)
    pool = root.add("pool/a", inner=True, reservation=5)
    start_all(pool, [5, 2])
    answer = rearrange(pool, reservation=5, limit=6, shares=1)
    assert isinstance(answer, Refused)
    assert answer.words() == "pool/a 0 of its limit of 6 free -> needs 7"
    assert isinstance(rearrange(pool, reservation=5, limit=None, shares=1, expandable=False), Refused)
    assert isinstance(rearrange(pool, reservation=7, limit=7, shares=1, expandable=False), Admitted)


def test_without_a_capacity_nothing_is_refused() -> None:
    """Where nobody has said what the host's storage can do, any reservation is taken down."""
    assert isinstance(admit(Node.host(None), 1 << 60), Admitted)


def test_what_comes_and_goes_in_a_tree() -> None:
    """Names are taken once, nothing is in itself, a pool with something in it stays, a VM is no pool."""
    root = Node.host(10)
    pool = root.add("pool/a", inner=True)
    inside = pool.add("pool/b", inner=True)
    vm = inside.add("vm/web", reservation=2, active=True)
    assert vm.path == "pool/a/pool/b/vm/web"
    assert [node.id for node in root.walk()] == [0, 1, 2, 3]
    for refused in (
        lambda: root.add("pool/a"),
        pool.remove,
        lambda: pool.move(inside),
        lambda: pool.move(vm),
        lambda: vm.add("vm/other"),
        root.remove,
        lambda: root.move(pool),
        lambda: root.add("vm/x", shares=0),
        lambda: root.add("vm/x", reservation=-1),
        lambda: root.add("vm/x", limit=-1),
    ):
        with pytest.raises(ResourceError):
            refused()
    assert (root.used, len(list(root.walk()))) == (2, 4)
    vm.remove()
    inside.remove()
    assert (root.used, list(pool.children)) == (0, [])
    assert root.add("vm/new").id == 4, "an ID is given once"


class Machines(RuleBasedStateMachine):
    """Random power-ons, changes and moves in a small tree; what was accepted has to fit everywhere, all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Node.host(20)
        self.pools = [self.root]
        self.leaves: list[Node] = []
        self.count = 0

    @rule(data=st.data(), reserve=st.integers(0, 8), limit=st.none() | st.integers(8, 15), expandable=st.booleans())
    def pool(self, data: st.DataObject, reserve: int, limit: int | None, expandable: bool) -> None:
        parent = data.draw(st.sampled_from(self.pools))
        if len(self.pools) < 6 and isinstance(admit(parent, reserve), Admitted):
            name = f"pool/{len(self.pools)}"
            self.pools.append(parent.add(name, inner=True, reservation=reserve, limit=limit, expandable=expandable))

    @rule(data=st.data(), amount=st.integers(0, 9))
    def machine(self, data: st.DataObject, amount: int) -> None:
        self.count += 1
        self.leaves.append(data.draw(st.sampled_from(self.pools)).add(f"vm/{self.count}", reservation=amount))

    @precondition(lambda self: self.leaves)
    @rule(data=st.data())
    def switch_on(self, data: st.DataObject) -> None:
        vm = data.draw(st.sampled_from(self.leaves))
        before = self.figures()
        if vm.active:
            return
        if isinstance(commit(vm), Refused):
            assert self.figures() == before
        else:
            there = self.figures()
            release(vm)
            assert self.figures() == before, "power-off restores the counters exactly"
            assert isinstance(commit(vm), Admitted)
            assert self.figures() == there

    @precondition(lambda self: self.leaves)
    @rule(data=st.data())
    def switch_off(self, data: st.DataObject) -> None:
        release(data.draw(st.sampled_from(self.leaves)))

    @rule(data=st.data(), reserve=st.integers(0, 9), limit=st.none() | st.integers(0, 15), expandable=st.booleans())
    def other_figures(self, data: st.DataObject, reserve: int, limit: int | None, expandable: bool) -> None:
        node = data.draw(st.sampled_from([*self.pools[1:], *self.leaves] or [None]))
        if node is None:
            return
        before = self.figures()
        try:
            answer = rearrange(
                node,
                reservation=reserve,
                limit=limit,
                shares=5,
                expandable=expandable,
                parent=data.draw(st.none() | st.sampled_from(self.pools)),
            )
        except ResourceError:
            assert self.figures() == before
        else:
            assert isinstance(answer, Admitted) or self.figures() == before

    def figures(self) -> set[tuple[object, ...]]:
        """All there is to know of the tree but the order of siblings."""
        return {
            (node.path, node.used, node.claim, node.reservation, node.limit, node.active, node.expandable)
            for node in self.root.walk()
        }

    @invariant()
    def everybody_has_what_is_reserved_in_him(self) -> None:
        for node in self.root.walk():
            assert node.used == reservation_used(node)
            if node.inner:
                assert node.used <= node.reservation or node.expandable
                assert node.limit is None or node.used <= node.limit


TestMachines = Machines.TestCase
"""I11: the accepted set satisfies every ancestor; all-or-nothing; what ends restores all counters exactly."""
TestMachines.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
