"""The storage VSC: a guest's driver for a synthetic SCSI controller and its disks. Child side.

    async with open_storage(channel, platform) as storage:
        disk = storage.disks[0]
        data = await disk.read(0, 8)

What a disk can do is in `disk`; here are requests on the wire, the agreement on a version, and the search for disks.

Initialization takes one round trip: the host refuses what comes out of order and keeps its state, so all of it is sent
at once, newest version first. Finding the disks takes two more, whatever their number.

Disks come and go: when the host says so (ENUMERATE_BUS, a unit attention, a LUN that is there no more) a task looks
again, and whoever wants to know hears of it by `on_change`. A disk that stays is the same object as before.
"""

from __future__ import annotations

import contextlib
import enum
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache

import attrs
import trio

from hypervisor.pages import PAGE_MASK, PAGE_SHIFT, pages_for
from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vsp_vsc.dma import DmaBuffer, DmaPool
from vsp_vsc.storage.disk import MOST_TRIES, Disk, DiskFacts, DiskGone, DiskKind, ScsiError
from vsp_vsc.storage.protocol import (
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
    Srb,
    SrbFlags,
    SrbStatus,
    Version,
    sense_size,
    srb_size,
)
from vsp_vsc.storage.requests import Failure, Request, StorageError, StorageGone, Transactions
from vsp_vsc.storage.scsi.cdb import (
    CDB_LENGTH,
    Direction,
    ScsiStatus,
    inquiry_cdb,
    mode_sense_6_cdb,
    read_capacity_10_cdb,
    read_capacity_16_cdb,
    report_luns_cdb,
)
from vsp_vsc.storage.scsi.sense import SenseKey, decode_sense

TIMEOUT_SECONDS = 60
"""Told to the host with every SRB, as Linux does."""
_DISCOVERY_SLOT = 256
_INQUIRY, _CAPACITY, _MODE = (0, 64), (64, 32), (128, 64)
"""Where in a LUN's slot each answer goes, and how much of it we want."""
_MODE_WRITE_PROTECTED = 0x80
_CACHING_PAGE = 0x08
_KINDS = {0x00: DiskKind.DISK, 0x05: DiskKind.DVD}
"""By the first byte of INQUIRY: device types of units that are there."""
DVD_BLOCK_SIZE = 2048
"""What a drive without a disc would have."""
_BUSY_SECONDS = 0.01
"""How long to wait where the disk has all that it can take."""
_THIN = 0x80
"""In byte 14 of READ CAPACITY(16): logical block provisioning management is enabled."""
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


@lru_cache(maxsize=128)
def _gpa_direct_packet(pages: int) -> struct.Struct:
    """A GPA-direct packet's body with one range of so many pages, and an SRB."""
    return struct.Struct(f"<IIII{pages}Q{_PACKET}")


_inband_packet = struct.Struct("<" + _PACKET)


