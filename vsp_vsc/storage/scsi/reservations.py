"""Who may do what to a unit: persistent reservations, and RESERVE and RELEASE as before them. Root side.

SPC-4 5.13. No bytes here: `reserve.py` has those. Initiators are known by name, so registrations outlive the nexus
through which they were made; they end with the unit (APTPL is refused).

The table of what a reservation keeps out is `_BARRED`.
"""

from __future__ import annotations

import enum

import attrs

from hypervisor.inspect import Branch, Hex
from vsp_vsc.storage.scsi.answer import Conflict, Refused
from vsp_vsc.storage.scsi.sense import Reason

MAX_REGISTRATIONS = 256
"""Initiators with a key; a guest is one, so only other front ends come near it."""


class Access(enum.Enum):
    """What a command is to a reservation that another initiator has."""

    FREE = "free"
    """Never in conflict."""
    STATUS = "status"
    """In conflict with RESERVE alone: it tells of the unit, not of the medium."""
    READ = "read"
    """Looks at the medium, or at settings."""
    WRITE = "write"
    """Changes the medium, or settings, or could."""


class Kind(enum.IntEnum):
    """Types of persistent reservation (SPC-4 table 56)."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS = 0x6
    WRITE_EXCLUSIVE_ALL = 0x7
    EXCLUSIVE_ACCESS_ALL = 0x8

    @property
    def for_registrants(self) -> bool:
        """Whether all who are registered may do everything."""
        return self not in (Kind.WRITE_EXCLUSIVE, Kind.EXCLUSIVE_ACCESS)

    @property
    def held_by_all(self) -> bool:
        """Whether all who are registered hold the reservation."""
        return self in (Kind.WRITE_EXCLUSIVE_ALL, Kind.EXCLUSIVE_ACCESS_ALL)


_WRITES, _ALL_BUT_STATUS = frozenset({Access.WRITE}), frozenset({Access.READ, Access.WRITE})
_BARRED = {
    Kind.WRITE_EXCLUSIVE: _WRITES,
    Kind.EXCLUSIVE_ACCESS: _ALL_BUT_STATUS,
    Kind.WRITE_EXCLUSIVE_REGISTRANTS: _WRITES,
    Kind.EXCLUSIVE_ACCESS_REGISTRANTS: _ALL_BUT_STATUS,
    Kind.WRITE_EXCLUSIVE_ALL: _WRITES,
    Kind.EXCLUSIVE_ACCESS_ALL: _ALL_BUT_STATUS,
}
"""What a reservation keeps out who neither holds it nor is one of its registrants (SPC-4 table 63, SBC-3 table 13)."""
_BARRED_OLD_STYLE = _ALL_BUT_STATUS | {Access.STATUS}
"""The same for RESERVE (SPC-2 tables 11 and B.1)."""


@attrs.frozen
class Outcome:
    """What a change means for others."""

    told: dict[str, Reason] = attrs.Factory(dict)
    """By initiator, the unit attention that it gets."""
    preempted: frozenset[str] = frozenset()
    """Initiators whose commands PREEMPT AND ABORT aborts."""


_NOTHING = Outcome()


class Reservations:
    """One unit's. Changes raise `Conflict` and `Refused`, and have changed nothing then."""

    def __init__(self) -> None:
        self.generation = 0
        """PRGENERATION, 32 bits."""
        self.keys: dict[str, int] = {}
        """By initiator, its key; in the order of registration."""
        self.transport_ids: dict[str, bytes] = {}
        """By initiator that has a key."""
        self.kind: Kind | None = None
        """Of the persistent reservation, if there is one."""
        self._holder: str | None = None
        """Who holds it, where not all do."""
        self.reserved_by: str | None = None
        """Who has the unit by RESERVE."""

    @property
    def any(self) -> bool:
        """Whether anyone can be in conflict."""
        return self.kind is not None or self.reserved_by is not None

    def inspect(self) -> Branch:
        """Who is registered, and who has what."""
        return Branch(
            {
                "generation": self.generation,
                "persistent": None if self.kind is None else self.kind.name.lower(),
                "holder": "all registrants" if self.kind is not None and self.kind.held_by_all else self._holder,
                "reserved_by": self.reserved_by,
                "keys": Branch({initiator: Hex(key) for initiator, key in self.keys.items()}),
            }
        )

    def holds(self, initiator: str) -> bool:
        """Whether it holds the persistent reservation, perhaps with others."""
        if self.kind is None:
            return False
        return initiator in self.keys if self.kind.held_by_all else initiator == self._holder

    @property
    def holder_key(self) -> int:
        """The key that READ RESERVATION tells; 0 where all registrants hold it."""
        return self.keys[self._holder] if self._holder is not None else 0

    def bars(self, initiator: str, access: Access) -> bool:
        """Whether a command is in conflict."""
        if self.reserved_by is not None:
            return initiator != self.reserved_by and access in _BARRED_OLD_STYLE
        if self.kind is None or access not in _BARRED[self.kind] or self.holds(initiator):
            return False
        return not (self.kind.for_registrants and initiator in self.keys)

    # --- registering

    def register(self, initiator: str, transport_id: bytes, key: int, new_key: int, *, ignore: bool) -> Outcome:
        """REGISTER, and to `ignore` the key that it has, 0 for none, REGISTER AND IGNORE; `new_key` 0 ends it."""
        if not ignore and key != self.keys.get(initiator, 0):
            raise Conflict
        if not new_key:
            if initiator not in self.keys:
                return _NOTHING
            self._advance()
            return self._end_registrations({initiator}, but=initiator)
        if initiator not in self.keys and len(self.keys) >= MAX_REGISTRATIONS:
            raise Refused(Reason.NO_ROOM_TO_REGISTER)
        self.keys[initiator] = new_key
        self.transport_ids[initiator] = transport_id
        self._advance()
        return _NOTHING

    def _end_registrations(self, gone: set[str], *, but: str) -> Outcome:
        """Without their registration, holders hold no longer; `but` needs not be told."""
        kind, held = self.kind, any(self.holds(initiator) for initiator in gone)
        for initiator in gone:
            del self.keys[initiator], self.transport_ids[initiator]
        if kind is None or not held or (kind.held_by_all and self.keys):
            return _NOTHING
        self.kind = self._holder = None
        return self._tell_registrants(Reason.RESERVATIONS_RELEASED, but) if kind.for_registrants else _NOTHING

    # --- reserving

    def reserve(self, initiator: str, key: int, kind: Kind) -> Outcome:
        """RESERVE. Once more by who holds it is fine if it is the same."""
        self._check(initiator, key)
        if self.kind is None:
            self._take(initiator, kind)
        elif self.kind is not kind or not self.holds(initiator):
            raise Conflict
        return _NOTHING

    def release(self, initiator: str, key: int, kind: Kind | None) -> Outcome:
        """RELEASE; by others than who holds it it does nothing. `kind` None is one that there is not."""
        self._check(initiator, key)
        if not self.holds(initiator):
            return _NOTHING
        assert self.kind is not None, "it is held"
        if kind is not self.kind:
            raise Refused(Reason.INVALID_RELEASE)
        self.kind = self._holder = None
        return self._tell_registrants(Reason.RESERVATIONS_RELEASED, initiator) if kind.for_registrants else _NOTHING

    def clear(self, initiator: str, key: int) -> Outcome:
        """CLEAR: no reservation, no registrations."""
        self._check(initiator, key)
        outcome = self._tell_registrants(Reason.RESERVATIONS_PREEMPTED, initiator)
        self.keys.clear()
        self.transport_ids.clear()
        self.kind = self._holder = None
        self._advance()
        return outcome

    def preempt(self, initiator: str, key: int, victim: int, kind: Kind | None) -> Outcome:
        """PREEMPT: who has the key `victim` loses its registration; a reservation that is theirs is taken over.

        `kind` is of the new reservation; it matters only if one is made.
        """
        self._check(initiator, key)
        if self._takes_over(victim):
            if kind is None:
                raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2, bit=3)
            return self._take_over(initiator, victim, kind)
        if not victim:
            raise Refused(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=8, in_data=True)
        gone = {other for other, has in self.keys.items() if has == victim}
        if not gone:
            raise Conflict
        released = self._end_registrations(gone, but=initiator)
        self._advance()
        told = {**released.told, **dict.fromkeys(gone - {initiator}, Reason.REGISTRATIONS_PREEMPTED)}
        return Outcome(told, frozenset(gone - {initiator}))

    def _takes_over(self, victim: int) -> bool:
        """Whether a PREEMPT of this key concerns the reservation itself (SPC-4 figure 9)."""
        if self.kind is None:
            return False
        return not victim if self.kind.held_by_all else victim == self.holder_key

    def _take_over(self, initiator: str, victim: int, kind: Kind) -> Outcome:
        changed = kind is not self.kind
        gone = {other for other, has in self.keys.items() if other != initiator and victim in (0, has)}
        for other in gone:
            del self.keys[other], self.transport_ids[other]
        self._take(initiator, kind)
        self._advance()
        told = dict.fromkeys(gone, Reason.REGISTRATIONS_PREEMPTED)
        if changed:
            told.update(self._tell_registrants(Reason.RESERVATIONS_RELEASED, initiator).told)
        return Outcome(told, frozenset(gone))

    def _take(self, initiator: str, kind: Kind) -> None:
        self.kind = kind
        self._holder = None if kind.held_by_all else initiator

    def _check(self, initiator: str, key: int) -> None:
        """All but registering is for those who are registered, and know it."""
        if self.keys.get(initiator) != key:
            raise Conflict

    def _tell_registrants(self, reason: Reason, but: str) -> Outcome:
        return Outcome({initiator: reason for initiator in self.keys if initiator != but})

    def _advance(self) -> None:
        self.generation = (self.generation + 1) & 0xFFFF_FFFF

    # --- as before persistent reservations

    def reserve_old_style(self, initiator: str) -> None:
        """RESERVE(6) and (10). Those who reserve persistently need it not: it does nothing for them (SPC-3, CRH)."""
        if self.keys:
            if initiator not in self.keys or (self.kind is not None and not self.holds(initiator)):
                raise Conflict
            return
        if self.reserved_by not in (None, initiator):
            raise Conflict
        self.reserved_by = initiator

    def release_old_style(self, initiator: str) -> None:
        """RELEASE(6) and (10); by others than who has reserved it does nothing."""
        if self.keys and initiator not in self.keys:
            raise Conflict
        if self.reserved_by == initiator:
            self.reserved_by = None

    def forget_old_style(self) -> None:
        """A reset ends what RESERVE began."""
        self.reserved_by = None

    def lose(self, initiator: str) -> None:
        """So does the loss of the nexus."""
        if self.reserved_by == initiator:
            self.reserved_by = None
