"""Dynamic memory messages: layouts, numbers, and which mistakes cost what. Both sides.

Raw in-band packets without a pipe header; nobody completes them. A message is at most a page, so a long list of ranges
is several messages, all but the last with "more pages" set.

    VERSION_REQUEST      ->      2.0, then 1.0, then 0.3, which is the last attempt
                         <-      VERSION_RESPONSE
    CAPABILITIES_REPORT  ->
                         <-      CAPABILITIES_RESPONSE, INFO_MESSAGE: how much it can ever be
    STATUS_REPORT        ->      each second, from some time after its boot on: Linux waits 45 s
                         <-      BALLOON_REQUEST: so many pages
    BALLOON_RESPONSE ... ->      the pages it gives, in ranges; fewer where it has no more
                         <-      UNBALLOON_REQUEST ...: these ranges are its own again
    UNBALLOON_RESPONSE   ->      one
                         <-      MEM_HOT_ADD_REQUEST: memory where there was none
    MEM_HOT_ADD_RESPONSE ->      how much of it was taken

An answer carries a transaction number of the guest's own and not the question's (Linux), so the host asks one thing at
a time, and the type says what an answer is to.

What a guest's mistake costs it:

    soft
        a version that is not spoken here: refused; the host waits for another
        fewer pages than asked for, none at all, or no answer: see `session.py`
        a status report with absurd numbers: they are cut to what can be
    hard, the channel is served no more, and what it had given away is its own again
        a message before a version and capabilities were exchanged, or again after that
        another version after its last attempt
        an answer to nothing
        pages that it does not have, has given away already, or names twice; a range of none; more than was asked for
        a response to hot add that takes more than there was
        a message of an unknown type, or one that only hosts send
        a message that is too short for what it says, or not in an in-band packet
        a corrupt ring
    fatal for the VM
        nothing

Facts: Linux 6.12 drivers/hv/hv_balloon.c; tests/spec/layouts/dynamic_memory.txt holds the layouts a second time.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from hypervisor.wire import BadValue, Guid, ShortMessage, Wire, at, wire
from hypervisor.wire.scalars import u16, u32, u64
from vmbus.ring import Packet, PacketType

_SPEC = "Linux 6.12 drivers/hv/hv_balloon.c"

MEMORY_INTERFACE: Final = Guid("525074dc-8985-46e2-8057-a307dc18a502")
MEMORY_INSTANCE: Final = Guid("1eccfd72-4b41-45ef-b73a-4a6e44c12924")
"""The same in every VM."""
RING_BYTES: Final = 20 * 1024
"""Each way, with the control page: what Linux opens it with."""
VERSION_2_0: Final = 0x0002_0000
"""Windows 10 and Server 2016."""
VERSION_1_0: Final = 0x0001_0000
"""Windows 8."""
VERSION_0_3: Final = 0x0000_0003
"""Windows 7."""
VERSIONS: Final = (VERSION_2_0, VERSION_1_0, VERSION_0_3)
"""As guests try them."""
BALLOON_UNIT: Final = 512
"""Pages that a host asks for a multiple of: 2 MiB."""
CHUNK: Final = 32 * 1024
"""Pages in which Linux adds memory: 128 MiB, at a multiple of that."""
MAX_MESSAGE: Final = 4096
MAX_RANGES: Final = (MAX_MESSAGE - 16) // 8
"""In one message."""
MOST_PAGES: Final = (1 << 24) - 1
"""In one range."""
PAGE_SPACE: Final = 1 << 40


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


class Capabilities(NamedTuple):
    """What a guest's driver can do, as bits 5:0 of its report say."""

    balloon: bool
    hot_add: bool
    alignment: int
    """Pages that memory is added at a multiple of."""

    @classmethod
    def of(cls, word: int) -> Capabilities:
        """From the report's first word."""
        return cls(bool(word & 1), bool(word & 2), 256 << (word >> 2 & 0xF))

    @property
    def word(self) -> int:
        """For the report. The alignment is a power of two, a MiB and more."""
        return self.balloon | self.hot_add << 1 | (self.alignment // 256).bit_length() - 1 << 2


class Pages(msgspec.Struct, frozen=True, gc=False):
    """A run of pages."""

    first: int
    count: int

    @property
    def end(self) -> int:
        """The first page behind it."""
        return self.first + self.count

    def __str__(self) -> str:
        return f"{self.count} pages from GPA {self.first << 12:#x}"


_RANGE = struct.Struct("<Q")


def encode_ranges(ranges: Sequence[Pages]) -> bytes:
    """As `PageRange`s."""
    return b"".join(_RANGE.pack(run.first | run.count << 40) for run in ranges)


def decode_ranges(untrusted: bytes, count: int) -> list[Pages]:
    """The first `count` of them. Raises `WireError`, also for one of no pages."""
    if count * 8 > len(untrusted):
        raise ShortMessage("a list of page ranges", count * 8, len(untrusted))
    ranges = []
    for (word,) in _RANGE.iter_unpack(untrusted[: count * 8]):
        run = Pages(word & PAGE_SPACE - 1, word >> 40)
        if not run.count:
            raise BadValue(f"a range of no pages at GPA {run.first << 12:#x}")
        ranges.append(run)
    return ranges


def encode_message(kind: MemoryType, transaction_id: int, *parts: Wire | bytes) -> Packet:
    """A packet with a message in it."""
    body = b"".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    header = MemoryHeader(kind, MemoryHeader.SIZE + len(body), transaction_id)
    return Packet(PacketType.INBAND, 0, 0, 0, header.encode() + body)


def decode_message(untrusted: Packet) -> tuple[int, bytes]:
    """A packet's message: its type and what follows, as long as it says. Raises `WireError`."""
    if untrusted.type != PacketType.INBAND:
        raise BadValue(f"a packet of type {untrusted.type}, where dynamic memory speaks in-band")
    payload = untrusted.payload
    header = MemoryHeader.decode(payload)
    if header.size > len(payload):
        raise ShortMessage("a dynamic memory message", header.size, len(payload))
    if header.size < MemoryHeader.SIZE:
        raise BadValue(f"a dynamic memory message that says it has {header.size} bytes")
    return header.message_type, payload[MemoryHeader.SIZE : header.size]


def version_words(version: int) -> str:
    """For people: 2.0."""
    return f"{version >> 16}.{version & 0xFFFF}"


def pages_words(pages: int) -> str:
    """For people: in MiB where that is exact enough."""
    return f"{pages >> 8} MiB" if pages >= 256 else f"{pages << 2} KiB"
