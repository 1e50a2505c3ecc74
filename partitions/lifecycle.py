"""The states of a virtual machine, the one table of transitions, and Hyper-V's numbers. Root side.

The table is the lock: while an operation runs, its VM is in a passing state (Starting, Pausing, ...) from which the
table lets nothing start but turning off. Numbers are those of Msvm_ComputerSystem in namespace
root\\virtualization\\v2; which transitions are allowed follows Hyper-V's usual behaviour.
"""

from __future__ import annotations

import enum
from typing import Final, assert_never


class VmState(enum.Enum):
    """What a VM is doing. `enabled_state` is the number that management clients see."""

    OFF = "off"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    RESETTING = "resetting"
    SAVING = "saving"
    """Its state is being taken, or written to a file; its processors stand still."""
    SAVED = "saved"
    """Off, with a state in a file that the next start goes on from."""
    SHUTTING_DOWN = "shutting_down"
    """The power button was pressed and the guest has not powered off yet."""
    TURNING_OFF = "turning_off"
    """The worker takes its partition down."""
    WAITING = "waiting"
    """Off, until its restart policy starts it again."""

    @property
    def enabled_state(self) -> int:
        """EnabledState of namespace v2; turning off has no number of its own and shows as ShuttingDown."""
        return ENABLED_STATE[self]

    @property
    def settled(self) -> bool:
        """True if no operation is under way."""
        return self in (VmState.OFF, VmState.SAVED, VmState.WAITING, VmState.RUNNING, VmState.PAUSED)

    @property
    def active(self) -> bool:
        """True if there is a worker and a partition, or about to be."""
        return self not in (VmState.OFF, VmState.SAVED, VmState.WAITING)


ENABLED_STATE: Final = {
    VmState.RUNNING: 2,
    VmState.OFF: 3,
    VmState.WAITING: 3,
    VmState.SHUTTING_DOWN: 4,
    VmState.SAVED: 6,
    VmState.SAVING: 32773,
    VmState.TURNING_OFF: 4,
    VmState.PAUSED: 9,
    VmState.STARTING: 10,
    VmState.RESETTING: 11,
    VmState.PAUSING: 32776,
    VmState.RESUMING: 32777,
}


class VmEvent(enum.Enum):
    """What moves a VM: requests of people first, which may be refused, then what its worker reports as facts."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    SAVE = "save"
    SHUT_DOWN = "shut_down"
    TURN_OFF = "turn_off"
    DESTROY = "destroy"
    """Forget the definition; it leaves the state where it is, so the table has it only where it is allowed."""

    STARTED = "started"
    WAS_PAUSED = "was_paused"
    WAS_RESUMED = "was_resumed"
    WAS_RESET = "was_reset"
    WAS_SAVED = "was_saved"
    """The state is safe, and the partition is gone."""
    GUEST_RESET = "guest_reset"
    """The guest asked for a reset itself."""
    ENDED = "ended"
    """The worker is done, for whatever reason, and the partition is gone."""
    ENDED_FOR_NOW = "ended_for_now"
    """The same, and the VM's restart policy wants it to start again after a while."""
    RESTART = "restart"
    """That while is over."""

    @property
    def requested(self) -> bool:
        """True for what somebody asks for, and does not just happen."""
        return self in _REQUESTS


_REQUESTS: Final = frozenset(
    {
        *(VmEvent.START, VmEvent.PAUSE, VmEvent.RESUME, VmEvent.RESET, VmEvent.SAVE),
        *(VmEvent.SHUT_DOWN, VmEvent.TURN_OFF, VmEvent.DESTROY),
    }
)


