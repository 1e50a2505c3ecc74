"""A person at a terminal, `partita run --console`, and the shell of a real kernel."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

from tests.linux_guest import guest

LINES = 1000
PATIENCE = 120.0
CONTROL_BRACKET = b"\x1d"


class Person:
    """Reads what the terminal shows and types."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._unread = b""

    def until(self, words: bytes) -> bytes:
        """Wait for words; what came before them."""
        deadline = time.monotonic() + PATIENCE
        while words not in self._unread:
            ready, _, _ = select.select([self._terminal], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{words!r} did not come; there is {self._unread[-2000:]!r}"
            self._unread += os.read(self._terminal, 65536)
        before, _, self._unread = self._unread.partition(words)
        return before

    def types(self, keys: bytes) -> None:
        """Key by key."""
        for key in keys:
            os.write(self._terminal, bytes([key]))


def test_a_person_works_in_the_guest_and_leaves(tmp_path: Path, evidence: Callable[[str, str], None]) -> None:
    """Commands and their answers, fast output whole, interrupt and escape keys, an end in order."""
    plan = guest.Plan(steps={"shell": "setsid cttyhack sh"}, modules=())
    vm = guest.topology(plan, tmp_path).vm[0]
    file = tmp_path / "topology.toml"
    file.write_text(
        f'[[vm]]\nname = "linux"\nbackend = "kvm"\nkernel = "{vm.kernel}"\ninitrd = "{vm.initrd}"\n'
        f'cmdline = "{vm.cmdline}"\nmemory = {int(vm.memory)}\n'
    )
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "partitions.cli.main", "run", str(file), "--console", "linux"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        try:
            person = Person(ours)
            person.until(guest.BEGIN.encode() + b"shell")
            person.until(b"# ")
            person.types(b"echo a$((6 * 7))z\r")
            person.until(b"a42z")
            person.types(b"seq %d; echo done$((0))\r" % LINES)
            shown = person.until(b"done0").replace(b"\r", b"")
            person.types(b"sleep 1000\r")
            person.types(b"\x03")
            person.types(b"echo b$((6 * 8))z\r")
            person.until(b"b48z")
            person.types(CONTROL_BRACKET)
            person.until(b"turn off")
            person.types(b" exit\r")
            end = person.until(guest.OVER.encode())
            assert process.wait(PATIENCE) == 0
            assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
        finally:
            process.kill()
            os.close(theirs)
            os.close(ours)
    assert b"\n".join(b"%d" % number for number in range(1, LINES + 1)) + b"\n" in shown, "no line is lost"
    evidence("console", f"{len(shown)} bytes of fast output were whole; the last words: {end.decode()[-40:]!r}")
