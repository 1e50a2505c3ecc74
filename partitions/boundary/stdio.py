"""The boundary driver on standard input and output. Root side."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Iterable
from typing import IO

import trio

from hypervisor.trace import Sink, Trace
from partitions.boundary import protocol
from partitions.boundary.driver import CannotStart, serve
from partitions.logs import json_sink
from partitions.topology import Topology


async def speak(topology: Topology, trace_file: str | None) -> None:
    """A session on standard input and output. Raises `CannotStart`; ends quietly when the reader has gone."""
    with contextlib.ExitStack() as stack:
        trace: IO[bytes] | None = None
        if trace_file is not None:
            try:
                trace = stack.enter_context(open(trace_file, "wb"))  # noqa: ASYNC230  # once, before anything runs
            except OSError as error:
                raise CannotStart(f"--trace {trace_file}: {error.strerror}") from None

        def sinks(of: Trace) -> Iterable[Sink]:
            return () if trace is None else (json_sink(trace, of),)

        await serve(topology, read_lines(0), write_out, sinks=sinks)


def write_out(line: bytes) -> None:
    """All of it to standard output at once. Waits for the reader: a peer that does not read gets no further."""
    while line:
        line = line[os.write(1, line) :]


async def read_lines(fd: int) -> AsyncGenerator[bytes | None, None]:
    """Lines of a descriptor without their ends; None for one that is longer than `MAX_LINE`."""
    splitter = LineSplitter(protocol.MAX_LINE)
    while True:
        try:
            await trio.lowlevel.wait_readable(fd)
        except PermissionError:
            pass  # epoll refuses plain files, which never let anybody wait
        chunk = os.read(fd, 1 << 16)
        for line in splitter.feed(chunk) if chunk else splitter.end():
            yield line
        if not chunk:
            return


class LineSplitter:
    """Cuts bytes into lines, and keeps no more than `limit` of an unfinished one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes | None]:
        """The lines that are whole now."""
        lines: list[bytes | None] = []
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            lines.extend(self._line(part))
        self._rest += rest
        if len(self._rest) > self._limit:
            self._rest.clear()
            if not self._skipping:
                lines.append(None)
            self._skipping = True
        return lines

    def end(self) -> list[bytes | None]:
        """What is left at the end of the input."""
        return self._line(b"")

    def _line(self, last: bytes) -> list[bytes | None]:
        line = bytes(self._rest) + last
        self._rest.clear()
        if self._skipping:
            self._skipping = False
            return []
        return [line] if line.strip() else []
