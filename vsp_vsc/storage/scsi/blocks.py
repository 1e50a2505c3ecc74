"""Reading and writing as disks do it (SBC-3): the commands that move or change blocks. Root side.

READ and WRITE take a short way to the backend; the rest goes through `jobs.py`. Whatever must not have other writes in
its middle is done alone (`ScsiTarget.change`): writes that come in meanwhile wait until it is done.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from vsp_vsc.storage.backends.base import IoOperation, Job
from vsp_vsc.storage.scsi.answer import GOOD, Done, Refused, ScsiResult, Tag, Views, first_bytes
from vsp_vsc.storage.scsi.cdb import CDB_10, CDB_12, CDB_16, FUA, NACA
from vsp_vsc.storage.scsi.jobs import Steps, perform, step
from vsp_vsc.storage.scsi.sense import Reason

if TYPE_CHECKING:
    from struct import Struct

    from vsp_vsc.storage.scsi.commands import Call, Starter
    from vsp_vsc.storage.scsi.nexus import Nexus
    from vsp_vsc.storage.scsi.target import ScsiTarget

PROTECT = 0xE0
"""RDPROTECT, WRPROTECT and VRPROTECT: our disks carry no protection information."""
MAX_COMPARE_BYTES = 64 << 10
"""What one COMPARE AND WRITE may compare; its buffer has twice as many, and one SRB moves 256 KiB at most."""
MAX_WRITE_SAME_BYTES = 64 << 20
"""What one WRITE SAME may write, and one VERIFY read: some tenths of a second of writes by others wait for it."""
_PIECE = 128 << 10
"""Bytes that one step of VERIFY or WRITE SAME moves: the host's own memory, for each command that is under way."""


# --- READ and WRITE: `_read` and `_write` do it, with what each size of CDB says


_Transfer = Callable[..., ScsiResult | None]
"""`_read` or `_write`."""


def _of_6(transfer: _Transfer) -> Starter:
    """READ(6) or WRITE(6): no flags, 21 bits of address, and 0 means 256 blocks."""

    def start(
        disk: ScsiTarget, nexus: Nexus, cdb: bytes, views: Views, length: int, tag: Tag, done: Done
    ) -> ScsiResult | None:
        if cdb[1] & PROTECT:
            return disk.refuse(Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=cdb[1].bit_length() - 1))
        lba = int.from_bytes(cdb[1:4], "big")
        return transfer(disk, 0, lba, cdb[4] or 256, cdb[5], 4, nexus, views, length, tag, done)

    return start


def _of_10(transfer: _Transfer) -> Starter:
    """READ(10) or WRITE(10)."""
    unpack = CDB_10.unpack_from

    def start(
        disk: ScsiTarget, nexus: Nexus, cdb: bytes, views: Views, length: int, tag: Tag, done: Done
    ) -> ScsiResult | None:
        _, flags, lba, _, count, control = unpack(cdb)
        return transfer(disk, flags, lba, count, control, 7, nexus, views, length, tag, done)

    return start


def _of_12_or_16(transfer: _Transfer, layout: Struct, count_field: int) -> Starter:
    """READ or WRITE with 12 or 16 bytes: the same fields in the same order."""
    unpack = layout.unpack_from

    def start(
        disk: ScsiTarget, nexus: Nexus, cdb: bytes, views: Views, length: int, tag: Tag, done: Done
    ) -> ScsiResult | None:
        _, flags, lba, count, _, control = unpack(cdb)
        return transfer(disk, flags, lba, count, control, count_field, nexus, views, length, tag, done)

    return start


def _read(
    disk: ScsiTarget,
    flags: int,
    lba: int,
    count: int,
    control: int,
    count_field: int,
    nexus: Nexus,
    views: Views,
    length: int,
    tag: Tag,
    done: Done,
) -> ScsiResult | None:
    size = count << disk.shift
    if flags & PROTECT or control & NACA or lba + count > disk.blocks or size != length:
        refused = _check(disk, flags, lba, count, control, count_field, length)
        if refused is not None or not size:
            return refused or GOOD
        views = first_bytes(views, size)
    offset = lba << disk.shift
    try:
        if disk.backend.try_read(views, offset, size):
            return ScsiResult(0, b"", size)
    except OSError as error:
        return disk.host_failed(error, IoOperation.READ, lba)
    finished = functools.partial(_finished, disk, IoOperation.READ, lba, size, nexus, nexus.begin(), tag, done)
    disk.backend.submit(Job(IoOperation.READ, finished, views, offset, size))
    return None