_S, _E = VmState, VmEvent
TRANSITIONS: Final[dict[tuple[VmState, VmEvent], VmState]] = {
    (_S.OFF, _E.START): _S.STARTING,
    (_S.OFF, _E.DESTROY): _S.OFF,
    (_S.STARTING, _E.STARTED): _S.RUNNING,
    (_S.RUNNING, _E.PAUSE): _S.PAUSING,
    (_S.RUNNING, _E.RESET): _S.RESETTING,
    (_S.RUNNING, _E.GUEST_RESET): _S.RESETTING,
    (_S.RUNNING, _E.SHUT_DOWN): _S.SHUTTING_DOWN,
    (_S.RUNNING, _E.SAVE): _S.SAVING,
    (_S.PAUSED, _E.SAVE): _S.SAVING,
    (_S.SAVING, _E.WAS_SAVED): _S.SAVED,
    # It could not be saved, or was only looked at: back to where it was.
    (_S.SAVING, _E.WAS_RESUMED): _S.RUNNING,
    (_S.SAVING, _E.WAS_PAUSED): _S.PAUSED,
    (_S.SAVED, _E.START): _S.STARTING,
    (_S.SAVED, _E.DESTROY): _S.SAVED,
    # The state is given up; its file is whoever's it was.
    (_S.SAVED, _E.TURN_OFF): _S.OFF,
    (_S.PAUSING, _E.WAS_PAUSED): _S.PAUSED,
    (_S.PAUSED, _E.RESUME): _S.RESUMING,
    (_S.PAUSED, _E.RESET): _S.RESETTING,
    (_S.RESUMING, _E.WAS_RESUMED): _S.RUNNING,
    (_S.RESETTING, _E.WAS_RESET): _S.RUNNING,
    # A guest that answers the power button with a reset has not powered off; it runs again until its grace is over.
    (_S.SHUTTING_DOWN, _E.GUEST_RESET): _S.RESETTING,
    # A suspended model guest goes on to its next await, and may get as far as this.
    (_S.PAUSED, _E.GUEST_RESET): _S.RESETTING,
    (_S.WAITING, _E.RESTART): _S.STARTING,
    (_S.WAITING, _E.START): _S.STARTING,
    (_S.WAITING, _E.TURN_OFF): _S.OFF,
    # Turning off interrupts everything that is under way; a worker's end is a fact in every state that has a worker.
    **{(state, _E.TURN_OFF): _S.TURNING_OFF for state in VmState if state.active and state is not _S.TURNING_OFF},
    **{(state, _E.ENDED): _S.OFF for state in VmState if state.active},
    # What somebody asked to end is not started again.
    **{
        (state, _E.ENDED_FOR_NOW): _S.WAITING
        for state in VmState
        if state.active and state not in (_S.SHUTTING_DOWN, _S.TURNING_OFF)
    },
}


class InvalidTransition(Exception):
    """The table has no such event in this state."""

    def __init__(self, state: VmState, event: VmEvent) -> None:
        super().__init__(f"cannot {event.value.replace('_', ' ')} while {state.value.replace('_', ' ')}")
        self.state = state
        self.event = event


def next_state(state: VmState, event: VmEvent) -> VmState:
    """Where `event` leads from `state`. Raises `InvalidTransition`."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise InvalidTransition(state, event) from None


def allowed(state: VmState, event: VmEvent) -> bool:
    """True if the table has `event` in `state`."""
    return (state, event) in TRANSITIONS


class ReturnCode(enum.IntEnum):
    """What RequestStateChange answers (namespace v2)."""

    COMPLETED = 0
    JOB_STARTED = 4096
    FAILED = 32768
    ACCESS_DENIED = 32769
    NOT_SUPPORTED = 32770
    UNKNOWN = 32771
    TIMEOUT = 32772
    INVALID_PARAMETER = 32773
    IN_USE = 32774
    INVALID_STATE = 32775
    INCORRECT_TYPE = 32776
    NOT_AVAILABLE = 32777
    OUT_OF_MEMORY = 32778


class RequestedState(enum.IntEnum):
    """What RequestStateChange takes (namespace v2)."""

    ENABLED = 2
    DISABLED = 3
    SHUT_DOWN = 4
    OFFLINE = 6
    """Save."""
    QUIESCE = 9
    """Pause."""
    REBOOT = 10
    RESET = 11
    FAST_SAVE = 32779


def requested_event(state: VmState, requested: RequestedState) -> VmEvent | None:
    """The event that a requested state means in `state`; None for those that are not supported yet."""
    match requested:
        case RequestedState.ENABLED:
            return VmEvent.RESUME if state in (VmState.PAUSED, VmState.PAUSING, VmState.RESUMING) else VmEvent.START
        case RequestedState.DISABLED:
            return VmEvent.TURN_OFF
        case RequestedState.SHUT_DOWN:
            return VmEvent.SHUT_DOWN
        case RequestedState.QUIESCE:
            return VmEvent.PAUSE
        case RequestedState.RESET:
            return VmEvent.RESET
        case RequestedState.OFFLINE:
            return VmEvent.SAVE
        case RequestedState.REBOOT | RequestedState.FAST_SAVE:
            return None
        case _:
            assert_never(requested)
