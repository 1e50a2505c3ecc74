"""mClock in a tree against published cases, to the request. Cases by their numbers: E11 and so on."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest

from hypervisor.scheduler import divvy, tree
from tests.vsp_vsc.storage.qos.loads import SECOND, gained, keep_busy, run, served
from vsp_vsc.storage.qos.mclock import MClock, Node, Phase

RD, OLTP, DM = (250, None, 100), (250, None, 200), (0, 1000, 300)
"""Reserve, limit and weight of mClock's section 2."""


PATIENT = 1000 * SECOND
"""Slack of a clock whose caller may be as late as he likes, as published cases have it."""


def flat(
    capacity: int | None, *controls: tuple[int, int | None, int], slack: int = 50_000_000
) -> tuple[MClock, list[Node]]:
    clock = MClock(capacity, slack=slack)
    nodes = [
        clock.add_node(clock.root, f"disk{number}", reserve=reserve, limit=limit, weight=weight)
        for number, (reserve, limit, weight) in enumerate(controls)
    ]
    return clock, nodes


def due(capacity: int, *controls: tuple[int, int | None, int]) -> list[Fraction]:
    """What the division of every other resource says."""
    root = tree.Node.host(capacity)
    nodes = [
        root.add(str(number), reservation=reserve, limit=limit, shares=weight, active=True)
        for number, (reserve, limit, weight) in enumerate(controls)
    ]
    entitled = divvy.entitle(root, capacity)
    return [entitled[node] for node in nodes]


@pytest.mark.parametrize("capacity", [400, 500, 600, 875, 1000, 1200, 1500, 1800, 2000, 2200, 2500, 3000])
def test_the_ladder_of_three_loads(capacity: int) -> None:
    """E11: RD (w100 r250), OLTP (w200 r250), DM (w300 l1000); in each second each has its due, to a request."""
    clock, nodes = flat(capacity, RD, OLTP, DM)
    keep_busy(clock, nodes)
    run(clock, SECOND)
    for second in (2, 3):
        before = served(nodes)
        run(clock, second * SECOND)
        for got, wanted in zip(gained(before, nodes), due(capacity, RD, OLTP, DM), strict=True):
            assert abs(got - wanted) <= 1, (capacity, second)


