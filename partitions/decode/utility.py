"""Layouts of the integration components that this host does not serve: volume snapshots and file copy. Root side."""

from __future__ import annotations

import enum
from typing import Annotated

from hypervisor.wire import Guid, Wire, at, wire
from hypervisor.wire.scalars import guid, u8, u32, u64
from partitions.decode.field import Field, Hint, Hints, group, layout_field, raw, text
from partitions.decode.words import enum_words

_SPEC = "Linux 6.12 include/uapi/linux/hyperv.h"
bytes7 = Annotated[bytes, "7s"]
bytes520 = Annotated[bytes, "520s"]


class VssOperation(enum.IntEnum):
    """What the host wants of the guest's snapshots (enum hv_vss_op)."""

    CREATE = 0
    DELETE = 1
    HOT_BACKUP = 2
    GET_DM_INFO = 3
    BU_COMPLETE = 4
    FREEZE = 5
    THAW = 6
    AUTO_RECOVER = 7


class FileCopyOperation(enum.IntEnum):
    """What the host does with a file in the guest (enum hv_fcopy_op)."""

    START_FILE_COPY = 0
    WRITE_TO_FILE = 1
    COMPLETE_FCOPY = 2
    CANCEL_FCOPY = 3


@wire(size=8, spec=f"{_SPEC}, struct hv_vss_hdr")
class VssHeader(Wire):
    """In front of a snapshot message."""

    operation: u8 = at(0, default=0)
    reserved: bytes7 = at(1, default=bytes(7))


@wire(size=4, spec=f"{_SPEC}, struct hv_vss_check_feature, struct hv_vss_check_dm_info")
class VssFlags(Wire):
    """The body of HOT_BACKUP and GET_DM_INFO."""

    flags: u32 = at(0, default=0)


@wire(size=36, spec=f"{_SPEC}, struct hv_fcopy_hdr")
class FileCopyHeader(Wire):
    """In front of a file copy message."""

    operation: u32 = at(0, default=0)
    service_id0: guid = at(4, default=Guid())
    service_id1: guid = at(20, default=Guid())


@wire(size=1052, spec=f"{_SPEC}, struct hv_start_fcopy after its header")
class StartFileCopy(Wire):
    """The body of START_FILE_COPY."""

    file_name: bytes520 = at(0, default=b"")
    path_name: bytes520 = at(520, default=b"")
    copy_flags: u32 = at(1040, default=0)
    file_size: u64 = at(1044, default=0)


@wire(size=16, spec=f"{_SPEC}, struct hv_do_fcopy after its header; the data follow")
class WriteToFile(Wire):
    """The body of WRITE_TO_FILE."""

    padding: u32 = at(0, default=0)
    file_offset: u64 = at(4, default=0)
    size: u32 = at(12, default=0)


_VSS: Hints = {"operation": Hint(enum_words(VssOperation, spaces=True))}
_FILE_COPY: Hints = {"operation": Hint(enum_words(FileCopyOperation, spaces=True))}


def decode_vss(data: bytes, at: int, end: int) -> Field:
    """The body of a volume snapshot message."""
    header = layout_field("vss", VssHeader, data, at, end, _VSS)
    parts = [header]
    if not header.fault and header.end < end:
        if data[at] in (VssOperation.HOT_BACKUP, VssOperation.GET_DM_INFO):
            parts.append(layout_field("feature", VssFlags, data, header.end, end))
        if parts[-1].end < end:
            parts.append(raw("unused", data, parts[-1].end, end))
    return group("body", data, at, end, parts, "", header.fault)


def decode_file_copy(data: bytes, at: int, end: int) -> Field:
    """The body of a file copy message."""
    header = layout_field("file_copy", FileCopyHeader, data, at, end, _FILE_COPY)
    parts = [header]
    position = header.end
    if not header.fault and position < end:
        operation = int.from_bytes(data[at : at + 4], "little")
        if operation == FileCopyOperation.START_FILE_COPY:
            start = layout_field("start", StartFileCopy, data, position, end)
            for place in start.children:
                if place.name in ("file_name", "path_name") and not place.fault:
                    place.value = text(place.name, data, place.offset, place.end).value
            parts.append(start)
        elif operation == FileCopyOperation.WRITE_TO_FILE:
            write = layout_field("write", WriteToFile, data, position, end)
            parts.append(write)
            if not write.fault and write.end < end:
                size = int.from_bytes(data[write.end - 4 : write.end], "little")
                stop = min(end, write.end + size)
                if write.end < stop:
                    parts.append(raw("data", data, write.end, stop))
        if parts[-1].end < end:
            parts.append(raw("unused", data, parts[-1].end, end))
    return group("body", data, at, end, parts, "", header.fault)
