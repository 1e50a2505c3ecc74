"""A disk as SCSI sees it: a CDB and a data buffer in; a status, sense data and a count of bytes out. Root side.

It knows nothing of VMBus: any front end that carries CDBs can serve it. A front end gives the data buffer as views of
wherever the data is to go or to come from, with room for `length` bytes, and checks itself that a command's direction
(`scsi.DIRECTION`) is that of its buffer.

Answers to SPC-4 and SBC-3 for a non-removable direct access disk with 512-byte blocks: thin, with UNMAP, if its backend
can give room back, else thick. Every command that is not in the table at the end gets INVALID COMMAND OPERATION CODE. A
host's I/O error becomes sense data.
"""

from __future__ import annotations

import errno
import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs
import msgspec

from vsp_vsc.storage.backends.base import BLOCK_SIZE, DiskBackend, IoOperation, Job
from vsp_vsc.storage.scsi.cdb import (
    CDB_6,
    CDB_10,
    CDB_16,
    FUA,
    LUNS_12,
    MODE_10,
    READ_CAPACITY_16,
    SERVICE_16,
    UNMAP_10,
    UNMAP_DESCRIPTOR,
    UNMAP_HEADER,
    Opcode,
    ScsiStatus,
)
from vsp_vsc.storage.scsi.sense import Reason, descriptor_sense, fixed_sense

_SHIFT = BLOCK_SIZE.bit_length() - 1
_PROTECT = 0xE0
"""RDPROTECT and WRPROTECT: our disks carry no protection information."""
_SPC_3 = 0x05
_NO_DEVICE = 0x7F
"""Peripheral qualifier 3, device type 1Fh: no device can be here."""
_LARGEST_LBA_10 = 0xFFFF_FFFF
MAX_UNMAP_BLOCKS = 0x80000
"""Blocks that one UNMAP may name in all, 256 MiB: a host that has to write zeros there is done in half a second."""
MAX_UNMAP_DESCRIPTORS = 255
"""As many as fit a page with their header."""
_LBPME, _LBPRZ = 0x80, 0x40
"""READ CAPACITY(16): thin; what is unmapped reads as zeros."""
_THIN = bytes((0, 0x84, 0x02, 0))
"""Logical block provisioning page: UNMAP is known, unmapped blocks read as zeros, thin provisioning."""
_NON_ROTATING = 1
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_WRITING = {errno.EROFS, errno.EPERM, errno.EACCES, errno.EBADF}


class ScsiResult(msgspec.Struct, frozen=True, gc=False):
    """How a command ended."""

    status: int
    """A `ScsiStatus`."""
    sense: bytes = b""
    """With CHECK CONDITION, 18 bytes in fixed format."""
    transferred: int = 0
    """Bytes moved."""


Tag = Any
"""Whatever a front end knows a command by; handed back with its result."""
Done = Callable[[Tag, ScsiResult], None]
"""Takes the result of a command that could not be answered at once; called in the Trio thread."""
Views = Sequence[memoryview]
_Handler = Callable[["ScsiTarget", bytes, Views, int, Tag, Done], ScsiResult | None]

GOOD = ScsiResult(ScsiStatus.GOOD)


def failed(
    reason: Reason, *, information: int | None = None, field: int | None = None, bit: int | None = None
) -> ScsiResult:
    """CHECK CONDITION with sense data; the arguments are those of `fixed_sense`."""
    return ScsiResult(ScsiStatus.CHECK_CONDITION, fixed_sense(reason, information=information, field=field, bit=bit))


@attrs.frozen
class TargetStatistics:
    """What a target has answered."""

    check_conditions: int
    """Commands that ended with sense data."""
    host_errors: int
    """Those of them that were the host's storage's fault."""


