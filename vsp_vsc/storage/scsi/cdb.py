"""SCSI commands as bytes: operation codes, CDB layouts, which way data goes, and words for people. Both sides.

SPC-4 and SBC-3; everything is big-endian.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence


class Opcode(enum.IntEnum):
    """The first byte of a CDB, as far as our disks answer it or people want to read it."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    RESERVE_6 = 0x16
    RELEASE_6 = 0x17
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    SEND_DIAGNOSTIC = 0x1D
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    SEEK_10 = 0x2B
    VERIFY_10 = 0x2F
    SYNCHRONIZE_CACHE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    READ_TOC = 0x43
    GET_CONFIGURATION = 0x46
    GET_EVENT_STATUS_NOTIFICATION = 0x4A
    LOG_SENSE = 0x4D
    READ_DISC_INFORMATION = 0x51
    MODE_SELECT_10 = 0x55
    RESERVE_10 = 0x56
    RELEASE_10 = 0x57
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    READ_16 = 0x88
    COMPARE_AND_WRITE = 0x89
    WRITE_16 = 0x8A
    VERIFY_16 = 0x8F
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    VERIFY_12 = 0xAF
    SET_CD_SPEED = 0xBB
    MECHANISM_STATUS = 0xBD


READ_CAPACITY_16, GET_LBA_STATUS = 0x10, 0x12
"""Service actions of SERVICE ACTION IN(16)."""
REPORT_OPERATION_CODES, REPORT_TASK_MANAGEMENT = 0x0C, 0x0D
"""Service actions of MAINTENANCE IN."""


class ReserveIn(enum.IntEnum):
    """Service actions of PERSISTENT RESERVE IN (SPC-4 table 184)."""

    READ_KEYS = 0x00
    READ_RESERVATION = 0x01
    REPORT_CAPABILITIES = 0x02
    READ_FULL_STATUS = 0x03


class ReserveOut(enum.IntEnum):
    """Service actions of PERSISTENT RESERVE OUT (SPC-4 table 198)."""

    REGISTER = 0x00
    RESERVE = 0x01
    RELEASE = 0x02
    CLEAR = 0x03
    PREEMPT = 0x04
    PREEMPT_AND_ABORT = 0x05
    REGISTER_AND_IGNORE = 0x06


class ScsiStatus(enum.IntEnum):
    """How a command ended (SAM-5 table 42)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    TASK_ABORTED = 0x40


class Direction(enum.IntEnum):
    """Which way a command moves data, seen from the initiator; the numbers are those of an SRB's `data_in`."""

    OUT = 0
    IN = 1
    NONE = 2
    """No data, which an SRB may also say of a command that has some: then the command itself says which way."""


# opcode, flags, block, group or reserved, count, control: READ, WRITE and SYNCHRONIZE CACHE have the same shape.
CDB_10 = struct.Struct(">BBIBHB")
CDB_12 = struct.Struct(">BBIIBB")
CDB_16 = struct.Struct(">BBQIBB")
CDB_6 = struct.Struct(">BBBHB")
"""INQUIRY: opcode, EVPD, page, allocation length, control."""
SERVICE_16 = struct.Struct(">BBQIBB")
"""opcode, service action, block, allocation length, flags, control."""
LUNS_12 = struct.Struct(">BxB3xIxB")
"""REPORT LUNS: opcode, select report, allocation length, control."""

UNMAP_10 = struct.Struct(">BB5xHB")
"""opcode, flags, length of the parameter list, control."""
UNMAP_HEADER = struct.Struct(">HH4x")
"""The parameter list of UNMAP: bytes that follow this field, bytes of descriptors."""
UNMAP_DESCRIPTOR = struct.Struct(">QI4x")
"""First block, number of blocks."""

NACA = 0x04
"""In the control byte, which is the last: asks for auto contingent allegiance, which we have not (SAM-5 5.2)."""
FUA = 0x08
"""Force unit access, in the flags of READ and WRITE: the data must be on the medium before the answer."""
DPO = 0x10
"""Disable page out, a hint."""

