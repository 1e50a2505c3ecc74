"""Event flags and message slots beside a guest that runs at the same time: nothing is lost, nothing is told twice."""

from __future__ import annotations

import os

import pytest

from tests.doubles.parallel_guest import WORKS_HERE, message_storm, signal_storm

pytestmark = [
    pytest.mark.skipif(not WORKS_HERE, reason="the guest is machine code for Linux on x86-64"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="host and guest need a processor each"),
]


def flags(signals: int, seed: int = 1) -> None:
    outcome = signal_storm(signals, seed)
    # What is stored is followed by one interrupt, and there are no others. That nothing is lost, the storm checks.
    assert outcome.interrupts == outcome.stored <= outcome.signals
    assert outcome.taken <= outcome.interrupts
    assert outcome.handled <= outcome.signals
    # A neighbour's store may show a flag again, at most the seven others of its byte; Linux finds an empty ring then.
    assert outcome.stale <= 7 * outcome.stored


def messages(count: int, seed: int = 1) -> None:
    outcome = message_storm(count, seed)
    assert outcome.misplaced == 0
    assert outcome.interrupts == outcome.messages


def test_no_flag_is_lost_while_the_guest_clears_its_neighbours() -> None:
    flags(200_000)


def test_messages_arrive_once_and_in_order_while_the_guest_empties_the_slot() -> None:
    messages(2_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_ten_million_signals(seed: int) -> None:
    flags(1_000_000, seed)


@pytest.mark.slow
def test_two_hundred_thousand_messages() -> None:
    messages(200_000)
