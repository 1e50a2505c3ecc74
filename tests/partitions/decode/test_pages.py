"""Rings, SynIC slots and pages, as they lie in memory, against what the running system writes there."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from hypervisor.monitor_page import MonitorPage, MonitorParameter
from hypervisor.reference_time import tsc_page, tsc_scale
from hypervisor.synic.messages import SLOT_SIZE, MessageHeader, MessageType
from hypervisor.synic.timer_registers import TimerMessage
from partitions.decode.field import Field
from partitions.decode.kinds import guess
from partitions.decode.ring import decode_ring
from partitions.decode.synic import (
    decode_event_page,
    decode_message_page,
    decode_monitor_page,
    decode_synic_message,
    decode_tsc_page,
)
from tests.partitions.decode.trees import check_tree
from vmbus.protocol import messages as m
from vmbus.protocol.table import describe
from vmbus.ring import Packet, PacketType, RingReader, RingWriter, ring_bytes
from vsp_vsc.storage.protocol import Operation, PacketHeader

SIZE = 4096


def value(field: Field, path: str) -> object:
    found = field.find(path)
    assert found is not None, path
    return found.value


def packet(number: int, body: int = 0) -> Packet:
    header = PacketHeader(Operation.BEGIN_INITIALIZATION, 1).encode()
    return Packet(PacketType.INBAND, 1, number, 0, header.ljust(64 + body, b"\0"))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 60)), max_size=12))
def test_rings(steps: list[tuple[int, int]]) -> None:
    """After any writes and reads the tree has the packets that a reader would get, also round the ring's end."""
    region = bytearray(SIZE + SIZE)
    writer, reader = RingWriter(memoryview(region), shared=False), RingReader(memoryview(region), shared=False)
    number, waiting = 0, []
    for writes, reads in steps:
        for _ in range(writes):
            number += 1
            made = packet(number, 8 * (number % 7))
            if ring_bytes(len(made.body)) <= writer.free_bytes:
                waiting.append(number)
                writer.write_batch([made])
        for one in reader.read_batch(reads) if reads else []:
            assert one.transaction_id == waiting.pop(0)
    data = bytes(region)
    field = decode_ring(data, "storage", ">root")
    check_tree(field, data)
    assert not field.faults
    inner = field.find("data")
    assert inner is not None
    told = [part for part in inner.children if part.name.startswith("packet[")]
    ids = sorted(int(part.words.split("id=")[1].split()[0], 16) for part in told)
    assert ids == waiting
    assert all("BEGIN_INITIALIZATION" in part.words for part in told)
    assert field.words.startswith(f"{sum(ring_bytes(64 + 8 * (n % 7)) for n in waiting)} of {SIZE} bytes unread")
    assert value(field, "control.write_index") == int.from_bytes(data[:4], "little")
    assert value(field, "control.feature_bits") == 1


def test_a_packet_round_the_end() -> None:
    """It is told where it begins, in the words of the whole; its last bytes are marked at the ring's front."""
    region = bytearray(SIZE + SIZE)
    writer, reader = RingWriter(memoryview(region), shared=False), RingReader(memoryview(region), shared=False)
    first = packet(1, SIZE - 256)
    writer.write_batch([first])
    reader.read_batch(1)
    writer.write_batch([packet(2, 128)])
    data = bytes(region)
    field = decode_ring(data, "storage", ">root")
    check_tree(field, data)
    inner = field.find("data")
    assert inner is not None
    assert [part.name for part in inner.children] == ["packet_rest", "free", f"packet[{ring_bytes(SIZE - 192):#x}]"]
    whole = inner.children[0].size + inner.children[2].size
    assert whole == ring_bytes(192)
    assert inner.children[2].words == "INBAND id=0x2 flags=1: BEGIN_INITIALIZATION; goes on at the ring's front"


def test_bad_indices() -> None:
    """What a reader would stop at is said, and nothing is made of the data."""
    data = struct.pack("<II", 0x1004, 0x12) + bytes(2 * SIZE - 8)
    field = decode_ring(data)
    check_tree(field, data)
    assert "the write index 0x1004 is no multiple of 8" in field.fault
    assert "the write index 0x1004 is outside of the ring's 0x1000 bytes" in field.fault
    assert "the read index 0x12 is no multiple of 8" in field.fault


