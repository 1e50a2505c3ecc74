"""RNDIS messages out of a guest's memory: in its send buffer, in pages that a packet names, or in both. Root side.

A message is copied once; only the copy is looked at.
"""

from __future__ import annotations

import struct

from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.wire import BadValue, ShortMessage
from vmbus.ring import Packet
from vsp_vsc.network.buffers import LentBuffer
from vsp_vsc.network.protocol import MAX_MESSAGE, NO_SECTION, SECTION_SIZE

_range_header = struct.Struct("<II").unpack_from
_gpn = struct.Struct("<Q").unpack_from
_RANGES_AT = 8


def in_section(send: LentBuffer | None, section: int, size: int) -> bytes:
    """A message, or the beginning of one, in the send buffer. Raises `BadValue`."""
    start = section * SECTION_SIZE
    if section == NO_SECTION or send is None or size > SECTION_SIZE or start + size > send.size:
        raise BadValue(f"an RNDIS message of {size} bytes in section {section:#x}")
    flat = send.flat
    return bytes(flat[start : start + size]) if flat is not None else send.read(start, size)


def in_pages(
    send: LentBuffer | None, memory: GuestMemory, packet: Packet, section: int, size: int
) -> tuple[bytes, list[int]]:
    """A message in the pages that the packet names, and where in it ranges end. Raises `WireError`, `GpaFault`."""
    parts: list[bytes | memoryview] = []
    total = 0
    ends: list[int] = []
    if section != NO_SECTION:
        parts.append(in_section(send, section, size))
        total = size
        ends.append(total)
    body, end = packet.body, packet.data_offset
    count = _range_header(body)[1]
    position = _RANGES_AT
    if not count:
        raise BadValue("a GPA-direct packet without ranges")
    for _ in range(count):
        if end - position < 8:
            raise ShortMessage("GPA ranges", position + 8, end)
        byte_count, byte_offset = _range_header(body, position)
        position += 8
        pages = (byte_offset + byte_count + PAGE_SIZE - 1) >> PAGE_SHIFT
        if byte_offset >= PAGE_SIZE or not byte_count or end - position < 8 * pages:
            raise BadValue(f"a GPA range of {byte_count} bytes at {byte_offset} in {(end - position) >> 3} pages")
        total += byte_count
        if total > MAX_MESSAGE:
            raise BadValue(f"an RNDIS message of more than {MAX_MESSAGE} bytes")
        if pages == 1:
            gpn = _gpn(body, position)[0]
            parts.append(memory.view((gpn << PAGE_SHIFT) + byte_offset, byte_count, Access.READ))
        else:
            gpns = struct.unpack_from(f"<{pages}Q", body, position)
            parts += memory.page_views(gpns, byte_offset, byte_count, Access.READ)
        position += 8 * pages
        ends.append(total)
    return b"".join(parts), ends[:-1]
