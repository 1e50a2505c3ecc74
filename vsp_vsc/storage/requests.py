"""The VSC's transactions: what is under way, and how answers find who asked. Child side.

A request is bytes for the ring and the buffer it names. A batch of them is sent together and waited for together: one
signal to the host, one wake-up of the task that asked, whatever their number. One task receives for all.

Concurrency. Everything runs in the guest's Trio thread. Sending is synchronous as long as the ring has room; where it
has none, one task after the other waits for it under a lock. A transaction ID is in use from before its packet is sent
until its completion has come, whether or not somebody still waits for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import attrs
import trio

from hypervisor.wire import WireError
from vmbus.bell import Bell
from vmbus.channel import Channel
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.dma import DmaBuffer
from vsp_vsc.storage.protocol import SRB_AUTOSENSE_VALID, SRB_STATUS_MASK, Operation, SrbStatus

MAX_OUTSTANDING = 256
"""Transactions that one channel has under way at most; more wait in the guest."""

# A completion: operation, status, SRB status, SCSI status, bytes moved
_completion = struct.Struct("<I4xI2xBB8xI").unpack_from
_operation = struct.Struct("<I").unpack_from
_SENSE_AT = 28
_COMPLETE, _COMPLETE_IO, _SUCCESS = int(PacketType.COMPLETION), int(Operation.COMPLETE_IO), int(SrbStatus.SUCCESS)


class StorageError(OSError):
    """A disk or its controller does not do what it was asked. The message says which and why."""


class StorageGone(StorageError):
    """The channel to the controller has ended; whether requests under way were carried out is not known."""


Request = tuple[bytes, int, DmaBuffer | None]
"""One packet to be sent: its body, where in it the SRB begins (0 without a GPA range), the buffer it names."""


class Failure(NamedTuple):
    """How an SRB ended that did not end well."""

    srb_status: int
    scsi_status: int
    sense: bytes


@attrs.define(eq=False)
class Batch:
    """Requests that are waited for together."""

    remaining: int
    moved: list[int]
    """By position, the bytes moved."""
    answers: list[bytes] | None = None
    """By position, whole completions, where the requests are not SRBs."""
    failures: dict[int, Failure] = attrs.field(factory=dict)
    done: Bell = attrs.field(factory=Bell)


class Transactions:
    """All requests of one channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        # By transaction ID; 0 is never used, as in Linux.
        self._pending: list[tuple[Batch, int, DmaBuffer | None] | None] = [None] * (MAX_OUTSTANDING + 1)
        self._free = list(range(MAX_OUTSTANDING, 0, -1))
        self._id_freed = trio.lowlevel.ParkingLot()
        self._sending = trio.Lock()
        self._ended: str | None = None
        self.unexpected = 0
        """Completions that nobody asked for."""
        self.bus_changes = 0
        """How often the host has said that disks came or went."""
        self.bus_changed = Bell()
        """Rung when it does."""

    async def run(self, requests: Sequence[Request], *, raw: bool = False) -> Batch:
        """Send all, wait for all. Failures of single SRBs are in the batch; raises `StorageGone` and nothing else.

        Cancelled, it leaves the requests to the host and their buffers marked as abandoned.
        """
        count = len(requests)
        batch = Batch(count, [0] * count, [b""] * count if raw else None)
        pending, free = self._pending, self._free
        position = 0
        try:
            while position < count:
                if self._ended is not None:
                    raise StorageGone(self._ended)
                if not free:
                    await self._id_freed.park()
                    continue
                packets: list[Packet] = []
                append = packets.append
                for body, data_offset, buffer in requests[position : position + len(free)]:
                    transaction_id = free.pop()
                    pending[transaction_id] = batch, position, buffer
                    if buffer is not None:
                        buffer.in_flight += 1
                        append(Packet(PacketType.GPA_DIRECT, COMPLETION_REQUESTED, transaction_id, data_offset, body))
                    else:
                        append(Packet(PacketType.INBAND, COMPLETION_REQUESTED, transaction_id, 0, body))
                    position += 1
                await self._send(packets)
            while batch.remaining > 0:
                await batch.done.wait()
        except trio.Cancelled:
            for _, _, buffer in requests:
                if buffer is not None and buffer.in_flight:
                    buffer.abandoned = True
            raise
        if batch.remaining < 0:
            raise StorageGone(self._ended)
        return batch

    async def receive(self) -> None:
        """Take completions until the channel ends, then fail everyone who waits."""
        try:
            while True:
                self._complete(await self._channel.receive_batch())
                if self._id_freed:
                    self._id_freed.unpark_all()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            self._end("the host has closed the channel to the storage controller")
        except (WireError, struct.error) as error:
            self._end(f"the storage controller's channel is corrupt: {error}")
        finally:
            self._end("the storage driver has ended")

    def _complete(self, packets: Sequence[Packet]) -> None:
        pending, free = self._pending, self._free
        for packet in packets:
            transaction_id, body = packet.transaction_id, packet.body
            if packet.type != _COMPLETE:
                if _operation(body)[0] == Operation.ENUMERATE_BUS:
                    self.bus_changes += 1
                    self.bus_changed.ring()
                continue
            entry = pending[transaction_id] if 0 < transaction_id <= MAX_OUTSTANDING else None
            if entry is None:
                self.unexpected += 1
                continue
            batch, position, buffer = entry
            if batch.answers is not None:
                batch.answers[position] = body
            else:
                operation, status, srb_status, scsi_status, moved = _completion(body)
                batch.moved[position] = moved
                if srb_status != _SUCCESS or scsi_status or status or operation != _COMPLETE_IO:
                    sense = body[_SENSE_AT:] if srb_status & SRB_AUTOSENSE_VALID else b""
                    batch.failures[position] = Failure(srb_status & SRB_STATUS_MASK, scsi_status, sense)
            pending[transaction_id] = None
            free.append(transaction_id)
            if buffer is not None:
                if buffer.in_flight > 1:
                    buffer.in_flight -= 1
                else:
                    buffer.release()
            batch.remaining -= 1
            if not batch.remaining:
                batch.done.ring()

    def _release(self, transaction_id: int, buffer: DmaBuffer | None) -> None:
        self._pending[transaction_id] = None
        self._free.append(transaction_id)
        if buffer is not None:
            buffer.release()

    async def _send(self, packets: Sequence[Packet]) -> None:
        """Put all into the ring. What was not put there gives its transaction IDs back."""
        sent = 0
        try:
            if not self._sending.locked():
                sent = self._channel.try_send_batch(packets)
                if sent == len(packets):
                    return
            async with self._sending:
                before = self._channel.statistics().packets_out - sent
                try:
                    await self._channel.send_batch(packets[sent:])
                finally:
                    sent = self._channel.statistics().packets_out - before
        except (trio.BrokenResourceError, trio.ClosedResourceError, WireError) as error:
            self._end(f"the channel to the storage controller has ended: {error}")
            raise StorageGone(self._ended) from None
        finally:
            for packet in packets[sent:]:
                entry = self._pending[packet.transaction_id]
                if entry is not None:
                    self._release(packet.transaction_id, entry[2])

    def _end(self, reason: str) -> None:
        """No completion will come any more: wake everyone. Buffers under way stay out of use: the host may write."""
        if self._ended is not None:
            return
        self._ended = reason
        for entry in self._pending:
            if entry is not None:
                entry[0].remaining = -1
                entry[0].done.ring()
        self._id_freed.unpark_all()
