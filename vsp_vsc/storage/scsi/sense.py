"""Sense data: why a SCSI command failed, as bytes and as words. Both sides.

Fixed format (SPC-4 4.5.3), which is what initiators get unless they ask for descriptors, and descriptor format
(SPC-4 4.5.2) for REQUEST SENSE with its DESC bit.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from vsp_vsc.storage.scsi.cdb import ScsiStatus

SENSE_BYTES = 18
"""Fixed format without vendor bytes."""
_LONGEST = 252
"""Of descriptor format (SPC-4 4.5.2)."""


class SenseKey(enum.IntEnum):
    """The class of a failure (SPC-4 table 43)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


class Reason(enum.Enum):
    """Sense key, additional sense code and qualifier, and the words of SPC-4 annex F."""

    NO_SENSE = (SenseKey.NO_SENSE, 0x00, 0x00, "no additional sense information")
    WRITE_ERROR = (SenseKey.MEDIUM_ERROR, 0x0C, 0x00, "write error")
    UNRECOVERED_READ_ERROR = (SenseKey.MEDIUM_ERROR, 0x11, 0x00, "unrecovered read error")
    PARAMETER_LIST_LENGTH_ERROR = (SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00, "parameter list length error")
    INVALID_OPCODE = (SenseKey.ILLEGAL_REQUEST, 0x20, 0x00, "invalid command operation code")
    LBA_OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, 0x21, 0x00, "logical block address out of range")
    INVALID_FIELD_IN_CDB = (SenseKey.ILLEGAL_REQUEST, 0x24, 0x00, "invalid field in CDB")
    LUN_NOT_SUPPORTED = (SenseKey.ILLEGAL_REQUEST, 0x25, 0x00, "logical unit not supported")
    INVALID_FIELD_IN_PARAMETER_LIST = (SenseKey.ILLEGAL_REQUEST, 0x26, 0x00, "invalid field in parameter list")
    SAVING_NOT_SUPPORTED = (SenseKey.ILLEGAL_REQUEST, 0x39, 0x00, "saving parameters not supported")
    WRITE_PROTECTED = (SenseKey.DATA_PROTECT, 0x27, 0x00, "write protected")
    SOFTWARE_WRITE_PROTECTED = (SenseKey.DATA_PROTECT, 0x27, 0x02, "logical unit software write protected")
    SPACE_ALLOCATION_FAILED = (SenseKey.DATA_PROTECT, 0x27, 0x07, "space allocation failed write protect")
    MEDIUM_NOT_PRESENT = (SenseKey.NOT_READY, 0x3A, 0x00, "medium not present")
    MEDIUM_REMOVAL_PREVENTED = (SenseKey.ILLEGAL_REQUEST, 0x53, 0x02, "medium removal prevented")
    INTERNAL_TARGET_FAILURE = (SenseKey.HARDWARE_ERROR, 0x44, 0x00, "internal target failure")
    INVALID_RELEASE = (SenseKey.ILLEGAL_REQUEST, 0x26, 0x04, "invalid release of persistent reservation")
    NO_ROOM_TO_REGISTER = (SenseKey.ILLEGAL_REQUEST, 0x55, 0x04, "insufficient registration resources")
    MISCOMPARE = (SenseKey.MISCOMPARE, 0x1D, 0x00, "miscompare during verify operation")
    STOPPED = (SenseKey.NOT_READY, 0x04, 0x02, "logical unit not ready, initializing command required")

    # Unit attentions.
    MEDIUM_MAY_HAVE_CHANGED = (
        SenseKey.UNIT_ATTENTION,
        0x28,
        0x00,
        "not ready to ready change, medium may have changed",
    )
    POWER_ON_OR_RESET = (SenseKey.UNIT_ATTENTION, 0x29, 0x00, "power on, reset, or bus device reset occurred")
    BUS_RESET = (SenseKey.UNIT_ATTENTION, 0x29, 0x02, "SCSI bus reset occurred")
    DEVICE_RESET = (SenseKey.UNIT_ATTENTION, 0x29, 0x03, "bus device reset function occurred")
    NEXUS_LOSS = (SenseKey.UNIT_ATTENTION, 0x29, 0x07, "I_T nexus loss occurred")
    MODE_PARAMETERS_CHANGED = (SenseKey.UNIT_ATTENTION, 0x2A, 0x01, "mode parameters changed")
    RESERVATIONS_PREEMPTED = (SenseKey.UNIT_ATTENTION, 0x2A, 0x03, "reservations preempted")
    RESERVATIONS_RELEASED = (SenseKey.UNIT_ATTENTION, 0x2A, 0x04, "reservations released")
    REGISTRATIONS_PREEMPTED = (SenseKey.UNIT_ATTENTION, 0x2A, 0x05, "registrations preempted")
    CAPACITY_CHANGED = (SenseKey.UNIT_ATTENTION, 0x2A, 0x09, "capacity data has changed")
    REPORTED_LUNS_DATA_HAS_CHANGED = (SenseKey.UNIT_ATTENTION, 0x3F, 0x0E, "reported LUNs data has changed")

    @property
    def key(self) -> SenseKey:
        """The class this reason belongs to."""
        return self.value[0]

    @property
    def is_reset(self) -> bool:
        """Whether it tells of a reset, which is told before all else and makes older news worthless."""
        return self.value[:2] == (SenseKey.UNIT_ATTENTION, 0x29)