_IN = {
    Opcode.REQUEST_SENSE,
    Opcode.READ_6,
    Opcode.INQUIRY,
    Opcode.MODE_SENSE_6,
    Opcode.READ_CAPACITY_10,
    Opcode.READ_10,
    Opcode.LOG_SENSE,
    Opcode.MODE_SENSE_10,
    Opcode.PERSISTENT_RESERVE_IN,
    Opcode.READ_16,
    Opcode.SERVICE_ACTION_IN_16,
    Opcode.REPORT_LUNS,
    Opcode.MAINTENANCE_IN,
    Opcode.READ_12,
    # Multimedia commands, for drives.
    Opcode.READ_TOC,
    Opcode.GET_CONFIGURATION,
    Opcode.GET_EVENT_STATUS_NOTIFICATION,
    Opcode.READ_DISC_INFORMATION,
    Opcode.MECHANISM_STATUS,
}
_OUT = {
    Opcode.WRITE_6,
    Opcode.MODE_SELECT_6,
    Opcode.SEND_DIAGNOSTIC,
    Opcode.WRITE_10,
    Opcode.VERIFY_10,
    Opcode.WRITE_SAME_10,
    Opcode.UNMAP,
    Opcode.MODE_SELECT_10,
    Opcode.PERSISTENT_RESERVE_OUT,
    Opcode.COMPARE_AND_WRITE,
    Opcode.WRITE_16,
    Opcode.VERIFY_16,
    Opcode.WRITE_SAME_16,
    Opcode.WRITE_12,
    Opcode.VERIFY_12,
}
_NONE = {
    Opcode.TEST_UNIT_READY,
    Opcode.RESERVE_6,
    Opcode.RELEASE_6,
    Opcode.START_STOP_UNIT,
    Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL,
    Opcode.SYNCHRONIZE_CACHE_10,
    Opcode.RESERVE_10,
    Opcode.RELEASE_10,
    Opcode.SYNCHRONIZE_CACHE_16,
    Opcode.SEEK_10,
    Opcode.SET_CD_SPEED,
}

DIRECTION: tuple[Direction | None, ...] = tuple(
    Direction.IN if code in _IN else Direction.OUT if code in _OUT else Direction.NONE if code in _NONE else None
    for code in range(256)
)
"""By operation code; None where our disks know no such command and the direction does not matter."""


_GROUP_LENGTH = (6, 10, 10, 1, 16, 12, 1, 1)
CDB_LENGTH: tuple[int, ...] = tuple(_GROUP_LENGTH[code >> 5] for code in range(256))
"""By operation code, the bytes that its CDB has (SPC-4 4.2.5.1); 1 where the group has no fixed length."""


def read_cdb(lba: int, blocks: int) -> bytes:
    """READ(10) where the address fits it, else READ(16); 16 bytes either way."""
    if lba + blocks <= 0xFFFF_FFFF and blocks <= 0xFFFF:
        return CDB_10.pack(Opcode.READ_10, 0, lba, 0, blocks, 0) + bytes(6)
    return CDB_16.pack(Opcode.READ_16, 0, lba, blocks, 0, 0)


