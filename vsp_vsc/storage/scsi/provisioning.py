"""Thin provisioning (SBC-3 4.7): UNMAP, and GET LBA STATUS from the holes in the image. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vsp_vsc.storage.backends.base import IoOperation
from vsp_vsc.storage.scsi.answer import GOOD, Refused, ScsiResult, give
from vsp_vsc.storage.scsi.blocks import discard
from vsp_vsc.storage.scsi.cdb import UNMAP_10, UNMAP_DESCRIPTOR, UNMAP_HEADER
from vsp_vsc.storage.scsi.jobs import Steps, perform, step
from vsp_vsc.storage.scsi.sense import Reason

if TYPE_CHECKING:
    from vsp_vsc.storage.scsi.commands import Call
    from vsp_vsc.storage.scsi.target import ScsiTarget

MAX_UNMAP_BYTES = 256 << 20
"""What one UNMAP may name in all: a host that has to write zeros there is done in half a second."""
MAX_UNMAP_DESCRIPTORS = 255
"""As many as fit a page with their header."""
MAX_STATUS_DESCRIPTORS = 256
"""In one answer to GET LBA STATUS."""
_MOST_BLOCKS = 0xFFFF_FFFF
_MAPPED, _DEALLOCATED = 0, 1


def unmap(disk: ScsiTarget, call: Call) -> ScsiResult | None:
    """UNMAP: everything is checked before anything is done, so one that fails has changed nothing."""
    _, flags, size, _ = UNMAP_10.unpack_from(call.cdb)
    disk.check_writable()
    if flags & 1:
        raise Refused(Reason.INVALID_FIELD_IN_CDB, field=1, bit=0)  # anchored blocks, which we have not
    untrusted_list = call.parameters(size, field=7)
    if not size:
        return GOOD
    ranges = _unmap_ranges(disk, untrusted_list)
    if not ranges:
        return ScsiResult(0, b"", size)
    discard(disk, call, ranges, size)
    return None


def _unmap_ranges(disk: ScsiTarget, untrusted_list: bytes) -> list[tuple[int, int]]:
    """The byte ranges that a parameter list, which is our own copy, names."""
    if len(untrusted_list) < UNMAP_HEADER.size:
        raise Refused(Reason.PARAMETER_LIST_LENGTH_ERROR)
    _, described = UNMAP_HEADER.unpack_from(untrusted_list)
    if described > len(untrusted_list) - UNMAP_HEADER.size:
        raise Refused(Reason.PARAMETER_LIST_LENGTH_ERROR)
    count = described // UNMAP_DESCRIPTOR.size  # SBC-3: an incomplete one at the end is not looked at
    if count > MAX_UNMAP_DESCRIPTORS:
        raise Refused(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=2, in_data=True)
    ranges: list[tuple[int, int]] = []
    total = 0
    for index in range(count):
        at = UNMAP_HEADER.size + index * UNMAP_DESCRIPTOR.size
        lba, blocks = UNMAP_DESCRIPTOR.unpack_from(untrusted_list, at)
        disk.check_range(lba, blocks)
        total += blocks
        if total > disk.max_unmap:
            raise Refused(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=at + 8, in_data=True)
        if blocks:
            ranges.append((lba << disk.shift, blocks << disk.shift))
    return ranges


def get_lba_status(disk: ScsiTarget, call: Call) -> ScsiResult | None:
    """GET LBA STATUS: from a block on, which blocks take room on the host."""
    lba, allocation = call.number(2, 8), min(call.number(10, 4), call.length)
    if lba >= disk.blocks:
        raise Refused(Reason.LBA_OUT_OF_RANGE, information=lba)
    most = max(1, min(MAX_STATUS_DESCRIPTORS, (allocation - 8) // 16))
    perform(call, disk.backend, _get_lba_status(disk, call, lba, most, allocation))
    return None


def _get_lba_status(disk: ScsiTarget, call: Call, lba: int, most: int, allocation: int) -> Steps:
    # The image's own granules may be smaller than a block is; a block that has any room counts as mapped.
    job = step(IoOperation.EXTENTS, offset=lba << disk.shift, length=(disk.blocks - lba) << disk.shift)
    job.most_extents = most
    error = yield job
    if error is not None:
        return disk.host_failed(error, IoOperation.EXTENTS, lba)
    data = b""
    for start, end, allocated in _whole_blocks(job.extents, disk.shift):
        first = start
        while first < end and len(data) < 16 * most:
            count = min(end - first, _MOST_BLOCKS)
            data += first.to_bytes(8, "big") + count.to_bytes(4, "big")
            data += bytes((_MAPPED if allocated else _DEALLOCATED, 0, 0, 0))
            first += count
    return give((len(data) + 4).to_bytes(4, "big") + bytes(4) + data, allocation, call.views, call.length)


def _whole_blocks(extents: list[tuple[int, int, bool]], shift: int) -> list[tuple[int, int, bool]]:
    """Extents (offset, length, allocated) in bytes as runs (first block, end, allocated), each other than the last."""
    runs: list[tuple[int, int, bool]] = []
    position = extents[0][0] >> shift
    for offset, length, allocated in extents:
        end = (offset + length) >> shift
        if allocated:
            end = (offset + length + (1 << shift) - 1) >> shift
        if end > position:
            if runs and runs[-1][2] is allocated:
                runs[-1] = runs[-1][0], end, allocated
            else:
                runs.append((position, end, allocated))
            position = end
    return runs or [(position, position + 1, True)]  # what was told ends within the first block
