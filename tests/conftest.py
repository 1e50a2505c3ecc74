"""How long Hypothesis searches, and where hosts of tests can be reached: not by whoever else works here. Both sides.

`make test` searches a moment, `make fuzz` (profile `long`) a hundred times that. The moment is the same each time, so
what a change breaks is the change's doing; chance is for `make fuzz`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.doubles.campaign import LONG, SHORT

# No deadlines: how long one example takes says how busy the machine is, and the suite has a limit of its own.
settings.register_profile("short", deadline=None, derandomize=True, max_examples=SHORT)
settings.register_profile("long", deadline=None, max_examples=LONG)
settings.load_profile("short")


def pytest_collection(session: pytest.Session) -> None:
    """Each worker imports another part of the tests first.

    In a fresh checkout every file is compiled once, by whoever comes to it first, and not by all workers at the same
    time: half a minute of work. Collecting them again finds them imported. What cannot be imported, it reports.
    """
    worker = getattr(session.config, "workerinput", None)
    if worker is None:
        return
    files = [file for name in session.config.args for file in sorted(Path(name).rglob("test_*.py"))]
    first = len(files) * int(worker["workerid"].removeprefix("gw")) // worker["workercount"]
    for file in [*files[first:], *files[:first]]:
        with contextlib.suppress(Exception, pytest.skip.Exception):  # collecting it will say so, with its place
            importlib.import_module(".".join(file.resolve().relative_to(session.config.rootpath).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Collected tests are no garbage: whoever collects it, to see what a test left, need not look at thousands."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Nor is what is still there after a file's last test: modules, tables, and what Hypothesis remembers."""
    yield
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(ReportsAreSent(config), "reports_are_sent")


class ReportsAreSent:
    """A worker's reports are for the process that prints them: here they would be kept for a summary nobody sees."""

    def __init__(self, config: pytest.Config) -> None:
        self._terminal = config.pluginmanager.get_plugin("terminalreporter")

    def pytest_runtest_logfinish(self) -> None:
        if self._terminal is not None:
            self._terminal.stats.clear()


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> Iterator[None]:
    """Control sockets of tests' runs are in a folder of their own.

    Somebody's `partita down` in another terminal means the one host that runs, and once that was a test's.
    """
    before = os.environ.get("XDG_RUNTIME_DIR")
    with tempfile.TemporaryDirectory(prefix="partita-tests-") as folder:
        os.environ["XDG_RUNTIME_DIR"] = folder
        yield
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