def slot(kind: int, payload: bytes, flags: int = 0) -> bytes:
    return (MessageHeader(kind, len(payload), flags, 0, 7).encode() + payload).ljust(SLOT_SIZE, b"\0")


def test_a_message_slot() -> None:
    """A channel message in its slot ends where the header says; behind it is nothing."""
    message = m.OpenChannelResult(channel_id=3, open_id=9, status=0)
    data = slot(1, message.encode(), flags=1)
    field = decode_synic_message(data)
    check_tree(field, data)
    assert not field.faults
    assert field.words == describe(message)
    inner = field.find("OPEN_CHANNEL_RESULT")
    assert inner is not None
    assert (inner.offset, inner.size) == (16, 20)
    assert value(field, "header.flags.message_pending") == 1
    assert (field.children[-1].name, field.children[-1].size) == ("unused", SLOT_SIZE - 36)
    found = guess(data)
    assert found is not None
    assert found.kind == "synic"


def test_a_timer_message() -> None:
    """The hypervisor's own messages have layouts too."""
    data = slot(MessageType.TIMER_EXPIRED, TimerMessage(2, 0, 10_000_000, 20_000_000).encode())
    field = decode_synic_message(data)
    check_tree(field, data)
    assert value(field, "payload.timer_index") == 2
    assert field.find("payload.expiration_time").words == "1.0000000 s"  # type: ignore[union-attr]


def test_a_message_page() -> None:
    """Sixteen slots, most of them empty."""
    data = bytes(2 * SLOT_SIZE) + slot(1, m.AllOffersDelivered().encode()) + bytes(13 * SLOT_SIZE)
    field = decode_message_page(data)
    check_tree(field, data)
    assert field.words == "messages in sint[2]"
    assert field.children[2].words == "ALL_OFFERS_DELIVERED"
    found = guess(data)
    assert found is not None
    assert found.kind == "message-page"


@given(st.integers(0, 15), st.sets(st.integers(0, 2047), min_size=1, max_size=10))
def test_an_event_page(sint: int, flags: set[int]) -> None:
    """Flags by number, which on SINT 2 are channel IDs."""
    value_of = sum(1 << flag for flag in flags)
    data = bytes(256 * sint) + value_of.to_bytes(256, "little") + bytes(256 * (15 - sint))
    field = decode_event_page(data)
    check_tree(field, data)
    assert field.words == f"sint[{sint}]: flags {', '.join(str(flag) for flag in sorted(flags))}"


@given(st.integers(0, 127), st.integers(1, 0xFFFF), st.integers(1, 0xFFFF_FFFF))
def test_a_monitor_page(trigger: int, latency: int, connection: int) -> None:
    """A trigger that the host has set up and the guest has set."""
    region = bytearray(4096)
    page = MonitorPage(memoryview(region))
    page.enable_groups(1 << trigger // 32)
    page.set_up(trigger, latency, MonitorParameter(connection, 5))
    page.trigger(trigger)
    data = bytes(region)
    field = decode_monitor_page(data)
    check_tree(field, data)
    assert field.words == f"groups {trigger // 32} enabled, trigger {trigger} pending"
    assert value(field, f"parameter[{trigger}].connection_id") == connection
    assert value(field, f"parameter[{trigger}].flag_number") == 5
    assert f"{trigger}: {latency / 10:g} us" in field.find(f"latency[{trigger // 32}]").words  # type: ignore[union-attr]
    found = guess(data)
    assert found is not None
    assert found.kind == "monitor-page"


def test_the_reference_tsc_page() -> None:
    """Scale and offset as people think of them."""
    data = tsc_page(1, tsc_scale(2_000_000_000), -30_000_000).ljust(4096, b"\0")
    field = decode_tsc_page(data)
    check_tree(field, data)
    assert field.words == "a TSC of 2000.000 MHz, offset -3.0000000 s"
    assert value(field, "offset") == -30_000_000
