"""A record of one VM's boundary, replayed against another run's root: the same to the last byte, or where not."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.backend.task import TaskVp
from hypervisor.trace import Layer, TraceEvent
from partitions import determinism, open_host
from partitions.boundary.pages import PAGE, GuestPages
from partitions.boundary.record import MOST_RAISED, BoundaryLog
from partitions.boundary.replay import Record
from partitions.boundary.runs import BoundaryRun, RecordedRun, RecordError, ReplayedRun
from partitions.boundary.turns import Turns
from partitions.cli.main import main as partita
from partitions.topology import load_topology
from tests.partitions.test_boundary import converse

SEED = 5
TWO_LIVES = """
async def main(guest):
    first = await guest.disk(0)
    page = await first.read(0, 1)
    if page[0] == 0:
        await first.write(0, b"\\1" * first.block_size)
        await guest.work(0.25)
        await guest.memory.use(8192)
        guest.memory._platform.touched(-(1 << 70), 1 << 80)
        await guest.sleep(0.25)
        await guest.reset()
    print("second life")
"""


def run(made: BoundaryRun, target: str | Path) -> str:
    """One run of a topology; what became of the record or the replay."""

    async def all_vms() -> None:
        async with open_host(load_topology(target), clock="virtual", seed=made.seed, backends=made.backends) as host:
            with trio.move_on_after(10_000):
                await host.start_all()
                await host.wait_all()

    determinism.run(all_vms, clock="virtual", seed=made.seed, order=made.turns)
    return made.finish()


def record(target: str | Path, vm: str, file: Path) -> list[str]:
    """The lines of a new record."""
    made = RecordedRun(load_topology(target), vm, file, SEED)
    run(made, target)
    assert made.ok
    return file.read_text().splitlines()


def replay(target: str | Path, vm: str, file: Path) -> ReplayedRun:
    made = ReplayedRun(load_topology(target), vm, file, None)
    made_of = run(made, target)
    assert made.ok == (re.search("all as recorded(?! so far)", made_of) is not None)
    return made


@pytest.mark.parametrize(
    ("example", "vm"),
    [("01", "alpha"), ("02", "caller"), ("04", "desk"), ("05", "fragile"), ("07", "v0-13"), ("07", "tomorrow")],
)
def test_every_byte_is_the_same_again(example: str, vm: str, tmp_path: Path) -> None:
    """Beside siblings, with monitor pages, hot-plugged devices, and a guest that crashes."""
    lines = record(example, vm, tmp_path / "record")
    assert len(lines) > 500
    again = replay(example, vm, tmp_path / "record")
    assert again.ok, again.finish()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A topology with one VM on a small disk, whose guest resets itself once."""
    (tmp_path / "two_lives.py").write_text(TWO_LIVES)
    file = tmp_path / "topology.toml"
    file.write_text(
        '[[vm]]\nname = "cat"\nprogram = "two_lives.py"\nmemory = "8MiB"\n'
        '[[vm.disk]]\npath = "disk.img"\nsize = "1MiB"\n'
    )
    return file


def fresh(machine: Path) -> None:
    """The disk as it was before the first run."""
    (machine.parent / "disk.img").unlink(missing_ok=True)


def test_a_reset_is_a_second_boot(machine: Path, tmp_path: Path) -> None:
    """Both lives are in the record, and time passes between them; disks are as they were then, or it parts."""
    lines = record(machine, "cat", tmp_path / "record")
    assert len(Record.read(tmp_path / "record").boots) == 2
    assert any(msgspec.json.decode(line).get("seconds", 0) >= 0.5 for line in lines)
    assert any('"event":"worked"' in line for line in lines)
    touched, absurd = [msgspec.json.decode(line) for line in lines if '"event":"touched"' in line]
    assert (touched["gpa"] % 4096, touched["value"]) == (0, 2)
    assert (absurd["gpa"], absurd["value"]) == (0, 1 << 51)
    fresh(machine)
    assert replay(machine, "cat", tmp_path / "record").ok
    parted = replay(machine, "cat", tmp_path / "record").finish()
    assert re.search(r'parted at line \d+:\n  then .*\n  now  \{"event":"wrote"', parted), parted


