from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.lifecycle import (
    ENABLED_STATE,
    TRANSITIONS,
    InvalidTransition,
    RequestedState,
    ReturnCode,
    VmEvent,
    VmState,
    allowed,
    next_state,
    requested_event,
)


@pytest.mark.parametrize("state", VmState)
def test_every_pair_is_in_the_table_or_refused(state: VmState) -> None:
    """There is no third answer, and a refusal names both."""
    for event in VmEvent:
        if (state, event) in TRANSITIONS:
            assert next_state(state, event) is TRANSITIONS[state, event], event
            assert allowed(state, event), event
        else:
            assert not allowed(state, event), event
            with pytest.raises(InvalidTransition, match=state.value.replace("_", " ")) as raised:
                next_state(state, event)
            assert (raised.value.state, raised.value.event) == (state, event)


def test_requests_start_from_settled_states_only() -> None:
    """The table is the lock: while something is under way only turning off may start."""
    requests = {VmEvent.START, VmEvent.PAUSE, VmEvent.RESUME, VmEvent.RESET, VmEvent.SHUT_DOWN, VmEvent.DESTROY}
    requests.add(VmEvent.SAVE)
    started = {state for state, event in TRANSITIONS if event in requests}
    assert started == {state for state in VmState if state.settled}


def test_turning_off_interrupts_everything() -> None:
    """Every state with a worker may be turned off but the one that already is; so may what waits or is saved."""
    interrupted = {state for state, event in TRANSITIONS if event is VmEvent.TURN_OFF}
    inactive = {VmState.WAITING, VmState.SAVED}
    assert interrupted == {state for state in VmState if state.active} - {VmState.TURNING_OFF} | inactive


def test_what_somebody_wants_off_does_not_wait_for_a_restart() -> None:
    """A restart policy has no way out of the states that a person has asked for."""
    ended = {state for state, event in TRANSITIONS if event is VmEvent.ENDED_FOR_NOW}
    assert ended == {state for state in VmState if state.active} - {VmState.SHUTTING_DOWN, VmState.TURNING_OFF}
    assert {TRANSITIONS[state, VmEvent.ENDED_FOR_NOW] for state in ended} == {VmState.WAITING}


def test_a_workers_end_is_a_fact() -> None:
    """Wherever there is a worker, its end leads to Off."""
    for state in VmState:
        assert allowed(state, VmEvent.ENDED) == state.active
    assert {next_state(state, VmEvent.ENDED) for state in VmState if state.active} == {VmState.OFF}


@given(st.lists(st.sampled_from(list(VmEvent)), max_size=40))
def test_no_history_is_a_dead_end(history: list[VmEvent]) -> None:
    """From wherever events may lead, the VM can be turned off and started again."""
    state = VmState.OFF
    for event in history:
        if allowed(state, event):
            state = next_state(state, event)
    if state.active:
        if allowed(state, VmEvent.TURN_OFF):
            state = next_state(state, VmEvent.TURN_OFF)
        state = next_state(state, VmEvent.ENDED)
    assert next_state(next_state(state, VmEvent.START), VmEvent.STARTED) is VmState.RUNNING


def test_numbers_are_hyper_vs() -> None:
    """EnabledState and the return codes are what management clients know (namespace v2)."""
    assert set(ENABLED_STATE) == set(VmState)
    numbers = {state.value: state.enabled_state for state in VmState}
    assert numbers == {
        "off": 3,
        "waiting": 3,
        "starting": 10,
        "running": 2,
        "pausing": 32776,
        "paused": 9,
        "resuming": 32777,
        "resetting": 11,
        "shutting_down": 4,
        "turning_off": 4,
        "saved": 6,
        "saving": 32773,
    }
    assert (ReturnCode.COMPLETED, ReturnCode.JOB_STARTED, ReturnCode.INVALID_STATE) == (0, 4096, 32775)


@pytest.mark.parametrize(
    ("state", "requested", "event"),
    [
        (VmState.OFF, 2, VmEvent.START),
        (VmState.PAUSED, 2, VmEvent.RESUME),
        (VmState.RUNNING, 2, VmEvent.START),  # refused by the table: it runs already
        (VmState.RUNNING, 3, VmEvent.TURN_OFF),
        (VmState.RUNNING, 4, VmEvent.SHUT_DOWN),
        (VmState.RUNNING, 9, VmEvent.PAUSE),
        (VmState.RUNNING, 11, VmEvent.RESET),
        (VmState.RUNNING, 6, VmEvent.SAVE),
        (VmState.OFF, 10, None),
        (VmState.RUNNING, 32779, None),
    ],
)
def test_what_a_requested_state_means(state: VmState, requested: int, event: VmEvent | None) -> None:
    """Requested state 2 starts what is off and resumes what is paused; rebooting is not built."""
    assert requested_event(state, RequestedState(requested)) is event
