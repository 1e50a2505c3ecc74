"""A disk as a guest program uses it: reads, writes, flushes, and the errors that they raise. Child side.

Data travels through DMA buffers: guest pages that the host fills or reads. `read` and `write` copy from and to them
once; whoever wants no copy at all takes a buffer and calls `read_into` and `write_from`. The forms with `many` send all
their requests with one signal and wake up once.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from hypervisor.pages import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from vsp_vsc.dma import DmaBuffer
from vsp_vsc.storage.protocol import CDB_SIZE, HEADER_SIZE, SrbStatus
from vsp_vsc.storage.requests import Failure, Request, StorageError
from vsp_vsc.storage.scsi.cdb import (
    Direction,
    describe_cdb,
    inquiry_cdb,
    read_cdb,
    synchronize_cache_cdb,
    unmap_cdb,
    unmap_parameters,
    write_cdb,
)
from vsp_vsc.storage.scsi.sense import Sense, decode_sense

if TYPE_CHECKING:
    from vsp_vsc.storage.vsc import Storage

WINDOW_BYTES = 4 << 20
"""Buffers that one call has in use at once; longer transfers go in turns."""
MOST_TRIES = 16
"""How often a command is sent again over unit attentions, resets and full queues."""
_LBA_10 = 0xFFFF_FFFF
_CDB_AT = HEADER_SIZE + 16
_KEPT_FORMS = 128
_BLOCK_LIMITS = 0xB0
_Form = tuple[Callable[..., bytes], bytes, bytes, bytes, int]
"""How to pack a request, what precedes its pages, its address, what follows, and how many pages there are."""


class ScsiError(StorageError):
    """The disk refused or failed a command."""

    def __init__(self, lun: int, cdb: bytes, failure: Failure) -> None:
        self.lun = lun
        self.cdb = cdb
        self.srb_status = failure.srb_status
        """How the SRB ended, an `SrbStatus`."""
        self.scsi_status = failure.scsi_status
        self.sense: Sense | None = decode_sense(failure.sense) if failure.sense else None
        """Why, if the disk said so."""
        if self.sense is not None:
            reason = self.sense.words
        else:
            name = next((s.name for s in SrbStatus if s == failure.srb_status), f"{failure.srb_status:#x}")
            reason = f"SRB status {name.replace('_', ' ')}, SCSI status {failure.scsi_status:02X}h"
        super().__init__(f"disk {lun}: {describe_cdb(cdb)}: {reason}")

    @classmethod
    def of(cls, lun: int, request: Request, failure: Failure) -> ScsiError:
        """What to raise for a request that failed."""
        body, data_offset, _ = request
        start = data_offset + _CDB_AT
        kind = DiskGone if failure.srb_status == SrbStatus.INVALID_LUN else cls
        return kind(lun, body[start : start + CDB_SIZE], failure)


class DiskGone(ScsiError):
    """The host has taken the disk away."""


class DiskKind(enum.StrEnum):
    """What a unit is."""

    DISK = "disk"
    DVD = "dvd"
    """A drive: read-only, with a disc in it or not."""


@attrs.frozen
class DiskFacts:
    """What a disk said of itself when it was found."""

    lun: int
    blocks: int
    block_size: int
    """Bytes."""
    read_only: bool
    vendor: str
    product: str
    revision: str
    thin: bool = False
    """Takes `Disk.discard`, and reads zeros there afterwards."""
    kind: DiskKind = DiskKind.DISK


class Disk:
    """One disk. Addresses and counts are in blocks of `block_size` bytes, lengths and sizes in bytes.

    A disk that the host has taken away is `gone`: calls raise `DiskGone`. One that has grown says so by `blocks`. A DVD
    drive without a disc has no blocks.

    All calls raise `ScsiError` where the disk refuses or fails (past the end, read-only, an error of the host's),
    `StorageGone` where its channel has ended, `ValueError` for what is no range of whole blocks, and `MemoryError`
    where the guest has no pages for a buffer. A call that is cancelled may have been carried out or not.
    """

    def __init__(self, storage: Storage, facts: DiskFacts) -> None:
        self._storage = storage
        self.lun = facts.lun
        self.gone = False
        """Whether the host has taken it away."""
        self._address = facts.lun << 24
        self.update(facts)

    def update(self, facts: DiskFacts) -> None:
        """For the driver: what it says of itself now."""
        self.facts = facts
        self.blocks = facts.blocks
        """Capacity."""
        self.block_size = facts.block_size
        self.read_only = facts.read_only
        self._forms: dict[int, _Form] = {}
        self._most_blocks = self._storage.max_transfer // facts.block_size
        self._most_discarded = 0

    def __repr__(self) -> str:
        mode = " gone" if self.gone else " read-only" if self.read_only else ""
        return f"<Disk {self.lun}: {self.model}, {self.blocks} blocks of {self.block_size}{mode}>"

    @property
    def model(self) -> str:
        """Vendor and product."""
        return f"{self.facts.vendor} {self.facts.product}".strip()

    @property
    def size(self) -> int:
        """Capacity in bytes."""
        return self.blocks * self.block_size

    def buffer(self, size: int) -> DmaBuffer:
        """A DMA buffer of at least `size` bytes, for the forms that do not copy. `MemoryError`."""
        return self._storage.pool.allocate(size)

    # --- with a copy

    async def read(self, lba: int, count: int = 1) -> bytes:
        """Read `count` blocks from block `lba` on."""
        return (await self.read_many(((lba, count),)))[0]

    async def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read several ranges, given as (block, count), at once."""
        windows = self._windows(requests)
        if len(windows) == 1 and len(windows[0][0]) == len(requests):
            return await self._read_window(*windows[0])
        results: list[list[bytes]] = [[] for _ in requests]
        for window, blocks in windows:
            for (index, _, _), piece in zip(window, await self._read_window(window, blocks), strict=True):
                results[index].append(piece)
        return [b"".join(pieces) for pieces in results]

    async def _read_window(self, window: Sequence[tuple[int, int, int]], blocks: int) -> list[bytes]:
        """The bytes of each piece of a window, which has so many blocks in all."""
        size = self.block_size
        with self._storage.pool.allocate(blocks * size) as buffer:
            await self._run(self._requests(window, Direction.IN, buffer))
            view, end = buffer.view, 0
            return [bytes(view[end : (end := end + count * size)]) for _, _, count in window]

    async def write(self, lba: int, data: bytes | bytearray | memoryview, *, fua: bool = False) -> None:
        """Write whole blocks. With `fua` they are on the medium afterwards, without it in its cache: see `flush`."""
        await self.write_many(((lba, data),), fua=fua)

    async def write_many(
        self, requests: Sequence[tuple[int, bytes | bytearray | memoryview]], *, fua: bool = False
    ) -> None:
        """Write several ranges, given as (block, data), at once and in no particular order."""
        size = self.block_size
        ranges: list[tuple[int, int]] = []
        for lba, data in requests:
            if len(data) % size:
                raise ValueError(f"{len(data)} bytes are not whole blocks of {size}")
            ranges.append((lba, len(data) // size))
        for window, blocks in self._windows(ranges):
            with self._storage.pool.allocate(blocks * size) as buffer:
                view, start = buffer.view, 0
                for index, lba, count in window:
                    first, length = (lba - requests[index][0]) * size, count * size
                    view[start : start + length] = memoryview(requests[index][1])[first : first + length]
                    start += length
                await self._run(self._requests(window, Direction.OUT, buffer, fua=fua))

    async def flush(self) -> None:
        """Bring every write answered so far to the medium: the host's fdatasync has returned when this does."""
        await self._run([self._without_data(synchronize_cache_cdb())])

    async def discard(self, lba: int, count: int) -> None:
        """Give the room of a range back to the host; it reads as zeros then. A disk that is not thin refuses."""
        _check_range(lba, count)
        with self.buffer(PAGE_SIZE) as buffer:
            if not self._most_discarded:
                self._most_discarded = await self._discard_limit(buffer)
            while count:
                part = min(count, self._most_discarded)
                parameters = unmap_parameters([(lba, part)])
                size = len(parameters)
                buffer.view[:size] = parameters
                await self._run([self._with_data(unmap_cdb(size), Direction.OUT, buffer, 0, size)])
                lba, count = lba + part, count - part

    async def _discard_limit(self, buffer: DmaBuffer) -> int:
        """Blocks that one UNMAP may name, by the block limits page, or as many as there can be."""
        if not self.facts.thin:
            return _LBA_10  # one UNMAP, which the disk refuses with its own words
        await self._run([self._with_data(inquiry_cdb(64, _BLOCK_LIMITS), Direction.IN, buffer, 0, 64)])
        return int.from_bytes(buffer.view[20:24], "big") or _LBA_10

    # --- without a copy

    async def read_into(self, lba: int, buffer: DmaBuffer, *, count: int | None = None, offset: int = 0) -> None:
        """Read into a buffer, from byte `offset` on; `count` blocks, as many as fit if None."""
        await self.read_into_many(((lba, buffer),), count=count, offset=offset)

    async def read_into_many(
        self, requests: Iterable[tuple[int, DmaBuffer]], *, count: int | None = None, offset: int = 0
    ) -> None:
        """Fill several buffers at once, given as (block, buffer); the other arguments are for each of them."""
        await self._through_buffers(requests, Direction.IN, count, offset)

    async def write_from(
        self, lba: int, buffer: DmaBuffer, *, count: int | None = None, offset: int = 0, fua: bool = False
    ) -> None:
        """Write from a buffer, from byte `offset` on; `count` blocks, as many as there are if None."""
        await self.write_from_many(((lba, buffer),), count=count, offset=offset, fua=fua)

    async def write_from_many(
        self,
        requests: Iterable[tuple[int, DmaBuffer]],
        *,
        count: int | None = None,
        offset: int = 0,
        fua: bool = False,
    ) -> None:
        """Write several buffers at once, given as (block, buffer); the other arguments are for each of them."""
        await self._through_buffers(requests, Direction.OUT, count, offset, fua=fua)

    async def _through_buffers(
        self,
        requests: Iterable[tuple[int, DmaBuffer]],
        direction: Direction,
        count: int | None,
        offset: int,
        *,
        fua: bool = False,
    ) -> None:
        size = self.block_size
        built: list[Request] = []
        for first, buffer in requests:
            if buffer.abandoned:
                await buffer.idle()
            blocks = (buffer.size - offset) // size if count is None else count
            _check_range(first, blocks)
            if offset < 0 or offset + blocks * size > buffer.size:
                raise ValueError(f"{blocks} blocks at byte {offset} are not within a buffer of {buffer.size} bytes")
            lba, position = first, offset
            while blocks:
                part = blocks if blocks <= self._most_blocks else self._most_blocks
                built.append(self._transfer(direction, lba, part, buffer, position, fua))
                lba, position, blocks = lba + part, position + part * size, blocks - part
        await self._run(built)

    # --- inside

    def _windows(self, requests: Sequence[tuple[int, int]]) -> list[tuple[list[tuple[int, int, int]], int]]:
        """Requests as pieces (index, block, count) of at most `max_transfer`, in groups that share a buffer.

        With each group the blocks that it has in all, at most `WINDOW_BYTES`.
        """
        most, per_window = self._most_blocks, WINDOW_BYTES // self.block_size
        windows: list[tuple[list[tuple[int, int, int]], int]] = []
        pieces: list[tuple[int, int, int]] = []
        blocks = 0
        for index, (lba, count) in enumerate(requests):
            _check_range(lba, count)
            while count:
                part = count if count <= most else most
                if blocks + part > per_window:
                    windows.append((pieces, blocks))
                    pieces, blocks = [], 0
                pieces.append((index, lba, part))
                blocks += part
                lba += part
                count -= part
        if pieces:
            windows.append((pieces, blocks))
        return windows

    def _requests(
        self, window: Iterable[tuple[int, int, int]], direction: Direction, buffer: DmaBuffer, *, fua: bool = False
    ) -> list[Request]:
        """A window's requests, one after the other in its buffer."""
        built: list[Request] = []
        position, size = 0, self.block_size
        form, formed_for = None, -1
        for _, lba, count in window:
            if form is None or formed_for != count or position & PAGE_MASK or lba + count > _LBA_10:
                built.append(self._transfer(direction, lba, count, buffer, position, fua))
                # What the next has in common with this one if it begins on a page too.
                form = None if position & PAGE_MASK else self._forms.get(_form_key(direction, count, 0, fua))
                formed_for = count
            else:
                built.append(_fill_in(form, lba, buffer, position))
            position += count * size
        return built

    def _transfer(
        self, direction: Direction, lba: int, count: int, buffer: DmaBuffer, position: int, fua: bool
    ) -> Request:
        """Read or write `count` blocks, at most `max_transfer`, from or to byte `position` of a buffer.

        Such requests differ in address and pages only. The first of a kind is encoded in full and its bytes are kept
        as a form; the others fill it in.
        """
        offset = position & PAGE_MASK
        if lba + count > _LBA_10:
            cdb = read_cdb(lba, count) if direction is Direction.IN else write_cdb(lba, count, fua=fua)
            return self._with_data(cdb, direction, buffer, position, count * self.block_size)
        key = _form_key(direction, count, offset, fua)
        form = self._forms.get(key) or self._new_form(key, direction, count, buffer, position, fua)
        return _fill_in(form, lba, buffer, position)

    def _new_form(
        self, key: int, direction: Direction, count: int, buffer: DmaBuffer, position: int, fua: bool
    ) -> _Form:
        cdb = read_cdb(0, count) if direction is Direction.IN else write_cdb(0, count, fua=fua)
        body, start, _ = self._with_data(cdb, direction, buffer, position, count * self.block_size)
        lba_at = start + _CDB_AT + 2
        pages = (start - 16) // 8
        layout = struct.Struct(f"<16s{pages}Q{lba_at - start}s4s{len(body) - lba_at - 4}s")
        form = layout.pack, body[:16], body[start:lba_at], body[lba_at + 4 :], pages
        if len(self._forms) >= _KEPT_FORMS:
            self._forms.clear()
        self._forms[key] = form
        return form

    async def _run(self, requests: Sequence[Request]) -> None:
        """Send and wait; raises for the first that failed."""
        batch = await self._storage.transactions.run(requests)
        if batch.failures:
            await self._again(requests, batch.failures)

    async def _again(self, requests: Sequence[Request], failures: Mapping[int, Failure]) -> None:
        """Send once more what failed only because the host had something to say or to do first."""
        for _ in range(MOST_TRIES):
            for position in sorted(failures):
                if not await self._storage.heard(self, failures[position]):
                    raise ScsiError.of(self.lun, requests[position], failures[position])
            requests = [requests[position] for position in sorted(failures)]
            failures = (await self._storage.transactions.run(requests)).failures
            if not failures:
                return
        position = min(failures)
        raise ScsiError.of(self.lun, requests[position], failures[position])

    def _with_data(self, cdb: bytes, direction: Direction, buffer: DmaBuffer, offset: int, length: int) -> Request:
        return self._storage.with_data(self._address, cdb, direction, buffer, offset, length)

    def _without_data(self, cdb: bytes) -> Request:
        return self._storage.without_data(self._address, cdb)


def _check_range(lba: int, count: int) -> None:
    """What no CDB can say is the caller's mistake; what is merely past the end is for the disk to refuse."""
    if lba < 0 or count < 0 or lba + count > 1 << 64:
        raise ValueError(f"{count} blocks at block {lba}")


def _form_key(direction: Direction, count: int, offset: int, fua: bool) -> int:
    return count << 16 | offset << 2 | fua << 1 | direction


def _fill_in(form: _Form, lba: int, buffer: DmaBuffer, position: int) -> Request:
    """A request of a form, for blocks from `lba` on, from or to byte `position` of a buffer."""
    pack, head, prefix, tail, pages = form
    first = position >> PAGE_SHIFT
    if pages == 1:
        return pack(head, buffer.gpn + first, prefix, lba.to_bytes(4, "big"), tail), 24, buffer
    gpns = buffer.gpns[first : first + pages]
    return pack(head, *gpns, prefix, lba.to_bytes(4, "big"), tail), 16 + 8 * pages, buffer
