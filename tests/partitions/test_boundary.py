"""The boundary driver: the documented session holds word for word, and no line of a peer's can end a session."""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from hypervisor.hypervisor import Hypervisor
from hypervisor.machine import VpStopped
from partitions import determinism
from partitions.boundary import driver, protocol, stdio
from partitions.boundary.backend import BoundaryVp
from partitions.topology import Topology, parse_topology

DOCUMENT = Path(__file__).parents[2] / "docs" / "boundary.md"
TOPOLOGY = '[[vm]]\nname = "probe"\nmemory = "2MiB"\n'
READY = {"event": "ready", "vm": "probe", "partition": 2, "processors": 1, "memory": 2 << 20, "protocol": 1}


def converse(topology: Topology, lines: Iterable[bytes | None]) -> list[bytes]:
    """A whole session in this process."""

    async def feed() -> AsyncIterator[bytes | None]:
        for line in lines:
            yield line

    written: list[bytes] = []
    determinism.run(_serve, topology, feed(), written, clock="virtual", autojump=False)
    return written


async def _serve(topology: Topology, lines: AsyncIterator[bytes | None], written: list[bytes]) -> None:
    await driver.serve(topology, lines, written.append)


@pytest.fixture
def topology(tmp_path: Path) -> Topology:
    return parse_topology(TOPOLOGY, tmp_path, programs=False)


def say(topology: Topology, *commands: dict[str, Any] | bytes | None) -> list[Any]:
    """Commands in, everything but the first event out."""
    lines = [json.dumps(command).encode() if isinstance(command, dict) else command for command in commands]
    first, *rest = (json.loads(line) for line in converse(topology, lines))
    assert first == READY
    return rest


