"""What a guest prints, byte by byte through COM1."""

from __future__ import annotations

import io
import sys

from partitions import ports
from partitions.child.console import FIFO_BYTES, Console
from tests.doubles.machine import FakeMachine


class CountingMachine(FakeMachine):
    looks: int = 0
    busy: bool = False

    def port_in(self, port: int, size: int) -> int:
        assert (port, size) == (ports.COM1_LINE_STATUS, 1)
        self.looks += 1
        return 0 if self.busy else ports.LINE_STATUS_IDLE


def test_text_leaves_as_utf8_and_never_fails() -> None:
    """A half of a surrogate pair has no UTF-8: it is shown as an escape, since a print must not crash a guest."""
    machine = FakeMachine()
    Console(machine).write("über \ud800\n")
    assert bytes(machine.console) == b"\xc3\xbcber \\ud800\n"


def test_the_line_status_is_asked_once_a_fifo() -> None:
    """A 16550A takes 16 bytes after one look, so a line costs one port read in 16 bytes and no more."""
    machine = CountingMachine()
    Console(machine).write("x" * (FIFO_BYTES * 2 + 1))
    assert machine.looks == 3


def test_a_stuck_port_cannot_hang_a_guest() -> None:
    """After some patience the rest of the text is dropped and counted."""
    machine = CountingMachine()
    machine.busy = True
    console = Console(machine)
    console.print("lost")
    assert (console.bytes_dropped, machine.text) == (5, "")


def test_print_is_pythons_print() -> None:
    """Separator, end and file mean what they mean in Python; the host's own streams are the guest's console."""
    machine = FakeMachine()
    console = Console(machine)
    console.print()
    console.print("a", 1, None, sep=", ", end="!\n")
    console.print("b", "c", sep=None, end=None)
    console.print("to the console", file=sys.stderr, flush=True)
    own = io.StringIO()
    console.print("elsewhere", file=own)
    assert machine.text == "\na, 1, None!\nb c\nto the console\n"
    assert own.getvalue() == "elsewhere\n"
