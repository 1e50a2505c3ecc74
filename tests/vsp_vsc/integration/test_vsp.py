"""What the VSPs do with guests that say the wrong thing, and how they show it."""

from __future__ import annotations

import struct
from functools import partial

import pytest
import trio
import trio.testing

from hypervisor.wire import BadValue, ShortMessage, TooMany, WireError
from tests.doubles.integration import NOW, Served, serving
from vmbus.ring import Packet, PacketType
from vsp_vsc.integration.component import NEGOTIATION_SECONDS, Contact, NoAnswer
from vsp_vsc.integration.heartbeat.vsp import HeartbeatState, HeartbeatVsp
from vsp_vsc.integration.kvp.protocol import (
    KvpItem,
    Operation,
    Pool,
    ValueType,
    decode_text,
    decode_value,
    encode_request,
)
from vsp_vsc.integration.kvp.vsp import KvpRefused, KvpVsp
from vsp_vsc.integration.protocol import (
    RESPONSE,
    Component,
    Message,
    Status,
    Version,
    encode_message,
    encode_negotiate,
)
from vsp_vsc.integration.shutdown.protocol import TEXT_BYTES, encode_text
from vsp_vsc.integration.shutdown.protocol import decode_text as decode_display
from vsp_vsc.integration.shutdown.vsp import ShutdownVsp
from vsp_vsc.integration.time_sync.protocol import SyncFlags, TimeReference, file_time, moment_of
from vsp_vsc.integration.time_sync.vsp import TimeSyncVsp


async def agree(served: Served, version: Version) -> None:
    message = await served.hear()
    assert message.header.component == Component.NEGOTIATE
    body = encode_negotiate((Version(3, 0),), (version,))
    await served.say(encode_message(Component.NEGOTIATE, body, flags=RESPONSE))
    await trio.testing.wait_all_tasks_blocked()
    assert served.vsp.contact is Contact.READY


async def answer(served: Served, message: Message, body: bytes, status: int = 0) -> None:
    header = message.header
    await served.say(
        encode_message(header.component, body, transaction_id=header.transaction_id, flags=RESPONSE, status=status)
    )


def test_an_offer_is_a_message_pipe() -> None:
    """Interface and instance are Hyper-V's; the flags say device interface and named pipe, the first word messages."""
    from hypervisor.trace import Trace
    from vsp_vsc.integration.component import PartitionTime

    offer = ShutdownVsp(PartitionTime(lambda: 0), Trace(lambda: 0), 1).offer
    assert str(offer.interface) == "0e0b6031-5213-4934-818b-38d90ced39db"
    assert str(offer.instance) == "b6650ff7-33bc-4840-8048-e0676786f393"
    assert offer.flags == 0x11
    assert offer.user_defined == struct.pack("<I", 4) + bytes(116)


async def test_a_guest_that_never_answers_the_offer_shows_as_mute(autojump_clock: trio.testing.MockClock) -> None:
    """After half a minute; Linux without its daemon is such a guest, and is welcome whenever it comes."""
    async with serving(KvpVsp) as served:
        await trio.testing.wait_all_tasks_blocked()
        assert served.vsp.contact is Contact.NEGOTIATING
        await trio.sleep(NEGOTIATION_SECONDS + 1)
        assert served.vsp.contact is Contact.MUTE
        await agree(served, Version(4, 0))


@pytest.mark.parametrize(
    "packet",
    [
        Packet(PacketType.INBAND, 0, 0, 0, b"\x01\0\0\0"),
        Packet(PacketType.INBAND, 0, 0, 0, struct.pack("<II", 3, 0)),
        Packet(PacketType.INBAND, 0, 0, 0, struct.pack("<II", 1, 100) + bytes(8)),
        Packet(PacketType.INBAND, 0, 0, 0, struct.pack("<II", 1, 0)),
        Packet(PacketType.INBAND, 0, 0, 0, struct.pack("<II", 1, 20) + bytes(20)),
    ],
    ids=["half a pipe header", "no data", "longer than it is", "no header", "a request"],
)
async def test_a_message_that_is_none_stops_the_component(packet: Packet) -> None:
    """The channel is served no more, the mistake is traced, and the state says so."""
    async with serving(ShutdownVsp) as served:
        await served.guest_end.send(packet)
        await served.ended.wait()
        (fault,) = served.stopped
        assert isinstance(fault, WireError)
        assert served.vsp.contact is Contact.STOPPED
        assert [event.event for event in served.events if event.level >= 30] == ["integration_stopped"]


