"""Commands that every kind of unit answers alike (SPC-4): what it is, how it is set, what it can do. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsp_vsc.storage.scsi.answer import GOOD, Refused, ScsiResult
from vsp_vsc.storage.scsi.cdb import LUNS_12, Opcode
from vsp_vsc.storage.scsi.commands import Command
from vsp_vsc.storage.scsi.reservations import Access
from vsp_vsc.storage.scsi.sense import Reason, descriptor_sense, fixed_sense

if TYPE_CHECKING:
    from vsp_vsc.storage.scsi.commands import Call
    from vsp_vsc.storage.scsi.unit import LogicalUnit

_SPC_3 = 0x05
_SUPPORTED_LOG_PAGES, _START_STOP_LOG = 0x00, 0x0E
_TASK_MANAGEMENT = 0x80 | 0x40 | 0x08, 0x01
"""ABORT TASK, ABORT TASK SET, LOGICAL UNIT RESET; I_T NEXUS RESET (SPC-4 table 254)."""


def unit_ready(_unit: LogicalUnit, _call: Call) -> ScsiResult:
    """Nothing speaks against it, or it would not have come here."""
    return GOOD


def request_sense(unit: LogicalUnit, call: Call) -> ScsiResult:
    """A unit attention, which is told by that, or the state; other failures carried their sense data with them."""
    reason = call.nexus.next_attention() or (Reason.STOPPED if unit.stopped else Reason.NO_SENSE)
    return call.give(descriptor_sense(reason) if call.cdb[1] & 1 else fixed_sense(reason), call.cdb[4])


# --- INQUIRY


def inquiry(unit: LogicalUnit, call: Call) -> ScsiResult:
    """What the unit is: in short, or a page of vital product data."""
    page, allocation = call.cdb[2], call.number(3, 2)
    if not call.cdb[1] & 1:
        if page:
            raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2)
        return call.give(
            standard_inquiry(unit.device_type, unit.vendor, unit.product, unit.revision, removable=unit.removable),
            allocation,
        )
    pages = unit.vital_pages()
    if page not in pages:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2)
    body = pages[page]
    return call.give(bytes((unit.device_type, page)) + len(body).to_bytes(2, "big") + body, allocation)


def standard_inquiry(device: int, vendor: bytes, product: bytes, revision: bytes, *, removable: bool = False) -> bytes:
    """36 bytes: SPC-3, response format 2, command queueing."""
    return bytes((device, 0x80 if removable else 0, _SPC_3, 2, 31, 0, 0, 0x02)) + vendor + product + revision


def vital_pages(unit: LogicalUnit, more: dict[int, bytes]) -> dict[int, bytes]:
    """Pages of vital product data by number, without their headers: the list of them, names, and those of a kind."""
    serial = unit.serial.encode("ascii")
    name = unit.vendor + serial
    identification = bytes((0x02, 0x01, 0, len(name))) + name  # T10 vendor ID based, in ASCII, of this unit
    identification += bytes((0x01, 0x03, 0, len(unit.wwn))) + unit.wwn  # NAA, locally assigned
    pages = {0x00: b"", 0x80: serial, 0x83: identification, **more}
    return {**pages, 0x00: bytes(sorted(pages))}


# --- MODE SENSE and MODE SELECT


def mode_sense_6(unit: LogicalUnit, call: Call) -> ScsiResult:
    """MODE SENSE(6)."""
    pages = unit.modes.sense(call.cdb[2] >> 6, call.cdb[2] & 0x3F, call.cdb[3])
    descriptor = b"" if call.cdb[1] & 0x08 else unit.block_descriptor(long=False)
    data = bytes((unit.medium_type, unit.device_specific(), len(descriptor))) + descriptor + pages
    return call.give(bytes((len(data),)) + data, call.cdb[4])


def mode_sense_10(unit: LogicalUnit, call: Call) -> ScsiResult:
    """MODE SENSE(10), with a block descriptor of 16 bytes if the initiator takes it (LLBAA)."""
    pages = unit.modes.sense(call.cdb[2] >> 6, call.cdb[2] & 0x3F, call.cdb[3])
    long = bool(call.cdb[1] & 0x10)
    descriptor = b"" if call.cdb[1] & 0x08 else unit.block_descriptor(long=long)
    data = bytes((unit.medium_type, unit.device_specific(), long and bool(descriptor), 0))
    data += len(descriptor).to_bytes(2, "big") + descriptor + pages
    return call.give(len(data).to_bytes(2, "big") + data, call.number(7, 2))


def mode_select(unit: LogicalUnit, call: Call) -> ScsiResult:
    """MODE SELECT(6) and (10): all of the list is checked before any of it is done."""
    ten = call.cdb[0] == Opcode.MODE_SELECT_10
    if call.cdb[1] & 0x01:  # SP: nothing is saved
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=0)
    size = call.number(7, 2) if ten else call.cdb[4]
    if not size:
        return GOOD
    if not call.cdb[1] & 0x10:  # PF: what follows is of no standard
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4)
    untrusted = call.parameters(size, field=7 if ten else 4)
    header = 8 if ten else 4
    if size < header:
        raise Refused(Reason.PARAMETER_LIST_LENGTH_ERROR)
    if untrusted[2 if ten else 1] != unit.medium_type:
        raise Refused(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=2 if ten else 1, in_data=True)
    long = ten and bool(untrusted[4] & 1)
    length_at = 6 if ten else 3
    described = int.from_bytes(untrusted[length_at:header], "big")
    if header + described > size:
        raise Refused(Reason.PARAMETER_LIST_LENGTH_ERROR)
    if described and not _says_the_same(untrusted[header : header + described], unit.block_descriptor(long=long)):
        raise Refused(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=header, in_data=True)
    if unit.modes.select(untrusted[header + described :], header + described):
        unit.modes_changed()
        unit.attend(Reason.MODE_PARAMETERS_CHANGED, but=call.nexus)
    return ScsiResult(0, b"", size)


def _says_the_same(untrusted_descriptor: bytes, ours: bytes) -> bool:
    """Whether a block descriptor asks for the size and number of blocks that there are, or leaves the number open."""
    if len(untrusted_descriptor) != len(ours):
        return False
    number = 8 if len(ours) == 16 else 4
    asked = untrusted_descriptor[:number]
    return untrusted_descriptor[-3:] == ours[-3:] and asked in (ours[:number], bytes(number), b"\xff" * number)


# --- LOG SENSE


def log_sense(unit: LogicalUnit, call: Call) -> ScsiResult:
    """The list of pages, and how often the unit was started."""
    if call.cdb[1] & 0x01:  # SP: nothing is saved
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=0)
    page, subpage, pointer = call.cdb[2] & 0x3F, call.cdb[3], call.number(5, 2)
    pages = {
        _SUPPORTED_LOG_PAGES: bytes((_SUPPORTED_LOG_PAGES, _START_STOP_LOG)),
        # SPC-4 7.3.20: accumulated start-stop cycles, a binary number in a list.
        _START_STOP_LOG: bytes((0, 0x04, 0x03, 4)) + (unit.starts & 0xFFFF_FFFF).to_bytes(4, "big"),
    }
    if page not in pages:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)
    if subpage:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=3)
    if pointer > (0x04 if page == _START_STOP_LOG else 0):
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=5)
    body = pages[page]
    return call.give(bytes((page, 0)) + len(body).to_bytes(2, "big") + body, call.number(7, 2))


# --- what it can do


def report_operation_codes(unit: LogicalUnit, call: Call) -> ScsiResult:
    """REPORT SUPPORTED OPERATION CODES: the table of commands, all of it or one row."""
    timeouts, options = bool(call.cdb[2] & 0x80), call.cdb[2] & 7
    allocation = call.number(6, 4)
    if not options:
        listed = b"".join(_described(row, timeouts) for row in unit.commands.rows if row.present(unit))
        return call.give(len(listed).to_bytes(4, "big") + listed, allocation)
    opcode, action = call.cdb[3], call.number(4, 2)
    has_actions = opcode in unit.commands.with_actions
    if options > 3:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2, bit=2)
    known = any(row.opcode == opcode for row in unit.commands.rows)
    if known and options != 3 and has_actions != (options == 2):
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2, bit=2)
    row = unit.commands.row(opcode, action) if has_actions or options == 1 or not action else None
    if row is None or not row.present(unit):
        return call.give(bytes((0, 0x01, 0, 0)), allocation)
    usage = bytearray(row.cdb)
    if row.action is not None:
        usage[1] |= row.action
    data = bytes((0, (0x80 if timeouts else 0) | 0x03)) + len(usage).to_bytes(2, "big") + usage
    return call.give(data + (_NO_TIMEOUTS if timeouts else b""), allocation)


_NO_TIMEOUTS = (0x0A).to_bytes(2, "big") + bytes(10)
"""A command timeouts descriptor that names none."""


def _described(row: Command, timeouts: bool) -> bytes:
    """A command descriptor of REPORT SUPPORTED OPERATION CODES (SPC-4 table 243)."""
    flags = (0x02 if timeouts else 0) | (0x01 if row.action is not None else 0)
    data = bytes((row.opcode, 0)) + (row.action or 0).to_bytes(2, "big") + bytes((0, flags, 0, len(row.cdb)))
    return data + (_NO_TIMEOUTS if timeouts else b"")


def report_task_management(_unit: LogicalUnit, call: Call) -> ScsiResult:
    """REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, of which there are those of `Nexus` and `LogicalUnit.reset`."""
    data = bytes(_TASK_MANAGEMENT)
    extended = call.cdb[2] & 0x80
    return call.give(data + (bytes((0, 12)) + bytes(12) if extended else bytes(2)), call.number(6, 4))


def report_luns(_unit: LogicalUnit, call: Call) -> ScsiResult:
    """REPORT LUNS as far as one unit can say. A front end that has several answers for all: `target.report_luns`."""
    _, select, allocation, _ = LUNS_12.unpack_from(call.cdb)
    if select > 2:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2)
    call.nexus.forget(Reason.REPORTED_LUNS_DATA_HAS_CHANGED)
    entries = b"" if select == 1 else bytes(8)
    return call.give(len(entries).to_bytes(4, "big") + bytes(4) + entries, allocation)


def send_diagnostic(_unit: LogicalUnit, call: Call) -> ScsiResult:
    """SEND DIAGNOSTIC: the default self-test, which finds nothing; there are no diagnostic pages."""
    code, size = call.cdb[1] >> 5, call.number(3, 2)
    if code:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7)
    if size:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=3)
    return GOOD


def prevent_allow(unit: LogicalUnit, call: Call) -> ScsiResult:
    """PREVENT ALLOW MEDIUM REMOVAL: who wants the medium to stay is noted; a disk's does anyhow."""
    if call.cdb[4] & 1:
        unit.preventing.add(call.nexus)
    else:
        unit.preventing.discard(call.nexus)
    return GOOD


