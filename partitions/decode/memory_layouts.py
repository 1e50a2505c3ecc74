"""Layouts of dynamic memory, the balloon. Root side.

Facts: Linux 6.12 drivers/hv/hv_balloon.c; tests/spec/layouts/dynamic_memory.txt holds them a second time.
"""

from __future__ import annotations

import enum

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u16, u32, u64

_SPEC = "Linux 6.12 drivers/hv/hv_balloon.c"


class MemoryType(enum.IntEnum):
    """What a dynamic memory message is."""

    ERROR = 0
    VERSION_REQUEST = 1
    VERSION_RESPONSE = 2
    CAPABILITIES_REPORT = 3
    CAPABILITIES_RESPONSE = 4
    STATUS_REPORT = 5
    BALLOON_REQUEST = 6
    BALLOON_RESPONSE = 7
    UNBALLOON_REQUEST = 8
    UNBALLOON_RESPONSE = 9
    MEM_HOT_ADD_REQUEST = 10
    MEM_HOT_ADD_RESPONSE = 11
    INFO_MESSAGE = 12


@wire(size=8, spec=f"{_SPEC}, struct dm_header")
class MemoryHeader(Wire):
    """In front of every message."""

    message_type: u16 = at(0, default=0)
    size: u16 = at(2, default=0)
    transaction_id: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}, struct dm_version_request")
class MemoryVersionRequest(Wire):
    """The guest asks for a version; bit 0 of the second word: it has no other to offer."""

    version: u32 = at(0, default=0)
    last_attempt: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}, struct dm_version_response, struct dm_capabilities_resp_msg")
class MemoryAccepted(Wire):
    """Bit 0: accepted."""

    accepted: u64 = at(0, default=0)


@wire(size=24, spec=f"{_SPEC}, struct dm_capabilities")
class MemoryCapabilities(Wire):
    """What the guest can do."""

    capabilities: u64 = at(0, default=0)
    least_pages: u64 = at(8, default=0)
    greatest_page: u64 = at(16, default=0)


@wire(size=40, spec=f"{_SPEC}, struct dm_status")
class MemoryStatus(Wire):
    """How much memory the guest needs, in pages."""

    available: u64 = at(0, default=0)
    committed: u64 = at(8, default=0)
    page_file_size: u64 = at(16, default=0)
    zero_free: u64 = at(24, default=0)
    page_file_writes: u32 = at(32, default=0)
    io_diff: u32 = at(36, default=0)


@wire(size=8, spec=f"{_SPEC}, struct dm_balloon")
class BalloonRequest(Wire):
    """The host wants pages."""

    pages: u32 = at(0, default=0)
    reserved: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}, struct dm_balloon_response before its ranges")
class BalloonResponse(Wire):
    """The pages; bit 0 of the second word: more messages follow, bits 31:1 how many ranges."""

    reserved: u32 = at(0, default=0)
    counts: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}, struct dm_unballoon_request before its ranges")
class UnballoonRequest(Wire):
    """The guest gets pages back; bit 0 of the first word: more messages follow."""

    more: u32 = at(0, default=0)
    range_count: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}, union dm_mem_page_range")
class PageRange(Wire):
    """The first page in bits 39:0, how many in bits 63:40."""

    pages: u64 = at(0, default=0)


@wire(size=8, spec=f"{_SPEC}, struct dm_hot_add_response")
class HotAddResponse(Wire):
    """How much the guest took."""

    page_count: u32 = at(0, default=0)
    result: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}, struct dm_info_msg")
class InfoMessage(Wire):
    """The host tells something; `size` bytes of information follow."""

    reserved: u32 = at(0, default=0)
    size: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}, struct dm_info_header")
class InfoHeader(Wire):
    """In front of the information; type 0 is the greatest page count."""

    kind: u32 = at(0, default=0)
    data_size: u32 = at(4, default=0)