def _write(
    disk: ScsiTarget,
    flags: int,
    lba: int,
    count: int,
    control: int,
    count_field: int,
    nexus: Nexus,
    views: Views,
    length: int,
    tag: Tag,
    done: Done,
) -> ScsiResult | None:
    size = count << disk.shift
    if flags & PROTECT or control & NACA or lba + count > disk.blocks or size > length or disk.protected:
        refused = _check(disk, flags, lba, count, control, count_field, length)
        return refused or disk.refuse(disk.protected_by())
    if not size:
        return GOOD
    if disk.busy_alone:
        again = functools.partial(_write, disk, flags, lba, count, control, count_field, nexus, views, length, tag)
        disk.wait_until_alone_is_over(nexus, tag, done, again)
        return None
    if size != length:
        views = first_bytes(views, size)
    finished = functools.partial(_finished, disk, IoOperation.WRITE, lba, size, nexus, nexus.begin(), tag, done)
    durable = disk.write_through or bool(flags & FUA)
    disk.backend.submit(Job(IoOperation.WRITE, finished, views, lba << disk.shift, size, durable))
    return None


def _check(
    disk: ScsiTarget, flags: int, lba: int, count: int, control: int, count_field: int, length: int
) -> ScsiResult | None:
    """Why a READ or WRITE cannot be done, if so."""
    if flags & PROTECT:
        return disk.refuse(Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7))
    if control & NACA:
        last = {4: 5, 7: 9, 6: 11, 10: 15}[count_field]
        return disk.refuse(Refused(Reason.INVALID_FIELD_IN_CDB, field=last, bit=2))
    if lba + count > disk.blocks:
        return disk.refuse(Refused(Reason.LBA_OUT_OF_RANGE, information=max(lba, disk.blocks)))
    if count << disk.shift > length:
        # More than the buffer holds. Nothing is moved: half a command would look like a whole one to some guests.
        return disk.refuse(Refused(Reason.INVALID_FIELD_IN_CDB, field=count_field))
    return None


def _finished(
    disk: ScsiTarget,
    operation: IoOperation,
    lba: int,
    size: int,
    nexus: Nexus,
    epoch: int,
    tag: Tag,
    done: Done,
    error: OSError | None,
) -> None:
    result = ScsiResult(0, b"", size) if error is None else disk.host_failed(error, operation, lba)
    nexus.end(epoch, tag, done, result)


read_6, write_6 = _of_6(_read), _of_6(_write)
read_10, write_10 = _of_10(_read), _of_10(_write)
read_12, write_12 = _of_12_or_16(_read, CDB_12, 6), _of_12_or_16(_write, CDB_12, 6)
read_16, write_16 = _of_12_or_16(_read, CDB_16, 10), _of_12_or_16(_write, CDB_16, 10)


# --- VERIFY and SYNCHRONIZE CACHE


def verify(disk: ScsiTarget, call: Call) -> ScsiResult | None:
    """VERIFY(10), (12) and (16): that blocks can be read, and with BYTCHK that they are what the buffer has.

    BYTCHK 1 compares each block with its own, BYTCHK 3 all of them with the one that there is.
    """
    lba, count, count_field = _place(call)
    check = call.cdb[1] >> 1 & 3
    if call.cdb[1] & PROTECT or check == 2:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7 if call.cdb[1] & PROTECT else 2)
    disk.check_range(lba, count)
    if count > disk.max_write_same:  # a command of hours would be under no limit on I/O, or in everybody's way
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=count_field)
    expected = b""
    if check:
        expected = call.parameters((count if check == 1 else min(count, 1)) << disk.shift, field=count_field)
    if not count:
        return GOOD
    perform(call, disk.backend, _verify(disk, lba, count, expected))
    return None


def _verify(disk: ScsiTarget, lba: int, count: int, expected: bytes) -> Steps:
    block = 1 << disk.shift
    first, end = lba << disk.shift, (lba + count) << disk.shift
    buffer = memoryview(bytearray(min(end - first, _PIECE)))
    pattern = expected * (len(buffer) // block) if len(expected) == block else b""
    for offset in range(first, end, _PIECE):
        piece = buffer[: end - offset]
        error = yield step(IoOperation.READ, views=[piece], offset=offset, length=len(piece))
        if error is not None:
            return disk.host_failed(error, IoOperation.READ, offset >> disk.shift)
        if expected:
            wanted = memoryview(pattern)[: len(piece)] if pattern else memoryview(expected)[offset - first :]
            different = _first_difference(piece, wanted[: len(piece)])
            if different is not None:
                at = different % block if pattern else offset - first + different
                raise Refused(Reason.MISCOMPARE, information=at)
    return ScsiResult(0, b"", len(expected))


def _first_difference(one: memoryview, other: memoryview) -> int | None:
    """Where two pieces of the same length differ first."""
    if one == other:
        return None
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] != other[low:middle]:
            high = middle
        else:
            low = middle
    return low


def synchronize_cache(disk: ScsiTarget, call: Call) -> ScsiResult | None:
    """Flush all, whatever the range. With IMMED too: answering late is allowed, answering a lie is not."""
    lba, count, _ = _place(call)
    disk.check_range(lba, count)
    if disk.read_only:
        return GOOD
    flush(disk, call)
    return None


