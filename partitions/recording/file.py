"""A recording that goes to a file or a pipe while the host runs; the host waits for neither. Root side.

On the real clock a thread of its own writes whole blocks as they come, so that a disk or a reader may be slow. On the
virtual clock, where time stands still while somebody waits, they are written in place: no thread decides then what a
recording holds, and the same run gives the same bytes.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from hypervisor.trace import Sink, Trace
from partitions.recording.buffer import BUFFER_BYTES, BlockBuffer, Dropped
from partitions.recording.recorder import Recorder

STANDARD_OUTPUT: Final = "-"
PAUSE_SECONDS: Final = 0.0005
"""How long the host stands aside for a thread that has fallen behind.

The interpreter belongs to the host's thread, which asks the kernel for events every few microseconds and has the
interpreter back each time before the writer has woken up: the writer then waits for hundreds of milliseconds, with an
idle disk. A stalled disk costs the host the same pauses: one for each MiB of the buffer's upper half, then no more.
"""
GATHER_SECONDS: Final = 0.02
"""How long the thread lets blocks come together before it writes them."""
STALL_SECONDS: Final = 2.0
"""How long the end of a recording waits for a reader that takes nothing."""
WRITE_BYTES: Final = 4 << 20
"""What is written at a time, at most: between two writes the thread has to get the interpreter, which is busy."""
PIPE_BYTES: Final = 256 << 10
"""The same toward a pipe, whose reader is stalled when it takes less than that in `STALL_SECONDS`."""
INLINE_BYTES: Final = 256 << 10
"""What is written at a time on the virtual clock."""
INLINE_STALL_SECONDS: Final = 10.0
"""How long a run on the virtual clock stands still for a reader that takes nothing."""
_TOTAL = struct.Struct("<4xI").unpack_from

MakeBuffer = Callable[[Callable[[], None], int, bool], BlockBuffer]
"""Given `ready`, `ready_at`, and whether the other end may be a program that reads along."""


def open_output(name: str) -> int:
    """A descriptor to record to: a new file, or standard output for `-`. Raises `OSError`."""
    if name == STANDARD_OUTPUT:
        return os.dup(1)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


class FileWriter:
    """Writes what a buffer gets until `close`. Made in the Trio thread, which its owner calls it from."""

    def __init__(
        self,
        descriptor: int,
        make: MakeBuffer,
        *,
        inline: bool,
        tell: Callable[[str], object] = lambda text: None,
    ) -> None:
        """The descriptor is closed at the end. `tell` gets what a person should know at once, each thing once."""
        self.error: OSError | None = None
        """Why the file ends before the run does."""
        self.stalled = False
        """The reader took nothing any more, and the end of the recording did not wait for it."""
        self._descriptor = descriptor
        self._inline = inline
        self._tell = tell
        self._told = False
        self._whole = 0
        self._taken = 0
        """Bytes that the other end has taken, in pieces begun too."""
        self._regular = stat.S_ISREG(os.fstat(descriptor).st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0
        # Whoever reads along through a pipe may be tshark; a file is read whole.
        hidden = not stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._at_once = WRITE_BYTES if self._regular else select.PIPE_BUF if inline else PIPE_BYTES
        self._closed = False
        self._something, self._closing = threading.Event(), threading.Event()
        ready = self._write_all if inline else self._something.set
        self.recorder = make(ready, INLINE_BYTES if inline else 1, hidden)
        self.recorder.overflow = self._overflow
        self._thread: threading.Thread | None = None
        if not inline:
            self.recorder.behind = functools.partial(time.sleep, PAUSE_SECONDS)
            self._token = trio.lowlevel.current_trio_token()
            self._thread = threading.Thread(target=self._work, name="recording", daemon=True)
            self._thread.start()

    @property
    def dropped(self) -> Dropped:
        """What came faster than it was written, so far."""
        return self.recorder.dropped

    def close(self) -> None:
        """Write what there is, and return when it is written.

        That is when a slow reader has taken it; one that takes nothing for `STALL_SECONDS` is not waited for.
        """
        if self._closed:
            return
        self._closed = True
        self.recorder.finish()
        if self._thread is None:
            self._write_all()
        else:
            self._closing.set()
            self._something.set()
            taken = -1
            while self._thread.is_alive() and taken != self._taken:
                taken = self._taken
                self._thread.join(STALL_SECONDS)
            if self._thread.is_alive():
                self.stalled = True
                self.recorder.abandon()
                return  # the thread still has the descriptor, and ends with the process
        if self.error is not None:
            self._failed()
        os.close(self._descriptor)

    # --- writing

    def _work(self) -> None:
        while self.error is None:
            self._something.wait()
            self._something.clear()
            last = self._closing.wait(GATHER_SECONDS)
            self._write_all()
            if last:
                return

    def _write_all(self) -> None:
        while self.error is None and (piece := self.recorder.take(WRITE_BYTES)):
            self._write(piece)

    def _write(self, piece: bytes) -> None:
        left = memoryview(piece)
        try:
            while left:
                if self._inline and not self._regular:
                    self._wait_for_room()
                try:
                    count = os.write(self._descriptor, left[: self._at_once])
                    self._taken += count
                    left = left[count:]
                except BlockingIOError:  # somebody at the other end of standard output has made it so
                    select.select([], [self._descriptor], [])
        except OSError as error:
            self.error = error
            self._cut(piece, len(piece) - len(left))
            if self._inline:
                self._failed()
            else:
                self._in_host(self._failed)
        else:
            self._whole += len(piece)

    def _wait_for_room(self) -> None:
        """In the Trio thread nobody can interrupt a write that a stalled reader holds up; so it must not begin."""
        if not select.select([], [self._descriptor], [], INLINE_STALL_SECONDS)[1]:
            raise TimeoutError(errno.ETIMEDOUT, "its reader has stopped reading")

    def _cut(self, piece: bytes, written: int) -> None:
        """Leave a file of whole blocks, where it is one."""
        if not self._regular:
            return
        end = 0
        while end + 8 <= written and end + _TOTAL(piece, end)[0] <= written:
            end += _TOTAL(piece, end)[0]
        try:
            os.ftruncate(self._descriptor, self._whole + end)
        except OSError:
            pass  # a reader takes what is left for truncated, and so it is

    def _in_host(self, call: Callable[[], None]) -> None:
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            pass  # `close` says it

    # --- telling

    def _failed(self) -> None:
        """In the Trio thread, or after it."""
        assert self.error is not None
        self.recorder.detach()
        self.recorder.abandon()
        if not self._told:
            self._told = True
            if isinstance(self.error, BrokenPipeError):
                self._tell("its reader has gone; the recording ends here, the run goes on")
            else:
                self._tell(f"{self.error.strerror}; the recording ends here, the run goes on")

    def _overflow(self) -> None:
        self._tell("is written too slowly; what does not fit into the buffer is left out and counted")


class FileRecording(FileWriter):
    """Records a host's trace from now on."""

    recorder: Recorder

    def __init__(
        self,
        trace: Trace,
        descriptor: int,
        *,
        started: int,
        inline: bool,
        tell: Callable[[str], object] = lambda text: None,
        select_from: Callable[[Sink], Sink] | None = None,
        limit: int = BUFFER_BYTES,
    ) -> None:
        """`started`: Unix seconds when the host's clock began. `select_from` puts a filter before a sink."""

        def make(ready: Callable[[], None], ready_at: int, hidden: bool) -> BlockBuffer:
            return Recorder(trace, started=started, limit=limit, ready=ready, ready_at=ready_at, hidden=hidden)

        super().__init__(descriptor, make, inline=inline, tell=tell)
        self.recorder.attach(select_from)


def record_to(path: str | os.PathLike[str], trace: Trace, *, started: int = 0, inline: bool) -> FileRecording:
    """Record a host's trace to a new file; `close` it at the end. Raises `OSError`."""
    return FileRecording(trace, open_output(str(Path(path))), started=started, inline=inline)
