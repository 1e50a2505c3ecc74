"""When these tests run, what they share, and the report at their end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.linux_guest.progress import Progress
from tests.linux_guest.report import FILE, Report
from tests.linux_guest.suite import FIRST

ASKED = "PARTITA_LINUX_TESTS"
_REPORT = Report()
_PROGRESS = Progress()
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(ASKED) == "1":
        items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
        return
    skip = pytest.mark.skip(reason="a Linux kernel is booted by `make linux-test`, which takes minutes")
    here = f"{HERE}{os.sep}"
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(skip)


def pytest_runtest_logstart(nodeid: str) -> None:
    if os.environ.get(ASKED) == "1":
        _PROGRESS.begin(nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if os.environ.get(ASKED) == "1" and (report.when == "call" or not report.passed):
        _PROGRESS.end(report.nodeid, report.outcome)


@pytest.fixture(scope="session")
def evidence() -> Callable[[str, str], None]:
    """Puts a driver's evidence into the report."""
    return _REPORT.add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _REPORT:
        _REPORT.write()
        terminalreporter.section("what the guests reported")
        terminalreporter.write_line(_REPORT.text())
        terminalreporter.write_line(f"kept in {FILE}")
