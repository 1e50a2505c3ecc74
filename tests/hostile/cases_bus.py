"""Malformed channel messages, rings and storage requests, and their answers."""

from __future__ import annotations

import struct

from tests.doubles.boundary_guest import (
    DATA,
    BoundaryGuest,
    Rings,
)
from tests.hostile.case_table import (
    CREATED,
    MEMORY,
    NOT_OPENED,
    OPENED,
    REFUSED,
    Act,
    case,
    completions,
    connected,
    gpadl_header,
    u32s,
    words,
)

# --- the bus: control messages


def say(*messages: bytes) -> Act:
    """A connected guest says these, one after the other; all that comes back."""

    async def act(guest: BoundaryGuest) -> str:
        await connected(guest)
        heard: list[bytes] = []
        for message in messages:
            heard += await guest.say(message)
        return words(heard)

    return act


def open_message(channel: int = 1, gpadl: int = 0x10, downstream: int = 4, vp: int = 0) -> bytes:
    return u32s(5, 0, channel, channel, gpadl, vp, downstream) + bytes(120)


RING_WORDS = (8 << 12, *range(0x10, 0x18))
RING_GPADL = gpadl_header(words=RING_WORDS)
OPEN, CLOSE, TEARDOWN, RELEASE = open_message(), u32s(7, 0, 1), u32s(11, 0, 1, 0x10), u32s(13, 0, 1)
HUGE = 0xFFFFFFFF
UNFINISHED = gpadl_header(words=(4096 * 3, 0x20), length=32)