def flush(disk: ScsiTarget, call: Call) -> None:
    """Everything that was written is on the medium when the command ends."""
    perform(call, disk.backend, _flush(disk))


def _flush(disk: ScsiTarget) -> Steps:
    error = yield step(IoOperation.FLUSH)
    return GOOD if error is None else disk.host_failed(error, IoOperation.FLUSH, 0)


# --- changing without a transfer of all the data


def write_same(disk: ScsiTarget, call: Call) -> ScsiResult | None:
    """WRITE SAME(10) and (16): one block many times. Zeros that may be unmapped are, where the disk is thin."""
    lba, count, count_field = _place(call)
    flags, block = call.cdb[1], 1 << disk.shift
    without_data = _is_16(call.cdb) and flags & 0x01
    if flags & PROTECT or flags & 0x10:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7 if flags & PROTECT else 4)
    if flags & 0x08 and not disk.thin:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=3)
    disk.check_range(lba, count)
    if not 0 < count <= disk.max_write_same:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=count_field)
    disk.check_writable()
    data = bytes(block) if without_data else call.parameters(block, field=count_field)
    moved = 0 if without_data else block
    if flags & 0x08 and not any(data):
        disk.change(call, _discard(disk, [(lba << disk.shift, count << disk.shift)], moved), alone=False)
    else:
        several = count << disk.shift > _PIECE
        disk.change(call, _write_same(disk, lba, count, data, moved), alone=several)
    return None


def _write_same(disk: ScsiTarget, lba: int, count: int, data: bytes, moved: int) -> Steps:
    first, end = lba << disk.shift, (lba + count) << disk.shift
    pattern = memoryview(data * (min(end - first, _PIECE) // len(data)))
    for offset in range(first, end, _PIECE):
        piece = pattern[: end - offset]
        error = yield step(
            IoOperation.WRITE, views=[piece], offset=offset, length=len(piece), durable=disk.write_through
        )
        if error is not None:
            return disk.host_failed(error, IoOperation.WRITE, offset >> disk.shift)
    return ScsiResult(0, b"", moved)


def _discard(disk: ScsiTarget, ranges: list[tuple[int, int]], moved: int) -> Steps:
    error = yield step(IoOperation.DISCARD, ranges=ranges)
    if error is not None:
        return disk.host_failed(error, IoOperation.DISCARD, ranges[0][0] >> disk.shift)
    return ScsiResult(0, b"", moved)


def compare_and_write(disk: ScsiTarget, call: Call) -> ScsiResult | None:
    """COMPARE AND WRITE: blocks are written if they are what is expected, with no other write in between."""
    flags, lba, count = call.cdb[1], call.number(2, 8), call.cdb[13]
    if flags & PROTECT:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7)
    disk.check_range(lba, count)
    if count > disk.max_compare:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=13)
    disk.check_writable()
    size = count << disk.shift
    data = call.parameters(2 * size, field=13)
    if not count:
        return GOOD
    disk.change(call, _compare_and_write(disk, lba, data[:size], data[size:], bool(flags & FUA)), alone=True)
    return None


def _compare_and_write(disk: ScsiTarget, lba: int, expected: bytes, data: bytes, fua: bool) -> Steps:
    offset, size = lba << disk.shift, len(data)
    there = memoryview(bytearray(size))
    error = yield step(IoOperation.READ, views=[there], offset=offset, length=size)
    if error is not None:
        return disk.host_failed(error, IoOperation.READ, lba)
    different = _first_difference(there, memoryview(expected))
    if different is not None:
        raise Refused(Reason.MISCOMPARE, information=different)
    durable = fua or disk.write_through
    error = yield step(IoOperation.WRITE, views=[memoryview(data)], offset=offset, length=size, durable=durable)
    if error is not None:
        return disk.host_failed(error, IoOperation.WRITE, lba)
    return ScsiResult(0, b"", 2 * size)


def discard(disk: ScsiTarget, call: Call, ranges: list[tuple[int, int]], moved: int) -> None:
    """Give the room of byte ranges back, for UNMAP."""
    disk.change(call, _discard(disk, ranges, moved), alone=False)


def _place(call: Call) -> tuple[int, int, int]:
    """First block, number of blocks, and at which byte of the CDB that is, of a CDB of 10, 12 or 16 bytes."""
    cdb = call.cdb
    if _is_16(cdb):
        _, _, lba, count, _, _ = CDB_16.unpack_from(cdb)
        return lba, count, 10
    if cdb[0] >> 5 == 5:
        _, _, lba, count, _, _ = CDB_12.unpack_from(cdb)
        return lba, count, 6
    _, _, lba, _, count, _ = CDB_10.unpack_from(cdb)
    return lba, count, 7


def _is_16(cdb: bytes) -> bool:
    """Whether the operation code is of the group with 16 bytes."""
    return cdb[0] >> 5 == 4
