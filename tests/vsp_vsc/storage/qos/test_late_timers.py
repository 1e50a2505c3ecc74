"""A limit on a machine whose timers are late: what is made up for, how fast, and never more than was lost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vsp_vsc.storage.qos.loads import SECOND, keep_busy
from vsp_vsc.storage.qos.mclock import MClock

MS = 1_000_000
LIMIT = 200


def late_run(limit: int, depth: int, seconds: int, lateness: Callable[[int], int]) -> list[int]:
    """When requests go of a guest that always has `depth` waiting; wake-up N is late by `lateness(N)` ns."""
    clock = MClock()
    disk = clock.add_node(clock.root, "disk", limit=limit)
    keep_busy(clock, [disk], depth=depth)
    gone: list[int] = []
    now = wakes = 0
    while now < seconds * SECOND:
        while clock.pull(now) is not None:
            gone.append(now)
            clock.add(disk, 1, None, now)
        moment = clock.next_time()
        assert moment is not None
        assert moment > now
        wakes += 1
        now = moment + lateness(wakes)
    return gone


def most_in(gone: list[int], window: int) -> int:
    """In any window of so many ns."""
    first = most = 0
    for last, moment in enumerate(gone):
        while gone[first] <= moment - window:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_a_disturbed_machine_still_gives_the_limit() -> None:
    """Timers late by up to 5 ms, and now and then by 100: 97 % of 200 a second, and no second with 12 % more."""
    chance = Random(5)
    gone = late_run(LIMIT, 32, 20, lambda wake: 100 * MS if wake % 150 == 0 else chance.randrange(5 * MS))
    assert 0.97 * LIMIT * 20 <= len(gone) <= LIMIT * 20 + 1
    assert most_in(gone, SECOND) <= 1.05 * LIMIT + 0.05 * LIMIT + 3


def test_timers_late_by_less_than_the_slack_cost_nothing() -> None:
    """Late by 0 to 50 ms each, at intervals of 5: 200 in every second but for what is under way at its ends."""
    chance = Random(6)
    gone = late_run(LIMIT, 32, 5, lambda _: chance.randrange(50 * MS))
    assert len(gone) >= 5 * LIMIT - 10


def test_a_long_stall_is_made_up_for_slowly() -> None:
    """Of a minute, 50 ms at once and half a second within the ten after it, 5 % faster; the rest is lost."""
    gone = late_run(LIMIT, 300, 75, lambda wake: 60 * SECOND if wake == 200 else 0)
    end = max(later for earlier, later in pairwise(gone) if later - earlier > SECOND)
    after = [moment for moment in gone if moment >= end]
    assert sum(moment == end for moment in after) in range(11, 14)
    assert sum(end < moment <= end + SECOND for moment in after) in (209, 210, 211)
    assert len([moment for moment in after if moment < end + 12 * SECOND]) in range(2508, 2513)
    assert sum(end + 11 * SECOND <= moment < end + 12 * SECOND for moment in after) == LIMIT


@settings(max_examples=15, deadline=None)
@given(st.integers(20, 400), st.lists(st.integers(0, 400), min_size=1, max_size=12))
def test_no_more_than_was_lost(limit: int, late: list[int]) -> None:
    """I3 by the host's clock: limit * X and 1 from when it began; in any window, 5 % and the slack of 50 ms more."""
    gone = late_run(limit, 40, 3, lambda wake: late[wake % len(late)] * MS if wake % 9 == 0 else 0)
    for number, moment in enumerate(gone):
        assert number <= limit * moment / SECOND + 1
    for window in (SECOND // 4, SECOND):
        assert most_in(gone, window) <= limit * (window * 1.05 / SECOND + 0.05) + 3
