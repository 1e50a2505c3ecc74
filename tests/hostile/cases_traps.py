"""Malformed hypercalls, messages, signals and register accesses, and their answers."""

from __future__ import annotations

import struct

from hypervisor.hypercall.abi import FAST, control_word
from hypervisor.msr import CRASH_MESSAGE, CRASH_NOTIFY, Msr
from hypervisor.synic.timer_registers import direct_timer, message_timer
from tests.doubles.boundary_guest import (
    DATA,
    HYPERCALL_PAGE,
    INPUT,
    MESSAGE_PAGE,
    OUTPUT,
    POST,
    SIGNAL,
    SINT,
    BoundaryGuest,
)
from tests.hostile.case_table import (
    MEMORY,
    Act,
    case,
    connected,
    gpadl_header,
    u32s,
    words,
)

# --- hypercalls


def hypercall(control: int, data: bytes = b"", at: int = INPUT, output: int = OUTPUT) -> Act:
    async def act(guest: BoundaryGuest) -> str:
        if data:
            await guest.write(at, data)
        return (await guest.do("hypercall", control=control, input=at, output=output)).status

    return act


def ipi_ex(set_format: int, valid_banks: int, banks: int, *, vector: int = 0x40) -> Act:
    """HvSendSyntheticClusterIpiEx with so many banks of ones."""
    data = struct.pack("<QQQ", vector, set_format, valid_banks) + b"\xff" * min(8 * banks, 4096 - 24)
    return hypercall(control_word(0x15, header_qwords=banks), data)


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
    (6, "processor set with fewer banks than its mask says", BAD_INPUT, ipi_ex(0, 3, 1)),
    (6, "processor set with more banks than its mask says", BAD_INPUT, ipi_ex(0, 0, 1)),
    (6, "processor set with 1,023 banks", ALIGNMENT, ipi_ex(0, (1 << 64) - 1, 1023)),
    (6, "processor set of 4,096 processors, of which two are there", "SUCCESS", ipi_ex(0, (1 << 64) - 1, 64)),
    (6, "processor set of an unknown format", PARAMETER, ipi_ex(2, 0, 0)),
    (6, "interrupt to all processors with vector 15", PARAMETER, ipi_ex(1, 0, 0, vector=15)),
    (6, "interrupt with vector 100h", PARAMETER, hypercall(0xB, struct.pack("<QQ", 0x100, 1))),
    (6, "flush with reserved flags", PARAMETER, hypercall(2, struct.pack("<QQQ", 0, 1 << 4, 1))),
    (6, "flush list of 4,095 ranges", ALIGNMENT, hypercall(control_word(3, count=4095), bytes(24))),
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
    (15, "a child takes its cap away", DENIED, hypercall(0x45, SELF[:8] + struct.pack("<IIQ", 0x20002, 0, 65536))),
    (15, "a child raises its weight", DENIED, hypercall(0x45, SELF[:8] + struct.pack("<IIQ", 0x20003, 0, 10_000))),
    (15, "a child leaves its group", DENIED, hypercall(0x45, SELF[:8] + struct.pack("<IIQ", 0x20004, 0, 0))),
    (15, "a child reserves a processor", DENIED, hypercall(0x45, bytes(8) + struct.pack("<IIQ", 0x20001, 0, 65536))),
    (15, "a child makes itself a port", DENIED, hypercall(0x57, SELF + bytes(40))),
    (15, "a child connects itself to a port", DENIED, hypercall(0x59, SELF + bytes(40))),
    (15, "a child installs an intercept on itself", DENIED, hypercall(0x4D, SELF[:8] + u32s(3, 1, 0, 0))),
    (15, "a child asserts an interrupt on itself", DENIED, hypercall(0x94, SELF[:8] + u32s(0, 0, 0, 0, 0x40, 0))),
    (15, "a child reads its memory as its parent does", DENIED, hypercall(0x53, SELF + bytes(16))),
    (15, "a child writes its memory as its parent does", DENIED, hypercall(0x54, SELF + bytes(32))),
    (15, "a child starts its second processor", DENIED, hypercall(0x99, SELF[:8] + u32s(1, 0) + bytes(224))),
    (15, "a child posts into its own slot", DENIED, hypercall(0xC1, SELF + bytes(264))),
    (15, "a child signals its own flag", DENIED, hypercall(0xC0, SELF)),
    (15, "a child parks processors of the host", DENIED, hypercall(9, u32s(0, 0))),
    (15, "a child sets a property of the host", DENIED, hypercall(0x6F, u32s(3, 0, 5, 0, 0, 0))),
    (15, "a child posts to a debugger", DENIED, hypercall(0x69, u32s(4088, 0))),
    (16, "a child reads the root's memory", DENIED, hypercall(0x53, struct.pack("<QIIQQ", 1, 0, 16, 0, 6))),
    (16, "a child names the root", DENIED, hypercall(GET_ONE, struct.pack("<QQ", 1, 0) + REGISTER)),
    (17, "partition 0", DENIED, hypercall(GET_ONE, struct.pack("<QQ", 0, 0) + REGISTER)),
    (17, "a partition that there is not", DENIED, hypercall(GET_ONE, struct.pack("<QQ", 77, 0) + REGISTER)),
    (35, "a child deposits memory", DENIED, hypercall(control_word(0x48, count=1), SELF)),
    (38, "a child restores itself", DENIED, hypercall(0x5F, SELF)),
    (39, "a child saves itself", DENIED, hypercall(0x5E, SELF)),
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
    limits = await guest.host.inspect("vm/evil/vmbus/limits")
    waiting, lost = limits["messages_waiting"], limits["messages_dropped"]
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
    (25, "synthetic timer in direct mode with vector 15", "#GP", write(Msr.STIMER0_CONFIG, direct_timer(15))),
    (29, "synthetic timer with reserved bits", "#GP", write(Msr.STIMER0_CONFIG, 1 << 20)),
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