def _prevent_access(cdb: bytes) -> Access:
    return Access.WRITE if cdb[4] & 3 else Access.FREE


def row(usage: str, access: Access, run: object, **more: object) -> Command:
    """A row of a table of commands; `usage` is its CDB in hexadecimal, each byte's meaningful bits set."""
    return Command(bytes.fromhex(usage), access, run, **more)  # type: ignore[arg-type]


PRIMARY_COMMANDS = (
    row("00 00 00 00 00 00", Access.STATUS, unit_ready, medium=True),
    row("03 01 00 00 FF 00", Access.FREE, request_sense, despite_attention=True),
    row("12 01 FF FF FF 00", Access.FREE, inquiry, despite_attention=True),
    row("15 11 00 00 FF 00", Access.WRITE, mode_select),
    row("1A 08 FF FF FF 00", Access.READ, mode_sense_6),
    row("1D F4 00 FF FF 00", Access.WRITE, send_diagnostic),
    row("1E 00 00 00 01 00", Access.WRITE, prevent_allow, milder=_prevent_access),
    row("4D 01 FF FF 00 FF FF FF FF 00", Access.FREE, log_sense),
    row("55 11 00 00 00 00 00 FF FF 00", Access.WRITE, mode_select),
    row("5A 18 FF FF 00 00 00 FF FF 00", Access.READ, mode_sense_10),
    row("A0 00 FF 00 00 00 FF FF FF FF 00 00", Access.FREE, report_luns, despite_attention=True),
    row("A3 00 87 FF FF FF FF FF FF FF 00 00", Access.READ, report_operation_codes, action=0x0C),
    row("A3 00 80 00 00 00 FF FF FF FF 00 00", Access.READ, report_task_management, action=0x0D),
)
