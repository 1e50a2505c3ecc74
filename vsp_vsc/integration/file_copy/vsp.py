"""The file copy VSP: puts a file of the host's into the guest, piece by piece. Root side.

One copy at a time; others wait for their turn. A copy that ends in the middle, for whatever reason, is cancelled at the
guest, which removes what it has of the file: a task of the component's own does that, so it happens even where the one
who copied has been cancelled.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hypervisor.inspect import Branch
from hypervisor.trace import Trace
from vsp_vsc.integration.component import IntegrationVsp, NoAnswer, PartitionTime
from vsp_vsc.integration.file_copy.protocol import (
    FRAGMENT,
    CopyFlags,
    FileCopyOperation,
    describe,
    encode_end,
    encode_start,
    encode_write,
)
from vsp_vsc.integration.protocol import Component, Status, status_words

ANSWER_SECONDS: Final = 35.0
"""For each message: Linux gives its daemon thirty, and then answers in its place."""
CANCEL_SECONDS: Final = 5.0

ReadAt = Callable[[int, int], Awaitable[bytes]]
"""So many bytes of the file at an offset; fewer only where it has become shorter. May raise `OSError`."""


class CopyState(enum.Enum):
    """What the component is at."""

    IDLE = "idle"
    COPYING = "copying"
    CANCELLING = "cancelling"


class CopyRefused(NoAnswer):
    """The guest could not or would not; `status` is what it gave as its reason."""

    def __init__(self, path: str, status: int) -> None:
        super().__init__(f"file copy: {path}: {_REASONS.get(status) or status_words(status)}")
        self.status = status


class CopyBroken(Exception):
    """The file on the host changed while it was copied; the guest has none of it."""


_REASONS: Final[dict[int, str]] = {
    Status.ALREADY_EXISTS: "the guest has such a file; overwrite it or choose another name",
    Status.DISK_FULL: "the guest's disk is full",
    Status.FAIL: "the guest refused: a folder that it does not have, a name that it cannot make, no program to copy",
    Status.PATH_NOT_FOUND: "the guest has no such folder",
}


class FileCopyVsp(IntegrationVsp):
    """Files into one VM."""

    component = Component.FILE_COPY

    def __init__(self, time: PartitionTime, trace: Trace, partition_id: int, name: str = "") -> None:
        super().__init__(time, trace, partition_id, name)
        self.state = CopyState.IDLE
        self.path = ""
        """Of the copy under way, or the last one."""
        self.size = self.done = 0
        """Bytes of it, and how many of them have arrived."""
        self.copies = self.failures = 0
        self.last = ""
        """How the last copy ended, in words."""
        self._turn = trio.Lock()
        self._changed = trio.Event()

    def inspect(self) -> Branch:
        """The contact, and the copy under way."""
        seen: dict[str, object] = {"state": self.state.value, "path": self.path or None, "size": self.size}
        seen |= {"done": self.done, "copies": self.copies, "failures": self.failures, "last": self.last or None}
        return Branch({**super().inspect().children, **seen})

    async def copy(self, read: ReadAt, size: int, folder: str, name: str, flags: CopyFlags = CopyFlags.NONE) -> None:
        """Copy a file of `size` bytes; returns when the guest has all of it.

        Raises `CopyRefused`, `Unavailable`, `NoAnswer`, `CopyBroken`, what `read` raises, and `ValueError` for names
        that cannot be.
        """
        start = encode_start(folder, name, size, flags)
        async with self._turn:
            while self.state is CopyState.CANCELLING and self._link is not None:
                await self._changed.wait()
            self.path, self.size, self.done = f"{folder.rstrip('/')}/{name}", size, 0
            self._move(CopyState.COPYING)
            begun = True
            try:
                try:
                    await self._do(start)
                except CopyRefused:
                    begun = False  # there is nothing to remove: what the guest has of that name is not ours
                    raise
                while self.done < size:
                    piece = await read(self.done, min(FRAGMENT, size - self.done))
                    if not piece:
                        raise CopyBroken(f"the file has {self.done} bytes now; it had {size} when the copy began")
                    await self._do(encode_write(self.done, piece))
                    self.done += len(piece)
                await self._do(encode_end(FileCopyOperation.COMPLETE_FCOPY))
            except BaseException as error:
                self.failures += 1
                self.last = str(error) or type(error).__name__
                self._move(CopyState.CANCELLING if begun and self.ready else CopyState.IDLE)
                raise
            self.copies += 1
            self.last = f"{size} bytes"
            self._move(CopyState.IDLE)

    async def _duty(self) -> None:
        while True:
            if self.state is not CopyState.CANCELLING:
                await self._changed.wait()
                continue
            body = encode_end(FileCopyOperation.CANCEL_FCOPY)
            try:
                await self.ask(body, CANCEL_SECONDS, describe(body))
            except NoAnswer:
                if not self.ready:
                    return
            self._move(CopyState.IDLE)

    async def _do(self, body: bytes) -> None:
        answer = await self.ask(body, ANSWER_SECONDS, describe(body))
        if answer.status:
            raise CopyRefused(self.path, answer.status)

    def _lost(self) -> None:
        if self.state is CopyState.CANCELLING:
            self._move(CopyState.IDLE)

    def _move(self, state: CopyState) -> None:
        self.state = state
        self._changed.set()
        self._changed = trio.Event()