class ScsiTarget:
    """One logical unit: a disk.

    Its names for the guest come from `identity`, by default the backend's: stable for the same disk, unique among
    different ones.
    """

    def __init__(
        self,
        backend: DiskBackend,
        *,
        identity: str | None = None,
        read_only: bool = False,
        vendor: str = "PARTITA",
        product: str = "VIRTUAL DISK",
        revision: str = "1.0",
    ) -> None:
        self.backend = backend
        self.blocks = backend.size_bytes >> _SHIFT
        self.read_only = read_only or backend.read_only
        self.thin = backend.discards and not self.read_only
        """Whether guests may unmap blocks."""
        # Eight logical blocks to a physical one: images rest on pages of 4 KiB, and guests align to what is said here.
        self._physical_exponent = 3 if self.blocks % 8 == 0 else 0
        self.vendor = vendor.encode("ascii").ljust(8)[:8]
        self.product = product.encode("ascii").ljust(16)[:16]
        self.revision = revision.encode("ascii").ljust(4)[:4]
        digest = hashlib.sha256((identity or backend.identity).encode()).digest()
        self.serial = digest[:8].hex()
        """What INQUIRY's unit serial number page says."""
        self._wwn = bytes((0x30 | digest[0] & 0x0F,)) + digest[1:8]
        self._check_conditions = 0
        self._host_errors = 0

    def start(self, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        """Carry out a command of at least 16 bytes, zero-padded.

        The result, or None where it is handed to `done`: later, or before this returns if the backend is inline.
        """
        handler = _HANDLERS.get(cdb[0])
        if handler is None:
            return self._refuse(Reason.INVALID_OPCODE, field=0)
        return handler(self, cdb, views, length, tag, done)

    def statistics(self) -> TargetStatistics:
        """Counters, as of now."""
        return TargetStatistics(self._check_conditions, self._host_errors)

    # --- reading and writing

    def read_now(self, lba: int, count: int, views: Views) -> bool:
        """Read blocks into views of just that size, if nothing speaks against it and nothing has to be waited for.

        Else false, and `start` finds out what there is to say.
        """
        try:
            return lba + count <= self.blocks and self.backend.try_read(views, lba << _SHIFT, count << _SHIFT)
        except OSError:
            return False

    def _read_10(self, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        _, flags, lba, _, count, _ = CDB_10.unpack_from(cdb)
        return self._read(flags, lba, count, 7, views, length, tag, done)

    def _read_16(self, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        _, flags, lba, count, _, _ = CDB_16.unpack_from(cdb)
        return self._read(flags, lba, count, 10, views, length, tag, done)

    def _read(
        self, flags: int, lba: int, count: int, count_field: int, views: Views, length: int, tag: Tag, done: Done
    ) -> ScsiResult | None:
        size = count << _SHIFT
        if flags & _PROTECT or lba + count > self.blocks or size != length:
            refused = self._check(flags, lba, count, count_field, length)
            if refused is not None or not size:
                return refused or GOOD
            views = first_bytes(views, size)
        try:
            if self.backend.try_read(views, lba << _SHIFT, size):
                return ScsiResult(0, b"", size)
        except OSError as error:
            return self._host_failed(error, IoOperation.READ, lba)
        finished = functools.partial(self._finished, IoOperation.READ, lba, size, tag, done)
        self.backend.submit(Job(IoOperation.READ, finished, views, lba << _SHIFT, size))
        return None

    def _write_10(self, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        _, flags, lba, _, count, _ = CDB_10.unpack_from(cdb)
        return self._write(flags, lba, count, 7, views, length, tag, done)

    def _write_16(self, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        _, flags, lba, count, _, _ = CDB_16.unpack_from(cdb)
        return self._write(flags, lba, count, 10, views, length, tag, done)

    def _write(
        self, flags: int, lba: int, count: int, count_field: int, views: Views, length: int, tag: Tag, done: Done
    ) -> ScsiResult | None:
        refused = self._check(flags, lba, count, count_field, length)
        if refused is not None:
            return refused
        if self.read_only:
            return self._refuse(Reason.WRITE_PROTECTED)
        size = count << _SHIFT
        if not size:
            return GOOD
        if size != length:
            views = first_bytes(views, size)
        finished = functools.partial(self._finished, IoOperation.WRITE, lba, size, tag, done)
        self.backend.submit(Job(IoOperation.WRITE, finished, views, lba << _SHIFT, size, bool(flags & FUA)))
        return None

    def _check(self, flags: int, lba: int, count: int, count_field: int, length: int) -> ScsiResult | None:
        """Why a READ or WRITE cannot be done, if so."""
        if flags & _PROTECT:
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7)
        if lba + count > self.blocks:
            return self._refuse(Reason.LBA_OUT_OF_RANGE, information=max(lba, self.blocks))
        if count << _SHIFT > length:
            # More than the buffer holds. Nothing is moved: half a command would look like a whole one to some guests.
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=count_field)
        return None

    def _synchronize_10(self, cdb: bytes, _views: Views, _length: int, tag: Tag, done: Done) -> ScsiResult | None:
        _, _, lba, _, count, _ = CDB_10.unpack_from(cdb)
        return self._synchronize(lba, count, tag, done)

    def _synchronize_16(self, cdb: bytes, _views: Views, _length: int, tag: Tag, done: Done) -> ScsiResult | None:
        _, _, lba, count, _, _ = CDB_16.unpack_from(cdb)
        return self._synchronize(lba, count, tag, done)

    def _synchronize(self, lba: int, count: int, tag: Tag, done: Done) -> ScsiResult | None:
        """Flush all, whatever the range. With IMMED too: answering late is allowed, answering a lie is not."""
        if lba + count > self.blocks:
            return self._refuse(Reason.LBA_OUT_OF_RANGE, information=max(lba, self.blocks))
        if self.read_only:
            return GOOD
        self.backend.submit(
            Job(IoOperation.FLUSH, functools.partial(self._finished, IoOperation.FLUSH, lba, 0, tag, done))
        )
        return None

    def _unmap(self, cdb: bytes, views: Views, length: int, tag: Tag, done: Done) -> ScsiResult | None:
        """Everything is checked before anything is done: an UNMAP that fails has changed nothing."""
        _, flags, size, _ = UNMAP_10.unpack_from(cdb)
        if self.read_only:
            return self._refuse(Reason.WRITE_PROTECTED)
        if not self.thin:
            return self._refuse(Reason.INVALID_OPCODE, field=0)
        if flags & 1:
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=1, bit=0)  # anchored blocks, which we have not
        if size > length:
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=7)
        if not size:
            return GOOD
        ranges = self._unmap_ranges(b"".join(first_bytes(views, size)))
        if isinstance(ranges, ScsiResult):
            return ranges
        if not ranges:
            return ScsiResult(ScsiStatus.GOOD, b"", size)
        finished = functools.partial(self._finished, IoOperation.DISCARD, ranges[0][0] >> _SHIFT, size, tag, done)
        self.backend.submit(Job(IoOperation.DISCARD, finished, ranges=ranges))
        return None

    def _unmap_ranges(self, untrusted_list: bytes) -> list[tuple[int, int]] | ScsiResult:
        """The byte ranges that a parameter list, which is our own copy, names; or why it cannot be."""
        if len(untrusted_list) < UNMAP_HEADER.size:
            return self._refuse(Reason.PARAMETER_LIST_LENGTH_ERROR)
        _, described = UNMAP_HEADER.unpack_from(untrusted_list)
        if described > len(untrusted_list) - UNMAP_HEADER.size:
            return self._refuse(Reason.PARAMETER_LIST_LENGTH_ERROR)
        count = described // UNMAP_DESCRIPTOR.size  # SBC-3: an incomplete one at the end is not looked at
        if count > MAX_UNMAP_DESCRIPTORS:
            return self._refuse(Reason.INVALID_FIELD_IN_PARAMETER_LIST)
        ranges: list[tuple[int, int]] = []
        total = 0
        for index in range(count):
            at = UNMAP_HEADER.size + index * UNMAP_DESCRIPTOR.size
            lba, blocks = UNMAP_DESCRIPTOR.unpack_from(untrusted_list, at)
            if lba + blocks > self.blocks:
                return self._refuse(Reason.LBA_OUT_OF_RANGE, information=max(lba, self.blocks))
            total += blocks
            if blocks:
                ranges.append((lba << _SHIFT, blocks << _SHIFT))
        if total > MAX_UNMAP_BLOCKS:
            return self._refuse(Reason.INVALID_FIELD_IN_PARAMETER_LIST)
        return ranges

    def _finished(
        self, operation: IoOperation, lba: int, size: int, tag: Tag, done: Done, error: OSError | None
    ) -> None:
        done(tag, ScsiResult(0, b"", size) if error is None else self._host_failed(error, operation, lba))

    # --- questions

    def _test_unit_ready(self, _cdb: bytes, _views: Views, _length: int, _tag: Tag, _done: Done) -> ScsiResult:
        return GOOD

    def _inquiry(self, cdb: bytes, views: Views, length: int, _tag: Tag, _done: Done) -> ScsiResult:
        _, flags, page, allocation, _ = CDB_6.unpack_from(cdb)
        if flags & ~1:
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=1, bit=(flags & ~1).bit_length() - 1)
        if not flags:
            if page:
                return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=2)
            return _give(_standard_inquiry(0, self.vendor, self.product, self.revision), allocation, views, length)
        match page:
            case 0x00:
                body = bytes((0x00, 0x80, 0x83, 0xB0, 0xB1, *((0xB2,) if self.thin else ())))
            case 0x80:
                body = self.serial.encode("ascii")
            case 0x83:
                name = self.vendor + self.serial.encode("ascii")
                body = bytes((0x02, 0x01, 0, len(name))) + name  # T10 vendor ID based, in ASCII, of this unit
                body += bytes((0x01, 0x03, 0, len(self._wwn))) + self._wwn  # NAA, locally assigned
            case 0xB0:
                body = self._block_limits()
            case 0xB1:
                body = _NON_ROTATING.to_bytes(2, "big").ljust(0x3C, b"\0")
            case 0xB2 if self.thin:
                body = _THIN
            case _:
                return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=2)
        return _give(bytes((0, page, 0, len(body))) + body, allocation, views, length)

    def _block_limits(self) -> bytes:
        """60 bytes: no limits for reading and writing, those of UNMAP if there is one."""
        granularity = 1 << self._physical_exponent
        body = bytes(2) + granularity.to_bytes(2, "big") + bytes(12)
        if self.thin:
            body += MAX_UNMAP_BLOCKS.to_bytes(4, "big") + MAX_UNMAP_DESCRIPTORS.to_bytes(4, "big")
            body += granularity.to_bytes(4, "big") + (1 << 31).to_bytes(4, "big")  # granules begin at block 0
        return body.ljust(0x3C, b"\0")

    def _read_capacity_10(self, cdb: bytes, views: Views, length: int, _tag: Tag, _done: Done) -> ScsiResult:
        if cdb[2:6] != bytes(4):
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=2)
        last = min(self.blocks - 1, _LARGEST_LBA_10)
        return _give(last.to_bytes(4, "big") + BLOCK_SIZE.to_bytes(4, "big"), 8, views, length)

    def _service_action_in_16(self, cdb: bytes, views: Views, length: int, _tag: Tag, _done: Done) -> ScsiResult:
        _, action, lba, allocation, _, _ = SERVICE_16.unpack_from(cdb)
        if action & 0x1F != READ_CAPACITY_16:
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4)
        if lba:
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=2)
        provisioning = _LBPME | _LBPRZ if self.thin else 0
        data = (self.blocks - 1).to_bytes(8, "big") + BLOCK_SIZE.to_bytes(4, "big")
        data += bytes((0, self._physical_exponent, provisioning, 0))
        return _give(data.ljust(32, b"\0"), allocation, views, length)

    def _mode_sense_6(self, cdb: bytes, views: Views, length: int, _tag: Tag, _done: Done) -> ScsiResult:
        pages = self._mode_pages(cdb)
        if isinstance(pages, ScsiResult):
            return pages
        descriptor = b"" if cdb[1] & 0x08 else self._block_descriptor()
        data = bytes((0, self._device_specific(), len(descriptor))) + descriptor + pages
        return _give(bytes((len(data),)) + data, cdb[4], views, length)

    def _mode_sense_10(self, cdb: bytes, views: Views, length: int, _tag: Tag, _done: Done) -> ScsiResult:
        pages = self._mode_pages(cdb)
        if isinstance(pages, ScsiResult):
            return pages
        allocation = MODE_10.unpack_from(cdb)[4]
        descriptor = b"" if cdb[1] & 0x08 else self._block_descriptor()
        data = bytes((0, self._device_specific(), 0, 0, 0, len(descriptor))) + descriptor + pages
        return _give(len(data).to_bytes(2, "big") + data, allocation, views, length)

    def _mode_pages(self, cdb: bytes) -> bytes | ScsiResult:
        """The pages that MODE SENSE asks for: caching alone, or all, which is the same."""
        control, page, subpage = cdb[2] >> 6, cdb[2] & 0x3F, cdb[3]
        if control == 3:
            return self._refuse(Reason.SAVING_NOT_SUPPORTED)
        if page not in (0x08, 0x3F):
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)
        if subpage not in (0x00, 0xFF) or (page == 0x08 and subpage):
            return self._refuse(Reason.INVALID_FIELD_IN_CDB, field=3)
        write_cache = 0x04 if control != 1 else 0x00  # there is nothing that a guest could change
        return bytes((0x08, 0x12, write_cache)).ljust(20, b"\0")

    def _device_specific(self) -> int:
        """Write protection, and that DPO and FUA are understood."""
        return (0x80 if self.read_only else 0) | 0x10

    def _block_descriptor(self) -> bytes:
        return min(self.blocks, _LARGEST_LBA_10).to_bytes(4, "big") + BLOCK_SIZE.to_bytes(4, "big")

    def _request_sense(self, cdb: bytes, views: Views, length: int, _tag: Tag, _done: Done) -> ScsiResult:
        """Nothing is ever pending: every failure carried its sense data with it."""
        data = descriptor_sense(Reason.NO_SENSE) if cdb[1] & 1 else fixed_sense(Reason.NO_SENSE)
        return _give(data, cdb[4], views, length)

    # --- refusals

    def _refuse(
        self, reason: Reason, *, information: int | None = None, field: int | None = None, bit: int | None = None
    ) -> ScsiResult:
        self._check_conditions += 1
        return failed(reason, information=information, field=field, bit=bit)

    def _host_failed(self, error: OSError, operation: IoOperation, lba: int) -> ScsiResult:
        """The sense data that tells a guest what the host's storage said."""
        self._host_errors += 1
        if operation is not IoOperation.READ:
            if error.errno in _NO_SPACE:
                return self._refuse(Reason.SPACE_ALLOCATION_FAILED)
            if error.errno in _NO_WRITING:
                return self._refuse(Reason.WRITE_PROTECTED)
        if error.errno != errno.EIO:
            return self._refuse(Reason.INTERNAL_TARGET_FAILURE)
        if operation is IoOperation.READ:
            return self._refuse(Reason.UNRECOVERED_READ_ERROR, information=lba)
        return self._refuse(Reason.WRITE_ERROR, information=lba if operation is IoOperation.WRITE else None)


