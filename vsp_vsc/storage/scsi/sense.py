"""Sense data: why a SCSI command failed, as bytes and as words. Both sides.

Fixed format (SPC-4 4.5.3), which is what initiators get unless they ask for descriptors, and descriptor format
(SPC-4 4.5.2) for REQUEST SENSE with its DESC bit.
"""

from __future__ import annotations

import enum
import struct

import msgspec

SENSE_BYTES = 18
"""Fixed format without vendor bytes."""


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
    SPACE_ALLOCATION_FAILED = (SenseKey.DATA_PROTECT, 0x27, 0x07, "space allocation failed write protect")
    INTERNAL_TARGET_FAILURE = (SenseKey.HARDWARE_ERROR, 0x44, 0x00, "internal target failure")

    @property
    def key(self) -> SenseKey:
        """The class this reason belongs to."""
        return self.value[0]


_KEYS: dict[int, str] = {key: key.name.replace("_", " ") for key in SenseKey}
_WORDS: dict[tuple[int, int, int], str] = {
    (key, asc, ascq): words for key, asc, ascq, words in (r.value for r in Reason)
}
_FIXED = struct.Struct(">BBBIB4sBBBBH")
_CURRENT, _CURRENT_DESCRIPTOR = 0x70, 0x72
_VALID = 0x80
_SKSV, _IN_CDB, _BIT_VALID = 0x80, 0x40, 0x08


def fixed_sense(
    reason: Reason, *, information: int | None = None, field: int | None = None, bit: int | None = None
) -> bytes:
    """Sense data in fixed format, 18 bytes.

    `information` is the block concerned, left out where it does not fit 32 bits. `field` is the first bad byte of the
    CDB, `bit` the leftmost bad bit in it.
    """
    key, asc, ascq, _ = reason.value
    code, block = _CURRENT, 0
    if information is not None and information < 1 << 32:
        code, block = code | _VALID, information
    specific, pointer = 0, 0
    if field is not None:
        specific, pointer = _SKSV | _IN_CDB, field
        if bit is not None:
            specific |= _BIT_VALID | bit
    return _FIXED.pack(code, 0, key, block, SENSE_BYTES - 8, bytes(4), asc, ascq, 0, specific, pointer)


def descriptor_sense(reason: Reason) -> bytes:
    """Sense data in descriptor format without descriptors, 8 bytes."""
    key, asc, ascq, _ = reason.value
    return bytes((_CURRENT_DESCRIPTOR, key, asc, ascq, 0, 0, 0, 0))


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
        return Sense(padded[1] & 0xF, padded[2], padded[3])
    code, _, key, block, _, _, asc, ascq, _, specific, pointer = _FIXED.unpack(padded)
    return Sense(
        key & 0xF,
        asc,
        ascq,
        block if code & _VALID else None,
        pointer if specific & _SKSV and specific & _IN_CDB else None,
    )