def test_shares_hold_between_siblings_only() -> None:
    """E12: 8000 IOPS, Host1 {1000, 2500}, Host2 {500, 1000 at most 2000}: 1600/4000/800/1600.

    And with VM3 asking for 10: 1711/4279/10/2000. A flat division would give 1776/4439/10/1776.
    """

    def hosts() -> tuple[MClock, list[Node]]:
        clock = MClock(8000)
        host1 = clock.add_node(clock.root, "host1", weight=3500)
        host2 = clock.add_node(clock.root, "host2", weight=1500)
        return clock, [
            clock.add_node(host1, "vm1", weight=1000),
            clock.add_node(host1, "vm2", weight=2500),
            clock.add_node(host2, "vm3", weight=500),
            clock.add_node(host2, "vm4", weight=1000, limit=2000),
        ]

    clock, vms = hosts()
    keep_busy(clock, vms)
    run(clock, SECOND // 2)
    before = served(vms)
    run(clock, SECOND // 2 + SECOND)
    assert gained(before, vms) == pytest.approx([1600, 4000, 800, 1600], abs=1)

    clock, vms = hosts()
    quiet = vms.pop(2)
    keep_busy(clock, vms)
    before = served(vms)
    for tenth in range(10):
        clock.add(quiet, 1, None, tenth * SECOND // 10)
        run(clock, (tenth + 1) * SECOND // 10, again=lambda request: request.leaf is not quiet)
    assert quiet.served == 10
    assert gained(before, vms) == pytest.approx([1711, 4279, 2000], abs=2)


def test_weights_of_a_pull() -> None:
    """E13: weights 1:2, five requests each: of six, two and four, all by weight."""
    clock, (one, other) = flat(None, (0, None, 1), (0, None, 2))
    keep_busy(clock, (one, other), depth=5)
    pulled = [clock.pull(0) for _ in range(6)]
    assert served((one, other)) == [2, 4]
    assert {request.phase for request in pulled if request} == {Phase.WEIGHT}


def test_reservations_of_a_pull() -> None:
    """E13: reservations 2:1 and no weight: of six, four and two, all because they are owed."""
    clock, (one, other) = flat(None, (2, None, 0), (1, None, 0), slack=PATIENT)
    keep_busy(clock, (one, other), depth=5)
    pulled = [clock.pull(100 * SECOND) for _ in range(6)]
    assert served((one, other)) == [4, 2]
    assert {request.phase for request in pulled if request} == {Phase.RESERVATION}
    assert [one.reserved, other.reserved] == [4, 2]


def test_weights_that_change() -> None:
    """E13: 100:200 serves two and four of six; from 200:200 on three and three."""
    clock, nodes = flat(None, (0, None, 100), (0, None, 200))
    keep_busy(clock, nodes, depth=10)
    for _ in range(6):
        clock.pull(0)
    assert served(nodes) == [2, 4]
    clock.change(nodes[0], weight=200)
    for _ in range(6):
        clock.pull(0)
    assert served(nodes) == [5, 7]


def test_weights_that_change_over_a_thousand() -> None:
    """E13: 100:200 gives a third and two thirds of 1000; then 150:50 three quarters and a quarter; within 0.002."""
    clock, nodes = flat(1000, (0, None, 100), (0, None, 200))
    keep_busy(clock, nodes)
    run(clock, SECOND)
    assert served(nodes) == pytest.approx([333, 667], abs=2)
    clock.change(nodes[0], weight=150)
    clock.change(nodes[1], weight=50)
    before = served(nodes)
    run(clock, 2 * SECOND)
    assert gained(before, nodes) == pytest.approx([750, 250], abs=2)


def test_ready_and_under_the_limit() -> None:
    """E13b: two clients with reservation 1 and no weight, three requests each: two at 0.5 s, 1.5 s and 2.5 s each."""
    clock, nodes = flat(None, (1, 1, 0), (1, 1, 0), slack=PATIENT)
    keep_busy(clock, nodes, depth=3)
    for second in range(3):
        now = second * SECOND + SECOND // 2
        assert [clock.pull(now) is not None for _ in range(3)] == [True, True, False]
        if second < 2:
            assert clock.next_time() == (second + 1) * SECOND, "the future"
    assert clock.next_time() is None, "none"
    assert served(nodes) == [3, 3]


def test_a_limit_that_is_switched_on() -> None:
    """M6: DM has all that it can get until its limit of 300 comes; from then on it has 300 in every second."""
    clock, nodes = flat(2000, RD, OLTP, (0, None, 300))
    keep_busy(clock, nodes)
    run(clock, SECOND)
    before = served(nodes)
    assert before == pytest.approx([333, 667, 1000], abs=2)
    clock.change(nodes[2], limit=300)
    for second in range(1, 4):
        run(clock, (second + 1) * SECOND)
        assert gained(before, nodes) == pytest.approx([567, 1133, 300], abs=1 if second > 1 else 10)
        assert gained(before, nodes)[2] <= 301
        before = served(nodes)


def test_a_maximum_is_never_passed() -> None:
    """M9: where Hyper-V's limit of 200 shows 250 at first, ours has 200 in the first second, and in every other."""
    clock, (disk,) = flat(None, (100, 200, 100))
    keep_busy(clock, [disk], depth=1000)
    times = [moment for moment, _ in run(clock, 4 * SECOND)]
    for start in range(0, 3 * SECOND, SECOND // 40):
        assert sum(start <= moment < start + SECOND for moment in times) == 200


def test_no_rush_after_a_rest() -> None:
    """A disk that was idle for a minute has not saved anything up."""
    clock, (disk,) = flat(None, (0, 200, 100))
    clock.add(disk, 1, None, 0)
    assert clock.pull(0) is not None
    start = 60 * SECOND
    keep_busy(clock, [disk], start)
    times = [moment for moment, _ in run(clock, start + SECOND)]
    assert len(times) == 200
    assert [later - earlier for earlier, later in pairwise(times)] == [SECOND // 200] * 199


def test_a_reservation_is_not_saved_up() -> None:
    """Who was idle for ten seconds is owed nothing for them: it has its 100 a second from when it comes back."""
    clock, (reserved, heavy) = flat(200, (100, None, 1), (0, None, 10_000))
    clock.add(reserved, 1, None, 0)
    keep_busy(clock, [heavy])
    run(clock, 10 * SECOND, again=lambda request: request.leaf is heavy)
    keep_busy(clock, [reserved], 10 * SECOND)
    before = served([reserved])
    run(clock, 10 * SECOND + SECOND // 10)
    assert gained(before, [reserved]) == pytest.approx([10], abs=1)


def test_who_is_late_makes_up_for_a_little() -> None:
    """A timer that is late by less than the slack costs nothing; after a stall of a second there is no rush."""
    clock, (disk,) = flat(None, (0, 200, 100))
    keep_busy(clock, [disk])
    moment, went = 0, 0
    while moment < SECOND:
        due = 0
        while clock.pull(moment) is not None:
            due += 1
        keep_busy(clock, [disk], moment, depth=due)
        went += due
        moment += 13_000_000  # ns, at intervals of 5 ms
    assert went in range(198, 201)
    keep_busy(clock, [disk], moment, depth=200)
    rush = 0
    while clock.pull(2 * SECOND) is not None:
        rush += 1
    assert rush <= 13, "50 ms at 200 a second, what was due before, and what may catch up"


def test_one_at_a_time_while_timers_are_late() -> None:
    """A guest with one request under way gets its 200, though each of its requests goes 1 to 12 ms late."""
    clock, (disk,) = flat(None, (0, 200, 100))
    now, gone = 0, list[int]()
    while now < 4 * SECOND:
        clock.add(disk, 1, None, now)
        if clock.pull(now) is None:
            moment = clock.next_time()
            assert moment is not None
            now = max(now, moment) + (1 + len(gone) * 5 % 12) * 1_000_000
            assert clock.pull(now) is not None
        gone.append(now)
        now += 100_000  # until the answer is there and the next one is sent
    for second in range(1, 4):
        assert sum(second * SECOND <= moment < (second + 1) * SECOND for moment in gone) in range(197, 204)


def test_large_requests_count_for_what_they_are() -> None:
    """A limit of 256 lets 8 requests of 32 go in a second, and who sends large ones gets no more of a capacity."""
    clock, (disk,) = flat(None, (0, 256, 100))
    keep_busy(clock, [disk], cost=32)
    assert len(run(clock, SECOND)) == 8
    clock, nodes = flat(2000, (0, None, 100), (0, None, 100))
    keep_busy(clock, nodes[:1], cost=32)
    keep_busy(clock, nodes[1:], cost=1)
    run(clock, 2 * SECOND)
    assert served(nodes) == pytest.approx([2000, 2000], abs=64)


def test_a_pool_holds_its_disks_together() -> None:
    """A pool's limit is for all in it; its shares divide it, though the host has no capacity."""
    clock = MClock()
    pool = clock.add_node(clock.root, "pool", limit=400)
    disks = [clock.add_node(pool, name, weight=weight) for name, weight in (("a", 100), ("b", 300))]
    free = clock.add_node(clock.root, "free", limit=5000)
    keep_busy(clock, [*disks, free])
    run(clock, 2 * SECOND)
    assert served(disks) == pytest.approx([200, 600], abs=2)
    assert free.served == 10_000


def test_a_reservation_below_counts_above() -> None:
    """A disk's reservation is worth something in a pool that has none of its own; and a limit above is above it."""
    clock = MClock(1000)
    pool = clock.add_node(clock.root, "pool", weight=1)
    disk = clock.add_node(pool, "disk", reserve=400)
    other = clock.add_node(clock.root, "other", weight=1000)
    keep_busy(clock, [disk, other])
    run(clock, SECOND)
    assert served([disk, other]) == pytest.approx([400, 600], abs=2)
    clock.change(pool, limit=100)
    before = served([disk, other])
    run(clock, 2 * SECOND)
    assert gained(before, [disk, other]) == pytest.approx([100, 900], abs=2)


def test_too_much_is_reserved() -> None:
    """Each gets the same part of its reservation; when there is enough again, nobody is owed the past."""
    clock, nodes = flat(200, (300, None, 1), (100, None, 1))
    keep_busy(clock, nodes)
    run(clock, 10 * SECOND)
    assert served(nodes) == pytest.approx([1500, 500], abs=2)
    clock.change(clock.root, limit=1000)
    run(clock, 11 * SECOND)
    before = served(nodes)
    run(clock, 12 * SECOND)
    assert gained(before, nodes) == pytest.approx([500, 500], abs=60)


def test_controls_take_effect_within_a_window() -> None:
    """A limit that is raised from 1 counts at once, though the next I/O was minutes away."""
    clock, (disk,) = flat(None, (0, 1, 100))
    keep_busy(clock, [disk], cost=32)
    run(clock, SECOND)
    assert clock.next_time() == 32 * SECOND
    clock.change(disk, limit=1000)
    moment = clock.next_time()
    assert moment is not None
    assert moment <= SECOND + 32_000_000
    clock.change(disk, limit=0)
    assert clock.pull(SECOND) is not None


def test_a_disk_that_moves_takes_what_waits_along() -> None:
    """To another pool, with its queue; the old pool's limit has no say any more."""
    clock = MClock()
    slow = clock.add_node(clock.root, "slow", limit=10)
    fast = clock.add_node(clock.root, "fast", limit=1000)
    disk = clock.add_node(slow, "disk")
    keep_busy(clock, [disk])
    run(clock, SECOND)
    assert disk.served == 10
    clock.move(disk, fast)
    assert (slow.waiting, fast.waiting, clock.root.waiting) == (0, 4, 4)
    run(clock, 2 * SECOND)
    assert disk.served == pytest.approx(1010, abs=1)
    assert disk.path == "fast/disk"


def test_what_is_withdrawn_costs_nothing() -> None:
    """A request that never goes has used up nothing; a node that is removed gives back what waits, in order."""
    clock, (disk, other) = flat(None, (0, 10, 100), (0, 10, 100))
    first, second, third = (clock.add(disk, 1, number, 0) for number in range(3))
    assert clock.pull(0) is first
    clock.withdraw(second)
    assert clock.next_time() == SECOND // 10
    assert clock.pull(SECOND // 10) is third
    waiting = [clock.add(other, 1, None, SECOND // 10) for _ in range(3)]
    assert clock.remove(other) == waiting
    assert clock.root.waiting == 0
    assert clock.next_time() is None


def test_figures_that_cannot_be() -> None:
    """Names twice, weights below 0, limits of none, and a node that nothing would ever be let go from."""
    clock = MClock()
    clock.add_node(clock.root, "a")
    with pytest.raises(ValueError, match="a is there already"):
        clock.add_node(clock.root, "a")
    for controls, words in (
        ({"weight": -1}, "weight -1"),
        ({"limit": 0}, "limit 0"),
        ({"reserve": -1}, "reserve -1"),
        ({"weight": 0}, "neither reserve nor weight"),
    ):
        with pytest.raises(ValueError, match=words):
            clock.add_node(clock.root, "b", **controls)
