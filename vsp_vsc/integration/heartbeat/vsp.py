"""The heartbeat VSP: is the guest's kernel still alive? Root side.

Every two seconds a beat; one that is not answered in time means that contact is lost, so it shows within four seconds.
Beats go on, and the next answer restores contact.
"""

from __future__ import annotations

import enum
from typing import Final, assert_never

import msgspec

from hypervisor.clock import ticks
from hypervisor.inspect import Branch
from hypervisor.wire import ShortMessage
from vsp_vsc.integration.component import IntegrationVsp, NoAnswer
from vsp_vsc.integration.heartbeat.protocol import ANSWER_SIZE, SEQUENCE_MASK, ApplicationState, Beat, describe
from vsp_vsc.integration.protocol import Component
from vsp_vsc.integration.session import Answer

PERIOD: Final = 2.0
"""Seconds of the partition's time between beats, and the time to answer one."""


class HeartbeatState(enum.Enum):
    """What people are told. `operational_status` is the number that management clients see."""

    NO_CONTACT = "no contact"
    """The guest has no driver for it, or has not answered yet."""
    OK = "ok"
    LOST = "lost contact"

    @property
    def operational_status(self) -> int:
        """Of Msvm_HeartbeatComponent: OK, No Contact, Lost Communication."""
        match self:
            case HeartbeatState.OK:
                return 2
            case HeartbeatState.NO_CONTACT:
                return 12
            case HeartbeatState.LOST:
                return 13
            case _:
                assert_never(self)


class Heartbeat(msgspec.Struct, frozen=True):
    """The state of a VM's heartbeat at a moment."""

    state: HeartbeatState = HeartbeatState.NO_CONTACT
    sequence: int = 0
    """The last number that the guest answered with."""
    beats: int = 0
    """Answered since the channel was opened."""
    missed: int = 0
    application: ApplicationState = ApplicationState.UNKNOWN

    def __str__(self) -> str:
        """For people: what the guest says of its programs is told while it says anything."""
        if self.state is HeartbeatState.OK and self.application is not ApplicationState.UNKNOWN:
            return f"{self.state.value} (applications {self.application.name.lower()})"
        return self.state.value


class HeartbeatVsp(IntegrationVsp):
    """One VM's heartbeat."""

    component = Component.HEARTBEAT

    heartbeat = Heartbeat()
    """As of now."""

    def inspect(self) -> Branch:
        """The contact, and what the last beats said."""
        beat = self.heartbeat
        seen: dict[str, object] = {"state": beat.state.value, "beats": beat.beats, "missed": beat.missed}
        seen |= {"sequence": beat.sequence, "application": beat.application.name.lower()}
        return Branch({**super().inspect().children, **seen})

    async def _duty(self) -> None:
        sequence = 0
        self.heartbeat = Heartbeat()
        while True:
            begin = self._time.now()
            try:
                beat = Beat(sequence).encode()
                answer = await self.ask(beat, PERIOD, describe(beat))
                sequence = self._answered(sequence, answer)
            except NoAnswer:
                if not self.ready:
                    return
                self.heartbeat = msgspec.structs.replace(
                    self.heartbeat, state=HeartbeatState.LOST, missed=self.heartbeat.missed + 1
                )
            left = begin + ticks(PERIOD) - self._time.now()
            await self._time.sleep(max(0, left) / ticks(1))

    def _answered(self, sent: int, answer: Answer) -> int:
        """Note an answer; returns the next number to send."""
        if len(answer.body) < ANSWER_SIZE:
            raise ShortMessage("heartbeat answer", ANSWER_SIZE, len(answer.body))
        untrusted_sequence = int.from_bytes(answer.body[:ANSWER_SIZE], "little")
        if untrusted_sequence != sent + 1 & SEQUENCE_MASK:
            raise NoAnswer(f"beat {sent} was answered with {untrusted_sequence}")
        self.heartbeat = msgspec.structs.replace(
            self.heartbeat,
            state=HeartbeatState.OK,
            sequence=untrusted_sequence,
            beats=self.heartbeat.beats + 1,
            application=_application_state(answer.body),
        )
        return untrusted_sequence + 1 & SEQUENCE_MASK

    def _lost(self) -> None:
        state = HeartbeatState.LOST if self._stopped else HeartbeatState.NO_CONTACT
        self.heartbeat = msgspec.structs.replace(self.heartbeat, state=state)


def _application_state(body: bytes) -> ApplicationState:
    if len(body) < Beat.SIZE:
        return ApplicationState.UNKNOWN
    try:
        return ApplicationState(Beat.decode(body).application_state)
    except ValueError:
        return ApplicationState.UNKNOWN