_HANDLERS: dict[int, _Handler] = {
    Opcode.TEST_UNIT_READY: ScsiTarget._test_unit_ready,
    Opcode.REQUEST_SENSE: ScsiTarget._request_sense,
    Opcode.INQUIRY: ScsiTarget._inquiry,
    Opcode.MODE_SENSE_6: ScsiTarget._mode_sense_6,
    Opcode.READ_CAPACITY_10: ScsiTarget._read_capacity_10,
    Opcode.READ_10: ScsiTarget._read_10,
    Opcode.WRITE_10: ScsiTarget._write_10,
    Opcode.SYNCHRONIZE_CACHE_10: ScsiTarget._synchronize_10,
    Opcode.UNMAP: ScsiTarget._unmap,
    Opcode.MODE_SENSE_10: ScsiTarget._mode_sense_10,
    Opcode.READ_16: ScsiTarget._read_16,
    Opcode.WRITE_16: ScsiTarget._write_16,
    Opcode.SYNCHRONIZE_CACHE_16: ScsiTarget._synchronize_16,
    Opcode.SERVICE_ACTION_IN_16: ScsiTarget._service_action_in_16,
}


def report_luns(luns: Iterable[int], cdb: bytes, views: Views, length: int) -> ScsiResult:
    """REPORT LUNS, which any logical unit answers for all of its target. LUNs below 256."""
    _, select, allocation, _ = LUNS_12.unpack_from(cdb)
    if select > 2:
        return failed(Reason.INVALID_FIELD_IN_CDB, field=2)
    if min(allocation, length) < 8:
        return GOOD  # not even the header fits
    entries = [] if select == 1 else [bytes((0, lun)) + bytes(6) for lun in sorted(luns)]  # 1: well-known units only
    return _give((8 * len(entries)).to_bytes(4, "big") + bytes(4) + b"".join(entries), allocation, views, length)