def timer(config: int, count: int, ticks: int, *, taking: bool = False) -> Act:
    """What processor 0 gets of timer 0 in so many ticks; without `taking` it empties the slot only at their end."""

    async def act(guest: BoundaryGuest) -> str:
        await guest.boot()
        guest.events.clear()
        statuses = [await guest.wrmsr(Msr.STIMER0_CONFIG, config), await guest.wrmsr(Msr.STIMER0_COUNT, count)]
        messages = 0
        if taking:
            for _ in range(100):
                await guest.do("advance", ticks=ticks // 100)
                messages += len(await guest.messages())
        else:
            await guest.do("advance", ticks=ticks)
        interrupts = sum(event["event"] == "interrupt" for event in guest.events)
        messages += len(await guest.messages())
        for msr in (Msr.STIMER0_COUNT, Msr.STIMER0_CONFIG):
            await guest.wrmsr(msr, 0)
        await guest.messages()
        return f"{', '.join(statuses)}; {interrupts} interrupts, {messages} messages"

    return act


SECOND, DAY = 10_000_000, 86_400 * 10_000_000
ENABLED = {"auto_enable": True}
PERIODIC = {"periodic": True, **ENABLED}
for _number, _what, _answer, _act in (
    (
        29,
        "synthetic timer with SINT 0: it is disabled",
        "ok, ok; 0 interrupts, 0 messages",
        timer(message_timer(0, **ENABLED), 1, SECOND),
    ),
    (
        30,
        "synthetic timer of 100 ns in direct mode, for a second",
        "ok, ok; 1000 interrupts, 0 messages",
        timer(direct_timer(0x40, **PERIODIC), 1, SECOND),
    ),
    (
        30,
        "synthetic timer of 100 ns whose messages nobody takes, for a day",
        "ok, ok; 1 interrupts, 3 messages",
        timer(message_timer(SINT, **PERIODIC), 1, DAY),
    ),
    (
        30,
        "synthetic timer of 100 ns whose messages are taken, for 0.1 s",
        "ok, ok; 100 interrupts, 100 messages",
        timer(message_timer(SINT, **PERIODIC), 1, SECOND // 10, taking=True),
    ),
    (
        31,
        "synthetic timer at 2 ** 64 - 1, for a day",
        "ok, ok; 0 interrupts, 0 messages",
        timer(direct_timer(0x40, **ENABLED), (1 << 64) - 1, DAY),
    ),
    (
        31,
        "synthetic timer with a period of 2 ** 64 - 1, for a day",
        "ok, ok; 0 interrupts, 0 messages",
        timer(direct_timer(0x40, **PERIODIC), (1 << 64) - 1, DAY),
    ),
):
    case(_number, _what, _answer)(_act)


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
