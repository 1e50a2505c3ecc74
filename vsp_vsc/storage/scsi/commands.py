"""A kind of unit's commands as a table: one row each, checked and found by it. Root side.

A row says which bits of the CDB mean something: the same bytes are what REPORT SUPPORTED OPERATION CODES answers, and
what a CDB is checked against. A bit that means nothing to us and is set is refused, with a pointer to it, as SPC-4
4.2.5 allows and disks do: what a newer standard makes of it would not be done.

Reads and writes have a way of their own (`quick`), without the check and without a `Call`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import attrs
import msgspec

from vsp_vsc.storage.scsi.answer import (
    Conflict,
    Done,
    Refused,
    ScsiResult,
    Tag,
    Views,
    first_bytes,
    give,
)
from vsp_vsc.storage.scsi.cdb import NACA, name_of
from vsp_vsc.storage.scsi.nexus import Nexus
from vsp_vsc.storage.scsi.reservations import Access
from vsp_vsc.storage.scsi.sense import Reason

if TYPE_CHECKING:
    from vsp_vsc.storage.scsi.unit import LogicalUnit

Starter = Callable[[Any, Nexus, bytes, Views, int, Tag, Done], ScsiResult | None]
"""Carries out a command: the unit, and the arguments of `Nexus.start`."""


class Call(msgspec.Struct, gc=False):
    """One command on its way."""

    nexus: Nexus
    cdb: bytes
    views: Views
    length: int
    """Bytes that the views have."""
    tag: Tag
    done: Done

    def number(self, offset: int, size: int) -> int:
        """A field of the CDB."""
        return int.from_bytes(self.cdb[offset : offset + size], "big")

    def give(self, data: bytes, allocation: int) -> ScsiResult:
        """An answer, as much of it as the allocation length and the buffer allow."""
        return give(data, allocation, self.views, self.length)

    def parameters(self, size: int, *, field: int) -> bytes:
        """Our own copy of the first bytes of the data buffer. `field` is where the CDB says how many they are."""
        if size > self.length:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=field)
        return b"".join(first_bytes(self.views, size))


def _always(_unit: Any) -> bool:
    return True


@attrs.frozen
class Command:
    """A row of the table."""

    cdb: bytes
    """The operation code, then for each byte of the CDB which of its bits mean something."""
    access: Access
    """What other initiators' reservations say of it."""
    run: Callable[[Any, Call], ScsiResult | None]
    """Carries it out: the unit, the call. May raise `Refused` and `Conflict`."""
    action: int | None = None
    """The service action, in the low bits of byte 1, where the operation code alone does not name a command."""
    medium: bool = False
    """Needs the medium: not while the unit is stopped."""
    despite_attention: bool = False
    """Is carried out though there is a unit attention to tell of (SPC-4 5.14)."""
    milder: Callable[[bytes], Access] | None = None
    """For commands whose access depends on their fields."""
    present: Callable[[Any], bool] = _always
    """Whether a unit knows the command at all."""
    quick: Starter | None = None
    """Carries it out without a `Call`, and checks the CDB by itself."""

    @property
    def opcode(self) -> int:
        """Operation code."""
        return self.cdb[0]

    @property
    def name(self) -> str:
        """As the standards write it."""
        return name_of(self.opcode, self.action)

    def access_of(self, cdb: bytes) -> Access:
        """What other initiators' reservations say of this very command."""
        return self.access if self.milder is None else self.milder(cdb)

    @property
    def forbidden(self) -> int:
        """The bits of the CDB, as a number, that must be zero."""
        mask = bytearray(self.cdb)
        mask[0] = 0xFF
        if self.action is not None:
            mask[1] |= 0x1F
        mask[-1] = 0xFF & ~NACA
        return int.from_bytes(mask, "big") ^ ((1 << 8 * len(mask)) - 1)

    def starter(self) -> Starter:
        """The function that is called for this row."""
        return self.quick or functools.partial(_checked, self.run, len(self.cdb), self.forbidden, self.present)


def _checked(
    run: Callable[[Any, Call], ScsiResult | None],
    size: int,
    forbidden: int,
    present: Callable[[Any], bool],
    unit: LogicalUnit,
    nexus: Nexus,
    cdb: bytes,
    views: Views,
    length: int,
    tag: Tag,
    done: Done,
) -> ScsiResult | None:
    try:
        if not present(unit):
            raise Refused(Reason.INVALID_OPCODE, field=0)
        wrong = int.from_bytes(cdb[:size], "big") & forbidden
        if wrong:
            raise _points_at(wrong, size)
        return run(unit, Call(nexus, cdb, views, length, tag, done))
    except Refused as refused:
        return unit.refuse(refused)
    except Conflict:
        return unit.conflict()


def _points_at(wrong: int, size: int) -> Refused:
    """INVALID FIELD IN CDB for the leftmost of some bits."""
    highest = wrong.bit_length() - 1
    return Refused(Reason.INVALID_FIELD_IN_CDB, field=size - 1 - (highest >> 3), bit=highest & 7)


def _unknown(
    unit: LogicalUnit, _nexus: Nexus, _cdb: bytes, _views: Views, _length: int, _tag: Tag, _done: Done
) -> ScsiResult | None:
    return unit.refuse(Refused(Reason.INVALID_OPCODE, field=0))


def _by_action(
    starters: dict[int, Starter],
    unit: LogicalUnit,
    nexus: Nexus,
    cdb: bytes,
    views: Views,
    length: int,
    tag: Tag,
    done: Done,
) -> ScsiResult | None:
    start = starters.get(cdb[1] & 0x1F)
    if start is None:
        return unit.refuse(Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4))
    return start(unit, nexus, cdb, views, length, tag, done)


class CommandSet:
    """All commands of a kind of unit."""

    def __init__(self, rows: Iterable[Command]) -> None:
        self.rows = tuple(sorted(rows, key=lambda row: (row.opcode, row.action or 0)))
        self._found = {(row.opcode, row.action): row for row in self.rows}
        if len(self._found) != len(self.rows):
            raise ValueError("two rows for one command")
        self.with_actions = frozenset(row.opcode for row in self.rows if row.action is not None)
        """Operation codes that do not name a command alone."""
        starters: list[Starter] = [_unknown] * 256
        for row in self.rows:
            if row.action is None:
                starters[row.opcode] = row.starter()
        for opcode in self.with_actions:
            actions = {
                row.action: row.starter() for row in self.rows if row.opcode == opcode and row.action is not None
            }
            starters[opcode] = functools.partial(_by_action, actions)
        self.starters = tuple(starters)
        """By operation code."""

    def find(self, cdb: bytes) -> Command | None:
        """The row of a CDB."""
        return self.row(cdb[0], cdb[1] & 0x1F)

    def row(self, opcode: int, action: int) -> Command | None:
        """The row of an operation code, with the service action if it has those."""
        return self._found.get((opcode, action if opcode in self.with_actions else None))