for _number, _what, _answer, _act in (
    (41, "open of channel 0", "no answer", say(open_message(0))),
    (41, "open of channel 2048", "no answer", say(open_message(2048))),
    (41, "close of a channel that there is not", "no answer", say(u32s(7, 0, 9))),
    (41, "GPADL for a channel that there is not", REFUSED, say(gpadl_header(9))),
    (41, "modify of a channel that there is not", "MODIFY_CHANNEL_RESPONSE status=0x8000ffff", say(u32s(22, 0, 9, 0))),
    (42, "GPADL ID twice", f"{CREATED}, {REFUSED}", say(gpadl_header(), gpadl_header())),
    (42, "body before header", "no answer", say(u32s(9, 0, 0, 0x10) + bytes(8))),
    (42, "body after the last", CREATED, say(gpadl_header(), u32s(9, 0, 0, 0x10) + bytes(8))),
    (42, "teardown on another channel", CREATED, say(gpadl_header(), u32s(11, 0, 2, 0x10))),
    (43, "no range", REFUSED, say(gpadl_header(ranges=0))),
    (43, "no bytes", REFUSED, say(gpadl_header(words=(0, 0x20)))),
    (43, "offset 4096", REFUSED, say(gpadl_header(words=(4096 << 32 | 1, 0x20)))),
    (43, "offset and count past 32 bits", REFUSED, say(gpadl_header(words=(0xFFF << 32 | HUGE, 0x20)))),
    (43, "more pages than are named", REFUSED, say(gpadl_header(words=(4096 * 2, 0x20)))),
    (43, "more ranges than words", REFUSED, say(gpadl_header(ranges=0xFFFF))),
    (44, "page outside of memory", REFUSED, say(gpadl_header(words=(4096, MEMORY >> 12)))),
    (44, "page number of all ones", REFUSED, say(gpadl_header(words=(4096, (1 << 64) - 1)))),
    (44, "one page eight times", CREATED, say(gpadl_header(words=(8 << 12, *[0x20] * 8)))),
    (45, "open of an open channel", f"{CREATED}, {OPENED}", say(RING_GPADL, OPEN, OPEN)),
    (45, "close of a closed channel", "no answer", say(CLOSE)),
    (46, "no page for the guest's ring", f"{CREATED}, {NOT_OPENED}", say(RING_GPADL, open_message(downstream=0))),
    (46, "no data page in the guest's ring", f"{CREATED}, {NOT_OPENED}", say(RING_GPADL, open_message(downstream=1))),
    (46, "no page for the host's ring", f"{CREATED}, {NOT_OPENED}", say(RING_GPADL, open_message(downstream=8))),
    (46, "downstream page FFFFFFFFh", f"{CREATED}, {NOT_OPENED}", say(RING_GPADL, open_message(downstream=HUGE))),
    (
        46,
        "rings that are no whole pages",
        f"{CREATED}, {NOT_OPENED}",
        say(gpadl_header(words=((8 << 12) - 8, *range(0x10, 0x18))), OPEN),
    ),
    (46, "open without a GPADL", NOT_OPENED, say(OPEN)),
    (46, "rings of one page only", f"{CREATED}, {OPENED}", say(gpadl_header(words=(8 << 12, *[0x20] * 8)), OPEN)),
    (47, "interrupts to a VP that there is not", f"{CREATED}, {NOT_OPENED}", say(RING_GPADL, open_message(vp=2))),
    (
        47,
        "moved to a VP that there is not",
        f"{CREATED}, {OPENED}, MODIFY_CHANNEL_RESPONSE status=0x8000ffff",
        say(RING_GPADL, OPEN, u32s(22, 0, 1, 99)),
    ),
    (48, "channel released while open", f"{CREATED}, {OPENED}", say(RING_GPADL, OPEN, RELEASE)),
    (48, "channel released twice", "no answer", say(RELEASE, RELEASE)),
    (50, "offers requested twice", "no answer", say(u32s(3, 0))),
    (51, "message of no bytes", "no answer", say(b"")),
    (51, "message of half a header", "no answer", say(u32s(3))),
    (51, "close without a channel", "no answer", say(u32s(7, 0))),
    (51, "open of 147 bytes", CREATED, say(RING_GPADL, OPEN[:147])),
    (51, "240 bytes where fewer are needed", f"{CREATED}, {OPENED}", say(RING_GPADL, OPEN.ljust(240, b"\xff"))),
    (51, "GPADL header without a word", "no answer", say(gpadl_header()[:20])),
    (52, "message type 0", "no answer", say(u32s(0, 0))),
    (52, "message type 99", "no answer", say(u32s(99, 0))),
    (52, "message type FFFFFFFFh", "no answer", say(u32s(HUGE, 0))),
    (
        52,
        "a message that only hosts send",
        "no answer",
        say(u32s(1, 0) + bytes(188), u32s(10, 0, 1, 1, 0), u32s(17, 0)),
    ),
    (
        53,
        "close after the GPADL is wanted back",
        f"{CREATED}, {OPENED}, GPADL_TORNDOWN",
        say(RING_GPADL, OPEN, TEARDOWN, CLOSE),
    ),
    (53, "GPADL of an open channel wanted back", f"{CREATED}, {OPENED}", say(RING_GPADL, OPEN, TEARDOWN)),
    (53, "GPADL wanted back twice", f"{CREATED}, GPADL_TORNDOWN", say(RING_GPADL, TEARDOWN, TEARDOWN)),
    (54, "unload with a channel open", f"{CREATED}, {OPENED}, UNLOAD_COMPLETE", say(RING_GPADL, OPEN, u32s(16, 0))),
    (54, "unload with a GPADL unfinished", "UNLOAD_COMPLETE", say(UNFINISHED, u32s(16, 0))),
    (54, "unload twice", "UNLOAD_COMPLETE", say(u32s(16, 0), u32s(16, 0))),
):
    case(_number, _what, _answer)(_act)


def contacts(*posts: tuple[int, int, int]) -> Act:
    """Contacts as (version, connection, target VP)."""

    async def act(guest: BoundaryGuest) -> str:
        heard: list[bytes] = []
        for version, connection, vp in posts:
            heard += await guest.say(struct.pack("<IIIIQQQ", 14, 0, version, vp, 2, 0, 0), connection)
        return words(heard)

    return act


def with_pages(version: int, interrupt: int, to_child: int, to_root: int) -> Act:
    """A contact that names these pages."""

    async def act(guest: BoundaryGuest) -> str:
        connection = 4 if version >= 0x50000 else 1
        target = 2 if version >= 0x50000 else interrupt
        return words(await guest.say(struct.pack("<IIIIQQQ", 14, 0, version, 0, target, to_child, to_root), connection))

    return act


