"""The storage VSC: a guest's driver for a synthetic SCSI controller and its disks. Child side.

    async with open_storage(channel, platform) as storage:
        disk = storage.disks[0]
        data = await disk.read(0, 8)

Data travels through DMA buffers: guest pages that the host fills or reads. `read` and `write` copy from and to them
once; whoever wants no copy at all takes a buffer and calls `read_into` and `write_from`. The forms with `many` send all
their requests with one signal and wake up once.

Initialization takes one round trip: the host refuses what comes out of order and keeps its state, so all of it is sent
at once, newest version first. Finding the disks takes two more, whatever their number.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache

import attrs
import trio

from hypervisor.pages import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, pages_for
from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.storage.dma import DmaBuffer, DmaPool
from vsp_vsc.storage.protocol import (
    CDB_SIZE,
    COMPLETION_WANTED,
    HEADER_SIZE,
    MAX_TRANSFER,
    NO_QUEUE_TAG,
    PACKET_SIZE,
    SENSE_SIZE,
    SIMPLE_TAG,
    SRB_SIZE,
    VERSIONS,
    ChannelProperties,
    NtStatus,
    Operation,
    PacketHeader,
    ProtocolVersion,
    SrbFlags,
    SrbStatus,
    Version,
    srb_size,
)
from vsp_vsc.storage.requests import Failure, Request, StorageError, StorageGone, Transactions
from vsp_vsc.storage.scsi import (
    CDB_LENGTH,
    Direction,
    describe_cdb,
    inquiry_cdb,
    mode_sense_6_cdb,
    read_capacity_16_cdb,
    read_cdb,
    report_luns_cdb,
    synchronize_cache_cdb,
    unmap_cdb,
    unmap_parameters,
    write_cdb,
)
from vsp_vsc.storage.sense import Sense, decode_sense

WINDOW_BYTES = 4 << 20
"""Buffers that one call has in use at once; longer transfers go in turns."""
TIMEOUT_SECONDS = 60
"""Told to the host with every SRB, as Linux does."""
_LBA_10 = 0xFFFF_FFFF
_CDB_AT = HEADER_SIZE + 16
_KEPT_FORMS = 128
_DISCOVERY_SLOT = 256
_INQUIRY, _CAPACITY, _MODE = (0, 64), (64, 32), (128, 64)
"""Where in a LUN's slot each answer goes, and how much of it we want."""
_MODE_WRITE_PROTECTED = 0x80
_CACHING_PAGE = 0x08
_THIN = 0x80
"""In byte 14 of READ CAPACITY(16): logical block provisioning management is enabled."""
_BLOCK_LIMITS = 0xB0
_FLAGS = SrbFlags.QUEUE_ACTION_ENABLE | SrbFlags.DISABLE_SYNCH_TRANSFER | SrbFlags.NO_QUEUE_FREEZE
_SRB_FLAGS = {
    Direction.OUT: int(_FLAGS | SrbFlags.DATA_OUT),
    Direction.IN: int(_FLAGS | SrbFlags.DATA_IN),
    Direction.NONE: int(_FLAGS),
}
_EXECUTE_SRB = int(Operation.EXECUTE_SRB)
# Operation, flags, status; SRB length, statuses, address, CDB length, sense length, direction, bytes, CDB, 4 bytes of
# sense, reserve, tag, action, flags, timeout, sort key: PacketHeader and Srb as one layout.
_PACKET = "IIIHBBIBBBBI16s4xHBBIII"


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


@lru_cache(maxsize=128)
def _gpa_direct_packet(pages: int) -> struct.Struct:
    """A GPA-direct packet's body with one range of so many pages, and an SRB."""
    return struct.Struct(f"<IIII{pages}Q{_PACKET}")


_Form = tuple[Callable[..., bytes], bytes, bytes, bytes, int]
"""How to pack a request, what precedes its pages, its address, what follows, and how many pages there are."""
_inband_packet = struct.Struct("<" + _PACKET)


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


class Disk:
    """One disk. Addresses and counts are in blocks of `block_size` bytes, lengths and sizes in bytes.

    All calls raise `ScsiError` where the disk refuses or fails (past the end, read-only, an error of the host's),
    `StorageGone` where its channel has ended, `ValueError` for what is no range of whole blocks, and `MemoryError`
    where the guest has no pages for a buffer. A call that is cancelled may have been carried out or not.
    """

    def __init__(self, storage: Storage, facts: DiskFacts) -> None:
        self._storage = storage
        self.facts = facts
        self.lun = facts.lun
        self.blocks = facts.blocks
        """Capacity."""
        self.block_size = facts.block_size
        self.read_only = facts.read_only
        self._address = facts.lun << 24
        self._forms: dict[int, _Form] = {}
        self._most_blocks = storage.max_transfer // facts.block_size
        self._most_discarded = 0

    def __repr__(self) -> str:
        mode = " read-only" if self.read_only else ""
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
        if lba < 0 or count < 0:
            raise ValueError(f"{count} blocks at block {lba}")
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
            if offset < 0 or blocks < 0 or offset + blocks * size > buffer.size:
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
            if lba < 0 or count < 0:
                raise ValueError(f"{count} blocks at block {lba}")
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
        storage = self._storage
        batch = await storage.transactions.run(requests)
        if batch.failures:
            position = min(batch.failures)
            raise storage.error(self.lun, requests[position], batch.failures[position])

    def _with_data(self, cdb: bytes, direction: Direction, buffer: DmaBuffer, offset: int, length: int) -> Request:
        return self._storage.with_data(self._address, cdb, direction, buffer, offset, length)

    def _without_data(self, cdb: bytes) -> Request:
        return self._storage.without_data(self._address, cdb)


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


