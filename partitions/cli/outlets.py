"""A run's outputs, when the other end has gone or is full: the run hears of it, a worker never does. Root side.

Sinks are called in the middle of guests' traps, and an exception there would be a worker's failure.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import IO

import trio

from hypervisor.trace import Sink, TraceEvent


class Outlets:
    """All outputs of one run."""

    def __init__(self) -> None:
        self.gone = trio.Event()
        """The reader of an output has closed it, as `head` does: nobody wants to see more."""
        self.problems: list[str] = []
        """What could not be written, for people, once each."""

    def fail(self, name: str, error: OSError | ValueError) -> None:
        """An output has failed. A pipe without a reader ends the run; anything else is told at its end."""
        if isinstance(error, BrokenPipeError):
            self.gone.set()
            return
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        hint = "; the run went on without it" if getattr(error, "errno", None) != errno.EPIPE else ""
        self.problems.append(f"{name}: {reason}{hint}")

    def guarded(self, sink: Sink, name: str) -> Sink:
        """A sink that falls silent when it fails for the first time."""
        ended = False

        def write(event: TraceEvent) -> None:
            nonlocal ended
            if ended:
                return
            try:
                sink(event)
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                ended = True
                self.fail(name, error)

        return write

    def guarded_write(self, file: IO[bytes], name: str) -> Callable[[bytes], None]:
        """A function that writes at once, and falls silent when it fails for the first time."""
        ended = False

        def write(data: bytes) -> None:
            nonlocal ended
            if not ended:
                ended = not self.attempt(name, lambda: (file.write(data), file.flush()))

        return write

    def attempt(self, name: str, action: Callable[[], object]) -> bool:
        """Whether it could be written."""
        try:
            action()
        except (OSError, ValueError) as error:
            self.fail(name, error)
            return False
        return True