class ChangeKind(enum.StrEnum):
    """What became of a disk."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    """Another size, or another disc in a drive."""


@attrs.frozen
class DiskChange:
    """A disk that came, went or changed while the guest ran."""

    kind: ChangeKind
    disk: Disk

    def __str__(self) -> str:
        return f"{self.kind}: {self.disk!r}"


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
        self.on_change: Callable[[DiskChange], object] = lambda change: None
        """Hears of disks that come, go or change after the first look."""
        self._versions = versions
        self._srb_size = SRB_SIZE
        self._sense_size = SENSE_SIZE
        self._platform = platform
        self._looking = trio.Lock()

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
            self._sense_size,
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
            self._sense_size,
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
            self._sense_size = sense_size(version)
            limit = ChannelProperties.decode(properties, HEADER_SIZE).max_transfer_bytes
            self.max_transfer = min(limit, MAX_TRANSFER) & ~PAGE_MASK
            if not self.max_transfer:
                raise StorageError(f"the storage controller moves {limit} bytes at most, less than a page")
            return
        spoken = ", ".join(f"{version >> 8}.{version & 0xFF}" for version in self._versions)
        raise StorageError(f"the storage controller speaks none of the versions {spoken}")

    async def rescan(self) -> None:
        """Look which disks there are on path 0, target 0, and bring `disks` up to date. Raises `StorageError`."""
        async with self._looking:
            there = {facts.lun: facts for facts in await self._examine(await self._report_luns())}
            changes: list[DiskChange] = []
            for disk in self.disks:
                facts = there.pop(disk.lun, None)
                if facts is None or facts.kind is not disk.facts.kind:
                    disk.gone = True
                    changes.append(DiskChange(ChangeKind.REMOVED, disk))
                    if facts is not None:
                        there[disk.lun] = facts
                elif facts != disk.facts:
                    disk.update(facts)
                    changes.append(DiskChange(ChangeKind.CHANGED, disk))
            changes += (DiskChange(ChangeKind.ADDED, Disk(self, facts)) for facts in there.values())
            kept = [disk for disk in self.disks if not disk.gone]
            kept += (change.disk for change in changes if change.kind is ChangeKind.ADDED)
            self.disks = sorted(kept, key=lambda disk: disk.lun)
        for change in changes:
            self.on_change(change)

    async def follow(self) -> None:
        """Task: look again whenever the host says so."""
        while True:
            await self.transactions.bus_changed.wait()
            with contextlib.suppress(StorageError, MemoryError):  # what cannot be looked at now is looked at next time
                await self.rescan()

    async def _examine(self, luns: Sequence[int]) -> list[DiskFacts]:
        """Ask units for what they are; those that are none of ours, or have gone meanwhile, are left out."""
        facts: list[DiskFacts] = []
        for _ in range(MOST_TRIES):
            if not luns:
                break
            luns = await self._examine_once(luns, facts)
        return facts

    async def _examine_once(self, luns: Sequence[int], found: list[DiskFacts]) -> list[int]:
        """One round; returns the units that have to be asked again."""
        again: list[int] = []
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
                    start = index * _DISCOVERY_SLOT + place
                    answers.append(bytes(buffer.view[start : start + batch.moved[3 * index + part]]))
                failures = [batch.failures.get(3 * index + part) for part in range(3)]
                if any(failure is not None and _worth_another_try(failure) for failure in failures):
                    again.append(lun)
                    continue
                if any(failure is not None and failure.srb_status == SrbStatus.INVALID_LUN for failure in failures):
                    continue
                kind = _KINDS.get(answers[0][0]) if answers[0] else None
                for part, failure in enumerate(failures[:2]):
                    if failure is not None and (part == 0 or kind is DiskKind.DISK):
                        raise ScsiError.of(lun, requests[3 * index + part], failure)
                if kind is DiskKind.DVD:  # which has no READ CAPACITY(16)
                    answers[1] = await self._read_capacity_10(lun)
                facts = _facts(lun, kind, *answers)
                if facts is not None:
                    found.append(facts)
        return again

    async def _read_capacity_10(self, lun: int) -> bytes:
        """The capacity of a drive's disc, in the shape of READ CAPACITY(16); empty without a disc."""
        with self.pool.allocate(8) as buffer:
            request = self.with_data(lun << 24, read_capacity_10_cdb(), Direction.IN, buffer, 0, 8)
            batch = await self.transactions.run([request])
            if batch.failures and _worth_another_try(batch.failures[0]):
                batch = await self.transactions.run([request])
            return b"" if batch.failures else bytes(4) + bytes(buffer.view[:8])

    async def heard(self, disk: Disk, failure: Failure) -> bool:
        """What a disk's failure tells the driver; whether the command may be sent again."""
        if failure.srb_status == SrbStatus.INVALID_LUN:
            disk.gone = True
            self.transactions.bus_changed.ring()
            return False
        if failure.scsi_status == ScsiStatus.TASK_SET_FULL:
            await self._platform.sleep(_BUSY_SECONDS)
            return True
        if failure.srb_status == SrbStatus.BUS_RESET:
            return True
        if not _worth_another_try(failure):
            return False
        self.transactions.bus_changed.ring()
        return disk.facts.kind is not DiskKind.DVD  # another disc may be in there now: that is not what was asked for

    async def reset(self, lun: int | None = None) -> None:
        """Reset the bus, or one disk: what is under way is ended, and sent again by whoever waits. `StorageError`."""
        operation = Operation.RESET_BUS if lun is None else Operation.RESET_LUN
        body = _control(operation, Srb(lun=lun or 0).encode())
        batch = await self.transactions.run([(body[: HEADER_SIZE + self._srb_size], 0, None)], raw=True)
        assert batch.answers is not None, "raw was asked for"
        _expect(batch.answers[0], operation)

    async def _report_luns(self) -> list[int]:
        with self.pool.allocate(4096) as buffer:
            request = self.with_data(0, report_luns_cdb(buffer.size), Direction.IN, buffer, 0, buffer.size)
            batch = await self.transactions.run([request])
            if batch.failures:
                raise ScsiError.of(0, request, batch.failures[0])
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


def _worth_another_try(failure: Failure) -> bool:
    """A unit attention: the command was not begun, and the next one is not refused for the same reason."""
    return bool(failure.sense) and decode_sense(failure.sense).key == SenseKey.UNIT_ATTENTION


def _facts(lun: int, kind: DiskKind | None, inquiry: bytes, capacity: bytes, mode: bytes) -> DiskFacts | None:
    """A disk from its answers; None where there is no disk of a kind that we can drive."""
    if kind is None or len(inquiry) < 36:
        return None
    blocks, block_size = 0, DVD_BLOCK_SIZE
    if len(capacity) >= 12:
        blocks, block_size = int.from_bytes(capacity[:8], "big") + 1, int.from_bytes(capacity[8:12], "big")
    elif kind is DiskKind.DISK:
        return None
    if not 512 <= block_size <= 4096 or block_size & (block_size - 1):
        return None
    return DiskFacts(
        lun=lun,
        blocks=blocks,
        block_size=block_size,
        read_only=kind is DiskKind.DVD or (len(mode) >= 3 and bool(mode[2] & _MODE_WRITE_PROTECTED)),
        vendor=inquiry[8:16].decode("ascii", "replace").strip(),
        product=inquiry[16:32].decode("ascii", "replace").strip(),
        revision=inquiry[32:36].decode("ascii", "replace").strip(),
        thin=len(capacity) >= 15 and bool(capacity[14] & _THIN),
        kind=kind,
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
                await storage.rescan()
                nursery.start_soon(storage.follow, name="storage: disks that come and go")
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
    "ChangeKind",
    "Disk",
    "DiskChange",
    "DiskFacts",
    "DiskGone",
    "DiskKind",
    "DmaBuffer",
    "ScsiError",
    "Storage",
    "StorageError",
    "StorageGone",
    "open_storage",
]
