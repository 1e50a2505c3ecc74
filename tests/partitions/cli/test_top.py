"""`partita top`: from a file, from a host, on a terminal and without one."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from partitions.cli.main import main
from partitions.cli.top import followed
from partitions.cli.top_screen import FILE_KEYS, KEYS, Chosen, Key, keys_of
from partitions.resources.files import SamplesError, decode_sample, read_samples
from partitions.resources.help import MEANINGS
from partitions.resources.view import COLUMNS, View
from tests.partitions.control.test_socket import asked_host, denied
from tests.partitions.resources.samples import FARM, HEADING

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "farm.jsonl"
    later = msgspec.structs.replace(FARM, time=12.4)
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in (HEADING, FARM, later)))
    return path


def test_a_file_window_by_window(file: Path, capsys: Capture) -> None:
    """Without a terminal it is text; -n ends it early."""
    assert main(["top", str(file)]) == 0
    screens = capsys.readouterr().out.split("\n\n")
    assert [screen.splitlines()[0] for screen in screens] == [
        "farm: 12.300 s (virtual), window 100 ms, 3 of 4 VMs on",
        "farm: 12.400 s (virtual), window 100 ms, 3 of 4 VMs on",
    ]
    assert main(["top", str(file), "-b", "-n", "1", "--view", "memory"]) == 0
    assert "MCTLSZ" in capsys.readouterr().out


def test_other_forms(file: Path, capsys: Capture) -> None:
    """JSON is the file again; CSV has a row for each node in each window, and one heading."""
    assert main(["top", str(file), "-o", "json"]) == 0
    assert capsys.readouterr().out == file.read_text()
    assert main(["top", str(file), "-o", "csv"]) == 0
    heading, *rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2 * len(FARM.nodes)
    assert {len(row) for row in rows} == {len(heading)}
    web = dict(zip(heading, rows[2], strict=True))
    assert (web["path"], web["cpu_run_percent"], web["cpu_weight"], web["disk_iops"]) == ("vm/web", "20.0", "400", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no file of samples; write one with: partita run TOPOLOGY --samples FILE"),
        ("{}\n", "is no file of samples"),
        ("hello\n", "is no file of samples"),
        ('{"partita_samples":9}\n', "has samples of format 9, and this version reads 1"),
        ('{"partita_samples":1}\n{"time":"late"}\n', "line 2: no sample: Expected `float`"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, capsys: Capture, text: str, words: str) -> None:
    """What is wrong, and where."""
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    assert main(["top", str(path)]) == 1
    assert words in capsys.readouterr().err


def test_a_file_that_breaks_off(file: Path) -> None:
    """A run that was killed leaves half a line; what is before it counts."""
    whole = file.read_bytes()
    file.write_bytes(whole[:-10])
    with open(file, "rb") as opened:
        _, samples = read_samples(opened, "f")
        assert [sample.time for sample in samples] == [12.3]
    file.write_bytes(whole[:-10] + b"\n" + whole)
    with open(file, "rb") as opened, pytest.raises(SamplesError, match="line 3"):
        list(read_samples(opened, "f")[1])


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["nothing.jsonl"], 2, "there is no such file; `partita run --samples nothing.jsonl` writes one"),
        (["nobody", "-b"], 2, "no host"),
        (["--host", "nobody", "-b"], 2, "no host"),
        (["one", "--host", "other"], 2, "one and --host other: give one of them"),
        (["FILE", "-d", "2"], 2, "--delay is for a running host"),
        (["-d", "0"], 2, '"0" must be seconds, 0.05 to 3600'),
        (["-n", "0"], 2, '"0" must be a number of windows'),
        (["--view", "gpu"], 2, "invalid choice: 'gpu'"),
    ],
)
def test_what_is_refused(file: Path, capsys: Capture, arguments: list[str], status: int, words: str) -> None:
    """With the remedy."""
    assert main(["top", *(word.replace("FILE", str(file)) for word in arguments)]) == status
    assert words in capsys.readouterr().err


async def test_a_running_host(tmp_path: Path) -> None:
    """A heading, then a window again and again; a VM that is off is there, too."""
    with trio.fail_after(10):
        async with asked_host(tmp_path) as (host, control, _):
            await host["web"].start()
            async with followed(str(control.path), 0.05) as (heading, stream):
                assert (heading.clock, heading.window) == ("real", 50_000_000)
                lines = aiter(stream.lines())
                samples = [decode_sample(await anext(lines)) for _ in range(2)]
            assert samples[0].time < samples[1].time
            assert [(node.path, node.depth) for node in samples[1].nodes][:2] == [("host", 0), ("vm/web", 1)]
            web = samples[1].node("vm/web")
            assert web is not None
            assert (web.state, web.cpu.vps, web.cpu.run) == ("running", 1, 0)
            assert web.cpu.elapsed >= 50_000_000


async def test_a_host_ends_its_streams(tmp_path: Path) -> None:
    """Whoever watches it does not hold it up."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, asked_host(tmp_path) as (_, control, _):
            begun, lines = trio.Event(), 0

            async def follow() -> None:
                nonlocal lines
                async with followed(str(control.path), 3600) as (_, stream):
                    begun.set()
                    async for _ in stream.lines():
                        lines += 1

            nursery.start_soon(follow)
            await begun.wait()
        assert lines == 0