class Storage:
    """A controller and its disks. Made by `open_storage`."""

    def __init__(self, channel: Channel, platform: GuestPlatform, versions: Sequence[Version]) -> None:
        self.pool = DmaPool(platform)
        self.transactions = Transactions(channel)
        self.version = 0
        """The protocol version agreed on, a `Version`."""
        self.max_transfer = MAX_TRANSFER
        """Bytes that one command moves at most."""
        self.disks: list[Disk] = []
        """By LUN."""
        self._versions = versions
        self._srb_size = SRB_SIZE

    # --- requests

    def with_data(
        self, address: int, cdb: bytes, direction: Direction, buffer: DmaBuffer, offset: int, length: int
    ) -> Request:
        """A command that moves `length` bytes from or to byte `offset` of a buffer."""
        if offset or length != buffer.size:
            first = offset >> PAGE_SHIFT
            offset &= PAGE_MASK
            gpns = buffer.gpns[first : first + pages_for(length, offset)]
        else:
            gpns = buffer.gpns
        pages = len(gpns)
        body = _gpa_direct_packet(pages).pack(
            0,
            1,
            length,
            offset,
            *gpns,
            _EXECUTE_SRB,
            COMPLETION_WANTED,
            0,
            self._srb_size,
            0,
            0,
            address,
            CDB_LENGTH[cdb[0]],
            SENSE_SIZE,
            direction,
            0,
            length,
            cdb,
            0,
            NO_QUEUE_TAG,
            SIMPLE_TAG,
            _SRB_FLAGS[direction],
            TIMEOUT_SECONDS,
            0,
        )
        data_offset = 16 + 8 * pages
        if self._srb_size != SRB_SIZE:
            body = body[: data_offset + HEADER_SIZE + self._srb_size]
        return body, data_offset, buffer

    def without_data(self, address: int, cdb: bytes) -> Request:
        """A command that moves no data."""
        body = _inband_packet.pack(
            _EXECUTE_SRB,
            COMPLETION_WANTED,
            0,
            self._srb_size,
            0,
            0,
            address,
            CDB_LENGTH[cdb[0]],
            SENSE_SIZE,
            Direction.NONE,
            0,
            0,
            cdb,
            0,
            NO_QUEUE_TAG,
            SIMPLE_TAG,
            _SRB_FLAGS[Direction.NONE],
            TIMEOUT_SECONDS,
            0,
        )
        return body[: HEADER_SIZE + self._srb_size], 0, None

    def error(self, lun: int, request: Request, failure: Failure) -> ScsiError:
        """What to raise for a request that failed."""
        body, data_offset, _ = request
        start = data_offset + _CDB_AT
        return ScsiError(lun, body[start : start + CDB_SIZE], failure)

    # --- initialization

    async def connect(self) -> None:
        """Agree on a version, learn the limits. Raises `StorageError`."""
        opening: list[bytes] = [_control(Operation.BEGIN_INITIALIZATION)]
        for version in self._versions:
            asked = ProtocolVersion(version).encode()
            opening += [
                _control(Operation.QUERY_PROTOCOL_VERSION, asked),
                _control(Operation.QUERY_PROPERTIES),
                _control(Operation.END_INITIALIZATION),
            ]
            batch = await self.transactions.run([(packet, 0, None) for packet in opening], raw=True)
            assert batch.answers is not None, "raw was asked for"
            *begun, chosen, properties, ended = batch.answers
            if begun:
                _expect(begun[0], Operation.BEGIN_INITIALIZATION)
            if PacketHeader.decode(chosen).status == NtStatus.REVISION_MISMATCH:
                opening = []
                continue
            _expect(chosen, Operation.QUERY_PROTOCOL_VERSION)
            _expect(properties, Operation.QUERY_PROPERTIES)
            _expect(ended, Operation.END_INITIALIZATION)
            self.version = version
            self._srb_size = srb_size(version)
            limit = ChannelProperties.decode(properties, HEADER_SIZE).max_transfer_bytes
            self.max_transfer = min(limit, MAX_TRANSFER) & ~PAGE_MASK
            if not self.max_transfer:
                raise StorageError(f"the storage controller moves {limit} bytes at most, less than a page")
            return
        spoken = ", ".join(f"{version >> 8}.{version & 0xFF}" for version in self._versions)
        raise StorageError(f"the storage controller speaks none of the versions {spoken}")

    async def discover(self) -> None:
        """Find the disks of path 0, target 0, and fill `disks`. Raises `StorageError`."""
        luns = await self._report_luns()
        if not luns:
            return
        with self.pool.allocate(len(luns) * _DISCOVERY_SLOT) as buffer:
            requests: list[Request] = []
            for index, lun in enumerate(luns):
                for (place, length), cdb in (
                    (_INQUIRY, inquiry_cdb(_INQUIRY[1])),
                    (_CAPACITY, read_capacity_16_cdb(_CAPACITY[1])),
                    (_MODE, mode_sense_6_cdb(_CACHING_PAGE, _MODE[1])),
                ):
                    start = index * _DISCOVERY_SLOT + place
                    requests.append(self.with_data(lun << 24, cdb, Direction.IN, buffer, start, length))
            batch = await self.transactions.run(requests)
            for index, lun in enumerate(luns):
                answers: list[bytes] = []
                for part, (place, _) in enumerate((_INQUIRY, _CAPACITY, _MODE)):
                    position = 3 * index + part
                    start = index * _DISCOVERY_SLOT + place
                    answers.append(bytes(buffer.view[start : start + batch.moved[position]]))
                    failure = batch.failures.get(position)
                    if failure is not None and part < 2:
                        raise self.error(lun, requests[position], failure)
                facts = _facts(lun, *answers)
                if facts is not None:
                    self.disks.append(Disk(self, facts))

    async def _report_luns(self) -> list[int]:
        with self.pool.allocate(4096) as buffer:
            request = self.with_data(0, report_luns_cdb(buffer.size), Direction.IN, buffer, 0, buffer.size)
            batch = await self.transactions.run([request])
            if batch.failures:
                raise self.error(0, request, batch.failures[0])
            answer = bytes(buffer.view[: batch.moved[0]])
        listed = min(int.from_bytes(answer[:4], "big"), len(answer) - 8) // 8 if len(answer) >= 8 else 0
        # Peripheral addressing: the unit's number is the second byte. Others than that cannot be named in an SRB.
        entries = [answer[8 + 8 * index : 16 + 8 * index] for index in range(listed)]
        return [entry[1] for entry in entries if entry[0] == 0]


