"""COM1 of a VM, both ways: the last 64 KiB printed, lines with their times, readers that follow. Root side.

Bytes come one by one out of port intercepts. The guest decides how many and which, so everything here is bounded, and
text is made with replacement characters: a console never raises over what a guest prints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from hypervisor.clock import Clock
from hypervisor.inspect import Branch, Claim
from partitions.root.feed import Feed, Subscription

KEPT_BYTES: Final = 64 * 1024
MAX_LINE: Final = 4096
"""A line longer than this is broken, so that a guest that never ends a line still reaches its readers."""
_LINE_OVERHEAD: Final = 64
"""What a kept line is charged beside its bytes, so that a guest printing empty lines cannot make us keep millions."""
_NEWLINE: Final = 0x0A


class ConsoleLine(msgspec.Struct, frozen=True, gc=False):
    """One line of output, without its line end."""

    time: int
    """When its last byte came, 100 ns units on the host's clock."""
    text: str


class ConsoleBytes:
    """One reader of the bytes as they come, made by `Console.listen`. It holds a place, no bytes of its own."""

    __slots__ = ("_bell", "_console", "_ended", "_place", "dropped")

    def __init__(self, console: Console) -> None:
        self._console = console
        self._place = console.total_bytes
        self._bell = trio.Event()
        self._ended = False
        self.dropped = 0
        """Bytes that were printed and forgotten before this reader came for them."""

    async def receive(self) -> bytes:
        """All that was printed since the last time, at least one byte; empty at the end."""
        console = self._console
        while self._place == console.total_bytes:
            if console.closed or self._ended:
                await trio.lowlevel.checkpoint()
                return b""
            self._bell = trio.Event()
            await self._bell.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        new = console.total_bytes - self._place
        self._place = console.total_bytes
        data = console.last(new)
        self.dropped += new - len(data)
        return data

    def ring(self) -> None:
        """There is something to read, or the end."""
        self._bell.set()

    def end(self) -> None:
        """No more than what is printed by now: then `receive` gives the end."""
        self._ended = True
        self.ring()

    def close(self) -> None:
        """Stop listening."""
        self._console.forget(self)

    def __enter__(self) -> ConsoleBytes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Console:
    """COM1 of one VM. It outlives the worker: a new start appends, `clear` empties."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bytes = bytearray()
        self._open_line = bytearray()
        self._lines: deque[ConsoleLine] = deque()
        self._lines_charge = 0
        self._feed: Feed[ConsoleLine] = Feed()
        self._receive: Callable[[bytes], int] | None = None
        self._readers: tuple[ConsoleBytes, ...] = ()
        self.closed = False
        self.total_bytes = 0
        """All that was ever printed, kept or not."""

    def inspect(self) -> Branch:
        """How much there is of it."""
        return Branch(
            {
                "total_bytes": self.total_bytes,
                "kept_bytes": min(len(self._bytes), KEPT_BYTES),
                "most_bytes": KEPT_BYTES,
                "lines": len(self._lines),
                "connected": self._receive is not None,
                "readers": len(self._readers),
                "last_line": Claim(self.lines()[-1]) if self._lines or self._open_line else None,
            }
        )

    def connect(self, receive: Callable[[bytes], int] | None) -> None:
        """Where typed bytes go while the VM is on: COM1's receiver, or None when it goes off."""
        self._receive = receive

    def send(self, data: bytes) -> int:
        """Type bytes into COM1; how many there was room for, none while the VM is off. Send the rest again later."""
        return 0 if self._receive is None else self._receive(data)

    def write_byte(self, byte: int) -> None:
        """One byte from the transmit register."""
        self.total_bytes += 1
        self._bytes.append(byte)
        if len(self._bytes) > 2 * KEPT_BYTES:  # trimmed by halves: one move a 64 KiB, not one a byte
            del self._bytes[:-KEPT_BYTES]
        if byte == _NEWLINE:
            self._end_line()
        else:
            self._open_line.append(byte)
            if len(self._open_line) >= MAX_LINE:
                self._end_line()
        for reader in self._readers:
            reader.ring()

    def recall(self, data: bytes) -> None:
        """What its VM had printed before it was saved: kept, and not said again to those who follow."""
        self.total_bytes += len(data)
        self._bytes += data[-KEPT_BYTES:]
        *ended, rest = data.split(b"\n")
        for line in ended:
            self._keep_line(_text(bytearray(line[-MAX_LINE:])))
        self._open_line = bytearray(rest[-MAX_LINE:])

    def write(self, data: bytes) -> None:
        """Several bytes, in order."""
        for byte in data:
            self.write_byte(byte)

    def flush_line(self) -> None:
        """Give out a line that was begun and not ended: its guest is gone."""
        if self._open_line:
            self._end_line()

    def close(self) -> None:
        """The VM's definition is gone: followers end after what they have."""
        self.flush_line()
        self._feed.close()
        self.closed = True
        for reader in self._readers:
            reader.ring()

    def clear(self) -> None:
        """Forget what was printed so far."""
        self._bytes.clear()
        self._open_line.clear()
        self._lines.clear()
        self._lines_charge = 0

    @property
    def data(self) -> bytes:
        """The last 64 KiB as they came."""
        return bytes(self._bytes[-KEPT_BYTES:])

    @property
    def text(self) -> str:
        """The last 64 KiB as text, CR LF as one line end."""
        return self.data.decode("utf-8", "replace").replace("\r\n", "\n")

    def lines(self) -> list[str]:
        """The lines kept, oldest first; one that was begun and not ended is the last."""
        kept = [line.text for line in self._lines]
        if self._open_line:
            kept.append(_text(self._open_line))
        return kept

    def timed_lines(self) -> list[ConsoleLine]:
        """The ended lines kept, with their times."""
        return list(self._lines)

    def follow(self, *, capacity: int = 1024) -> Subscription[ConsoleLine]:
        """New lines from now on: `async for line in console.follow()`. A slow reader loses the oldest (`.dropped`)."""
        return self._feed.subscribe(capacity)

    def listen(self) -> ConsoleBytes:
        """A reader of the bytes from now on. A slow one loses the oldest (`.dropped`), since only so many are kept."""
        reader = ConsoleBytes(self)
        self._readers = (*self._readers, reader)
        return reader

    def forget(self, reader: ConsoleBytes) -> None:
        """A reader has gone."""
        self._readers = tuple(other for other in self._readers if other is not reader)

    def last(self, count: int) -> bytes:
        """The last bytes, as many of `count` as are kept."""
        return bytes(self._bytes[-count:]) if count else b""

    def _end_line(self) -> None:
        line = self._keep_line(_text(self._open_line))
        self._open_line.clear()
        self._feed.put(line)

    def _keep_line(self, text: str) -> ConsoleLine:
        line = ConsoleLine(self._clock(), text)
        self._lines.append(line)
        self._lines_charge += len(text) + _LINE_OVERHEAD
        while self._lines_charge > KEPT_BYTES:
            self._lines_charge -= len(self._lines.popleft().text) + _LINE_OVERHEAD
        return line


def _text(raw: bytearray) -> str:
    return raw.decode("utf-8", "replace").rstrip("\r")
