"""The suite in an outer machine; where the machine dies, which emulation does now and then, the rest in another one.

A test that fails has failed, and so has one that stands still while its machine lives. A machine that dies, by a crash
of QEMU's or by standing still itself, says nothing about the tests that had not ended: they run again in another one,
in the end with a single processor.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.linux_guest import nested, progress

MACHINES = (2, 2, 1)
"""Processors of the outer machines, in the order in which they are tried."""
NOT_JUDGED = 75
"""sysexits' EX_TEMPFAIL: no test failed, the first files were judged, but others never came to their end."""
FIRST = ("test_vmbus.py", "test_storage.py", "test_distribution.py")
"""What runs before all else: a kernel that agrees with these agrees with most."""
NO_TESTS_LEFT = 5
"""Pytest's status when nothing was collected."""
RunOnce = Callable[[list[str], int, float], int]
"""Runs pytest with these further options in a machine of so many processors, in so many seconds; pytest's status."""


def run(run_once: RunOnce, *, seconds: float, place: Path = progress.FILE) -> int:
    """The whole suite; pytest's status, or `NOT_JUDGED`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("")
    stood_still: set[str] = set()
    so_far = progress.reached("")
    ends = time.monotonic() + seconds
    for number, processors in enumerate(MACHINES, 1):
        # Those that failed run again, since the words of their failure went with the machine.
        done = sorted((so_far.ended - so_far.failed) | stood_still)
        progress.Progress(place).machine(number)
        status = run_once([f"--deselect={test}" for test in done], processors, ends - time.monotonic())
        if status not in (nested.NO_STATUS, nested.STOOD_STILL):
            if status == NO_TESTS_LEFT and done:
                status = 0
            return _failed(stood_still) if stood_still else status
        so_far = progress.reached(place.read_text())
        if status == nested.STOOD_STILL:
            stood_still.add(so_far.under_way or "pytest itself")
        where = so_far.under_way or "no test"
        say(f"outer machine {number} died with {len(so_far.ended)} tests ended and {where} under way")
        if time.monotonic() >= ends:
            break
    failed = so_far.failed | stood_still
    if failed or {Path(test.partition("::")[0]).name for test in so_far.began} <= set(FIRST):
        return _failed(failed)
    say(f"not judged, since the outer machines died: all but the {len(so_far.ended)} tests that passed")
    return NOT_JUDGED


def _failed(tests: Iterable[str]) -> int:
    for test in sorted(tests):
        say(f"FAILED {test}")
    return 1


def say(words: str) -> None:
    """On standard error, now."""
    print(words, file=sys.stderr, flush=True)
