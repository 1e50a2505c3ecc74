"""The driver's end of a channel, against a host that says anything at all."""

from __future__ import annotations

import struct

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from hypervisor.wire import WireError
from tests.doubles.network_guests import adapters, driven
from tests.doubles.storage import channel_pair
from vmbus.ring import Packet, PacketType
from vsp_vsc.network.guest_buffers import SendSections
from vsp_vsc.network.guest_channel import NetworkChannel, ReceiveCounters
from vsp_vsc.network.guest_control import RndisControl
from vsp_vsc.network.protocol import NvspType
from vsp_vsc.network.rndis import RndisType

words = st.one_of(st.integers(0, 120), st.sampled_from([0xCAFE, 4096, 0xFFFF_FFFF, 0x8000_0000]))
bodies = st.lists(words, max_size=24).map(lambda values: struct.pack(f"<{len(values)}I", *values))
starts = st.sampled_from([0, 8, 16, 24, 32])
kinds = st.sampled_from(list(PacketType))
packets = st.builds(
    lambda kind, flags, number, start, body: Packet(
        kind, flags, number, start if kind != PacketType.INBAND else 0, body
    ),
    kinds,
    st.integers(0, 1),
    st.integers(0, 12),
    starts,
    st.one_of(
        bodies,
        bodies.map(lambda body: struct.pack("<HBBI", 0xCAFE, 0, 0, 1) + body),
        bodies.map(lambda body: struct.pack("<I", NvspType.SEND_INDIRECTION_TABLE) + body),
    ),
)
messages = st.builds(
    lambda kind, more: struct.pack("<II", kind, 8 + len(more)) + more, st.sampled_from(list(RndisType)), bodies
)


async def nothing(_message: bytes) -> None:
    """A host that answers nothing."""


def driver_end() -> tuple[NetworkChannel, list[int]]:
    """With a receive buffer of a page and eight sections, of which two are in use."""
    control = RndisControl(nothing, lambda status: None)
    heard: list[int] = []
    channel = NetworkChannel(
        channel_pair(8192)[1],
        counters=ReceiveCounters(),
        on_frames=lambda frames: heard.extend(map(len, frames)),
        on_control=control.heard,
        on_message=lambda kind, body: heard.append(kind),
        on_room=lambda: None,
    )
    memory = bytearray(b"\x01\0\0\0\x3c\0\0\0\x24\0\0\0\x10\0\0\0".ljust(64, b"\0") * 64)
    channel.receive_buffer, channel.receive_buffer_id = memoryview(memory), 0xCAFE
    channel.sections = SendSections(memoryview(bytearray(8 * 512)), 512)
    channel.sections.take()
    channel.sections.take()
    return channel, heard


@settings(max_examples=40)
@given(st.lists(packets, max_size=6))
def test_any_packets(said: list[Packet]) -> None:
    """Are taken, or end the channel by an error of the wire; no section is ever free twice."""
    channel, _ = driver_end()
    sections = channel.sections
    assert sections is not None
    try:
        channel._take(said)
    except (WireError, struct.error):
        pass
    assert len(set(sections.free)) == len(sections.free) <= sections.count


@settings(max_examples=40)
@given(st.lists(messages, max_size=4))
def test_any_control_messages(said: list[bytes]) -> None:
    """Are heard, counted, or an error of the wire."""
    control = RndisControl(nothing, lambda status: None)
    for message in said:
        try:
            control.heard(message)
        except WireError:
            pass
    assert control.unexpected <= len(said)


async def test_a_table_that_names_channels_that_are_not_there() -> None:
    """Its flows take the primary channel; a table that is cut off is none."""
    async with adapters(processors=3, max_sub_channels=2) as wire, driven(wire.guests[0]) as network:
        host_end = wire.guests[0].ends[0][0]
        table = struct.pack("<III", NvspType.SEND_INDIRECTION_TABLE, 16, 12) + struct.pack("<16I", *range(100, 116))
        host_end.try_send_batch([Packet(PacketType.INBAND, 0, 0, 0, table)])
        await trio.testing.wait_all_tasks_blocked()
        assert network._sender.table == tuple(range(100, 116))
        await network.send(bytes(60))
        cut_off = struct.pack("<III", NvspType.SEND_INDIRECTION_TABLE, 0xFFFF_FFFF, 12).ljust(64, b"\0")
        host_end.try_send_batch([Packet(PacketType.INBAND, 0, 0, 0, cut_off)])
        await trio.testing.wait_all_tasks_blocked()
        assert network._sender.table == tuple(range(100, 116))


async def test_a_request_that_is_never_answered(autojump_clock: trio.testing.MockClock) -> None:
    """Can be cancelled, and the next one is not taken for it when the answer comes at last."""
    sent: list[bytes] = []

    async def send(message: bytes) -> None:
        sent.append(message)

    control = RndisControl(send, lambda status: None)
    with trio.move_on_after(1):
        await control.keep_alive()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.keep_alive)
        await trio.testing.wait_all_tasks_blocked()
        late, right = (
            struct.pack("<IIII", RndisType.KEEPALIVE_COMPLETE, 16, int.from_bytes(message[8:12], "little"), 0)
            for message in sent
        )
        control.heard(late)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        assert control.unexpected == 1
        control.heard(right)
    with pytest.raises(WireError):
        control.heard(struct.pack("<II", RndisType.KEEPALIVE_COMPLETE, 100))