_STATUSES = {int(status): status.name.replace("_", " ") for status in ScsiStatus}
_KEYS: dict[int, str] = {key: key.name.replace("_", " ") for key in SenseKey}
_WORDS: dict[tuple[int, int, int], str] = {
    (key, asc, ascq): words for key, asc, ascq, words in (r.value for r in Reason)
}
_FIXED = struct.Struct(">BBBIB4sBBBBH")
_INFORMATION = struct.Struct(">BBBxQ")
"""Type, additional length, VALID, the information."""
_KEY_SPECIFIC = struct.Struct(">BB2xBHx")
"""Type, additional length, the sense key specific bytes."""
_CURRENT, _CURRENT_DESCRIPTOR = 0x70, 0x72
_VALID = 0x80
_SKSV, _IN_CDB, _BIT_VALID = 0x80, 0x40, 0x08


def fixed_sense(
    reason: Reason,
    *,
    information: int | None = None,
    field: int | None = None,
    bit: int | None = None,
    in_data: bool = False,
) -> bytes:
    """Sense data in fixed format, 18 bytes.

    `information` is the block concerned, left out where it does not fit 32 bits. `field` is the first bad byte of the
    CDB, or of the parameter list if `in_data`; `bit` is the leftmost bad bit in it.
    """
    key, asc, ascq, _ = reason.value
    code, block = _CURRENT, 0
    if information is not None and information < 1 << 32:
        code, block = code | _VALID, information
    specific, pointer = _pointer(field, bit, in_data)
    return _FIXED.pack(code, 0, key, block, SENSE_BYTES - 8, bytes(4), asc, ascq, 0, specific, pointer)


def descriptor_sense(
    reason: Reason,
    *,
    information: int | None = None,
    field: int | None = None,
    bit: int | None = None,
    in_data: bool = False,
) -> bytes:
    """Sense data in descriptor format; the arguments are those of `fixed_sense`.

    At most 20 bytes, which is what VMBus has room for: of `information` and `field` only the first is told.
    """
    key, asc, ascq, _ = reason.value
    descriptor = b""
    if information is not None:
        descriptor = _INFORMATION.pack(0x00, 0x0A, _VALID, information)
    elif field is not None:
        descriptor = _KEY_SPECIFIC.pack(0x02, 0x06, *_pointer(field, bit, in_data))
    return bytes((_CURRENT_DESCRIPTOR, key, asc, ascq, 0, 0, 0, len(descriptor))) + descriptor


def _pointer(field: int | None, bit: int | None, in_data: bool) -> tuple[int, int]:
    """The sense key specific bytes (SPC-4 table 48): what is wrong where."""
    if field is None:
        return 0, 0
    specific = _SKSV | (0 if in_data else _IN_CDB)
    return (specific if bit is None else specific | _BIT_VALID | bit), field


class Sense(msgspec.Struct, frozen=True):
    """Sense data, decoded."""

    key: int
    """A `SenseKey`, or what else the target says."""
    asc: int
    ascq: int
    information: int | None = None
    """The block concerned."""
    field: int | None = None
    """The first bad byte of the CDB."""

    @property
    def words(self) -> str:
        """For people: `ILLEGAL REQUEST, logical block address out of range (21h/00h)`."""
        known = _WORDS.get((self.key, self.asc, self.ascq), "additional sense")
        text = f"{_KEYS.get(self.key, f'sense key {self.key:X}h')}, {known} ({self.asc:02X}h/{self.ascq:02X}h)"
        if self.field is not None:
            text += f" at CDB byte {self.field}"
        if self.information is not None:
            text += f" at block {self.information}"
        return text


def decode_sense(data: bytes) -> Sense:
    """Fixed or descriptor format; whatever is missing or of another format counts as no information."""
    padded = data[:SENSE_BYTES].ljust(SENSE_BYTES, b"\0")
    if padded[0] & 0x7E == _CURRENT_DESCRIPTOR:
        return _decode_descriptors(data[:_LONGEST].ljust(8, b"\0"))
    code, _, key, block, _, _, asc, ascq, _, specific, pointer = _FIXED.unpack(padded)
    return Sense(
        key & 0xF,
        asc,
        ascq,
        block if code & _VALID else None,
        pointer if specific & _SKSV and specific & _IN_CDB else None,
    )


def _decode_descriptors(data: bytes) -> Sense:
    information, field = None, None
    position, end = 8, min(len(data), 8 + data[7])
    while position + 2 <= end:
        kind, size = data[position], data[position + 1] + 2
        whole = position + size <= end
        if kind == 0x00 and whole and size == _INFORMATION.size and data[position + 2] & _VALID:
            information = _INFORMATION.unpack_from(data, position)[3]
        elif kind == 0x02 and whole and size == _KEY_SPECIFIC.size:
            specific, pointer = _KEY_SPECIFIC.unpack_from(data, position)[2:]
            field = pointer if specific & _SKSV and specific & _IN_CDB else None
        position += size
    return Sense(data[1] & 0xF, data[2], data[3], information, field)


def result_words(scsi_status: int, sense: bytes) -> str:
    """How a command ended, for people: `good`, what its sense data say, or the status alone: `RESERVATION CONFLICT`."""
    if sense:
        return decode_sense(sense).words
    if not scsi_status:
        return "good"
    known = _STATUSES.get(scsi_status)
    return known or f"SCSI status {scsi_status:02X}h"
