"""The example of a guest that sleeps in a file, by the API and by the command."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from partitions.examples import examples
from partitions.host import ExitReason, VmState, open_host

PAST = [f"counted {number}" for number in range(1, 6)]
FUTURE = [f"counted {number}" for number in range(6, 11)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = next(example.folder for example in examples() if example.name == "06-save-restore")
    return Path(shutil.copytree(source, tmp_path / "example", ignore=shutil.ignore_patterns("*.img", "*.saved")))


async def sleep_and_wake(folder: Path, clock: str | None) -> None:
    async with open_host(folder, clock=clock) as host:  # type: ignore[arg-type]
        vm = host["counter"]
        await vm.start()
        async for line in vm.console.follow():
            if line.text == PAST[-1]:
                break
        file = await vm.save()
        assert vm.state is VmState.SAVED
        assert vm.console.lines() == PAST
    async with open_host(folder, clock=clock) as host:  # type: ignore[arg-type]
        vm = host["counter"]
        await vm.restore(file)
        record = await vm.wait()
        assert record.reason is ExitReason.POWERED_OFF, record
        *said, first, last = vm.console.lines()
        assert said[:5] == PAST
        time = float(said[5].removeprefix("I slept before 6; the partition's time is ").partition(" s ")[0])
        assert time >= 0.8 if clock is None else time == 0.8
        assert said[6:] == FUTURE
        assert (first, last) == ("number 1, written in life 1", "number 10, written in life 2")


async def test_on_the_real_clock(folder: Path) -> None:
    """Two hosts, one after the other; the file and the disk are all that passes between them."""
    with trio.fail_after(30):
        await sleep_and_wake(folder, None)


async def test_on_the_virtual_clock(folder: Path, autojump_clock: MockClock) -> None:
    """The same without waiting."""
    await sleep_and_wake(folder, "virtual")


async def test_many_lives(folder: Path, autojump_clock: MockClock) -> None:
    """Saved after every number: what each life used is free for the next, and the disk has one line of each."""
    async with open_host(folder, clock="virtual") as host:
        vm = host["counter"]
        await vm.start()
        for number in range(1, 10):
            with vm.console.follow() as lines:
                if f"counted {number}" not in vm.console.lines():
                    async for line in lines:
                        if line.text == f"counted {number}":
                            break
            await vm.save()
            await vm.start()
        record = await vm.wait()
        assert record.reason is ExitReason.POWERED_OFF, record
        assert vm.console.lines()[-1] == "number 10, written in life 10"


def partita(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "partitions.cli.main", "run", str(folder), "--clock", "virtual", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder, check=False)


def test_by_the_command(folder: Path) -> None:
    """The two lines of the README."""
    first = partita(folder, "--save", "counter=here.saved", "--save-after", "0.9", "--json")
    assert first.returncode == 0, first.stderr
    (row,) = json.loads(first.stdout)["vms"]
    assert (row["state"], row["exit"]) == ("saved", "saved")
    second = partita(folder, "--restore", "counter=here.saved")
    assert second.returncode == 0, second.stderr
    said = [line.partition("| ")[2] for line in second.stdout.splitlines() if "| " in line]
    assert [line for line in said if line.startswith("counted")] == FUTURE


def test_a_file_that_was_changed(folder: Path) -> None:
    """The VM does not start, and does not boot instead; the message names the reason."""
    partita(folder, "--save", "counter=here.saved", "--save-after", "0.9")
    file = folder / "here.saved"
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    run = partita(folder, "--restore", "counter=here.saved")
    assert run.returncode == 1
    assert "cannot restore" in run.stderr
    assert "here.saved: damaged" in run.stderr
    assert "counted" not in run.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--save", "counter"], "--save counter: must be VM=FILE"),
        (["--restore", "other=x"], "other"),
        (["--save-after", "1"], "--save-after takes"),
        (["--save", "counter=x", "--save-after", "-1"], "--save-after takes"),
        (["--save", "counter=/no/folder/x"], "there is no folder /no/folder"),
        (["--save", "counter=/"], "is a folder; name a file in it"),
        (["--save", "counter=x", "--save", "counter=y"], "VM counter has a file already"),
        (["--restore", "counter=nowhere.saved"], "there is no such file"),
    ],
)
def test_options_that_make_no_sense(folder: Path, arguments: list[str], words: str) -> None:
    """Usage errors, before anything starts."""
    run = partita(folder, *arguments)
    assert run.returncode == 2
    assert words in run.stderr


def test_a_guest_that_ends_before_it_is_saved(folder: Path) -> None:
    """A file that was asked for and is not there is told, and is the run's failure."""
    run = partita(folder, "--save", "counter=here.saved", "--save-after", "1000", "--clock", "virtual", "--json")
    assert run.returncode == 1
    assert "error: VM counter is not saved: it ended before it was time" in run.stderr
    assert json.loads(run.stdout)["not_saved"] == ["counter"]


def test_a_guest_that_cannot_be_saved(folder: Path) -> None:
    """It goes on to its end; the run has failed nevertheless."""
    program = folder / "counter.py"
    program.write_text(program.read_text().replace("async def resume", "async def wake"))
    run = partita(folder, "--save", "counter=here.saved", "--save-after", "0.5", "--clock", "virtual", "--json")
    assert run.returncode == 1
    assert "error: VM counter is not saved: " in run.stderr
    assert json.loads(run.stdout)["vms"][0]["exit"] == "powered off"
    assert not (folder / "here.saved").exists()


def test_an_interrupt_saves(folder: Path) -> None:
    """Ctrl-C with --save: the VM sleeps in its file and is not asked to power off."""
    command = [sys.executable, "-u", "-m", "partitions.cli.main", "run", str(folder), "--save", "counter=here.saved"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.rstrip().endswith("counted 2"):
                run.send_signal(signal.SIGINT)
                break
        rest, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "saved" in rest
    assert (folder / "here.saved").exists()
    assert partita(folder, "--restore", "counter=here.saved").returncode == 0