async def test_a_short_beat_stops_the_heart(autojump_clock: trio.testing.MockClock) -> None:
    """An answer without a number in it."""
    async with serving(HeartbeatVsp) as served:
        await agree(served, Version(3, 0))
        await answer(served, await served.hear(), b"\0" * 7)
        await served.ended.wait()
        assert isinstance(served.stopped[0], ShortMessage)
        assert served.vsp.heartbeat.state is HeartbeatState.LOST


async def test_a_beat_answered_with_a_wrong_number_does_not_count(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever answers without counting is not known to be alive."""
    async with serving(HeartbeatVsp) as served:
        await agree(served, Version(3, 0))
        await answer(served, await served.hear(), struct.pack("<QI28x", 7, 0))
        await trio.sleep(1)
        assert served.vsp.heartbeat.state is HeartbeatState.LOST
        await answer(served, await served.hear(), struct.pack("<QI28x", 1, 99))
        await trio.sleep(1)
        beat = served.vsp.heartbeat
        assert (beat.state, beat.beats, beat.missed, beat.application) == (HeartbeatState.OK, 1, 1, 0)


async def test_a_guest_that_takes_nothing_out_of_its_ring(autojump_clock: trio.testing.MockClock) -> None:
    """Beats that find no room are lost beats; nothing piles up."""
    async with serving(HeartbeatVsp, ring_bytes=8192) as served:
        await agree(served, Version(3, 0))
        await trio.sleep(600)
        assert served.vsp.heartbeat.state is HeartbeatState.LOST
        assert 30 < served.host_end.statistics().packets_out < 50


async def test_guest_text_is_data() -> None:
    """Lone surrogates are replaced, what is behind a NUL is not looked at; sizes that cannot be stop the component."""
    async with serving(KvpVsp) as served, trio.open_nursery() as nursery:
        await agree(served, Version(4, 0))
        got: list[object] = []

        async def get(key: str) -> None:
            try:
                got.append(await served.vsp.get(key))
            except NoAnswer as error:
                got.append(type(error))

        async def told(item: KvpItem, status: int = 0) -> None:
            nursery.start_soon(get, "key")
            body = encode_request(Operation.GET, Pool.GUEST, item.encode())
            await answer(served, await served.hear(), body, status)
            await trio.testing.wait_all_tasks_blocked()

        text = b"\x00\xd8a\0\0\0b\0"
        await told(KvpItem(ValueType.STRING, 0, len(text), b"", text))
        await told(KvpItem(ValueType.QWORD, 0, 8, b"", (1 << 63).to_bytes(8, "little")))
        await told(KvpItem(), Status.NOT_FOUND)
        await told(KvpItem(), Status.FAIL)
        assert got == ["\ufffda", 1 << 63, None, KvpRefused]
        await told(KvpItem(ValueType.STRING, 0, 2050, b"", b""))
        assert got[-1] is NoAnswer
        await served.ended.wait()
        assert isinstance(served.stopped[0], BadValue)


@pytest.mark.parametrize(
    ("kind", "size", "error"),
    [(1, 2049, TooMany), (1, 0xFFFF_FFFF, TooMany), (1, 3, BadValue), (3, 2, BadValue), (4, 3, ShortMessage)],
)
def test_values_that_cannot_be(kind: int, size: int, error: type[WireError]) -> None:
    """Longer than their place, half a unit, a type that is none, a number without all its bytes."""
    with pytest.raises(error):
        decode_value(kind, bytes(2048), size)


def test_texts_of_no_length() -> None:
    assert decode_text(bytes(512), 0) == decode_text(bytes(512), 512) == ""


def test_a_display_text_is_cut_to_its_place() -> None:
    """With room for its NUL, and never in the middle of a character."""
    long = "a" + "\U0001f600" * 1000
    raw = encode_text(long)
    assert len(raw) <= TEXT_BYTES - 2
    assert decode_display(raw.ljust(TEXT_BYTES, b"\0")) == long[: 1 + (TEXT_BYTES - 4) // 4]


async def test_the_first_message_sets_the_clock(autojump_clock: trio.testing.MockClock) -> None:
    """Date and reference time were read together; a mute guest is told again, and not sooner than in five seconds."""
    async with serving(partial(TimeSyncVsp, lambda: NOW)) as served:
        await agree(served, Version(4, 0))
        for _ in range(3):
            told = TimeReference.decode((await served.hear()).body)
            assert (told.parent_time, told.flags) == (file_time(NOW), SyncFlags.SYNC)
            assert abs(told.reference_time - served.clock()) < 10
        assert trio.current_time() >= 10
        assert served.vsp.contact is Contact.MUTE


def test_dates_count_from_1601() -> None:
    assert file_time(moment_of(0)) == 0
    assert file_time(NOW) == (1_795_435_200 + 11_644_473_600) * 10**7
    assert moment_of(file_time(NOW)) == NOW
