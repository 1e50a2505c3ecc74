"""A disk as SCSI sees it: a CDB and a data buffer in; a status, sense data and a count of bytes out. Root side.

It knows nothing of VMBus: any front end that carries CDBs can serve it, several at once. A front end gets a nexus for
each of its initiators (`connect`) and hands commands to that. It gives the data buffer as views of wherever the data is
to go or to come from, with room for `length` bytes, and checks itself that a command's direction (`cdb.DIRECTION`) is
that of its buffer.

Answers to SPC-4 and SBC-3 for a non-removable direct access disk, thin if its backend can give room back, else thick.
What it answers is in the table at the end; every other command gets INVALID COMMAND OPERATION CODE. A host's I/O error
becomes sense data.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from vsp_vsc.storage.backends.base import DiskBackend, IoOperation, inspect_backend
from vsp_vsc.storage.scsi import blocks
from vsp_vsc.storage.scsi.answer import (
    GOOD,
    Done,
    Refused,
    ScsiResult,
    Tag,
    Views,
    failed,
    give,
)
from vsp_vsc.storage.scsi.cdb import CDB_6, GET_LBA_STATUS, LUNS_12, READ_CAPACITY_16
from vsp_vsc.storage.scsi.commands import CommandSet
from vsp_vsc.storage.scsi.jobs import Steps, perform
from vsp_vsc.storage.scsi.primary import PRIMARY_COMMANDS, row, standard_inquiry, vital_pages
from vsp_vsc.storage.scsi.provisioning import MAX_UNMAP_BYTES, MAX_UNMAP_DESCRIPTORS, get_lba_status, unmap
from vsp_vsc.storage.scsi.reservations import Access
from vsp_vsc.storage.scsi.reserve import RESERVE_COMMANDS
from vsp_vsc.storage.scsi.sense import Reason
from vsp_vsc.storage.scsi.unit import LogicalUnit, TargetStatistics

if TYPE_CHECKING:
    from vsp_vsc.storage.scsi.commands import Call
    from vsp_vsc.storage.scsi.nexus import Nexus

__all__ = ["ScsiResult", "ScsiTarget", "TargetStatistics", "absent_inquiry", "report_luns"]

BLOCK_SIZES = (512, 4096)
_PHYSICAL_BYTES = 4096
_NO_DEVICE = 0x7F
"""Peripheral qualifier 3, device type 1Fh: no device can be here."""
_LARGEST_LBA_10 = 0xFFFF_FFFF
_LBPME, _LBPRZ = 0x80, 0x40
"""READ CAPACITY(16): thin; what is unmapped reads as zeros."""
_THIN = bytes((0, 0xE4, 0x02, 0))
"""Logical block provisioning page: UNMAP and WRITE SAME unmap, unmapped blocks read as zeros, thin provisioning."""
_NON_ROTATING = 1
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_WRITING = {errno.EROFS, errno.EPERM, errno.EACCES, errno.EBADF}


class ScsiTarget(LogicalUnit):
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
        block_size: int = 512,
        vendor: str = "PARTITA",
        product: str = "VIRTUAL DISK",
        revision: str = "1.0",
    ) -> None:
        """ValueError for a `block_size` other than 512 and 4096 bytes, or one that the backend is not made of."""
        super().__init__(identity or backend.identity, vendor, product, revision)
        if block_size not in BLOCK_SIZES or backend.size_bytes % block_size:
            raise ValueError(f"a disk of {backend.size_bytes} bytes cannot have blocks of {block_size}")
        self.backend = backend
        self.block_size = block_size
        self.shift = block_size.bit_length() - 1
        self.blocks = backend.size_bytes >> self.shift
        self.read_only = read_only or backend.read_only
        self.thin = backend.discards and not self.read_only
        """Whether guests may unmap blocks."""
        self.protected = self.read_only
        """Whether nobody may write: for good, or because initiators have agreed on it."""
        self.write_through = False
        """Whether every write is on the medium before it ends."""
        self.max_unmap = MAX_UNMAP_BYTES >> self.shift
        self.max_compare = blocks.MAX_COMPARE_BYTES >> self.shift
        self.max_write_same = blocks.MAX_WRITE_SAME_BYTES >> self.shift
        # Images rest on pages of 4 KiB, and guests align to what is said here: logical blocks to a physical one.
        self._physical_exponent = 12 - self.shift if backend.size_bytes % _PHYSICAL_BYTES == 0 else 0
        self.busy_alone = False
        """Whether a command is under way that must not have another write in its middle."""
        self._waiting: deque[tuple[Nexus, int, Tag, Done, Callable[[Done], ScsiResult | None]]] = deque()

    def medium(self) -> dict[str, object]:
        """The disk."""
        return {
            "blocks": self.blocks,
            "thin": self.thin,
            "write_through": self.write_through,
            "waiting": len(self._waiting),
            "backend": lambda: inspect_backend(self.backend),
        }

    # --- for front ends

    def read_now(self, lba: int, count: int, views: Views) -> bool:
        """Read blocks into views of just that size, if they are there and nothing has to be waited for."""
        try:
            shift = self.shift
            return lba + count <= self.blocks and self.backend.try_read(views, lba << shift, count << shift)
        except OSError:
            return False

    def resized(self) -> None:
        """The backend has another size now: from here on it counts, and everyone is told."""
        self.blocks = self.backend.size_bytes >> self.shift
        self.attend(Reason.CAPACITY_CHANGED)

    # --- for handlers

    def modes_changed(self) -> None:
        """The write cache, or write protection."""
        self.write_through = not self.modes.write_cache
        self.protected = self.read_only or self.modes.write_protected

    def protected_by(self) -> Refused:
        """Why nobody may write."""
        return Refused(Reason.WRITE_PROTECTED if self.read_only else Reason.SOFTWARE_WRITE_PROTECTED)

    def check_range(self, lba: int, count: int) -> None:
        """Raises `Refused` for blocks that are not all on the disk."""
        if lba + count > self.blocks:
            raise Refused(Reason.LBA_OUT_OF_RANGE, information=max(lba, self.blocks))

    def check_writable(self) -> None:
        """Raises `Refused` where nobody may write."""
        if self.protected:
            raise self.protected_by()

    def change(self, call: Call, steps: Steps, *, alone: bool) -> None:
        """Perform what changes blocks; `alone` if other writes, which wait then, must not come between its steps."""
        if self.busy_alone:

            def later(done: Done) -> None:
                call.done = done
                self.change(call, steps, alone=alone)

            self.wait_until_alone_is_over(call.nexus, call.tag, call.done, later)
        elif alone:
            self.busy_alone = True
            perform(call, self.backend, steps, self._alone_is_over)
        else:
            perform(call, self.backend, steps)

    def wait_until_alone_is_over(
        self, nexus: Nexus, tag: Tag, done: Done, start: Callable[[Done], ScsiResult | None]
    ) -> None:
        """Have a command, which is under way by this, carried out by `start` then."""
        self._waiting.append((nexus, nexus.begin(), tag, done, start))

    def _alone_is_over(self) -> None:
        self.busy_alone = False
        while self._waiting and not self.busy_alone:
            self._start_waiting(*self._waiting.popleft())

    def _start_waiting(
        self, nexus: Nexus, epoch: int, tag: Tag, done: Done, start: Callable[[Done], ScsiResult | None]
    ) -> None:
        def finish(tag: Tag, result: ScsiResult) -> None:
            nexus.end(epoch, tag, done, result)

        result = GOOD if nexus.aborted(epoch, tag) else start(finish)
        if result is not None:
            finish(tag, result)

    def host_failed(self, error: OSError, operation: IoOperation, lba: int) -> ScsiResult:
        """The sense data that tells a guest what the host's storage said."""
        self._host_errors += 1
        return self.refuse(_meaning(error, operation, lba))

    # --- what it says of itself

    def vital_pages(self) -> dict[int, bytes]:
        """Pages of vital product data by number, without their headers."""
        pages = {0xB0: self._block_limits(), 0xB1: _NON_ROTATING.to_bytes(2, "big").ljust(0x3C, b"\0")}
        if self.thin:
            pages[0xB2] = _THIN
        return vital_pages(self, pages)

    def _block_limits(self) -> bytes:
        """60 bytes: no limits for reading and writing, those of the commands that change more than they carry."""
        granularity = 1 << self._physical_exponent
        # WSNZ: WRITE SAME of 0 blocks, which would be all that there are, is refused.
        body = bytes((1, self.max_compare)) + granularity.to_bytes(2, "big") + bytes(12)
        if self.thin:
            body += self.max_unmap.to_bytes(4, "big") + MAX_UNMAP_DESCRIPTORS.to_bytes(4, "big")
            body += granularity.to_bytes(4, "big") + (1 << 31).to_bytes(4, "big")  # granules begin at block 0
        return body.ljust(32, b"\0") + self.max_write_same.to_bytes(8, "big") + bytes(20)

    def device_specific(self) -> int:
        """The byte of MODE SENSE: write protection, and that DPO and FUA are understood."""
        return (0x80 if self.protected else 0) | 0x10

    def block_descriptor(self, *, long: bool) -> bytes:
        """Number and size of blocks for MODE SENSE."""
        if long:
            return self.blocks.to_bytes(8, "big") + bytes(4) + self.block_size.to_bytes(4, "big")
        return min(self.blocks, _LARGEST_LBA_10).to_bytes(4, "big") + self.block_size.to_bytes(4, "big")

    def capacity(self) -> bytes:
        """The answer to READ CAPACITY(16)."""
        provisioning = _LBPME | _LBPRZ if self.thin else 0
        data = (self.blocks - 1).to_bytes(8, "big") + self.block_size.to_bytes(4, "big")
        return (data + bytes((0, self._physical_exponent, provisioning, 0))).ljust(32, b"\0")