@pytest.mark.parametrize(
    "kind", ['"rax"', '"ok":true,"value"', '"event":"wrote"', '"event":"interrupt"', '"op":"write"']
)
def test_one_changed_line_is_where_it_parts(kind: str, machine: Path, tmp_path: Path) -> None:
    """An answer, an interrupt, a store of the root's or of the guest's: told with both lines, and the run goes on."""
    lines = record(machine, "cat", tmp_path / "record")
    candidates = [at for at, line in enumerate(lines) if kind in line and at]
    at = candidates[len(candidates) // 2]
    changed = lines[at]
    if kind == '"op":"write"':
        # The guest stores another byte into its ring or its messages: what the root makes of it is another, later on.
        at = next(i for i in candidates if '"data":"0100000000000000' in lines[i] or len(lines[i]) > 150)
        found = msgspec.json.decode(lines[at])
        found["data"] = "ff" * (len(found["data"]) // 2)
        lines[at] = msgspec.json.encode(found).decode()
    elif kind == '"event":"interrupt"':
        lines[at] = changed.replace('"vector":243', '"vector":244')
    else:
        lines[at] = re.sub(r"(\d)(\}?,|\}|\")", lambda m: str((int(m[1]) + 1) % 10) + m[2], changed, count=1)
    assert lines[at] != changed or kind == '"op":"write"'
    (tmp_path / "changed").write_text("\n".join(lines) + "\n")
    fresh(machine)
    verdict = replay(machine, "cat", tmp_path / "changed").finish()
    place = re.search(r"parted at line (\d+)", verdict)
    assert place is not None, verdict
    line = int(place[1])
    assert line == at + 1 if kind != '"op":"write"' else line > at, verdict
    if kind != '"op":"write"':
        assert lines[at][:200] in verdict


def test_a_record_that_ends_early_is_told(machine: Path, tmp_path: Path) -> None:
    """A replay of the beginning of a record is as recorded so far, and waits; it is not a whole one."""
    lines = record(machine, "cat", tmp_path / "record")
    (tmp_path / "half").write_text("\n".join(lines[:400]) + "\n")
    fresh(machine)
    half = replay(machine, "cat", tmp_path / "half")
    assert half.finish() == "replay of cat: 399 lines, all as recorded, and there the record breaks off"
    assert half.ok


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no record of a boundary; `partita run --record` makes one"),
        (b"\x7fELF\x02", "is no record of a boundary"),
        (b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5,"version":9}', "format 9"),
        (b'{"event":"recording","vm":"dog","memory":8388608,"processors":1,"seed":5}', "was made of VM dog"),
        (b'{"event":"recording","vm":"cat","memory":4096,"processors":1,"seed":5}', "cat here has 8 MiB and 1"),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"op":"jump"}',
            "line 2: Unknown",
        ),
        (b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"op":"wr', "cut short"),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"op":"rdmsr","msr":1,"vp":1}',
            "line 2: there is no processor 1",
        ),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"event":"halted","vp":7}',
            "line 2: there is no processor 7",
        ),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"event":"halted","vp":-1}',
            "line 2: there is no processor -1",
        ),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"op":"write","gpa":8388607,"data":"0102"}',
            "line 2: a store outside memory",
        ),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"event":"danced"}',
            'line 2: "danced" is no event of a record',
        ),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"event":"worked","ticks":-1}',
            "line 2: -1 ticks of work",
        ),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"op":"settle"}',
            'line 2: a record has no "settle"',
        ),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"op":"listen","port":80}',
            'line 2: a record has no "listen"',
        ),
        (
            b'{"event":"recording","vm":"cat","memory":8388608,"processors":1,"seed":5}\n{"op":"hang_up","socket":1}',
            'line 2: a record has no "hang_up"',
        ),
    ],
)
def test_a_file_that_is_none_is_refused(content: bytes, words: str, machine: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(RecordError, match=re.escape(words)):
        ReplayedRun(load_topology(machine), "cat", tmp_path / "bad", None)


def test_the_command_records_and_replays(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit status 0 where all is as recorded, 1 where not; the VM's name may be left out where there is one."""
    file = str(tmp_path / "record")
    assert partita(["run", str(machine), "--clock", "virtual", "--record", file]) == 0
    assert f"--replay cat={file}" in capsys.readouterr().err
    fresh(machine)
    assert partita(["run", str(machine), "--clock", "virtual", "--replay", f"cat={file}"]) == 0
    assert "all as recorded" in capsys.readouterr().err
    assert partita(["run", str(machine), "--clock", "virtual", "--replay", file]) == 1
    told = capsys.readouterr().err
    assert "parted at line" in told
    assert "crashed" not in told


def test_what_is_shown_makes_no_difference(machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record made without console lines is replayed with them, and the other way round."""
    file = str(tmp_path / "record")
    virtual = ["run", str(machine), "--clock", "virtual"]
    assert partita([*virtual, "--no-lines", "--record", file]) == 0
    assert "second life" not in capsys.readouterr().out
    fresh(machine)
    assert partita([*virtual, "--replay", file]) == 0
    fresh(machine)
    assert partita([*virtual, "--json", "--replay", file]) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--record", "x"], "--record needs --clock virtual"),
        (["--clock", "virtual", "--record", "x", "--replay", "y"], "does not go with --replay"),
        (["--clock", "virtual", "--record", "dog=x"], 'no VM is called "dog"; there are cat'),
        (["--clock", "virtual", "--replay", "nowhere"], "nowhere: No such file"),
        (["--clock", "virtual", "--record", "/nowhere/x"], "/nowhere/x: No such file"),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str], words: str, machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert partita(["run", str(machine), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_full_disk_ends_the_record_and_not_the_run(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run goes on without it, and says so."""
    assert partita(["run", str(machine), "--clock", "virtual", "--record", "/dev/full"]) == 1
    told = capsys.readouterr()
    assert "No space left on device; the record ends there" in told.err
    assert "second life" in told.out


def test_the_guests_lines_are_a_session_of_the_driver(tmp_path: Path) -> None:
    """Of a guest without devices every answer is the record's, though the driver lets the root rest after each line."""
    lines = record("01", "alpha", tmp_path / "record")
    commands = [line.encode() for line in lines if line.startswith('{"op":')]
    topology = load_topology("01")
    alone = msgspec.structs.replace(topology, vm=[vm for vm in topology.vm if vm.name == "alpha"])
    answers = [line.decode().strip() for line in converse(alone, commands) if line.startswith(b'{"id":')]
    asked = [msgspec.json.decode(command)["op"] for command in commands]
    told = [answer for answer, op in zip(answers, asked, strict=True) if op not in ("turn", "write")]
    assert told == [line for line in lines if line.startswith('{"id":')]
    assert len(told) > 300


# --- its parts


def test_interrupts_of_a_guest_that_gets_no_turn_do_not_pile_up() -> None:
    """A periodic timer, and a guest that never halts: what is held is bounded, and nothing of it is lost."""
    lines: list[bytes] = []
    log = BoundaryLog(Turns(0), lines.append)
    log._machines = [cast(TaskVp, SimpleNamespace(vp=SimpleNamespace(partition=SimpleNamespace(id=2))))]
    for number in range(3 * MOST_RAISED + 5):
        log.interrupted(TraceEvent(number, Layer.INTERRUPT, "interrupt", 2, fields={"vp": 0, "vector": 243}))
        log.interrupted(TraceEvent(number, Layer.INTERRUPT, "interrupt", 3, fields={"vp": 0, "vector": 243}))
        assert len(log._raised) < MOST_RAISED
    assert len(lines) == 3 * MOST_RAISED
    assert len(log._raised) == 5


@given(st.lists(st.tuples(st.integers(0, 5 * PAGE - 1), st.binary(min_size=1, max_size=PAGE)), max_size=6), st.data())
def test_changes_are_what_differs(stores: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """Applied to a copy they make it the same, page by page in order, and no page is told that did not change."""
    memory = memoryview(bytearray(5 * PAGE))
    pages, copy = GuestPages(memory), bytearray(5 * PAGE)
    for at, content in stores:
        before = bytes(memory)
        content = content[: len(memory) - at]
        memory[at : at + len(content)] = content
        told = list(pages.changes())
        assert [gpa for gpa, _ in told] == sorted(gpa for gpa, _ in told)
        for gpa, changed in told:
            assert before[gpa] != changed[0]
            assert before[gpa + len(changed) - 1] != changed[-1]
            copy[gpa : gpa + len(changed)] = changed
        assert copy == memory
        assert not list(pages.changes())


def test_a_guests_tasks_come_last_and_do_not_change_the_others_order() -> None:
    """However many there are of them, and whatever they do."""

    def others(guests: int) -> list[int]:
        turns, order = Turns(3), []

        async def other(number: int) -> None:
            for _ in range(20):
                await trio.lowlevel.checkpoint()
                order.append(number)

        async def guest(nursery: trio.Nursery, *, first: bool = False) -> None:
            if first:
                turns.first_of_the_last(trio.lowlevel.current_task())
                for _ in range(guests):
                    nursery.start_soon(guest, nursery)
            for _ in range(30):
                await trio.lowlevel.checkpoint()
                order.append(-1)

        async def all_of_them() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(other, number)

                async def below() -> None:
                    async with trio.open_nursery() as inner:
                        await guest(inner, first=True)

                nursery.start_soon(below)

        determinism.run(all_of_them, clock="virtual", seed=3, order=turns)
        settled = order[60:]
        batches = [settled[at : at + 5 + guests + 1] for at in range(0, 3 * (5 + guests + 1), 5 + guests + 1)]
        for batch in batches:
            assert sorted(batch)[: guests + 1] == [-1] * (guests + 1)
        return [number for number in order if number >= 0]

    assert others(1) == others(4) == others(0)