def _control(operation: Operation, body: bytes = b"") -> bytes:
    return (PacketHeader(operation, COMPLETION_WANTED).encode() + body).ljust(PACKET_SIZE, b"\0")


def _expect(answer: bytes, operation: Operation) -> None:
    header = PacketHeader.decode(answer)
    if header.operation != Operation.COMPLETE_IO or header.status:
        raise StorageError(f"the storage controller answers {operation.name} with status {header.status:#010x}")


def _facts(lun: int, inquiry: bytes, capacity: bytes, mode: bytes) -> DiskFacts | None:
    """A disk from its answers; None where there is no disk of a kind that we can drive."""
    if len(inquiry) < 36 or inquiry[0] != 0 or len(capacity) < 12:
        return None
    block_size = int.from_bytes(capacity[8:12], "big")
    if not 512 <= block_size <= 4096 or block_size & (block_size - 1):
        return None
    return DiskFacts(
        lun=lun,
        blocks=int.from_bytes(capacity[:8], "big") + 1,
        block_size=block_size,
        read_only=len(mode) >= 3 and bool(mode[2] & _MODE_WRITE_PROTECTED),
        vendor=inquiry[8:16].decode("ascii", "replace").strip(),
        product=inquiry[16:32].decode("ascii", "replace").strip(),
        revision=inquiry[32:36].decode("ascii", "replace").strip(),
        thin=len(capacity) >= 15 and bool(capacity[14] & _THIN),
    )


@asynccontextmanager
async def open_storage(
    channel: Channel, platform: GuestPlatform, *, versions: Sequence[Version] = VERSIONS
) -> AsyncIterator[Storage]:
    """Drive the controller at the other end of an open channel; its disks are found when this begins.

    Raises `StorageError` where the controller cannot be driven. At the end no request may be under way; the channel
    stays open and is the caller's to close.
    """
    storage = Storage(channel, platform, versions)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.transactions.receive, name="storage completions")
            try:
                await storage.connect()
                await storage.discover()
                yield storage
            finally:
                nursery.cancel_scope.cancel()
                storage.pool.close()
    except BaseExceptionGroup as group:
        # The nursery's own task raises nothing, so what comes out of the body is alone in its group.
        if len(group.exceptions) == 1 and isinstance(group.exceptions[0], Exception):
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise


__all__ = [
    "Disk",
    "DiskFacts",
    "DmaBuffer",
    "ScsiError",
    "Storage",
    "StorageError",
    "StorageGone",
    "open_storage",
]
