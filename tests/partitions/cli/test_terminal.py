"""`partita run --console VM`: bytes both ways, nothing lost in silence, and the terminal as it was afterwards."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from partitions.cli.terminal import ESCAPE, MENU, EscapeKey, RawMode, Terminal, Wish
from partitions.root.console import KEPT_BYTES, Console
from tests.partitions.cli.conftest import MakeTopology

COMMAND = [sys.executable, "-m", "partitions.cli.main"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"ls\r\x03", [b"ls\r\x03"]),
        (b"\x1dq", [Wish.MENU, Wish.SHUT_DOWN]),
        (b"a\x1dXb", [b"a", Wish.MENU, Wish.TURN_OFF, b"b"]),
        (b"\x1d\x1d", [Wish.MENU, b"\x1d"]),
        (b"\x1d]", [Wish.MENU, b"\x1d"]),
        (b"\x1d\x03z", [Wish.MENU, b"z"]),
        (b"", []),
    ],
)
def test_the_escape_key(typed: bytes, expected: list[bytes | Wish]) -> None:
    """Every byte is the guest's but Ctrl-] and the one after it; a wrong one is swallowed and does nothing."""
    assert EscapeKey().feed(typed) == expected


@given(st.lists(st.binary(max_size=8)))
def test_the_escape_key_in_pieces(pieces: list[bytes]) -> None:
    """However reads cut what is typed, the guest gets the same bytes and we the same wishes."""

    def run(parts: list[bytes]) -> tuple[bytes, list[Wish]]:
        key = EscapeKey()
        found = [item for part in parts for item in key.feed(part)]
        plain = b"".join(item for item in found if isinstance(item, bytes))
        return plain, [item for item in found if isinstance(item, Wish)]

    assert run(pieces) == run([b"".join(pieces)])


@contextmanager
def terminal_pair() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def test_raw_mode_and_back() -> None:
    """No echo, no signals, no lines, output's line ends kept; afterwards all as before, however often it is left."""
    with terminal_pair() as (_, theirs):
        before = termios.tcgetattr(theirs)
        raw = RawMode(theirs)
        raw.enter()
        during = termios.tcgetattr(theirs)
        assert not during[3] & (termios.ECHO | termios.ISIG | termios.ICANON | termios.IEXTEN)
        assert not during[0] & (termios.ICRNL | termios.IXON)
        assert during[1] & termios.OPOST
        raw.leave()
        raw.leave()
        assert termios.tcgetattr(theirs) == before


class SlowGuest:
    """Takes a few bytes at a time, as COM1 does whose queue is full."""

    def __init__(self, each: int = 1000) -> None:
        self.each = each
        self.got = b""

    def receive(self, data: bytes) -> int:
        self.got += data[: self.each]
        return len(data[: self.each])


def make_console(guest: SlowGuest | None = None) -> Console:
    console = Console(lambda: 0)
    console.connect(None if guest is None else guest.receive)
    return console


async def test_typing_reaches_the_guest_and_wishes_reach_us() -> None:
    """On a terminal: bytes to the guest, the menu to the person, wishes to the run."""
    guest, wishes = SlowGuest(), list[Wish]()
    with terminal_pair() as (ours, theirs):
        terminal = Terminal("web", theirs, theirs)
        terminal.open()
        async with trio.open_nursery() as nursery:

            def wish(what: Wish) -> None:
                wishes.append(what)
                nursery.cancel_scope.cancel()

            nursery.start_soon(terminal.take, make_console(guest), wish)
            os.write(ours, b"ls\r\x03")
            await trio.testing.wait_all_tasks_blocked(0.05)
            os.write(ours, bytes([ESCAPE]) + b"x")
        shown = os.read(ours, 4096)
        terminal.close()
    assert guest.got == b"ls\r\x03"
    assert wishes == [Wish.TURN_OFF]
    assert shown == MENU.replace("\n", "\r\n").encode()


async def test_a_pipe_is_copied_whole_into_a_guest_that_reads_slowly(autojump_clock: MockClock) -> None:
    """No byte is lost or doubled however little the port takes at a time, and Ctrl-] is a byte like any other."""
    data = bytes(range(256)) * 600
    guest = SlowGuest(each=100)
    reader, writer = os.pipe()

    def fill() -> None:
        with open(writer, "wb") as pipe:
            pipe.write(data)

    terminal = Terminal("web", reader, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, fill)
        await terminal.take(make_console(guest), lambda wish: None)
    os.close(reader)
    assert guest.got == data
    assert terminal.lost_input == 0