TAKEN, REFUSED_VERSION = "VERSION_RESPONSE supported=1", "VERSION_RESPONSE supported=0"
NO_CONNECTION = "VERSION_RESPONSE supported=1 state=2"

for _number, _what, _answer, _act in (
    (49, "both monitor pages", TAKEN, with_pages(0x50003, 0, 0x6000, 0x7000)),
    (49, "one monitor page of two", NO_CONNECTION, with_pages(0x50003, 0, 0x6000, 0)),
    (49, "one page as both monitor pages", NO_CONNECTION, with_pages(0x50003, 0, 0x6000, 0x6000)),
    (49, "monitor pages outside of memory", NO_CONNECTION, with_pages(0x50003, 0, 0x6000, MEMORY)),
    (49, "monitor pages past 64 bits", NO_CONNECTION, with_pages(0x20004, 0, 0x6000, (1 << 64) - 4096)),
    (49, "monitor page in the middle of a page", NO_CONNECTION, with_pages(0x50003, 0, 0x6000, 0x7008)),
    (49, "monitor page outside of memory, at 1.1", REFUSED_VERSION, with_pages(0x10001, 0x8000, 0x6000, MEMORY)),
    (49, "no interrupt page at 0.13", TAKEN, with_pages(0xD, 0, 0, 0)),
    (49, "interrupt page outside of memory at 0.13", REFUSED_VERSION, with_pages(0xD, MEMORY, 0, 0)),
    (49, "interrupt page in the middle of a page", REFUSED_VERSION, with_pages(0x10001, 0x8001, 0, 0)),
    (49, "interrupt page that is a monitor page too", REFUSED_VERSION, with_pages(0xD, 0x6000, 0x6000, 0x7000)),
    (49, "interrupt page outside of memory from 2.4 on", TAKEN, with_pages(0x20004, MEMORY, 0, 0)),
    (
        49,
        "contact twice",
        "VERSION_RESPONSE supported=1, VERSION_RESPONSE supported=1",
        contacts((0x50003, 4, 0), (0x50003, 4, 0)),
    ),
    (49, "version FFFFFFFFh", "VERSION_RESPONSE supported=0", contacts((HUGE, 4, 0))),
    (49, "version 0", "VERSION_RESPONSE supported=0", contacts((0, 1, 0))),
    (49, "contact with messages to a VP that there is not", "no answer", contacts((0x50003, 4, 64))),
):
    case(_number, _what, _answer)(_act)


# --- rings


async def storage_rings(guest: BoundaryGuest, *, ready: bool = True) -> Rings:
    await connected(guest)
    rings = await guest.open_channel()
    if ready:
        for operation, body in ((7, b""), (9, b"\x02\x06\0\0"), (10, b""), (8, b"")):
            await rings.send(struct.pack("<III", operation, 1, 0) + body.ljust(52, b"\0"))
        assert completions(await rings.received()) == "; ".join(["SUCCESS"] * 4)
    return rings


async def fate(guest: BoundaryGuest, rings: Rings) -> str:
    """What became of the channel: what it answered, and whether it is served any longer."""
    said = completions(await rings.received())
    worker = guest.host["evil"]._managed.worker
    assert worker is not None
    assert worker.server is not None
    stopped = worker.server.counters["devices_stopped"]
    return f"{said}; {'stopped' if stopped else 'served'}"


def raw(data: bytes) -> Act:
    """These bytes in the guest's ring."""

    async def act(guest: BoundaryGuest) -> str:
        rings = await storage_rings(guest)
        await rings.put(data)
        return await fate(guest, rings)

    return act


def control(**words: int) -> Act:
    """A good packet, with words of the control page changed before the signal."""

    async def act(guest: BoundaryGuest) -> str:
        rings = await storage_rings(guest)
        page = rings.in_page if "their_out" in words else rings.out_page
        places = {"into": 0, "out": 4, "mask": 8, "pending": 12, "their_out": 4}
        for name, value in words.items():
            await guest.write(page + places[name], u32s(value))
        if "their_out" in words or "pending" in words or "mask" in words:
            await rings.send(TEST_UNIT_READY)
        else:
            await guest.signal(rings.connection)
        return await fate(guest, rings)

    return act


