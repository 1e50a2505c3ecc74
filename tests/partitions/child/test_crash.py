"""A guest's last words."""

from __future__ import annotations

from pathlib import Path

from hypervisor.msr import CRASH_MESSAGE_MAX, Msr
from hypervisor.pages import PAGE_SIZE
from partitions.child import crash
from tests.doubles.machine import FakeMachine

HERE = Path(__file__)


def fault(depth: int = 0) -> Exception:
    try:
        deeper(depth)
    except Exception as error:
        return error
    raise AssertionError


def deeper(depth: int) -> None:
    if depth:
        deeper(depth - 1)
    int("x")


def test_only_the_programs_own_frames_are_shown() -> None:
    """The frames of Trio and of our kernel above it are nothing that a guest's author can change."""
    ours = crash.oops(fault(), HERE)
    assert ours.count("in deeper") == 1
    foreign = crash.oops(fault(), Path("/nowhere.py"))
    assert "in deeper" in foreign, "where the program has no frame, all are shown"


def test_causes_and_groups_are_trimmed_too() -> None:
    """An exception's cause is often the interesting half; a group of one is shown as the one."""
    outer = RuntimeError("outer")
    outer.__cause__ = fault()
    text = crash.oops(ExceptionGroup("nursery", [outer]), HERE)
    assert "ExceptionGroup" not in text
    assert "invalid literal" in text
    assert "direct cause" in text
    both = crash.oops(ExceptionGroup("nursery", [outer, KeyError("other")]), HERE)
    assert "ExceptionGroup" in both
    assert "KeyError: 'other'" in both


def test_the_line_is_the_innermost_of_the_program() -> None:
    """P2 takes the place of an instruction pointer; 0 means: not in the program."""
    source = HERE.read_text().splitlines()
    assert source[crash.fault_line(fault(3), HERE) - 1].strip() == 'int("x")'
    assert crash.fault_line(fault(), Path("/nowhere.py")) == 0


def test_a_long_message_keeps_its_beginning() -> None:
    """P4 is at most a page; the first line names the exception, so the end is what goes."""
    machine = FakeMachine()
    crash.report_crash(machine, 0x200, 1, 2, 3, "é" * CRASH_MESSAGE_MAX)
    p = [machine.msrs[Msr.CRASH_P0 + number] for number in range(5)]
    assert p == [1, 2, 3, 0x200 * PAGE_SIZE, CRASH_MESSAGE_MAX]
    assert bytes(machine.memory[p[3] : p[3] + p[4]]) == "é".encode() * (CRASH_MESSAGE_MAX // 2)
    assert not any(machine.memory[p[3] + p[4] : p[3] + p[4] + 64])
    assert [msr for msr, _ in machine.writes] == [*range(Msr.CRASH_P0, Msr.CRASH_P4 + 1), Msr.CRASH_CTL]
