"""Storage packets against bytes that Linux's driver sent."""

from __future__ import annotations

import struct

import pytest

from vsp_vsc.storage import protocol
from vsp_vsc.storage.protocol import (
    ChannelProperties,
    GpaDirectHeader,
    NtStatus,
    Operation,
    PacketHeader,
    ProtocolVersion,
    Srb,
    SrbFlags,
    SrbStatus,
    Version,
)
from vsp_vsc.storage.scsi.cdb import Direction, read_cdb, write_cdb

# Packets that the storvsc of Linux 6.12.117 was recorded sending when it was run against a small host: payloads behind
# the 16-byte descriptor, transaction ID 0xfffffffffffffffd for initialization, tag + 1 for commands.
LINUX_BEGIN = "0700000001000000" + "00" * 56
LINUX_QUERY_VERSION = "09000000010000000000000002060000" + "00" * 48
LINUX_QUERY_PROPERTIES = "0a00000001000000" + "00" * 56
LINUX_END = "0800000001000000" + "00" * 56
LINUX_READ_RANGE = "000000000100000000100000000000008060000000000000"
LINUX_READ = (
    "03000000010000000000000034000000000000000a1401000010000028000000100000000800000000000000000000000000ff20"
    "4a0100003c00000000000000"
)
LINUX_WRITE = (
    "03000000010000000000000034000000000000000a140000001000002a000000200000000800000000000000000000000000ff20"
    "8a0100003c00000000000000"
)
# What that host answered, and Linux accepted.
ACCEPTED_PROPERTIES = "01000000000000000000000000000000010000000100000000000400" + "00" * 36


@pytest.mark.parametrize(
    ("recorded", "operation", "body"),
    [
        (LINUX_BEGIN, Operation.BEGIN_INITIALIZATION, b""),
        (LINUX_QUERY_VERSION, Operation.QUERY_PROTOCOL_VERSION, ProtocolVersion(Version.WIN10).encode()),
        (LINUX_QUERY_PROPERTIES, Operation.QUERY_PROPERTIES, b""),
        (LINUX_END, Operation.END_INITIALIZATION, b""),
    ],
)
def test_control_packets_are_the_drivers(recorded: str, operation: Operation, body: bytes) -> None:
    """Byte for byte what Linux sends."""
    packet = PacketHeader(operation, protocol.COMPLETION_WANTED).encode() + body
    assert bytes.fromhex(recorded) == packet.ljust(protocol.PACKET_SIZE, b"\0")


@pytest.mark.parametrize(
    ("recorded", "cdb", "direction", "flag"),
    [
        (LINUX_READ, read_cdb(0x1000, 8), Direction.IN, SrbFlags.DATA_IN),
        (LINUX_WRITE, write_cdb(0x2000, 8), Direction.OUT, SrbFlags.DATA_OUT),
    ],
)
def test_commands_are_the_drivers(recorded: str, cdb: bytes, direction: Direction, flag: SrbFlags) -> None:
    """Byte for byte what Linux sends for a read and a write of 4 KiB."""
    srb = Srb(
        cdb_length=10,
        data_in=direction,
        data_transfer_length=4096,
        cdb_or_sense=cdb,
        queue_tag=protocol.NO_QUEUE_TAG,
        queue_action=protocol.SIMPLE_TAG,
        srb_flags=flag | SrbFlags.QUEUE_ACTION_ENABLE | SrbFlags.DISABLE_SYNCH_TRANSFER | SrbFlags.NO_QUEUE_FREEZE,
        timeout=60,
    )
    packet = PacketHeader(Operation.EXECUTE_SRB, protocol.COMPLETION_WANTED).encode() + srb.encode()
    assert bytes.fromhex(recorded) == packet


def test_a_gpa_range_is_the_drivers() -> None:
    """One range of one page, as Linux describes 4 KiB at GPA 0x6080000."""
    extended = GpaDirectHeader(0, 1, 4096, 0).encode() + struct.pack("<Q", 0x6080)
    assert bytes.fromhex(LINUX_READ_RANGE) == extended


def test_properties_lie_where_the_driver_looks() -> None:
    """Linux took its limits from these bytes."""
    got = ChannelProperties.decode(bytes.fromhex(ACCEPTED_PROPERTIES), protocol.HEADER_SIZE)
    assert (got.max_channel_count, got.flags, got.max_transfer_bytes) == (1, 1, 0x40000)


def test_numbers_are_the_drivers() -> None:
    """VSTOR_OPERATION_*, VMSTOR_PROTO_VERSION_* and SRB_STATUS_* of Linux 6.12; statuses of Windows."""
    assert [int(operation) for operation in Operation] == list(range(1, 14))
    assert [int(version) for version in Version] == [0x0200, 0x0402, 0x0501, 0x0600, 0x0602]
    assert (SrbStatus.SUCCESS, SrbStatus.ERROR, SrbStatus.INVALID_LUN, SrbStatus.INVALID_REQUEST) == (1, 4, 0x20, 6)
    assert NtStatus.REVISION_MISMATCH == 0xC0000059
    assert NtStatus.INVALID_DEVICE_STATE == 0xC0000184
    assert set(protocol.NT_STATUS) == set(SrbStatus)