def srb(
    cdb: bytes, length: int = 0, direction: int = 2, *, lun: int = 0, cdb_length: int | None = None, sense: int = 20
) -> bytes:
    """EXECUTE_SRB of version 6.2."""
    size = len(cdb) if cdb_length is None else cdb_length
    head = struct.pack("<HBBBBBBBBBBI", 52, 0, 0, 0, 0, 0, lun, size, sense, direction, 0, length)
    return struct.pack("<III", 3, 1, 0) + (head + cdb.ljust(20, b"\0")).ljust(52, b"\0")


def descriptor(kind: int = 6, offset8: int = 2, length8: int = 10, flags: int = 1) -> bytes:
    return struct.pack("<HHHHQ", kind, offset8, length8, flags, 1)


TEST_UNIT_READY = srb(bytes(6))
WHOLE = TEST_UNIT_READY + bytes(8)
STOPPED = "no completion; stopped"
GOOD = "SUCCESS, SRB SUCCESS; served"


def direct(extended: bytes, payload: bytes) -> Act:
    """A GPA-direct packet."""

    async def act(guest: BoundaryGuest) -> str:
        rings = await storage_rings(guest)
        await rings.send(payload, kind=9, extended=extended)
        return await fate(guest, rings)

    return act


def pages(*gpns: int, count: int = 4096, offset: int = 0, ranges: int = 1) -> bytes:
    return struct.pack("<IIII", 0, ranges, count, offset) + struct.pack(f"<{len(gpns)}Q", *gpns)


def packet(payload: bytes, kind: int = 6, flags: int = 1) -> Act:
    async def act(guest: BoundaryGuest) -> str:
        rings = await storage_rings(guest)
        await rings.send(payload, kind=kind, flags=flags)
        return await fate(guest, rings)

    return act


PAGE = DATA >> 12
READ = srb(bytes.fromhex("28000000000000000800"), 4096, 1)
OUTSIDE = MEMORY >> 12
INVALID = "IO_DEVICE_ERROR, SRB INVALID_REQUEST; served"
CHECKED = "IO_DEVICE_ERROR, SRB INVALID_REQUEST, CHECK_CONDITION; served"

