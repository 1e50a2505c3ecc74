"""A guest that says exactly what a test wants to a storage controller, right or wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from vmbus.channel import Channel
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.storage.protocol import (
    HEADER_SIZE,
    PACKET_SIZE,
    GpaDirectHeader,
    Operation,
    PacketHeader,
    ProtocolVersion,
    Srb,
    SrbWin7,
    Version,
)
from vsp_vsc.storage.scsi.cdb import CDB_LENGTH, Direction

HANDSHAKE = (
    Operation.BEGIN_INITIALIZATION,
    Operation.QUERY_PROTOCOL_VERSION,
    Operation.QUERY_PROPERTIES,
    Operation.END_INITIALIZATION,
)


def control(
    operation: int, body: bytes = b"", *, transaction_id: int = 1, size: int = PACKET_SIZE, flags: int = 1
) -> Packet:
    """A packet of the initialization, or any other without data."""
    payload = (PacketHeader(operation, 1).encode() + body).ljust(size, b"\0")[:size]
    return Packet(PacketType.INBAND, flags, transaction_id, 0, payload)


def handshake(version: int = Version.WIN10) -> list[Packet]:
    """All that comes before the first SRB."""
    bodies = (b"", ProtocolVersion(version).encode(), b"", b"")
    return [control(operation, body) for operation, body in zip(HANDSHAKE, bodies, strict=True)]


def srb(cdb: bytes, *, version: int = Version.WIN10, **fields: int) -> bytes:
    """The payload of an EXECUTE_SRB; `fields` are those of `Srb`, whatever is not given is right."""
    layout = Srb if version >= Version.WIN8 else SrbWin7
    fields.setdefault("cdb_length", CDB_LENGTH[cdb[0]])
    request = layout(cdb_or_sense=cdb[:16].ljust(20, b"\0"), **fields)
    return PacketHeader(Operation.EXECUTE_SRB, 1).encode() + request.encode()


def command(
    cdb: bytes,
    pages: Sequence[int] = (),
    length: int = 0,
    direction: int = Direction.IN,
    *,
    transaction_id: int = 1,
    offset: int = 0,
    byte_count: int | None = None,
    ranges: int = 1,
    flags: int = COMPLETION_REQUESTED,
    version: int = Version.WIN10,
    **fields: int,
) -> Packet:
    """A SCSI command, GPA-direct if it has pages."""
    fields.setdefault("data_in", direction)
    fields.setdefault("data_transfer_length", length)
    payload = srb(cdb, version=version, **fields)
    if not pages:
        return Packet(PacketType.INBAND, flags, transaction_id, 0, payload)
    extended = GpaDirectHeader(0, ranges, length if byte_count is None else byte_count, offset).encode()
    extended += struct.pack(f"<{len(pages)}Q", *pages)
    return Packet(PacketType.GPA_DIRECT, flags, transaction_id, len(extended), extended + payload)


class Completion:
    """A completion, decoded."""

    def __init__(self, packet: Packet) -> None:
        assert (packet.type, packet.flags, packet.data_offset) == (PacketType.COMPLETION, 0, 0)
        self.transaction_id = packet.transaction_id
        self.body = packet.body
        header = PacketHeader.decode(packet.body)
        assert (header.operation, header.flags) == (Operation.COMPLETE_IO, 0)
        self.status = header.status

    @property
    def srb(self) -> Srb:
        return Srb.decode(self.body, HEADER_SIZE)


async def ask(channel: Channel, *packets: Packet) -> list[Completion]:
    """Send a batch and take as many completions as there are packets."""
    await channel.send_batch(packets)
    got: list[Packet] = []
    while len(got) < len(packets):
        got += await channel.receive_batch()
    return [Completion(packet) for packet in got]
