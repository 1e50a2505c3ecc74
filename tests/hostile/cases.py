"""Malformed inputs by their number in the list that the host is held to: what a guest does, and the answer.

Each case runs in a session of its own at the boundary, on a VM with two processors and one disk, whose guest has booted
its SynIC and nothing more. What it returns is compared with `answer`, and answers.md is made from the same table.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import attrs

from hypervisor.hypercall.abi import FAST, control_word
from hypervisor.msr import CRASH_MESSAGE, CRASH_NOTIFY, Msr
from hypervisor.wire import WireError
from tests.doubles.boundary_guest import (
    DATA,
    FLAGS_PAGE,
    HYPERCALL_PAGE,
    INPUT,
    MESSAGE_PAGE,
    OUTPUT,
    POST,
    RING_PAGES,
    RINGS,
    SIGNAL,
    SINT,
    BoundaryGuest,
    Rings,
)
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import Version
from vsp_vsc.storage.protocol import NtStatus, SrbStatus
from vsp_vsc.storage.scsi import ScsiStatus

MEMORY: Final = 2 << 20
Act = Callable[[BoundaryGuest], Awaitable[str]]


@attrs.frozen
class Case:
    """One input and the answer it gets."""

    number: int
    what: str
    answer: str
    act: Act
    ends: str = ""
    """Why the VM is off afterwards, where it is."""


@attrs.frozen
class Elsewhere:
    """An input that a guest at the boundary cannot make, and the test that makes it."""

    number: int
    what: str
    answer: str
    test: str
    """File and function."""


CASES: list[Case] = []


def case(number: int, what: str, answer: str, *, ends: str = "") -> Callable[[Act], Act]:
    """Add the function to the table."""

    def add(act: Act) -> Act:
        CASES.append(Case(number, what, answer, act, ends))
        return act

    return add


# --- answers in words


def words(messages: Sequence[bytes]) -> str:
    """What the host said on the bus."""
    said = []
    for data in messages:
        try:
            message = decode_message(data, sender=Direction.TO_CHILD, version=Version.V5_3)
        except WireError as error:
            raise AssertionError(f"the host said {data.hex()}") from error
        status = getattr(message, "status", None)
        name = message.TYPE.name
        if name == "VERSION_RESPONSE":
            name += f" supported={getattr(message, 'supported')}"  # noqa: B009
        said.append(name if status is None else f"{name} status={status:#x}")
    return ", ".join(said) or "no answer"


def completions(packets: Sequence[tuple[bytes, bytes]]) -> str:
    """What the storage controller said."""
    said = []
    for head, body in packets:
        assert head[:2] == b"\x0b\x00"
        (status,) = struct.unpack_from("<I", body, 8)
        srb, scsi = body[14], body[15]
        text = NtStatus(status).name
        if srb:
            text += f", SRB {SrbStatus(srb & 0x3F).name}"
        if scsi:
            text += f", {ScsiStatus(scsi).name}"
        said.append(text)
    return "; ".join(said) or "no completion"


async def connected(guest: BoundaryGuest) -> None:
    await guest.connect()


def gpadl_header(
    channel: int = 1, gpadl: int = 0x10, words: Sequence[int] = (4096, 0x20), *, ranges: int = 1, length: int = -1
) -> bytes:
    """GPADL_HEADER with whatever is said in it."""
    size = 8 * len(words) if length < 0 else length
    return struct.pack("<IIIIHH", 8, 0, channel, gpadl, size, ranges) + struct.pack(f"<{len(words)}Q", *words)


def u32s(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


CREATED, REFUSED = "GPADL_CREATED status=0x0", "GPADL_CREATED status=0x8000ffff"
OPENED, NOT_OPENED = "OPEN_CHANNEL_RESULT status=0x0", "OPEN_CHANNEL_RESULT status=0x8000ffff"

# --- hypercalls


def hypercall(control: int, data: bytes = b"", at: int = INPUT, output: int = OUTPUT) -> Act:
    async def act(guest: BoundaryGuest) -> str:
        if data:
            await guest.write(at, data)
        return (await guest.do("hypercall", control=control, input=at, output=output)).status

    return act


SELF = struct.pack("<QQ", 0xFFFFFFFFFFFFFFFF, 0)
GET_REGISTERS, REGISTER = 0x50, struct.pack("<I", 0x00090003)
GET_ONE = control_word(GET_REGISTERS, count=1)
NO_CODE, BAD_INPUT, ALIGNMENT = "INVALID_HYPERCALL_CODE", "INVALID_HYPERCALL_INPUT", "INVALID_ALIGNMENT"
PARAMETER, DENIED = "INVALID_PARAMETER", "ACCESS_DENIED"

for _number, _what, _answer, _act in (
    (1, "call code FFFFh", NO_CODE, hypercall(0xFFFF)),
    (1, "reserved call code 3Fh", NO_CODE, hypercall(0x3F)),
    (2, "rep count 1 on a simple call", BAD_INPUT, hypercall(control_word(POST, count=1))),
    (3, "rep count 0 on a rep call", BAD_INPUT, hypercall(GET_REGISTERS, SELF + REGISTER)),
    (4, "rep start is rep count", BAD_INPUT, hypercall(control_word(GET_REGISTERS, count=1, start=1), SELF)),
    (4, "rep start past rep count", BAD_INPUT, hypercall(control_word(GET_REGISTERS, count=1, start=9), SELF)),
    (5, "reserved bit 27", BAD_INPUT, hypercall(POST | 1 << 27)),
    (5, "reserved bit 47", BAD_INPUT, hypercall(POST | 1 << 47)),
    (5, "reserved bit 63", BAD_INPUT, hypercall(POST | 1 << 63)),
    (5, "nested bit 31", BAD_INPUT, hypercall(POST | 1 << 31)),
    (6, "variable header on a call without", BAD_INPUT, hypercall(POST | 1 << 17)),
    (6, "fast bit on a call too long for registers", BAD_INPUT, hypercall(POST | FAST)),
    (7, "odd input address", ALIGNMENT, hypercall(POST, at=INPUT + 1)),
    (7, "input address not a multiple of 8", ALIGNMENT, hypercall(POST, at=INPUT + 4)),
    (7, "output address not a multiple of 8", ALIGNMENT, hypercall(GET_ONE, SELF + REGISTER, output=OUTPUT + 4)),
    (8, "input crosses a page", ALIGNMENT, hypercall(POST, at=INPUT + 4096 - 8)),
    (8, "output list crosses a page", ALIGNMENT, hypercall(GET_ONE, SELF + REGISTER, output=OUTPUT + 4096 - 8)),
    (9, "input past the end of memory", ALIGNMENT, hypercall(POST, at=MEMORY)),
    (9, "output past the end of memory", ALIGNMENT, hypercall(GET_ONE, SELF + REGISTER, output=MEMORY)),
    (9, "input at the last address there is", ALIGNMENT, hypercall(POST, at=(1 << 64) - 8)),
    (11, "output over the input", ALIGNMENT, hypercall(GET_ONE, SELF + REGISTER, output=INPUT)),
    (11, "output over the last input word", ALIGNMENT, hypercall(GET_ONE, SELF + REGISTER, output=INPUT + 16)),
    (15, "a child creates a partition", DENIED, hypercall(0x40, bytes(16))),
    (15, "a child maps memory into itself", DENIED, hypercall(control_word(0x4B, count=1), SELF + bytes(16))),
    (15, "a child gives itself rights", DENIED, hypercall(0x45, SELF[:8] + struct.pack("<IIQ", 0x10000, 0, 1 << 32))),
    (15, "a child makes itself a port", DENIED, hypercall(0x57, SELF + bytes(40))),
    (15, "a child connects itself to a port", DENIED, hypercall(0x59, SELF + bytes(40))),
    (16, "a child names the root", DENIED, hypercall(GET_ONE, struct.pack("<QQ", 1, 0) + REGISTER)),
    (17, "partition 0", DENIED, hypercall(GET_ONE, struct.pack("<QQ", 0, 0) + REGISTER)),
    (17, "a partition that there is not", DENIED, hypercall(GET_ONE, struct.pack("<QQ", 77, 0) + REGISTER)),
    (35, "a child deposits memory", DENIED, hypercall(control_word(0x48, count=1), SELF)),
    (38, "restore a partition (not offered)", NO_CODE, hypercall(0x5F, SELF)),
    (39, "save a partition (not offered)", NO_CODE, hypercall(0x5E, SELF)),
    (40, "a child deletes itself", DENIED, hypercall(0x43 | FAST, at=(1 << 64) - 1)),
):
    case(_number, _what, _answer)(_act)


@case(12, "output on the hypercall page", "stopped", ends="memory intercept")
async def _(guest: BoundaryGuest) -> str:
    return await hypercall(GET_ONE, SELF + REGISTER, output=HYPERCALL_PAGE)(guest)


@case(12, "output on the message page, an overlay of the guest's own", "SUCCESS")
async def _(guest: BoundaryGuest) -> str:
    return await hypercall(GET_ONE, SELF + REGISTER, output=MESSAGE_PAGE + 0x800)(guest)


@case(14, "hypercall before the guest OS ID", "#UD")
async def _(guest: BoundaryGuest) -> str:
    await guest.wrmsr(Msr.GUEST_OS_ID, 0)
    return (await guest.do("hypercall", control=SIGNAL, input=1)).status


# --- messages and events


def post(payload: bytes = bytes(8), connection: int = 1, *, message_type: int = 1, size: int | None = None) -> Act:
    async def act(guest: BoundaryGuest) -> str:
        return await guest.post(payload, connection, message_type=message_type, size=size)

    return act


def signal(connection: int, flag: int = 0, reserved: int = 0) -> Act:
    async def act(guest: BoundaryGuest) -> str:
        await connected(guest)
        return await guest.signal(connection, flag, reserved)

    return act


for _number, _what, _answer, _act in (
    (18, "message type 0", PARAMETER, post(message_type=0)),
    (18, "message type 80000010h, the hypervisor's own", PARAMETER, post(message_type=0x80000010)),
    (19, "payload of 241 bytes", PARAMETER, post(bytes(240), size=241)),
    (19, "payload of FFFFFFFFh bytes", PARAMETER, post(bytes(240), size=0xFFFFFFFF)),
    (22, "connection ID with a high byte", "INVALID_CONNECTION_ID", post(connection=0x0100_0001)),
    (22, "a connection that there is not", "INVALID_CONNECTION_ID", post(connection=3)),
    (22, "signal to an ID with a high byte", "INVALID_CONNECTION_ID", signal(0x0100_2001)),
    (20, "signal to a message port", "INVALID_PORT_ID", signal(1)),
    (23, "event flag 1 of a port that has one", PARAMETER, signal(0x2001, 1)),
    (23, "event flag 2048", PARAMETER, signal(0x2001, 2048)),
    (23, "event flag FFFFh", PARAMETER, signal(0x2001, 0xFFFF)),
    (23, "reserved bits beside the flag", PARAMETER, signal(0x2001, 0, 1)),
):
    case(_number, _what, _answer)(_act)


@case(20, "message to an event port", "INVALID_PORT_ID")
async def _(guest: BoundaryGuest) -> str:
    await connected(guest)
    return await guest.post(bytes(8), 0x2001)


@case(21, "2,000 messages whose answers nobody takes", "SUCCESS; 1024 messages wait, 958 are lost, 1042 answers")
async def _(guest: BoundaryGuest) -> str:
    await connected(guest)
    statuses = {await guest.post(gpadl_header(9)) for _ in range(2000)}
    worker = guest.host["evil"]._managed.worker
    assert worker is not None
    assert worker.server is not None
    waiting, lost = len(worker.server._inbox), worker.server.counters["inbox_overflows"]
    answers = 0
    while taken := len(await guest.messages()):
        answers += taken
        await guest.do("advance", ticks=200_000)
    return f"{', '.join(statuses)}; {waiting} messages wait, {lost} are lost, {answers} answers"


# --- registers


def write(msr: int, value: int) -> Act:
    async def act(guest: BoundaryGuest) -> str:
        return await guest.wrmsr(msr, value)

    return act


for _number, _what, _answer, _act in (
    (25, "SINT with vector 0", "#GP", write(Msr.SINT0 + 3, 0)),
    (25, "SINT with vector 15", "#GP", write(Msr.SINT0 + 3, 15)),
    (25, "masked SINT with vector 0", "ok", write(Msr.SINT0 + 3, 1 << 16)),
    (28, "write of SVERSION", "#GP", write(Msr.SVERSION, 1)),
    (28, "write of TIME_REF_COUNT", "#GP", write(Msr.TIME_REF_COUNT, 1)),
    (28, "write of VP_INDEX", "#GP", write(Msr.VP_INDEX, 1)),
    (28, "write of VP_RUNTIME", "#GP", write(Msr.VP_RUNTIME, 1)),
    (29, "synthetic timer with SINT 0 (timers are not offered)", "#GP", write(0x400000B0, 1)),
    (30, "synthetic timer of 100 ns (timers are not offered)", "#GP", write(0x400000B0, 2 << 16 | 3)),
    (31, "synthetic timer count of all ones (timers are not offered)", "#GP", write(0x400000B1, (1 << 64) - 1)),
    (34, "hypercall page past the end of memory", "#GP", write(Msr.HYPERCALL, MEMORY | 1)),
    (34, "hypercall page at the last page number there is", "#GP", write(Msr.HYPERCALL, (1 << 64) - 4095)),
):
    case(_number, _what, _answer)(_act)


@case(26, "message page over the hypercall page, and away again", "ok, hypercalls SUCCESS, page as before: True")
async def _(guest: BoundaryGuest) -> str:
    before = await guest.read(HYPERCALL_PAGE, 4096)
    status = await guest.wrmsr(Msr.SIMP, HYPERCALL_PAGE | 1)
    called = (await guest.do("hypercall", control=0x10008)).status
    await guest.wrmsr(Msr.SIMP, MESSAGE_PAGE | 1)
    return f"{status}, hypercalls {called}, page as before: {await guest.read(HYPERCALL_PAGE, 4096) == before}"


@case(26, "message page past the end of memory: the answer is out of reach", "ok, post SUCCESS, no answer")
async def _(guest: BoundaryGuest) -> str:
    status = await guest.wrmsr(Msr.SIMP, (1 << 52) - 1 << 12 | 1)
    posted = await guest.post(struct.pack("<IIIIQQQ", 14, 0, 0x50003, 0, 2, 0, 0), 4)
    answer = f"{status}, post {posted}, {words(await guest.messages())}"
    await guest.wrmsr(Msr.SIMP, MESSAGE_PAGE | 1)
    return answer


@case(27, "two processors with one message page", "ok, ok; VERSION_RESPONSE supported=1")
async def _(guest: BoundaryGuest) -> str:
    statuses = [(await guest.do("wrmsr", msr=Msr.SIMP, value=MESSAGE_PAGE | 1, vp=vp)).status for vp in (1, 1)]
    await guest.do("wrmsr", msr=Msr.SIMP, value=0, vp=1)
    said = await guest.say(struct.pack("<IIIIQQQ", 14, 0, 0x50003, 0, 2, 0, 0), 4)
    return f"{', '.join(statuses)}; {words(said)}"


@case(32, "1,000 EOMs with the slot full", "the first message stays, 1 interrupt")
async def _(guest: BoundaryGuest) -> str:
    await guest.connect(offers=False)
    guest.events.clear()
    assert await guest.post(u32s(3, 0)) == "SUCCESS"
    first = await guest.read(MESSAGE_PAGE + SINT * 256, 256)
    for _ in range(1000):
        await guest.wrmsr(Msr.EOM, 0)
    interrupts = sum(event["event"] == "interrupt" for event in guest.events)
    kept = await guest.read(MESSAGE_PAGE + SINT * 256, 256) == first
    await guest.messages()
    return f"the first message {'stays' if kept else 'goes'}, {interrupts} interrupt"


def crash(gpa: int, length: int) -> Act:
    async def act(guest: BoundaryGuest) -> str:
        await guest.wrmsr(Msr.CRASH_P3, gpa)
        await guest.wrmsr(Msr.CRASH_P4, length)
        status = await guest.wrmsr(Msr.CRASH_CTL, CRASH_NOTIFY | CRASH_MESSAGE)
        record = guest.host["evil"].exit
        assert record is not None
        assert record.crash is not None
        return f"{status}, message {record.crash.message}: {record.crash.problem}"

    return act


case(
    33,
    "crash message of 1 << 40 bytes",
    "ok, message None: message of 1099511627776 bytes, 4096 are the limit",
    ends="crashed",
)(crash(DATA, 1 << 40))
case(
    33,
    "crash message outside of memory",
    "ok, message None: message is not in memory: READ of GPA 0xfffffffffffff000",
    ends="crashed",
)(crash((1 << 64) - 4096, 4096))


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


for _number, _what, _answer, _act in (
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
CHECKED = "IO_DEVICE_ERROR, SRB ERROR, CHECK_CONDITION; served"

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


assert FLAGS_PAGE < RINGS
assert RING_PAGES == 4

ELSEWHERE: Final = (
    Elsewhere(
        10,
        "parameters in memory that is not there (a VM's memory has no holes)",
        "intercept to the parent, the processor is suspended",
        "tests/hypervisor/hypercall/test_dispatch.py::test_parameters_in_missing_memory_stop_the_vp",
    ),
    Elsewhere(
        14,
        "hypercall before the page is enabled",
        "#UD",
        "tests/hypervisor/hypercall/test_dispatch.py::test_no_hypercall_before_the_page_is_enabled",
    ),
    Elsewhere(
        17,
        "unknown or deleted partition, from one that may be a parent",
        "INVALID_PARTITION_ID",
        "tests/hypervisor/hypercall/test_dispatch.py::test_a_parent_gets_invalid_partition_id",
    ),
    Elsewhere(
        20,
        "message to a deleted port",
        "INVALID_PORT_ID",
        "tests/hypervisor/synic/test_ports.py::test_using_the_wrong_kind_or_a_dead_end",
    ),
    Elsewhere(
        21,
        "17th message to a port whose owner takes none",
        "INSUFFICIENT_BUFFERS",
        "tests/hypervisor/hypercall/test_ports_and_messages.py::test_a_flood_stops_at_the_ports_buffers",
    ),
    Elsewhere(
        24,
        "port ID used again with messages of its past life waiting",
        "those are lost, the new port is another",
        "tests/hypervisor/synic/test_ports.py::test_a_reused_port_id_is_another_port",
    ),
    Elsewhere(
        35,
        "one page twice in a deposit",
        "OPERATION_DENIED after the first",
        "tests/hypervisor/hypercall/test_memory_calls.py::test_a_page_twice_in_one_list",
    ),
    Elsewhere(
        36,
        "map with the right to write only",
        PARAMETER,
        "tests/hypervisor/hypercall/test_memory_calls.py::test_rights",
    ),
    Elsewhere(
        37,
        "map a deposited page",
        "OPERATION_DENIED",
        "tests/hypervisor/hypercall/test_memory_calls.py::test_sources_are_mapped_and_not_deposited",
    ),
    Elsewhere(
        40,
        "finalize a partition with children",
        "OPERATION_DENIED",
        "tests/hypervisor/hypercall/test_partitions.py::test_a_parent_of_children_cannot_be_finalized",
    ),
    Elsewhere(
        61,
        "indices and descriptors that change while the host reads",
        "each is read once; what was checked is used",
        "tests/hostile/test_ring.py::test_descriptor_changes_between_two_copies",
    ),
    Elsewhere(
        91,
        "resets with commands under way",
        "SUCCESS; the commands end as they would have",
        "tests/hostile/test_storage.py::test_91_resets_while_much_is_under_way",
    ),
)
