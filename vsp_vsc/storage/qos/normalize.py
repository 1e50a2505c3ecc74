"""What a command costs: normalized I/Os of 8 KiB, as Hyper-V's Storage QoS counts. Root side.

An I/O of up to 8 KiB is one, of 64 KiB eight: a limit on operations would say nothing of what a disk is asked for, if
it could be had back by asking for more at a time. What moves no blocks is not counted; what moves blocks without
sending them, as WRITE SAME does, is counted by the blocks.
"""

from __future__ import annotations

from typing import Final

from vsp_vsc.storage.scsi.blocks import MAX_WRITE_SAME_BYTES
from vsp_vsc.storage.scsi.cdb import Opcode

UNIT: Final = 8 << 10
"""Bytes of a normalized I/O, Hyper-V's default."""
IN_ORDER: Final = 0
"""The cost of what is not counted and yet has to wait for what came before it, as a flush for writes."""

_COUNT: Final[dict[int, tuple[int, int]]] = {
    Opcode.READ_6: (4, 5),
    Opcode.WRITE_6: (4, 5),
    **dict.fromkeys((Opcode.READ_10, Opcode.WRITE_10, Opcode.VERIFY_10, Opcode.WRITE_SAME_10), (7, 9)),
    **dict.fromkeys((Opcode.READ_12, Opcode.WRITE_12, Opcode.VERIFY_12), (6, 10)),
    **dict.fromkeys((Opcode.READ_16, Opcode.WRITE_16, Opcode.VERIFY_16, Opcode.WRITE_SAME_16), (10, 14)),
    Opcode.COMPARE_AND_WRITE: (13, 14),
}
"""Where the CDB of a command that moves blocks says how many."""
_FIELDS: Final = tuple(_COUNT.get(code) for code in range(256))
_SIX: Final = frozenset((int(Opcode.READ_6), int(Opcode.WRITE_6)))
_BOTH_WAYS: Final = int(Opcode.COMPARE_AND_WRITE)
_UNMAP: Final = int(Opcode.UNMAP)
_WITHOUT_DATA: Final = frozenset(
    map(
        int,
        (Opcode.VERIFY_10, Opcode.VERIFY_12, Opcode.VERIFY_16, Opcode.WRITE_SAME_10, Opcode.WRITE_SAME_16),
    )
)
"""What may be of more blocks than it sends."""
_MOST_WITHOUT_DATA: Final = MAX_WRITE_SAME_BYTES // UNIT
_ORDERED: Final = frozenset(
    map(int, (Opcode.SYNCHRONIZE_CACHE_10, Opcode.SYNCHRONIZE_CACHE_16, Opcode.START_STOP_UNIT))
)


def normalized(size: int) -> int:
    """I/Os of 8 KiB that a transfer of so many bytes counts as."""
    return -(-size // UNIT)


def cost_of(cdb: bytes, block_size: int, length: int | None = None) -> int | None:
    """What a command counts as; `IN_ORDER`, or None for what need not wait for anything.

    COMPARE AND WRITE counts what it compares and what it writes, an UNMAP as one. `length`: bytes of the data buffer.
    What asks for more than that, or for more than a disk does at a time, is going to be refused, and no count of the
    guest's keeps those waiting who share a limit with it.
    """
    opcode = cdb[0]
    field = _FIELDS[opcode]
    if field is not None:
        blocks = int.from_bytes(cdb[field[0] : field[1]], "big")
        if not blocks and opcode in _SIX:
            blocks = 256
        if opcode == _BOTH_WAYS:
            blocks *= 2
        cost = normalized(blocks * block_size)
        if opcode in _WITHOUT_DATA:
            return (cost if cost <= _MOST_WITHOUT_DATA else 1) or None
        return (cost if length is None else min(cost, normalized(length) or 1)) or None
    if opcode == _UNMAP:
        return 1
    return IN_ORDER if opcode in _ORDERED else None