def block(document: str, kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", document, re.DOTALL)
    assert found is not None
    return found[1]


def test_documented_session(tmp_path: Path) -> None:
    """docs/boundary.md shows what happens: from contact to a packet's completion, every line is as documented.

    With UPDATE_DOCS set in the environment the lines out are written into the document instead.
    """
    document = DOCUMENT.read_text()
    topology = parse_topology(block(document, "toml"), tmp_path, programs=False)
    session = block(document, "session")
    commands = [line[2:].encode() for line in session.splitlines() if line.startswith("> ")]
    answers = [line.decode().rstrip("\n") for line in converse(topology, commands)]
    script = [line for line in session.splitlines() if not line.startswith("< ")]
    happened = "\n".join(_interleave(script, answers)) + "\n"
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(document.replace(session, happened))
        return
    assert happened == session, "\n".join(difflib.unified_diff(session.splitlines(), happened.splitlines()))


def _interleave(script: list[str], answers: list[str]) -> list[str]:
    """Comments and commands with what came out after each; an answer ends a command, events belong to the next one."""
    out: list[str] = []
    waiting = iter(answers)
    for line in script:
        if not out:
            out.append(f"< {next(waiting)}")
        out.append(line)
        if line.startswith("> "):
            for answer in waiting:
                out.append(f"< {answer}")
                if '"ok":' in answer:
                    break
    return out


def test_a_session_is_a_function_of_its_input(tmp_path: Path) -> None:
    """The same lines in give the same lines out, through files and through pipes, whatever the hash seed."""
    document = DOCUMENT.read_text()
    commands = "".join(line[2:] + "\n" for line in block(document, "session").splitlines() if line.startswith("> "))
    (tmp_path / "topology.toml").write_text(block(document, "toml"))
    (tmp_path / "input.jsonl").write_text(commands)
    call = [sys.executable, "-m", "partitions.cli.main", "boundary", str(tmp_path)]
    piped = subprocess.run(
        call, input=commands.encode(), capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    with (tmp_path / "input.jsonl").open() as file:
        read = subprocess.run(
            call, stdin=file, capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": "2"}
        )
    assert piped.stdout == read.stdout
    assert piped.stdout.count(b'"ok":') == commands.count("\n")
    assert piped.stderr == b""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{", {"id": None, "message": "not JSON: Input data was truncated"}),
        (b"\xff\xfe", {"id": None, "message": "not JSON: JSON is malformed: invalid character (byte 0)"}),
        # Text that is no UTF-8 was once an exception, in the command's name and anywhere else.
        (
            b'{"op":"\x80"}',
            {"id": None, "message": "not JSON: 'utf-8' codec can't decode byte 0x80 in position 0: invalid start byte"},
        ),
        (b'{"\x80":1,"id":2}', {"id": None, "message": "Object missing required field `op`", "field": "op"}),
        (b"[]", {"id": None, "message": "Expected `object`, got `array`"}),
        (b'{"id":1}', {"id": 1, "message": "Object missing required field `op`", "field": "op"}),
        (b'{"id":1,"op":"raed"}', {"id": 1, "message": 'Unknown op "raed"; did you mean "read"?', "field": "op"}),
        (
            b'{"op":"zzz"}',
            {
                "id": None,
                "message": 'Unknown op "zzz"; known are read, write, hypercall, rdmsr, wrmsr, cpuid, in, out, settle, '
                "advance, turn, reset, start, quit, "
                "ask, frame, listen, connect, send, end, hang_up",
                "field": "op",
            },
        ),
        (
            b'{"id":"a","op":"read","gpa":0}',
            {"id": "a", "message": "Object missing required field `length`", "field": "length"},
        ),
        (
            b'{"id":2,"op":"read","gpa":0,"length":1,"size":1}',
            {"id": 2, "message": "Object contains unknown field `size`", "field": "size"},
        ),
        (
            b'{"id":2,"op":"read","gpa":"q","length":1}',
            {"id": 2, "message": 'Expected a number, or text such as "0x1f"', "field": "gpa"},
        ),
        (
            b'{"id":2,"op":"read","gpa":-1,"length":1}',
            {"id": 2, "message": "Expected a number from 0 to 2**64 - 1", "field": "gpa"},
        ),
        (
            b'{"id":2,"op":"read","gpa":0,"length":"0x1000001"}',
            {"id": 2, "message": "Expected at most 16777216 bytes", "field": "length"},
        ),
        (
            b'{"id":2,"op":"write","gpa":0,"data":"012"}',
            {"id": 2, "message": "Expected an even number of hexadecimal digits", "field": "data"},
        ),
        (b'{"id":2,"op":"in","port":65536}', {"id": 2, "message": "Expected a number of 16 bits", "field": "port"}),
        (b'{"id":2,"op":"in","port":1,"size":3}', {"id": 2, "message": "Expected 1, 2 or 4", "field": "size"}),
        (
            b'{"id":2,"op":"out","port":1,"value":256}',
            {"id": 2, "message": "Expected a number of 8 bits", "field": "value"},
        ),
        (
            b'{"id":2,"op":"cpuid","leaf":"0x100000000"}',
            {"id": 2, "message": "Expected a number of 32 bits", "field": "leaf"},
        ),
        (
            b'{"id":2,"op":"rdmsr","msr":1,"vp":1}',
            {"id": 2, "message": "Expected a processor from 0 to 0", "field": "vp"},
        ),
        (
            b'{"id":2,"op":"advance","ticks":"0xffffffffffffffff"}',
            {"id": 2, "message": "Expected at most 864000000000, one day", "field": "ticks"},
        ),
        (None, {"id": None, "message": "Expected at most 33558528 bytes"}),
    ],
)
def test_bad_lines(topology: Topology, line: bytes | None, expected: dict[str, Any]) -> None:
    """A line that is no command is answered with what is wrong and where, and the session goes on."""
    answers = say(topology, line, {"op": "settle", "id": 99})
    assert answers == [{"ok": False, "error": "bad_line", **expected}, {"id": 99, "ok": True}]


def test_registers_keep_what_was_written(topology: Topology) -> None:
    """A register that was written could not be read: it kept the number as the line's own type, which no answer has.

    The session ended with a TypeError; Linux reads each SynIC register back before it changes it.
    """
    kept = {0x40000000: 1 << 63, 0x40000083: 0x2001, 0x40000082: 0x3001, 0x40000092: 0x100F3, 0x40000103: 77}
    commands = [{"op": "wrmsr", "msr": msr, "value": hex(value)} for msr, value in kept.items()]
    commands += [{"op": "rdmsr", "msr": hex(msr)} for msr in kept]
    answers = say(topology, *commands)
    assert [answer["ok"] for answer in answers] == [True] * len(commands)
    assert [answer["value"] for answer in answers[len(kept) :]] == list(kept.values())


def test_memory(topology: Topology) -> None:
    """Memory is read and written as it lies there; nothing moves where any of it is missing."""
    end = 2 << 20
    assert say(
        topology,
        {"op": "write", "gpa": "0x1ffe", "data": "dead BEEF"},
        {"op": "read", "gpa": "0x1ffc", "length": 8},
        {"op": "write", "gpa": end - 2, "data": "01020304"},
        {"op": "read", "gpa": end - 2, "length": 2},
        {"op": "read", "gpa": (1 << 64) - 1, "length": 2},
        {"op": "read", "gpa": 0, "length": 0},
    ) == [
        {"id": None, "ok": True},
        {"id": None, "ok": True, "data": "0000deadbeef0000"},
        {
            "id": None,
            "ok": False,
            "error": "memory",
            "message": "guest physical address 0x200000 is not there for this access",
        },
        {"id": None, "ok": True, "data": "0000"},
        {
            "id": None,
            "ok": False,
            "error": "memory",
            "message": "guest physical address 0xffffffffffffffff is not there for this access",
        },
        {"id": None, "ok": True, "data": ""},
    ]


def test_faults_are_answers(topology: Topology) -> None:
    """What a processor would raise is told by its name."""
    no_register, no_page = say(topology, {"op": "wrmsr", "msr": 1, "value": 2}, {"op": "hypercall", "control": 0x5C})
    assert (no_register["error"], no_register["fault"]) == ("fault", "#GP")
    assert (no_page["error"], no_page["fault"]) == ("fault", "#UD")


def test_time_stands_still_but_for_advance(topology: Topology) -> None:
    """The reference counter moves by what was asked, to the tick; that it never repeats is the counter's own rule."""
    read = {"op": "rdmsr", "msr": "0x40000020"}
    answers = say(topology, read, read, {"op": "advance", "ticks": 12345}, read, {"op": "advance", "ticks": 0}, read)
    assert [answer["value"] for answer in answers if "value" in answer] == [0, 1, 12345, 12346]


async def test_every_timer_sees_the_time_it_was_set_for(mock_clock: MockClock) -> None:
    """Time that is advanced in one go still passes from timer to timer."""
    seen: list[float] = []

    async def tick() -> None:
        while True:
            await trio.sleep(0.25)
            seen.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await driver.advance(10_000_000)
        await driver.settle()
        assert seen == [0.25, 0.5, 0.75, 1.0]
        assert trio.current_time() == 1.0
        nursery.cancel_scope.cancel()


def test_interrupts_wait_for_a_suspended_processor() -> None:
    """What is raised while the processor is suspended is told when it may run, the highest vector first, once."""
    told: list[tuple[int, int]] = []
    vp: Any = SimpleNamespace(index=3, suspended=True, pending=set(), runner=None)
    machine = BoundaryVp(
        cast(Hypervisor, SimpleNamespace(read_msr=None)), vp, lambda index, vector: told.append((index, vector))
    )
    for vector in (0x40, 0xF3, 0x40):
        machine.interrupt(vector)
    machine.suspended(True)
    assert told == []
    vp.suspended = False
    machine.suspended(False)
    machine.suspended(False)
    machine.interrupt(0x50)
    assert told == [(3, 0xF3), (3, 0x40), (3, 0x50)]
    machine.detach()
    assert vp.runner is None
    with pytest.raises(VpStopped):
        machine.read_msr(0)


def test_power(topology: Topology) -> None:
    """Power off, start, reset by port and reset from outside: each is an event before the command's answer."""
    off, reset_port = {"op": "out", "port": 0x604, "size": 2, "value": 0x2000}, {"op": "out", "port": 0xCF9, "value": 6}
    done = {"id": None, "ok": True}
    assert say(
        topology,
        {"op": "out", "port": 0xE8, "size": 4, "value": 3},
        off,
        {"op": "rdmsr", "msr": 0},
        {"op": "read", "gpa": 0, "length": 1},
        {"op": "reset"},
        {"op": "start"},
        {"op": "start"},
        {"op": "write", "gpa": 0, "data": "ff"},
        reset_port,
        {"op": "read", "gpa": 0, "length": 1},
        {"op": "reset"},
        {"op": "quit"},
        {"op": "settle"},
    ) == [
        done,
        {"event": "ended", "reason": "powered off", "exit_code": 3, "detail": ""},
        done,
        *[{"id": None, "ok": False, "error": "off", "message": 'the VM is off; {"op":"start"} it'}] * 3,
        {**READY, "partition": 3},
        done,
        {"id": None, "ok": False, "error": "off", "message": "the VM is on already"},
        done,
        {"event": "reset"},
        done,
        {"id": None, "ok": True, "data": "00"},
        {"event": "reset"},
        done,
        done,
    ], "nothing is read after quit"


def test_a_vm_that_cannot_start_is_told(tmp_path: Path) -> None:
    """An image that somebody else holds is the reason, in words, and no traceback."""
    (tmp_path / "disk.img").write_bytes(bytes(512))
    (tmp_path / "topology.toml").write_text(TOPOLOGY + '[[vm.disk]]\npath = "disk.img"\n')
    topology = parse_topology((tmp_path / "topology.toml").read_text(), tmp_path, programs=False)
    (tmp_path / "disk.img").unlink()
    with pytest.raises(driver.CannotStart, match=re.escape("disk.img")):
        converse(topology, [])


def test_a_reader_that_goes_away_ends_the_session(topology: Topology) -> None:
    """Quietly, after the command whose answer could not be told; what is in the input after it is not done."""
    taken: list[int] = []

    async def lines() -> AsyncGenerator[bytes, None]:
        for number in range(3):
            taken.append(number)
            yield b'{"op":"settle"}'

    def write(line: bytes) -> None:
        if b'"ok"' in line and len(taken) == 2:
            raise BrokenPipeError

    async def serve() -> None:
        async with aclosing(lines()) as all_lines:
            await driver.serve(topology, all_lines, write)

    determinism.run(serve, clock="virtual", autojump=False)
    assert taken == [0, 1]


MEMBERS = st.sampled_from(
    ["op", "id", "gpa", "length", "data", "msr", "value", "port", "size", "vp", "control", "input"]
)
VALUES = st.one_of(
    st.integers(-1, 1 << 65), st.sampled_from([*protocol.OPERATIONS, "0x40000080", "00ff", "", None, 1.5])
)
OBJECTS = st.dictionaries(MEMBERS, VALUES, max_size=5).map(lambda command: json.dumps(command).encode())


@settings(suppress_health_check=[HealthCheck.too_slow])  # a session is a whole host
@given(st.lists(st.one_of(st.binary(max_size=20), OBJECTS), max_size=8))
def test_no_line_ends_a_session(lines: list[bytes]) -> None:
    """Whatever comes in, each line has one answer and the session goes on to the next."""
    topology = parse_topology(TOPOLOGY, Path(), programs=False)
    lines = [line for line in lines if line.strip() and b'"quit"' not in line]
    answers = [json.loads(line) for line in converse(topology, lines)]
    assert len([answer for answer in answers if "ok" in answer]) == len(lines)


@given(st.binary(max_size=200), st.lists(st.integers(1, 40)))
def test_lines_are_cut_the_same_however_they_come(data: bytes, cuts: list[int]) -> None:
    """Where the pipe cuts its input means nothing; a line that is too long is one None, and the next is whole again."""
    whole = stdio.LineSplitter(30)
    expected = [*whole.feed(data), *whole.end()] if len(data) <= 30 else None
    pieces = stdio.LineSplitter(30)
    got: list[bytes | None] = []
    rest = data
    for cut in cuts:
        got += pieces.feed(rest[:cut])
        rest = rest[cut:]
    got += [*pieces.feed(rest), *pieces.end()]
    if expected is not None:
        assert got == expected
    assert all(line is None or line in data for line in got)


def test_line_that_is_too_long() -> None:
    """It is told once, its rest is skipped, and what follows is read."""
    splitter = stdio.LineSplitter(10)
    assert splitter.feed(b"x" * 11) == [None]
    assert splitter.feed(b"y" * 11) == []
    assert splitter.feed(b"\nnext\nlast") == [b"next"]
    assert splitter.end() == [b"last"]
