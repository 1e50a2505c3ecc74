"""The bodies of volume snapshot and file copy messages as trees of fields. Root side."""

from __future__ import annotations

from partitions.decode.field import Field, Hint, Hints, group, layout_field, raw, text
from partitions.decode.words import enum_words, flag_words
from vsp_vsc.integration.file_copy.protocol import (
    CopyFlags,
    FileCopyHeader,
    FileCopyOperation,
    StartFileCopy,
    WriteToFile,
)
from vsp_vsc.integration.vss.protocol import VssFlags, VssFreeze, VssHeader, VssOperation

_VSS: Hints = {"operation": Hint(enum_words(VssOperation, spaces=True))}
_START: Hints = {"copy_flags": Hint(flag_words(CopyFlags))}
_FILE_COPY: Hints = {"operation": Hint(enum_words(FileCopyOperation, spaces=True))}


def decode_vss(data: bytes, at: int, end: int) -> Field:
    """The body of a volume snapshot message."""
    header = layout_field("vss", VssHeader, data, at, end, _VSS)
    parts = [header]
    if not header.fault and header.end < end:
        if data[at] in (VssOperation.HOT_BACKUP, VssOperation.GET_DM_INFO, VssOperation.THAW):
            parts.append(layout_field("feature", VssFlags, data, header.end, end))
        elif data[at] == VssOperation.FREEZE and end - header.end >= VssFreeze.SIZE:
            parts.append(layout_field("freeze", VssFreeze, data, header.end, end))
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
            start = layout_field("start", StartFileCopy, data, position, end, _START)
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
