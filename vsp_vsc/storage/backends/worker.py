"""One thread that does a backend's slow I/O, a batch per hop between threads. Root side.

A hop to a thread and back costs some 90 µs, a write to the page cache 30 µs, so what counts is how much one hop
carries. Jobs queue up while the thread works; it takes all of them at once, does them in order, and one call back into
Trio's loop delivers all results. A flush delivers what came before it first, since a disk may take long over it.

The thread starts with the first job: most disks of most guests are only read from memory and need none.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import trio

from vsp_vsc.storage.backends.base import IoOperation, Job

_LARGEST_BATCH = 64
CLOSE_SECONDS = 0.5
"""How long the Trio thread, and with it the host, waits for a thread that ends. A guest can leave it a long flush."""


class BatchWorker:
    """Owns the thread. `perform` does one job in it and may raise OSError."""

    def __init__(self, name: str, perform: Callable[[Job], None]) -> None:
        self._name = name
        self._perform = perform
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._at_end: Callable[[], None] = lambda: None
        self.batches = 0
        """Written by the thread only."""

    def submit(self, job: Job) -> None:
        """Queue a job, from the Trio thread; `job.done` is called there."""
        if self._thread is None:
            self._token = trio.lowlevel.current_trio_token()
            # A daemon, so that a disk that never answers cannot keep the process from ending.
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def close(self, at_end: Callable[[], None]) -> None:
        """Let the thread finish its queue, then call `at_end`: before this returns, or later and in the thread.

        What it has not delivered by then is delivered by Trio's loop.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            at_end()
            return
        self._at_end = at_end
        self._jobs.put(None)
        thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        ended = False
        while not ended:
            batch, ended = self._take()
            self.batches += 1
            finished: list[Job] = []
            for job in batch:
                if job.operation is IoOperation.FLUSH and finished:
                    self._deliver(finished)
                    finished = []
                try:
                    self._perform(job)
                except OSError as error:
                    job.error = error
                finished.append(job)
            if finished:
                self._deliver(finished)
        self._at_end()

    def _take(self) -> tuple[list[Job], bool]:
        """Wait for a job, then take what else is there; true once no more will come."""
        batch: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == _LARGEST_BATCH:
                return batch, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _deliver(self, finished: list[Job]) -> None:
        assert self._token is not None, "submit sets it before the thread starts"
        try:
            self._token.run_sync_soon(_call_back, finished)
        except trio.RunFinishedError:
            pass  # the run has ended and with it everyone who waited


def _call_back(finished: list[Job]) -> None:
    for job in finished:
        job.done(job.error)
