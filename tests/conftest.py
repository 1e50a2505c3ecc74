"""How long Hypothesis searches, and where hosts of tests can be reached: not by whoever else works here. Both sides.

`make test` searches a moment, `make fuzz` (profile `long`) a hundred times that. The moment is the same each time, so
what a change breaks is the change's doing; chance is for `make fuzz`.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.doubles.campaign import LONG, SHORT

# No deadlines: how long one example takes says how busy the machine is, and the suite has a limit of its own.
settings.register_profile("short", deadline=None, derandomize=True, max_examples=SHORT)
settings.register_profile("long", deadline=None, max_examples=LONG)
settings.load_profile("short")


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