def _meaning(error: OSError, operation: IoOperation, lba: int) -> Refused:
    if operation in (IoOperation.WRITE, IoOperation.FLUSH, IoOperation.DISCARD):
        if error.errno in _NO_SPACE:
            return Refused(Reason.SPACE_ALLOCATION_FAILED)
        if error.errno in _NO_WRITING:
            return Refused(Reason.WRITE_PROTECTED)
        if error.errno == errno.EIO:
            return Refused(Reason.WRITE_ERROR, information=lba if operation is IoOperation.WRITE else None)
    elif error.errno == errno.EIO:
        return Refused(Reason.UNRECOVERED_READ_ERROR, information=lba)
    return Refused(Reason.INTERNAL_TARGET_FAILURE)


# --- commands of disks that move no blocks


def _read_capacity_10(disk: ScsiTarget, call: Call) -> ScsiResult:
    if call.number(2, 4):
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2)
    last = min(disk.blocks - 1, _LARGEST_LBA_10)
    return call.give(last.to_bytes(4, "big") + disk.block_size.to_bytes(4, "big"), 8)


def _read_capacity_16(disk: ScsiTarget, call: Call) -> ScsiResult:
    if call.number(2, 8):
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=2)
    return call.give(disk.capacity(), call.number(10, 4))