def write_cdb(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """WRITE(10) where the address fits it, else WRITE(16); 16 bytes either way."""
    flags = FUA if fua else 0
    if lba + blocks <= 0xFFFF_FFFF and blocks <= 0xFFFF:
        return CDB_10.pack(Opcode.WRITE_10, flags, lba, 0, blocks, 0) + bytes(6)
    return CDB_16.pack(Opcode.WRITE_16, flags, lba, blocks, 0, 0)


def unmap_cdb(parameters: int) -> bytes:
    """UNMAP with so many bytes of parameters."""
    return UNMAP_10.pack(Opcode.UNMAP, 0, parameters, 0) + bytes(6)


def unmap_parameters(ranges: Sequence[tuple[int, int]]) -> bytes:
    """The parameter list of UNMAP for ranges of (block, count)."""
    size = UNMAP_DESCRIPTOR.size * len(ranges)
    return UNMAP_HEADER.pack(size + 6, size) + b"".join(UNMAP_DESCRIPTOR.pack(lba, count) for lba, count in ranges)


def inquiry_cdb(length: int, page: int | None = None) -> bytes:
    """INQUIRY, of a vital product data page if one is given."""
    return CDB_6.pack(Opcode.INQUIRY, page is not None, page or 0, length, 0).ljust(16, b"\0")


def report_luns_cdb(length: int) -> bytes:
    """REPORT LUNS of all logical units."""
    return LUNS_12.pack(Opcode.REPORT_LUNS, 0, length, 0).ljust(16, b"\0")


def read_capacity_10_cdb() -> bytes:
    """READ CAPACITY(10)."""
    return bytes((Opcode.READ_CAPACITY_10,)).ljust(16, b"\0")


def read_capacity_16_cdb(length: int) -> bytes:
    """READ CAPACITY(16)."""
    return SERVICE_16.pack(Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16, 0, length, 0, 0)


def mode_sense_6_cdb(page: int, length: int) -> bytes:
    """MODE SENSE(6) of current values, without block descriptors."""
    return bytes((Opcode.MODE_SENSE_6, 0x08, page, 0, length, 0)).ljust(16, b"\0")


def synchronize_cache_cdb() -> bytes:
    """SYNCHRONIZE CACHE(10) of the whole disk."""
    return CDB_10.pack(Opcode.SYNCHRONIZE_CACHE_10, 0, 0, 0, 0, 0) + bytes(6)


_NAMES: dict[tuple[int, int | None], str] = {
    (Opcode.PREVENT_ALLOW_MEDIUM_REMOVAL, None): "PREVENT ALLOW MEDIUM REMOVAL",
    (Opcode.SERVICE_ACTION_IN_16, READ_CAPACITY_16): "READ CAPACITY(16)",
    (Opcode.SERVICE_ACTION_IN_16, GET_LBA_STATUS): "GET LBA STATUS",
    (Opcode.MAINTENANCE_IN, REPORT_OPERATION_CODES): "REPORT SUPPORTED OPERATION CODES",
    (Opcode.MAINTENANCE_IN, REPORT_TASK_MANAGEMENT): "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
    **{
        (Opcode.PERSISTENT_RESERVE_IN, action): f"PERSISTENT RESERVE IN {action.name.replace('_', ' ')}"
        for action in ReserveIn
    },
    **{
        (Opcode.PERSISTENT_RESERVE_OUT, action): f"PERSISTENT RESERVE OUT {action.name.replace('_', ' ')}"
        for action in ReserveOut
    },
}
_WITH_FUA = {Opcode.READ_10, Opcode.WRITE_10, Opcode.READ_12, Opcode.WRITE_12, Opcode.READ_16, Opcode.WRITE_16}
_WITH_ACTIONS = frozenset(opcode for opcode, action in _NAMES if action is not None)


def name_of(opcode: int, action: int | None = None) -> str:
    """A command's name as the standards write it, by its service action where it has one: `READ(10)`."""
    try:
        known = Opcode(opcode)
    except ValueError:
        return f"command {opcode:02X}h"
    special = _NAMES.get((known, action)) or _NAMES.get((known, None))
    if special is not None:
        return special
    words = known.name.split("_")
    size = f"({words.pop()})" if words[-1].isdigit() else ""
    name = " ".join(words) + size
    return name if action is None else f"{name} action={action:02X}h"


def describe_cdb(cdb: bytes) -> str:
    """A CDB in words: `SCSI READ(10) lba=0 blocks=8`. Any bytes are fine."""
    if not cdb:
        return "SCSI empty CDB"
    opcode = cdb[0]
    padded = cdb[:16].ljust(16, b"\0")
    words = f"SCSI {name_of(opcode, padded[1] & 0x1F if opcode in _WITH_ACTIONS else None)}"
    flags = 0
    match opcode:
        case Opcode.READ_6 | Opcode.WRITE_6:
            lba, blocks = int.from_bytes(padded[1:4], "big") & 0x1F_FFFF, padded[4] or 256
        case Opcode.READ_10 | Opcode.WRITE_10 | Opcode.SYNCHRONIZE_CACHE_10 | Opcode.VERIFY_10 | Opcode.WRITE_SAME_10:
            _, flags, lba, _, blocks, _ = CDB_10.unpack_from(padded)
        case Opcode.READ_12 | Opcode.WRITE_12 | Opcode.VERIFY_12:
            _, flags, lba, blocks, _, _ = CDB_12.unpack_from(padded)
        case Opcode.READ_16 | Opcode.WRITE_16 | Opcode.SYNCHRONIZE_CACHE_16 | Opcode.VERIFY_16 | Opcode.WRITE_SAME_16:
            _, flags, lba, blocks, _, _ = CDB_16.unpack_from(padded)
        case Opcode.COMPARE_AND_WRITE:
            lba, blocks = int.from_bytes(padded[2:10], "big"), padded[13]
        case Opcode.UNMAP:
            return f"{words} parameters={UNMAP_10.unpack_from(padded)[2]}"
        case Opcode.INQUIRY if padded[1] & 1:
            return f"{words} page={padded[2]:02X}h"
        case Opcode.MODE_SENSE_6 | Opcode.MODE_SENSE_10 | Opcode.LOG_SENSE:
            return f"{words} page={padded[2] & 0x3F:02X}h"
        case _:
            return words
    fua = " fua" if flags & FUA and opcode in _WITH_FUA else ""
    return f"{words} lba={lba} blocks={blocks}{fua}"
