"""One initiator's way to one logical unit (an I_T_L nexus, SAM-5 4.8): commands go in here. Root side.

What SCSI keeps per initiator is here: unit attentions that it has not been told, and which of its commands are under
way. What is shared by all initiators is the unit's (`unit.py`).

Aborting. A command that is at a backend cannot be called back, and until it ends the backend may still fill or read its
buffer. So a command that is aborted ends when the backend lets go of it, with status TASK ABORTED whatever it has done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vsp_vsc.storage.scsi.answer import TASK_ABORTED, Done, ScsiResult, Tag, Views
from vsp_vsc.storage.scsi.sense import Reason

if TYPE_CHECKING:
    from vsp_vsc.storage.scsi.unit import LogicalUnit


class CommandGate(Protocol):
    """What decides when a nexus's commands are carried out (`storage/qos`)."""

    def start(self, nexus: Nexus, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        """As `Nexus.start`: carries the command out by `Nexus.carry_out`, now or later."""

    def aborted(self, nexus: Nexus) -> None:
        """Commands of this nexus were aborted: those that have not begun end now."""


class Nexus:
    """Made by `LogicalUnit.connect`. A front end hands every command of one initiator to the same nexus."""

    def __init__(self, unit: LogicalUnit, initiator: str, transport_id: bytes) -> None:
        self.unit = unit
        self.initiator = initiator
        """The initiator port's name; reservations are kept by it, over nexuses that come and go."""
        self.transport_id = transport_id
        """The same for machines: a TransportID of SPC-4 7.6.4."""
        self.hindered = False
        """Whether a command may not just be carried out: something may speak against it, or there is a gate."""
        self.gate: CommandGate | None = None
        """What holds commands back, if anything does."""
        self._barred = False
        self.read_now: Callable[[int, int, Views], bool] = unit.read_now
        """Read blocks into views of just that size, if nothing speaks against it and nothing has to be waited for.

        Else false, and `start` finds out what there is to say. Not a method: the shortest way that there is.
        """
        self.under_way = 0
        """Commands that have no result yet; their buffers are in use."""
        self._starters = unit.starters
        self._attentions: list[Reason] = []
        self._epoch = 0
        self._aborted: list[Tag] = []

    def start(self, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        """Carry out a command of at least 16 bytes, zero-padded, with a data buffer of `length` bytes.

        The result, or None where it is handed to `done`: later, or before this returns if the backend is inline.
        """
        if self.hindered:
            refused = self.unit.hindrance(self, cdb) if self._barred else None
            if refused is not None:
                return refused
            if self.gate is not None:
                return self.gate.start(self, cdb, views, length, tag, done)
        return self._starters[cdb[0]](self.unit, self, cdb, views, length, tag, done)

    def carry_out(self, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        """For a gate: as `start`, with nothing left that speaks against it."""
        return self._starters[cdb[0]](self.unit, self, cdb, views, length, tag, done)

    def hinder(self, hindered: bool) -> None:
        """For the unit: whether each command has to be asked about."""
        self._barred = hindered
        self.hindered = hindered or self.gate is not None
        self.read_now = _not_now if self.hindered else self.unit.read_now

    def pass_through(self, gate: CommandGate | None) -> None:
        """From now on commands go through a gate, or through none. Those that wait in the old one are its own."""
        self.gate = gate
        self.hinder(self._barred)

    # --- unit attentions

    @property
    def attentions(self) -> tuple[Reason, ...]:
        """What the initiator has yet to be told, in the order in which it will be."""
        return tuple(self._attentions)

    def attend(self, reason: Reason) -> None:
        """Establish a unit attention: the next command that is not exempt fails with it, and is not carried out.

        A reset makes all other news worthless, and comes first (SAM-5 5.14). The same news is told once.
        """
        if reason.is_reset:
            self._attentions = [reason]
        elif reason not in self._attentions:
            self._attentions.append(reason)
        self.hinder(True)

    def forget(self, reason: Reason) -> None:
        """Withdraw a unit attention that the initiator has learned of in another way."""
        if reason in self._attentions:
            self._attentions.remove(reason)
            self.unit.look_for_hindrances(self)

    def next_attention(self) -> Reason | None:
        """What is told now, and by that is told."""
        if not self._attentions:
            return None
        reason = self._attentions.pop(0)
        self.unit.look_for_hindrances(self)
        return reason

    # --- task management

    def abort(self, tag: Tag) -> None:
        """ABORT TASK of one that is under way: it ends with TASK ABORTED."""
        if self.under_way:
            self._aborted.append(tag)
            if self.gate is not None:
                self.gate.aborted(self)

    def abort_all(self) -> None:
        """ABORT TASK SET: all that are under way end with TASK ABORTED."""
        self._epoch += 1
        self._aborted.clear()
        if self.gate is not None:
            self.gate.aborted(self)

    def begin(self) -> int:
        """A command is now under way; what is returned goes to `end`."""
        self.under_way += 1
        return self._epoch

    def end(self, epoch: int, tag: Tag, done: Done, result: ScsiResult) -> None:
        """The command has ended."""
        self.under_way -= 1
        if (epoch != self._epoch or self._aborted) and self.aborted(epoch, tag):
            self._aborted = [other for other in self._aborted if self.under_way and other is not tag]
            result = TASK_ABORTED
        done(tag, result)

    def aborted(self, epoch: int, tag: Tag) -> bool:
        """Whether nobody waits for a command's work any longer."""
        return epoch != self._epoch or any(other is tag for other in self._aborted)

    def close(self) -> None:
        """The initiator is gone (I_T nexus loss): what it reserved in the old way is free, what it registered stays.

        Commands under way are aborted, and still end.
        """
        self.abort_all()
        self.unit.disconnect(self)


def _not_now(_lba: int, _count: int, _views: Views) -> bool:
    return False
