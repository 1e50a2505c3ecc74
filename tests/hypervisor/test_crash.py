"""Crash registers: one report, whose every word is only data."""

from __future__ import annotations

import pytest

from hypervisor.crash import CrashReport
from hypervisor.msr import CRASH_MESSAGE, CRASH_NO_DUMP, CRASH_NOTIFY, Msr
from tests.doubles.bare_hypervisor import BareHypervisor


class Crashing:
    def __init__(self) -> None:
        self.host = BareHypervisor()
        self.reports: list[CrashReport] = []
        self.host.child.on_crash = self.reports.append

    def write(self, control: int, *parameters: int) -> None:
        vp = self.host.child.vps[0]
        for index, value in enumerate(parameters):
            self.host.write_msr(vp, Msr.CRASH_P0 + index, value)
        self.host.write_msr(vp, Msr.CRASH_CTL, control)


@pytest.fixture
def guest() -> Crashing:
    return Crashing()


def test_reading_the_control_tells_what_is_understood(guest: Crashing) -> None:
    """Linux looks for both bits before it sends its kernel messages."""
    control = guest.host.read_msr(guest.host.child.vps[0], Msr.CRASH_CTL)
    assert control & CRASH_NOTIFY
    assert control & CRASH_MESSAGE


def test_a_crash_with_its_message(guest: Crashing) -> None:
    text = b"Kernel panic - not syncing: \x1b[31mVFS\x00\n"
    guest.host.child.memory.write(0x5003, text)
    guest.host.write_msr(guest.host.child.vps[0], Msr.GUEST_OS_ID, 0x8100 << 48)
    guest.write(CRASH_NOTIFY | CRASH_MESSAGE | CRASH_NO_DUMP, 1, 2, 3, 0x5003, len(text))
    (report,) = guest.reports
    assert guest.host.child.crash is report
    assert report.parameters == (1, 2, 3, 0x5003, len(text))
    assert report.message == text
    assert report.text == "Kernel panic - not syncing: �[31mVFS", "nothing in it reaches a terminal as a command"
    assert (report.no_dump, report.pre_os, report.guest_os_id) == (True, 0, 0x8100 << 48)


def test_a_crash_without_message_keeps_its_parameters(guest: Crashing) -> None:
    guest.write(CRASH_NOTIFY | 5 << 58, 0xDEAD, 1, 2, 3, 4)
    assert guest.reports[0].parameters == (0xDEAD, 1, 2, 3, 4)
    assert guest.reports[0].message is None
    assert guest.reports[0].pre_os == 5


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0, 4097), (0, 1 << 40), (1 << 40, 10), (64 << 12, 1), ((64 << 12) - 1, 2), ((1 << 64) - 1, 4096)],
)
def test_a_message_that_cannot_be_read_is_left_out(guest: Crashing, gpa: int, length: int) -> None:
    """The crash is reported all the same, with the reason."""
    guest.write(CRASH_NOTIFY | CRASH_MESSAGE, 1, 2, 3, gpa, length)
    (report,) = guest.reports
    assert report.message is None
    assert report.problem


@pytest.mark.parametrize("control", [0, CRASH_MESSAGE, CRASH_NOTIFY | 1, CRASH_NOTIFY | 1 << 57])
def test_what_is_no_report_is_counted_and_ignored(guest: Crashing, control: int) -> None:
    guest.write(control)
    assert guest.reports == []
    assert guest.host.trace.warnings[guest.host.child.id, "crash_control_ignored"] == 1


def test_only_the_first_crash_counts(guest: Crashing) -> None:
    guest.write(CRASH_NOTIFY, 1)
    guest.write(CRASH_NOTIFY, 2)
    assert [report.parameters[0] for report in guest.reports] == [1]
    assert guest.host.trace.warnings[guest.host.child.id, "crash_repeated"] == 1