for _number, _what, _answer, _act in (
    (55, "write index past the ring", STOPPED, control(into=0x3000)),
    (55, "write index FFFFFFFFh", STOPPED, control(into=HUGE)),
    (55, "write index not a multiple of 8", STOPPED, control(into=0x101)),
    (55, "read index of the host's ring past its end", STOPPED, control(their_out=HUGE)),
    (55, "own read index overwritten: the host keeps its own", GOOD, control(out=HUGE, mask=0)),
    (56, "8 bytes where a descriptor has 16", STOPPED, raw(bytes(8))),
    (57, "payload begins past the packet's end", STOPPED, raw(descriptor(offset8=11) + WHOLE)),
    (57, "payload begins at 0", STOPPED, raw(descriptor(offset8=0) + WHOLE)),
    (57, "packet of no length", STOPPED, raw(descriptor(length8=0) + WHOLE)),
    (57, "packet longer than what is there", STOPPED, raw(descriptor(length8=11) + WHOLE)),
    (57, "packet of 524,280 bytes", STOPPED, raw(descriptor(length8=0xFFFF) + WHOLE)),
    (58, "unknown flag", STOPPED, raw(descriptor(flags=3) + WHOLE)),
    (58, "packet type 0", STOPPED, raw(descriptor(kind=0) + WHOLE)),
    (58, "packet type FFFFh", STOPPED, raw(descriptor(kind=0xFFFF) + WHOLE)),
    (59, "no GPA range", STOPPED, direct(pages(PAGE, ranges=0), READ)),
    (59, "FFFFFFFFh GPA ranges", STOPPED, direct(pages(PAGE, ranges=HUGE), READ)),
    (59, "GPA range longer than its pages", STOPPED, direct(pages(PAGE, count=8192), READ)),
    (59, "GPA range of 4 GB", STOPPED, direct(pages(PAGE, count=HUGE), READ)),
    (59, "GPA range that begins past its first page", STOPPED, direct(pages(PAGE, offset=4096), READ)),
    (59, "GPA range without pages", STOPPED, direct(pages(), READ)),
    (59, "page outside of memory", INVALID, direct(pages(OUTSIDE), READ)),
    (59, "page number of all ones", INVALID, direct(pages((1 << 64) - 1), READ)),
    (60, "no completion wanted", STOPPED, packet(TEST_UNIT_READY, flags=0)),
    (62, "interrupt mask FFFFFFFFh", GOOD, control(mask=HUGE)),
    (62, "pending send size FFFFFFFFh", GOOD, control(pending=HUGE)),
    (63, "a completion, of nothing", STOPPED, packet(TEST_UNIT_READY, kind=0xB)),
    (81, "transfer pages", STOPPED, direct(bytes(16), READ)),
    (82, "operation 0", STOPPED, packet(bytes(64))),
    (82, "operation 99", STOPPED, packet(u32s(99) + bytes(60))),
    (82, "an operation that only hosts send", STOPPED, packet(u32s(11) + bytes(60))),
    (82, "packet of 8 bytes", STOPPED, packet(bytes(8))),
    (83, "begin after the end", "INVALID_DEVICE_STATE; served", packet(u32s(7) + bytes(60))),
    (85, "CDB of no bytes", INVALID, packet(srb(bytes(6), cdb_length=0))),
    (85, "CDB of 17 bytes", INVALID, packet(srb(bytes(6), cdb_length=17))),
    (85, "transfer without pages", STOPPED, packet(READ)),
    (85, "transfer of more bytes than the range", STOPPED, direct(pages(PAGE), srb(READ[28:38], 8192, 1))),
    (85, "transfer of 4 GB", STOPPED, direct(pages(PAGE), srb(READ[28:38], HUGE, 1))),
    (86, "a read that says it writes", INVALID, direct(pages(PAGE), srb(READ[28:38], 4096, 0))),
    (86, "no known direction", INVALID, direct(pages(PAGE), srb(READ[28:38], 4096, 77))),
    (87, "a LUN that there is not", "DEVICE_DOES_NOT_EXIST, SRB INVALID_LUN; served", packet(srb(bytes(6), lun=9))),
    (88, "past the end of the disk", CHECKED, direct(pages(PAGE), srb(bytes.fromhex("28000000100000000800"), 4096, 1))),
    (
        88,
        "block number of all ones",
        CHECKED,
        direct(pages(PAGE), srb(bytes.fromhex("8800ffffffffffffffff000000080000"), 4096, 1)),
    ),
    (89, "room for 255 bytes of sense data", INVALID, packet(srb(bytes(6), sense=255))),
    (90, "65,535 subchannels", "INVALID_PARAMETER; served", packet(u32s(13, 1, 0) + b"\xff\xff".ljust(52, b"\0"))),
    (91, "bus reset", "SUCCESS; served", packet(u32s(6, 1, 0) + bytes(52))),
    (92, "second page outside of memory", INVALID, direct(pages(PAGE, OUTSIDE, count=8192), srb(READ[28:38], 8192, 1))),
):
    case(_number, _what, _answer)(_act)


@case(83, "a read before the end of initialization", "INVALID_DEVICE_STATE; served")
async def _(guest: BoundaryGuest) -> str:
    rings = await storage_rings(guest, ready=False)
    await rings.send(READ, kind=9, extended=pages(PAGE))
    return await fate(guest, rings)


@case(83, "begin twice", "SUCCESS; INVALID_DEVICE_STATE; served")
async def _(guest: BoundaryGuest) -> str:
    rings = await storage_rings(guest, ready=False)
    for _ in range(2):
        await rings.send(u32s(7) + bytes(60))
    return await fate(guest, rings)


@case(84, "version FFFFh", "SUCCESS; REVISION_MISMATCH; served")
async def _(guest: BoundaryGuest) -> str:
    rings = await storage_rings(guest, ready=False)
    await rings.send(u32s(7) + bytes(60))
    await rings.send(u32s(9, 0, 0, 0xFFFF) + bytes(48))
    return await fate(guest, rings)
