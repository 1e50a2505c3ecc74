"""PERSISTENT RESERVE IN and OUT, RESERVE and RELEASE as bytes (SPC-4 6.15, 6.16). Root side.

What is kept is in `reservations.py`. It does not outlive the unit: APTPL is refused. Keys are registered for the
initiator that sends the command, not for others (SPEC_I_PT) nor at other ports (ALL_TG_PT): there is one port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsp_vsc.storage.scsi.answer import GOOD, Refused, ScsiResult
from vsp_vsc.storage.scsi.cdb import ReserveIn, ReserveOut
from vsp_vsc.storage.scsi.primary import row
from vsp_vsc.storage.scsi.reservations import Access, Kind, Outcome
from vsp_vsc.storage.scsi.sense import Reason

if TYPE_CHECKING:
    from vsp_vsc.storage.scsi.commands import Call
    from vsp_vsc.storage.scsi.unit import LogicalUnit

_PARAMETERS = 24
"""Bytes of the parameter list of PERSISTENT RESERVE OUT."""
_FLAGS_AT = 20
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01
_CRH, _TMV = 0x10, 0x80
_R_HOLDER = 0x01
_PORT = 1
"""Relative target port identifier of the only one."""
_KINDS_MASK = sum(1 << kind for kind in Kind)


# --- PERSISTENT RESERVE IN


def read_keys(unit: LogicalUnit, call: Call) -> ScsiResult:
    """READ KEYS: of all who are registered."""
    return _listed(unit, call, b"".join(key.to_bytes(8, "big") for key in unit.reservations.keys.values()))


def read_reservation(unit: LogicalUnit, call: Call) -> ScsiResult:
    """READ RESERVATION: the one that there is."""
    held = unit.reservations
    if held.kind is None:
        return _listed(unit, call, b"")
    return _listed(unit, call, held.holder_key.to_bytes(8, "big") + bytes(5) + bytes((held.kind,)) + bytes(2))


def report_capabilities(_unit: LogicalUnit, call: Call) -> ScsiResult:
    """REPORT CAPABILITIES: all types; RESERVE by who has registered does nothing (CRH)."""
    mask = bytes((_KINDS_MASK & 0xFF, _KINDS_MASK >> 8))
    return call.give(bytes((0, 8, _CRH, _TMV)) + mask + bytes(2), call.number(7, 2))


def read_full_status(unit: LogicalUnit, call: Call) -> ScsiResult:
    """READ FULL STATUS: everyone with a key, by name."""
    held = unit.reservations
    data = b""
    for initiator, key in held.keys.items():
        holds = held.holds(initiator)
        name = held.transport_ids[initiator]
        kind = held.kind if holds and held.kind is not None else 0
        data += key.to_bytes(8, "big") + bytes(4) + bytes((_R_HOLDER if holds else 0, kind)) + bytes(4)
        data += _PORT.to_bytes(2, "big") + len(name).to_bytes(4, "big") + name
    return _listed(unit, call, data)


def _listed(unit: LogicalUnit, call: Call, data: bytes) -> ScsiResult:
    header = unit.reservations.generation.to_bytes(4, "big") + len(data).to_bytes(4, "big")
    return call.give(header + data, call.number(7, 2))


# --- PERSISTENT RESERVE OUT


def reserve_out(unit: LogicalUnit, call: Call) -> ScsiResult:
    """All service actions: their parameters are alike."""
    action = ReserveOut(call.cdb[1] & 0x1F)
    held, initiator = unit.reservations, call.nexus.initiator
    key, other_key = _parameters(call, action)
    match action:
        case ReserveOut.REGISTER | ReserveOut.REGISTER_AND_IGNORE:
            ignore = action is ReserveOut.REGISTER_AND_IGNORE
            outcome = held.register(initiator, call.nexus.transport_id, key, other_key, ignore=ignore)
        case ReserveOut.RESERVE:
            outcome = held.reserve(initiator, key, _kind(call))
        case ReserveOut.RELEASE:
            outcome = held.release(initiator, key, _kind_or_none(call))
        case ReserveOut.CLEAR:
            outcome = held.clear(initiator, key)
        case ReserveOut.PREEMPT | ReserveOut.PREEMPT_AND_ABORT:
            outcome = held.preempt(initiator, key, other_key, _kind_or_none(call))
    _tell(unit, outcome, abort=action is ReserveOut.PREEMPT_AND_ABORT)
    return ScsiResult(0, b"", _PARAMETERS)


def _parameters(call: Call, action: ReserveOut) -> tuple[int, int]:
    """Reservation key and service action reservation key of the parameter list."""
    size = call.number(5, 4)
    if size != _PARAMETERS:
        raise Refused(Reason.PARAMETER_LIST_LENGTH_ERROR)
    untrusted = call.parameters(size, field=5)
    flags = untrusted[_FLAGS_AT]
    registers = action in (ReserveOut.REGISTER, ReserveOut.REGISTER_AND_IGNORE)
    for flag in (_SPEC_I_PT, _ALL_TG_PT, _APTPL):
        if flags & flag and registers:
            bit = flag.bit_length() - 1
            raise Refused(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=_FLAGS_AT, bit=bit, in_data=True)
    return int.from_bytes(untrusted[:8], "big"), int.from_bytes(untrusted[8:16], "big")


def _kind(call: Call) -> Kind:
    kind = _kind_or_none(call)
    if kind is None:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2, bit=7 if call.cdb[2] >> 4 else 3)
    return kind


def _kind_or_none(call: Call) -> Kind | None:
    """What byte 2 says: scope, which can only be the logical unit, and type."""
    try:
        return Kind(call.cdb[2])
    except ValueError:
        return None


def _tell(unit: LogicalUnit, outcome: Outcome, *, abort: bool) -> None:
    for initiator, reason in outcome.told.items():
        nexus = unit.nexuses.get(initiator)
        if nexus is not None:
            nexus.attend(reason)
    if abort:
        for initiator in outcome.preempted:
            nexus = unit.nexuses.get(initiator)
            if nexus is not None:
                nexus.abort_all()
    unit.look_at_all()


# --- as before them


def reserve_old_style(unit: LogicalUnit, call: Call) -> ScsiResult:
    """RESERVE(6) and (10), of a whole unit and for oneself."""
    unit.reservations.reserve_old_style(call.nexus.initiator)
    unit.look_at_all()
    return GOOD


def release_old_style(unit: LogicalUnit, call: Call) -> ScsiResult:
    """RELEASE(6) and (10)."""
    unit.reservations.release_old_style(call.nexus.initiator)
    unit.look_at_all()
    return GOOD


_IN, _OUT = "5E 00 00 00 00 00 00 FF FF 00", "5F 00 FF 00 00 FF FF FF FF 00"
RESERVE_COMMANDS = (
    row("16 00 00 00 00 00", Access.FREE, reserve_old_style),
    row("17 00 00 00 00 00", Access.FREE, release_old_style),
    row("56 00 00 00 00 00 00 00 00 00", Access.FREE, reserve_old_style),
    row("57 00 00 00 00 00 00 00 00 00", Access.FREE, release_old_style),
    row(_IN, Access.STATUS, read_keys, action=ReserveIn.READ_KEYS),
    row(_IN, Access.STATUS, read_reservation, action=ReserveIn.READ_RESERVATION),
    row(_IN, Access.STATUS, report_capabilities, action=ReserveIn.REPORT_CAPABILITIES),
    row(_IN, Access.STATUS, read_full_status, action=ReserveIn.READ_FULL_STATUS),
    # Who may do these depends on keys, which the commands themselves look at. Scope and type, in byte 2, are to be
    # ignored where they say nothing, so they are not checked there.
    row(_OUT, Access.STATUS, reserve_out, action=ReserveOut.REGISTER),
    row(_OUT, Access.STATUS, reserve_out, action=ReserveOut.RESERVE),
    row(_OUT, Access.STATUS, reserve_out, action=ReserveOut.RELEASE),
    row(_OUT, Access.STATUS, reserve_out, action=ReserveOut.CLEAR),
    row(_OUT, Access.STATUS, reserve_out, action=ReserveOut.PREEMPT),
    row(_OUT, Access.STATUS, reserve_out, action=ReserveOut.PREEMPT_AND_ABORT),
    row(_OUT, Access.STATUS, reserve_out, action=ReserveOut.REGISTER_AND_IGNORE),
)
