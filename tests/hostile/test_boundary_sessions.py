"""Random sessions at the boundary beside a sibling at work: whatever a guest does, it does to itself.

What is checked after each step, by the numbers of the isolation promises, is in `invariants.py`.
"""

from __future__ import annotations

import io
import struct
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hypervisor.hypercall.abi import FAST, control_word
from hypervisor.hypercall.table import CALLS
from hypervisor.msr import CRASH_MESSAGE, CRASH_NOTIFY, Msr
from hypervisor.pages import PAGE_SIZE
from hypervisor.status import HvStatus
from partitions import ports
from partitions.host import VmState
from partitions.logs import human_sink, json_sink
from partitions.topology_schema import DiskTable, Size
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
    boundary_guest,
    run,
)
from tests.doubles.campaign import examples
from tests.doubles.root import MIB, topology, vm_table
from tests.hostile.invariants import (
    BEAT,
    CONTACT,
    all_is_given_back,
    check,
    others,
    reset_clears,
    sibling,
    sibling_goes_on,
)

MEMORY = 2 * MIB

# --- what a guest can say

U64 = st.integers(0, (1 << 64) - 1)
NUMBER = st.sampled_from([0, 1, 2, 4, 8, 16, 0xE1E10, 0x2001, 0x2002, 0xFFFF, 0xFFFFFFFF, (1 << 64) - 1, MEMORY]) | U64
PLACE = st.sampled_from(
    [
        *(0, HYPERCALL_PAGE, MESSAGE_PAGE + SINT * 256, FLAGS_PAGE + SINT * 256, INPUT, OUTPUT, DATA),
        *(RINGS, RINGS + 4, RINGS + 8, RINGS + PAGE_SIZE, RINGS + (RING_PAGES << 12), RINGS + (RING_PAGES << 12) + 4),
        *(MEMORY - 8, MEMORY, INPUT + 0xF80, (1 << 64) - 8),
    ]
)
CODE = st.sampled_from([int(call.code) for call in CALLS])
CONTROL = (
    st.sampled_from([POST, SIGNAL])
    | CODE
    | CODE.map(lambda code: code | FAST)
    | st.builds(control_word, CODE, count=st.integers(1, 300), start=st.integers(0, 3))
    | U64
)
WORDS = st.lists(NUMBER.map(lambda value: value & 0xFFFFFFFF), max_size=12).map(
    lambda words: struct.pack(f"<{len(words)}I", *words)
)
MESSAGE = st.tuples(st.integers(0, 30), st.just(0), st.sampled_from([0, 1, 2, 9]), NUMBER).map(
    lambda words: struct.pack("<IIIQ", *words)[:16]
)
GPADL = st.builds(
    lambda channel, gpadl, count, first: (
        struct.pack("<IIIIHH", 8, 0, channel, gpadl, 8 * (count + 1), 1)
        + struct.pack(f"<{count + 1}Q", count << 12, *range(first, first + count))
    ),
    st.sampled_from([1, 1, 1, 2]),
    st.sampled_from([0x10, 0x11, 0xE1E10]),
    st.integers(1, 26),
    st.sampled_from([0, 1, 2, 3, 0x10, 0x40, (MEMORY >> 12) - 4]),
)
OPEN = st.builds(
    lambda gpadl, vp, downstream: struct.pack("<IIIIIII", 5, 0, 1, 1, gpadl, vp, downstream) + bytes(120),
    st.sampled_from([0x10, 0x11, 0xE1E10]),
    st.sampled_from([0, 0, 1, 5, 0xFFFFFFFF]),
    st.sampled_from([2, 4, 4, 8, 0xFFFFFFFF]),
)
SAID = st.one_of(
    st.just(CONTACT),
    st.sampled_from([struct.pack("<II", kind, 0) for kind in (3, 16, 27, 29)]),
    *(MESSAGE, GPADL, OPEN),
    st.builds(lambda one, rest: one + rest, MESSAGE, st.binary(max_size=224)),
)
SUBCHANNELS = st.integers(0, 3).map(
    lambda count: struct.pack("<HHHHQ", 6, 2, 10, 1, 1) + struct.pack("<IIIH", 13, 1, 0, count).ljust(64, b"\0")
)
PACKET = SUBCHANNELS | st.builds(
    lambda kind, offset8, length8, flags, body: struct.pack("<HHHHQ", kind, offset8, length8, flags, 1) + body,
    st.sampled_from([6, 6, 9, 9, 7, 0xB, 0]),
    st.sampled_from([2, 2, 5, 3, 0, 11]),
    st.sampled_from([10, 13, 2, 0xFFFF]),
    st.sampled_from([1, 1, 1, 0, 3]),
    WORDS | st.binary(max_size=100),
)


def op(name: str, **members: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"op": st.just(name), **members})


