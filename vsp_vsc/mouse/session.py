"""The host's end of a mouse's channel, with no Trio in it: pointer and buttons in, packets out. Root side.

    version --accepted--> description --acknowledged--> ready

A report has the whole state, and positions are absolute, so one that waits for room is replaced by the next that only
moves on: no more than `MAX_REPORTS` wait. Past that the last of them takes up what comes, and clicks in between are
lost, and counted; where the pointer is and which buttons are down is right in the end.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from hypervisor.wire import BadValue
from vmbus.pipe import frame, unframe
from vmbus.ring import Packet
from vsp_vsc.mouse.protocol import (
    MAX_POSITION,
    VERSION_2_0,
    Buttons,
    MouseReport,
    MouseRequest,
    MouseResponse,
    MouseType,
    decode_message,
    encode_device_info,
    encode_message,
)

MAX_REPORTS: Final = 256
"""Reports that wait for the guest."""
_BUTTONS: Final = 0x1F
_STEPS: Final = 32767


class State(enum.Enum):
    """Where a session is."""

    VERSION = "waiting for a version"
    DESCRIBED = "waiting for an acknowledgement"
    READY = "ready"


class SavedMouse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a session when its VM is saved."""

    state: str
    x: int
    y: int
    buttons: int


class MouseSession:
    """One opening of a mouse's channel."""

    def __init__(self) -> None:
        self.state = State.VERSION
        self.outbox: list[Packet] = []
        """To be sent, in order; whoever sends takes from its front."""
        self.blocked = False
        """The first of it is on its way, and stays as it is."""
        self.last = MouseReport()
        """Where the pointer is, as the host has it."""
        self.reports = 0
        self.merged = 0
        """Moves that the next one replaced before the guest read them."""
        self.lost = 0
        """Changes of buttons among them."""

    @property
    def ready(self) -> bool:
        """Whether reports flow."""
        return self.state is State.READY

    def take(self, untrusted: Packet) -> None:
        """A packet from the guest. Raises `WireError`."""
        kind, body = decode_message(unframe(untrusted))
        match kind, self.state:
            case MouseType.PROTOCOL_REQUEST, State.VERSION:
                version = MouseRequest.decode(body).version
                accepted = version == VERSION_2_0
                answer = MouseResponse(version, int(accepted)).encode()
                self.outbox.append(frame(encode_message(MouseType.PROTOCOL_RESPONSE, answer)))
                if accepted:
                    self.outbox.append(frame(encode_device_info()))
                    self.state = State.DESCRIBED
            case MouseType.INITIAL_DEVICE_INFO_ACK, State.DESCRIBED:
                self.state = State.READY
            case _:
                raise BadValue(f"mouse message {kind} from the guest, {self.state.value}")

    def report(self, x: int, y: int, buttons: int, wheel: int) -> None:
        """The pointer is there now, with these buttons down; `wheel` steps went by. Only when ready."""
        if not (0 <= x <= MAX_POSITION and 0 <= y <= MAX_POSITION):
            raise ValueError(f"a pointer at {x}, {y}: both are 0 to {MAX_POSITION}")
        if not (0 <= buttons <= _BUTTONS and -_STEPS <= wheel <= _STEPS):
            raise ValueError(f"buttons {buttons:#x} and {wheel} steps of the wheel")
        before, self.last = self.last, MouseReport(buttons, x, y, wheel & 0xFFFF)
        self.reports += 1
        waiting = self._waiting()
        if waiting is not None:
            moves_only = waiting.buttons == buttons and not waiting.wheel
            if moves_only or len(self.outbox) >= MAX_REPORTS:
                self.merged += 1
                self.lost += before.buttons != buttons
                turned = max(-_STEPS, min(_STEPS, signed(waiting.wheel) + wheel))
                self.outbox[-1] = _packet(MouseReport(buttons, x, y, turned & 0xFFFF))
                return
        self.outbox.append(_packet(self.last))

    def release_all(self) -> None:
        """Every button goes up, where the pointer is."""
        if self.last.buttons:
            self.report(self.last.x, self.last.y, 0, 0)

    def _waiting(self) -> MouseReport | None:
        """The last report that waits for room, if one does."""
        if len(self.outbox) <= self.blocked:
            return None
        kind, body = decode_message(unframe(self.outbox[-1]))
        return MouseReport.decode(body) if kind == MouseType.INPUT_REPORT else None

    # --- saved and restored

    def save(self) -> bytes:
        """The session as a record. Reports that wait are forgotten: where the pointer is counts."""
        record = SavedMouse(self.state.value, self.last.x, self.last.y, self.last.buttons)
        return msgspec.msgpack.encode(record)

    @classmethod
    def load(cls, untrusted: bytes) -> MouseSession:
        """A session that goes on where it was saved; nobody holds a button there any more. Raises `BadValue`."""
        session = cls()
        try:
            record = msgspec.msgpack.decode(untrusted, type=SavedMouse)
            session.state = State(record.state)
            if session.ready:
                session.report(record.x, record.y, 0, 0)
        except ValueError as error:  # msgspec's errors are ValueErrors too
            raise BadValue(f"a saved mouse: {error}") from None
        return session


def signed(wheel: int) -> int:
    """A report's wheel as a number of steps."""
    return wheel - 0x10000 if wheel & 0x8000 else wheel


def button_words(buttons: int) -> str:
    """Buttons for people."""
    return " ".join(button.name.lower() for button in Buttons(buttons & _BUTTONS) if button.name) or "none"


def _packet(report: MouseReport) -> Packet:
    return frame(encode_message(MouseType.INPUT_REPORT, report.encode()))