async def test_a_plain_file_is_copied_too(tmp_path: Path) -> None:
    """epoll takes no files; they are always ready."""
    guest = SlowGuest()
    (tmp_path / "commands").write_bytes(b"uname -a\n")
    descriptor = os.open(tmp_path / "commands", os.O_RDONLY)
    await Terminal("web", descriptor, 1).take(make_console(guest), lambda wish: None)
    os.close(descriptor)
    assert guest.got == b"uname -a\n"


async def test_a_person_is_never_held_up(autojump_clock: MockClock) -> None:
    """A guest that reads nothing: typing beyond the bound is counted as lost, and the escape key still works."""
    wishes: list[Wish] = []
    with terminal_pair() as (ours, theirs):
        terminal = Terminal("web", theirs, theirs)
        terminal.open()

        def typed() -> None:
            for _ in range(80):
                os.write(ours, b"x" * 1000)
            os.write(ours, bytes([ESCAPE]) + b"q")

        async with trio.open_nursery() as nursery:

            def wish(what: Wish) -> None:
                wishes.append(what)
                nursery.cancel_scope.cancel()

            nursery.start_soon(terminal.take, make_console(SlowGuest(each=0)), wish)
            await trio.to_thread.run_sync(typed)
        terminal.close()
    assert wishes == [Wish.SHUT_DOWN]
    assert terminal.lost_input == 80_000 - 65_536


async def test_fast_output_is_whole_or_counted() -> None:
    """A pipe that takes nothing for a while: what is shown and what is counted as lost add up to what was printed."""
    reader, writer = os.pipe()
    console, terminal = make_console(), Terminal("web", 0, writer)
    got = bytearray()

    def drain() -> None:
        while chunk := os.read(reader, 65536):
            got.extend(chunk)

    async with trio.open_nursery() as draining:
        async with trio.open_nursery() as showing:
            await showing.start(terminal.show, console)
            for _ in range(5):  # far more than a pipe and the console hold
                console.write(b"y" * 100_000)
                await trio.testing.wait_all_tasks_blocked()
            console.write(b"the end")
            console.close()
            draining.start_soon(trio.to_thread.run_sync, drain)
        os.close(writer)
    os.close(reader)
    assert got.endswith(b"ythe end")
    assert terminal.lost_output > 0
    assert len(got) + terminal.lost_output == 500_007
    assert len(got) >= KEPT_BYTES


def read_until(descriptor: int, wanted: bytes, seconds: float = 20) -> bytes:
    """What the command shows until that is among it; fails when it does not come."""
    shown, until = b"", time.monotonic() + seconds
    while wanted not in shown:
        left = until - time.monotonic()
        ready, _, _ = select.select([descriptor], [], [], max(left, 0))
        assert ready, f"{wanted!r} did not come; there was {shown!r}"
        shown += os.read(descriptor, 65536)
    return shown


STAYS = "print('up')\ntry:\n    await trio.sleep_forever()\nfinally:\n    print('going')"


@pytest.mark.parametrize("way", ["escape q", "escape x", "SIGTERM", "the guest ends", "the guest crashes"])
def test_the_terminal_is_restored(topology: MakeTopology, way: str) -> None:
    """On every way out the terminal is as it was, and the table comes after it."""
    programs = {"the guest ends": "print('up')\nawait guest.sleep(0.3)", "the guest crashes": "print('up')\n1 / 0"}
    folder = topology(web=programs.get(way, STAYS), other="await guest.sleep(0.1)\nprint('not on this screen')")
    with terminal_pair() as (ours, theirs):
        before = termios.tcgetattr(theirs)
        command = [*COMMAND, "run", str(folder), "--console", "web"]
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            shown = read_until(ours, b"up\r\n")
            assert b"console of web: Ctrl-] opens a menu" in shown
            match way:
                case "escape q":
                    os.write(ours, b"\x1dq")
                case "escape x":
                    os.write(ours, b"\x1dx")
                case "SIGTERM":
                    process.send_signal(signal.SIGTERM)
                case _:
                    pass
            shown += read_until(ours, b"VM ")
            status = process.wait(20)
        assert termios.tcgetattr(theirs) == before
    expected = {"the guest ends": 0, "the guest crashes": 1}.get(way, 130)
    assert status == expected, shown
    assert (b"going\r\n" in shown) == (way in ("escape q", "SIGTERM"))
    assert b"not on this screen" not in shown


def test_pipes_are_copied(topology: MakeTopology) -> None:
    """Without a terminal nothing is set up and nothing is explained: the guest's bytes are the output."""
    folder = topology(web="print('hello')")
    done = subprocess.run(
        [*COMMAND, "run", str(folder), "--console", "web"],
        input=b"typed\n",
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"hello\nVM ")