VP = st.sampled_from([0, 0, 0, 1])
MSR_VALUE = st.sampled_from(
    [page | 1 for page in (HYPERCALL_PAGE, MESSAGE_PAGE, FLAGS_PAGE, RINGS, DATA, MEMORY)]
    + [0, 1, 0xF3, 0x100F3, 1 << 63, CRASH_NOTIFY | CRASH_MESSAGE]
)
PORTS = st.sampled_from([*range(ports.COM1, ports.COM1 + 8), 0x70, 0x71, ports.POWER, ports.RESET, ports.EXIT_CODE, 0])
ACT = st.one_of(
    op("write", gpa=PLACE | NUMBER, data=st.one_of(WORDS, PACKET, st.binary(max_size=64)).map(bytes.hex)),
    op("read", gpa=PLACE | NUMBER, length=st.sampled_from([0, 1, 8, 4096, 1 << 20])),
    op("hypercall", control=CONTROL, input=PLACE | NUMBER, output=PLACE | NUMBER, vp=VP),
    op("rdmsr", msr=st.sampled_from([int(msr) for msr in Msr]) | NUMBER, vp=VP),
    op("wrmsr", msr=st.sampled_from([int(msr) for msr in Msr]), value=MSR_VALUE | NUMBER, vp=VP),
    op("in", port=PORTS, size=st.sampled_from([1, 2, 4]), vp=VP),
    op("out", port=PORTS, size=st.sampled_from([1, 2, 4]), value=st.integers(0, 255), vp=VP),
    op("say", payload=SAID, connection=st.sampled_from([1, 1, 1, 4, 0x2001])),
    op("signal", connection=st.sampled_from([0x2001, 0x2001, 1, 0x2002]), flag=st.sampled_from([0, 0, 0, 1, 2048])),
    op("packet", raw=PACKET),
    op("advance", ticks=st.sampled_from([0, BEAT, 200_000])),
    op("take"),
)
BEGIN = st.sampled_from(["nothing", "booted", "connected", "open", "ready", "ready"])


# --- doing it


async def begin(guest: BoundaryGuest, how: str) -> None:
    if how == "nothing":
        return
    await guest.boot()
    if how == "booted":
        return
    await guest.connect()
    if how == "connected":
        return
    rings = await guest.open_channel()
    if how == "ready":
        for operation, body in ((7, b""), (9, b"\x02\x06\0\0"), (10, b""), (8, b"")):
            await rings.send(struct.pack("<III", operation, 1, 0) + body.ljust(52, b"\0"))


async def act(guest: BoundaryGuest, step: dict[str, Any]) -> None:
    match step["op"]:
        case "say":
            payload = step["payload"][:240]
            data = struct.pack("<IIII", step["connection"], 0, 1, len(payload)) + payload
            await checked(guest, op="write", gpa=INPUT, data=data.ljust(256, b"\0").hex())
            await checked(guest, op="hypercall", control=POST, input=INPUT)
        case "signal":
            await checked(guest, op="hypercall", control=SIGNAL, input=step["connection"] | step["flag"] << 32)
        case "packet":
            index = await guest.do("read", gpa=RINGS, length=4)
            if not index["ok"]:
                return
            (at,) = struct.unpack("<I", bytes.fromhex(index["data"]))
            raw = step["raw"].ljust(-(-len(step["raw"]) // 8) * 8, b"\0") + bytes(8)
            await checked(guest, op="write", gpa=RINGS + PAGE_SIZE + at % 0x2000, data=raw.hex())
            await checked(guest, op="write", gpa=RINGS, data=struct.pack("<I", (at + len(raw)) & 0xFFFFFFFF).hex())
            await checked(guest, op="hypercall", control=SIGNAL, input=0x2001)
        case "take":
            for msr in (Msr.SIMP, Msr.SCONTROL):
                if not (await guest.do("rdmsr", msr=msr)).get("value", 0) & 1:
                    return
            await checked(guest, op="write", gpa=MESSAGE_PAGE + SINT * 256, data="00000000")
            await checked(guest, op="wrmsr", msr=Msr.EOM, value=0)
        case _:
            await checked(guest, **step)


async def checked(guest: BoundaryGuest, **command: Any) -> None:
    answer = await guest.do(command.pop("op"), **command)
    if "rax" in answer:
        HvStatus(answer["rax"] & 0xFFFF)
        assert answer["rax"] >> 44 == 0
        assert answer["rax"] >> 16 & 0xFFFF == 0
    elif not answer["ok"]:
        assert answer["error"] in ("fault", "memory", "off", "bad_line")


@settings(max_examples=examples(16), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(BEGIN, st.booleans(), st.lists(ACT, min_size=1, max_size=30))
@example("ready", False, [{"op": "out", "port": ports.RESET, "size": 1, "value": 6, "vp": 0}, {"op": "take"}])
@example("ready", False, [{"op": "wrmsr", "msr": int(Msr.SIMP), "value": RINGS | 1, "vp": 0}] * 2)
@example("open", True, [{"op": "wrmsr", "msr": int(Msr.SIEFP), "value": (RINGS + (RING_PAGES << 12)) | 1, "vp": 0}])
def test_a_guest_does_what_it_does_to_itself(how: str, watched: bool, steps: list[dict[str, Any]]) -> None:
    """Answers are known ones, the sibling's connections go on, and turning the VM off leaves what was there before.

    Watched or not: what is told of a guest's mistakes is made of its words.
    """

    async def session(folder: Path) -> None:
        evil = vm_table("evil", memory=Size(MEMORY), processors=2, disk=[DiskTable(path="d.img", size=Size(MIB))])
        machine = topology(evil, vm_table("sibling"), folder=folder)
        async with boundary_guest(machine, siblings={"sibling": sibling}) as guest:
            host = guest.host
            if watched:
                host.trace.add_sink(json_sink(io.BytesIO(), host.trace))
                host.trace.add_sink(human_sink(io.StringIO(), host.trace, colour=False))
            before = others(host)
            await begin(guest, how)
            for step in steps:
                await act(guest, step)
                check(host)
                assert others(host) == before
            await sibling_goes_on(guest)
            if host["evil"].state is not VmState.OFF:
                await reset_clears(guest, MEMORY)
                await begin(guest, "ready")
                await host["evil"].turn_off()
            check(host)
            await guest.do("start")
            await begin(guest, "ready")
            await all_is_given_back(host)

    with tempfile.TemporaryDirectory() as folder:
        run(session, Path(folder))