async def test_a_window_that_cannot_be(tmp_path: Path) -> None:
    """As every bad line."""
    async with asked_host(tmp_path) as (_, _, remote):
        assert await denied(remote, "samples", window=0) == ("bad_line", "window: Expected `float` >= 0.05")


async def test_no_samples_where_time_jumps(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """They would come without end, and the run would never end for them."""
    async with asked_host(tmp_path) as (_, _, remote):
        kind, words = await denied(remote, "samples")
        assert kind == "refused"
        assert "--samples FILE" in words


def test_keys() -> None:
    """Letters, arrows in both of terminals' ways, and nothing for what nobody knows."""
    assert keys_of(b"m\033[A\033OBq") == ["m", Key.UP, Key.DOWN, "q"]
    assert keys_of(b"\033[5~\033[6~\033[H\033OF") == [Key.PAGE_UP, Key.PAGE_DOWN, Key.HOME, Key.END]
    assert keys_of(b"\033[1;5Cx") == ["x"]
    assert keys_of(b"\033") == ["\033"]


def test_what_keys_do() -> None:
    """Views, long names, holding still, scrolling within what there is, an end in several ways."""
    chosen = Chosen()
    for key in "nML ":
        chosen.press(key, 5)
    assert (chosen.view, chosen.long, chosen.held) == (View.MEMORY, True, True)
    chosen.press("c", 5)
    chosen.press("l", 5)
    lines = chosen.lines(FARM, HEADING, 60, 10, keys=["keys"], color=False)
    assert len(lines) == 10
    assert lines[-1] == "HELD  rows 1-4 of 7  keys"
    chosen.press(Key.END, 5)
    assert chosen.lines(FARM, HEADING, 60, 10, keys=(), color=False)[-2].split()[0] == "capped"
    chosen.press(Key.PAGE_UP, 50)
    chosen.press(Key.DOWN, 5)
    chosen.lines(FARM, HEADING, 60, 10, keys=(), color=False)
    assert chosen.top == 1
    tall = chosen.lines(FARM, HEADING, 160, 30, keys=(), color=False)
    assert tall[-4].startswith("! %RDY"), "what there is to say stands at the bottom, and the table does not move"
    for key in ("q", "Q", "\x03", "\x1b"):
        other = Chosen()
        other.press(key, 5)
        assert other.over


def test_help() -> None:
    """What is on the screen, in words, and how to get on; any key goes back, and q is the end here, too."""
    chosen = Chosen()
    chosen.press("?", 5)
    lines = chosen.lines(FARM, HEADING, 80, 24, keys=KEYS, color=False)
    assert lines[0].startswith("Processors, in percent of one logical processor")
    assert {
        "%RDY        it had work and no processor",
        "!           it gets less than it wants, because others have it",
    } < {*lines}
    assert any(line.startswith("arrows") for line in lines[:23]), "all of it has room in the smallest terminal"
    assert lines[-1] == "any key goes back"
    chosen.press("m", 5)
    assert not chosen.help
    assert chosen.view == View.CPU
    chosen.press("h", 5)
    chosen.press("q", 5)
    assert chosen.over


def test_every_column_has_its_word() -> None:
    """Who asks for help finds each heading that is on the screen."""
    for view, columns in COLUMNS.items():
        told = " ".join(name for name, _ in MEANINGS[view]).replace(",", "").split()
        assert {column.heading for column in columns} <= {*told}


def test_who_uses_most() -> None:
    """Among siblings, pools with those in them; and back in the topology's order."""
    chosen = Chosen()
    chosen.press("s", 5)
    lines = chosen.lines(FARM, HEADING, 80, 24, keys=KEYS, color=False)
    assert [line.split()[0] for line in lines[4:11]] == ["host", "prod/", "web", "off", "test/", "try", "capped"]
    busy = msgspec.structs.replace(FARM.nodes[5], cpu=msgspec.structs.replace(FARM.nodes[5].cpu, run=10**9))
    pool = msgspec.structs.replace(FARM.nodes[4], cpu=msgspec.structs.replace(FARM.nodes[4].cpu, run=10**9))
    turned = msgspec.structs.replace(FARM, nodes=[*FARM.nodes[:4], pool, busy, FARM.nodes[6]])
    lines = chosen.lines(turned, HEADING, 80, 24, keys=KEYS, color=False)
    assert [line.split()[0] for line in lines[4:11]] == ["host", "test/", "try", "prod/", "web", "off", "capped"]
    chosen.press("s", 5)
    lines = chosen.lines(turned, HEADING, 80, 24, keys=KEYS, color=False)
    assert [line.split()[0] for line in lines[4:7]] == ["host", "prod/", "web"]


@given(st.integers(2, 130), st.integers(2, 60), st.sampled_from(View), st.booleans(), st.booleans())
def test_nothing_is_outside_the_terminal(width: int, height: int, view: View, long: bool, helped: bool) -> None:
    """Neither below nor to the right, help neither; the last line is always the foot."""
    chosen = Chosen(view=view, long=long, help=helped)
    lines = chosen.lines(FARM, HEADING, width, height, keys=KEYS, color=False)
    assert len(lines) == height
    assert max(map(len, lines)) <= max(10, width)


@pytest.mark.parametrize(("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal(file: Path, environment: dict[str, str], colored: bool) -> None:
    """A screen of its own, redrawn at each key, and everything as it was at the end."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "partitions.cli.main", "top", str(file)]
    before = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "12"} | environment
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, env=before) as process:
        os.close(theirs)
        shown = b""
        while FILE_KEYS[0].encode() not in shown:
            shown += os.read(ours, 4096)
        os.write(ours, b"\033[Dmq")
        try:
            while data := os.read(ours, 4096):
                shown += data
        except OSError:
            pass  # the other end is closed
    os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    assert text.startswith("\033[?1049h")
    assert text.rstrip().endswith("\033[?1049l")
    assert text.index("12.400 s") < text.index("window 2 of 2")
    assert ("\033[7m" in text) is colored


def test_whoever_reads_has_seen_enough(file: Path) -> None:
    """`partita top FILE | head` says nothing of pipes."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "partitions.cli.main", "top", str(file)], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk(file: Path) -> None:
    """It is the output that is told of, and not the file that is read."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "partitions.cli.main", "top", str(file)], stdout=full, stderr=subprocess.PIPE
        )
    assert (done.returncode, done.stderr) == (1, b"error: output cannot be written: No space left on device\n")


def test_samples_of_json_are_samples(file: Path) -> None:
    """What is written can be read by anything that reads JSON."""
    first, *others = map(json.loads, file.read_text().splitlines())
    assert first["partita_samples"] == 1
    assert all(set(one) <= {"time", "window", "contended", "lps", "nodes"} for one in others)
