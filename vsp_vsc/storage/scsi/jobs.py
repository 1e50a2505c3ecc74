"""Commands that take several steps at the host's storage: reads, looks, writes. Root side.

Such a command is a generator that yields jobs and gets each one's error, or None. It ends by returning a result or by
raising `Refused`. Between two steps it ends early if its initiator has aborted it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from vsp_vsc.storage.backends.base import IoOperation, Job
from vsp_vsc.storage.scsi.answer import TASK_ABORTED, Refused, ScsiResult, Views

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vsp_vsc.storage.backends.base import DiskBackend
    from vsp_vsc.storage.scsi.commands import Call

Steps = Generator[Job, OSError | None, ScsiResult]


def step(
    operation: IoOperation,
    *,
    views: Views = (),
    offset: int = 0,
    length: int = 0,
    durable: bool = False,
    ranges: Sequence[tuple[int, int]] = (),
) -> Job:
    """A job for a generator to yield; who takes it says where its end is told."""
    return Job(operation, _nobody, views, offset, length, durable, ranges)


def _nobody(_error: OSError | None) -> None:
    raise AssertionError("a step was submitted by nobody")


def perform(call: Call, backend: DiskBackend, steps: Steps, at_end: Callable[[], None] | None = None) -> None:
    """Take a command through its steps; its result goes to the call's `done`. `at_end` is called before that."""
    _Performance(call, backend, steps, at_end).proceed(None)


class _Performance:
    """One command on its way through its steps."""

    def __init__(self, call: Call, backend: DiskBackend, steps: Steps, at_end: Callable[[], None] | None) -> None:
        self._call = call
        self._backend = backend
        self._steps = steps
        self._at_end = at_end
        self._epoch = call.nexus.begin()
        self._stepping = False
        self._answers: list[OSError | None] = []

    def proceed(self, error: OSError | None) -> None:
        """A step has ended, or the first begins. A backend that is inline calls this while it is running."""
        self._answers.append(error)
        if self._stepping:
            return
        self._stepping = True
        while self._answers:
            result = self._step(self._answers.pop())
            if result is not None:
                if self._at_end is not None:
                    self._at_end()
                self._call.nexus.end(self._epoch, self._call.tag, self._call.done, result)
        self._stepping = False

    def _step(self, error: OSError | None) -> ScsiResult | None:
        call = self._call
        if call.nexus.aborted(self._epoch, call.tag):
            self._steps.close()
            return TASK_ABORTED
        try:
            job = self._steps.send(error)
        except StopIteration as end:
            result: ScsiResult = end.value
            return result
        except Refused as refused:
            return call.nexus.unit.refuse(refused)
        job.done = self.proceed
        self._backend.submit(job)
        return None