def _start_stop(disk: ScsiTarget, call: Call) -> ScsiResult | None:
    """START STOP UNIT. A stopped disk has flushed, and is not ready until it is started; there is nothing to eject."""
    flags = call.cdb[4]
    if flags >> 4 or flags & 0x02:  # power conditions, LOEJ
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=4, bit=flags.bit_length() - 1 if flags >> 4 else 1)
    starts = bool(flags & 0x01)
    disk.starts += starts and disk.stopped
    disk.stopped = not starts
    disk.look_at_all()
    if starts or flags & 0x04 or disk.read_only:  # NO_FLUSH
        return GOOD
    blocks.flush(disk, call)
    return None


def _start_stop_access(cdb: bytes) -> Access:
    return Access.FREE if cdb[4] & 0xF1 == 0x01 else Access.WRITE


def _is_thin(disk: ScsiTarget) -> bool:
    return disk.thin or disk.read_only


_R, _W = Access.READ, Access.WRITE
ScsiTarget.commands = CommandSet(
    (
        *PRIMARY_COMMANDS,
        *RESERVE_COMMANDS,
        row("08 1F FF FF FF 00", _R, None, quick=blocks.read_6, medium=True),
        row("28 F8 FF FF FF FF 00 FF FF 00", _R, None, quick=blocks.read_10, medium=True),
        row("A8 F8 FF FF FF FF FF FF FF FF 00 00", _R, None, quick=blocks.read_12, medium=True),
        row("88 F8 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _R, None, quick=blocks.read_16, medium=True),
        row("0A 1F FF FF FF 00", _W, None, quick=blocks.write_6, medium=True),
        row("2A F8 FF FF FF FF 00 FF FF 00", _W, None, quick=blocks.write_10, medium=True),
        row("AA F8 FF FF FF FF FF FF FF FF 00 00", _W, None, quick=blocks.write_12, medium=True),
        row("8A F8 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _W, None, quick=blocks.write_16, medium=True),
        row("2F F6 FF FF FF FF 3F FF FF 00", _R, blocks.verify, medium=True),
        row("AF F6 FF FF FF FF FF FF FF FF 3F 00", _R, blocks.verify, medium=True),
        row("8F F6 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00", _R, blocks.verify, medium=True),
        row("35 06 FF FF FF FF 3F FF FF 00", _W, blocks.synchronize_cache, medium=True),
        row("91 06 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00", _W, blocks.synchronize_cache, medium=True),
        row("41 F8 FF FF FF FF 3F FF FF 00", _W, blocks.write_same, medium=True),
        row("93 F9 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00", _W, blocks.write_same, medium=True),
        row("89 FA FF FF FF FF FF FF FF FF 00 00 00 FF 3F 00", _W, blocks.compare_and_write, medium=True),
        row("42 01 00 00 00 00 3F FF FF 00", _W, unmap, medium=True, present=_is_thin),
        row("25 00 FF FF FF FF 00 00 01 00", Access.FREE, _read_capacity_10),
        row("9E 00 FF FF FF FF FF FF FF FF FF FF FF FF 01 00", Access.FREE, _read_capacity_16, action=READ_CAPACITY_16),
        row("9E 00 FF FF FF FF FF FF FF FF FF FF FF FF 00 00", _R, get_lba_status, action=GET_LBA_STATUS, medium=True),
        row("1B 01 00 00 F7 00", _W, _start_stop, milder=_start_stop_access),
    )
)


# --- for a target of several units


def report_luns(luns: Iterable[int], cdb: bytes, views: Views, length: int) -> ScsiResult:
    """REPORT LUNS, which any logical unit answers for all of its target. LUNs below 256.

    Where the CDB gives no allocation length the buffer is what counts, as with hosts that look at nothing else.
    """
    _, select, allocation, _ = LUNS_12.unpack_from(cdb)
    allocation = allocation or length
    if select > 2:
        return failed(Reason.INVALID_FIELD_IN_CDB, field=2)
    if min(allocation, length) < 8:
        return GOOD  # not even the header fits
    entries = [] if select == 1 else [bytes((0, lun)) + bytes(6) for lun in sorted(luns)]  # 1: well-known units only
    return give((8 * len(entries)).to_bytes(4, "big") + bytes(4) + b"".join(entries), allocation, views, length)


def absent_inquiry(lun: int, cdb: bytes, views: Views, length: int) -> ScsiResult:
    """INQUIRY of a unit that is not there: an answer that says so. The vendor is named on LUN 0 only."""
    _, flags, page, allocation, _ = CDB_6.unpack_from(cdb)
    if flags & 1:
        return failed(Reason.LUN_NOT_SUPPORTED)
    if page:
        return failed(Reason.INVALID_FIELD_IN_CDB, field=2)
    vendor = b"PARTITA " if lun == 0 else bytes(8)
    return give(standard_inquiry(_NO_DEVICE, vendor, bytes(16), bytes(4)), allocation, views, length)
