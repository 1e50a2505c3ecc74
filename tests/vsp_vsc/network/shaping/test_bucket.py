"""The token bucket: exact, whatever is asked for and whenever."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.network.shaping.bucket import SECOND, Bucket
from vsp_vsc.network.shaping.settings import default_burst

MS = 1_000_000
FULL = 1500 * 8


def departures(bucket: Bucket, sizes: list[int], now: int = 0) -> list[int]:
    """When frames of these bits leave that are all there at `now`."""
    when = []
    for bits in sizes:
        now = bucket.ready_at(now, bits)
        bucket.take(now, bits)
        when.append(now)
    return when


def test_e32_ten_at_once_and_then_one_each_one_and_a_half_milliseconds() -> None:
    """E32: 8 Mbit/s, burst 15,000 B, frames of 1,500 B back to back from a full bucket; frame 666 leaves at 984 ms."""
    when = departures(Bucket(8_000_000, 15_000 * 8), [FULL] * 666)
    assert when[:10] == [0] * 10
    assert [after - before for before, after in itertools.pairwise(when[9:])] == [1_500_000] * 656
    assert when[665] == 984 * MS


def test_without_a_burst_it_is_a_wire() -> None:
    """One frame after the other, each for as long as its bits take; a rest earns nothing."""
    bucket = Bucket(8_000_000, 0)
    assert departures(bucket, [FULL] * 3) == [0, 1_500_000, 3_000_000]
    assert departures(bucket, [FULL] * 2, 100 * MS) == [100 * MS, 100 * MS + 1_500_000]


def test_a_frame_that_is_larger_than_the_burst_is_paid_for_afterwards() -> None:
    """It would wait for ever else."""
    assert departures(Bucket(1_000_000, FULL), [2 * FULL, FULL]) == [0, 24 * MS]


def test_a_lower_limit_holds_at_once() -> None:
    """What is in the bucket stays only as far as there is room."""
    bucket = Bucket(8_000_000, 10 * FULL)
    bucket.change(0, 1_000_000, 2 * FULL)
    assert departures(bucket, [FULL] * 4) == [0, 0, 12 * MS, 24 * MS]


def test_default_bursts() -> None:
    """Ten milliseconds, or ten full frames."""
    assert default_burst(8_000_000) == 15_000
    assert default_burst(10**9) == 1_250_000


@given(
    rate=st.integers(1, 10**11),
    burst=st.integers(0, 200_000).map(lambda size: size * 8),
    arrivals=st.lists(st.tuples(st.integers(0, SECOND), st.integers(64, 9022)), min_size=1, max_size=40),
)
def test_i14_no_window_has_more_than_its_rate_and_the_burst(
    rate: int, burst: int, arrivals: list[tuple[int, int]]
) -> None:
    """I14: bits in [t, t+X) <= rate * X + burst (or one frame, where that is larger), to the last billionth of one."""
    bucket, now = Bucket(rate, burst), 0
    sent: list[tuple[int, int]] = []
    for gap, size in arrivals:
        now = bucket.ready_at(now + gap, size * 8)
        bucket.take(now, size * 8)
        sent.append((now, size * 8))
    for first in range(len(sent)):
        total = 0
        for when, bits in sent[first:]:
            total += bits
            assert total * SECOND <= rate * (when - sent[first][0]) + max(burst, bits) * SECOND + (
                0 if burst else max(one for _, one in sent) * SECOND
            )