def absent_inquiry(lun: int, cdb: bytes, views: Views, length: int) -> ScsiResult:
    """INQUIRY of a unit that is not there: an answer that says so. The vendor is named on LUN 0 only."""
    _, flags, _, allocation, _ = CDB_6.unpack_from(cdb)
    if flags & 1:
        return failed(Reason.LUN_NOT_SUPPORTED)
    vendor = b"PARTITA " if lun == 0 else bytes(8)
    return _give(_standard_inquiry(_NO_DEVICE, vendor, bytes(16), bytes(4)), allocation, views, length)


def _standard_inquiry(device: int, vendor: bytes, product: bytes, revision: bytes) -> bytes:
    """36 bytes: SPC-3, response format 2, command queueing."""
    return bytes((device, 0, _SPC_3, 2, 31, 0, 0, 0x02)) + vendor + product + revision


def _give(data: bytes, allocation: int, views: Views, length: int) -> ScsiResult:
    """Put as much of an answer into the buffer as the command and the buffer allow."""
    data = data[: min(allocation, length)]
    position = 0
    for view in first_bytes(views, len(data)):
        view[:] = data[position : position + len(view)]
        position += len(view)
    return ScsiResult(ScsiStatus.GOOD, b"", len(data))


def first_bytes(views: Views, size: int) -> list[memoryview]:
    """The part of a buffer that holds its first `size` bytes."""
    kept: list[memoryview] = []
    for view in views:
        if size <= 0:
            break
        kept.append(view[:size])
        size -= len(view)
    return kept
