"""Whole sequences of the bus's control plane through the boundary driver: contacts, channels, GPADLs.

Many are those that openvmm's server is tested with (vmbus_server, channels/tests.rs and tests.rs), told from the
guest's end. The rules one by one are in tests/vmbus/server.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from hypervisor.msr import Msr
from tests.doubles.boundary_guest import RINGS, Rings
from tests.doubles.bus import BEGIN_INITIALIZATION, FAILURE, GPADL, Bus, device, faults, number, on_a_bus
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.protocol.features import Feature
from vmbus.protocol.messages import Message
from vmbus.protocol.pages import ConnectionPages
from vmbus.protocol.versions import Version

# ---------------------------------------------------------------------------------------------- channels, connections


@pytest.mark.parametrize("version", [Version.V5_2, Version.V5_3, Version.V6_0])
def test_the_life_of_a_channel(tmp_path: Path, version: int) -> None:
    """test_channel_lifetime: open, retarget with an answer from 5.3 on, rescind, release."""

    async def sequence(bus: Bus) -> None:
        one = device(1)
        await bus.add(one)
        assert await bus.connect(version) == [(1, number(1), 0)]
        await bus.gpadl_and_open()
        answer = [m.ModifyChannelResponse(channel_id=1)] if version >= Version.V5_3 else []
        assert await bus.say(m.ModifyChannel(channel_id=1, target_vp=1)) == answer
        refusal = [m.ModifyChannelResponse(channel_id=1, status=FAILURE)] if version >= Version.V5_3 else []
        assert await bus.say(m.ModifyChannel(channel_id=1, target_vp=0xFFFFFFFF)) == refusal
        assert await bus.say(m.ModifyChannel(channel_id=1, target_vp=2)) == refusal  # no such processor
        assert await bus.remove(one) == [m.RescindChannelOffer(channel_id=1)]
        assert await bus.say(m.RelIdReleased(channel_id=1)) == []

    on_a_bus(sequence, tmp_path)


def test_signals_go_by_the_numbers_of_the_guests_choice(tmp_path: Path) -> None:
    """test_channel_lifetime_copper_guest_signal, with real signals: connection 0x2002 and flag 2 for channel 1, though
    a second device has them by default."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        await bus.add(device(0xFFFFFFFF))
        (disk, other) = await bus.connect(Version.V6_0, Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS)
        assert (disk[0], other[0]) == (1, 2)
        await guest.write(RINGS, bytes(8 << 12))
        await bus.gpadl(1)
        opening = m.OpenChannel2(
            channel_id=1, open_id=1, gpadl_id=GPADL, downstream_page=4, connection_id=0x2002, event_flag=2
        )
        assert await bus.say(opening) == [m.OpenChannelResult(channel_id=1, open_id=1)]
        assert await guest.signal(0x2002) == "SUCCESS"
        assert await guest.signal(0x2001) == "INVALID_CONNECTION_ID"
        descriptor = struct.pack("<HHHHQ", 6, 2, 10, 1, 0x77)
        await guest.write(RINGS + 4096, descriptor + BEGIN_INITIALIZATION + bytes(8))
        await guest.write(RINGS, struct.pack("<I", 88))
        assert await guest.signal(0x2002) == "SUCCESS"
        assert await guest.flags() == {2}

    on_a_bus(sequence, tmp_path, disk=True)


def test_features_of_6_0(tmp_path: Path) -> None:
    """test_version_negotiation_feature_flags: unknown bits vanish, known ones are granted, one at a time."""

    async def sequence(bus: Bus) -> None:
        for asked, granted in ((0, 0), (1, 1), (1 | 0xF0000000, 1), (2, 2), (0x20, 0x20), (0x10, 0), (0x80, 0)):
            assert await bus.contact(Version.V6_0, asked) == [
                m.VersionResponse2(supported=1, detail=1, features=granted)
            ]
            assert await bus.say(m.Unload()) == [m.UnloadComplete()]
        contact = m.initiate_contact(Version.V6_0, client_id=number(0xE6E6E6E6), features=8)
        assert await bus.say(contact, connection=4) == [m.VersionResponse2(supported=1, detail=1, features=8)]

    on_a_bus(sequence, tmp_path)


def test_another_sint_is_told_so_on_that_sint(tmp_path: Path) -> None:
    """test_version_negotiation_multiclient_sint: by connection 4 only; the classic port ignores the field."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        await guest.wrmsr(Msr.SINT2 + 1, 0xF4)
        contact = m.InitiateContact(version=Version.V5_0, target_sint=3)
        assert await bus.say(contact, connection=4) == []
        slot = await guest.read(guest.message_page + 3 * 256, 32)
        assert slot[16:32] == m.VersionResponse().encode()
        assert await bus.say(contact) == [m.VersionResponse(supported=1, detail=1)]

    on_a_bus(sequence, tmp_path)


def test_another_trust_level_is_not_spoken_for(tmp_path: Path) -> None:
    """test_version_negotiation_multiclient_vtl: silence by connection 4; the classic port ignores the field."""

    async def sequence(bus: Bus) -> None:
        contact = m.InitiateContact(version=Version.V5_1, target_vtl=2)
        assert await bus.say(contact, connection=4) == []
        assert await bus.say(m.RequestOffers()) == []
        assert await bus.say(contact) == [m.VersionResponse(supported=1, detail=1)]
        assert await bus.say(m.RequestOffers()) == [m.AllOffersDelivered()]

    on_a_bus(sequence, tmp_path)


def test_another_clients_contact_leaves_an_open_channel_alone(tmp_path: Path) -> None:
    """A contact by connection 4 for another SINT is refused there; what this guest has goes on, UNLOAD included."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        await guest.wrmsr(Msr.SINT2 + 1, 0xF4)
        await bus.connect()
        rings = await guest.open_channel()
        for target in ({"target_sint": 3}, {"target_vtl": 1}):
            assert await bus.say(m.InitiateContact(version=Version.V5_3, **target), connection=4) == []
        assert (await guest.read(guest.message_page + 3 * 256, 32))[16:] == m.VersionResponse().encode()
        await rings.send(BEGIN_INITIALIZATION)
        assert len(await rings.received()) == 1
        assert await bus.say(m.Unload()) == [m.UnloadComplete()]

    on_a_bus(sequence, tmp_path, disk=True)


@pytest.mark.parametrize(
    ("version", "response"),
    [
        (Version.V1_1, m.VersionResponse()),
        (Version.V2_4, m.VersionResponse(supported=1, connection_state=2, detail=Version.V2_4)),
        (Version.V5_3, m.VersionResponse(supported=1, connection_state=2, detail=1)),
        (Version.V6_0, m.VersionResponse2(supported=1, connection_state=2, detail=1, features=0x20)),
    ],
)
def test_a_connection_that_fails(tmp_path: Path, version: int, response: Message) -> None:
    """One monitor page of two. The answer is that of a connection, but for its state, and there is none after it."""

    async def sequence(bus: Bus) -> None:
        bus.version = version
        contact = m.initiate_contact(version, features=0x20, pages=ConnectionPages(to_child=0x6000))
        assert await bus.say(contact, connection=4 if version >= Version.V5_0 else 1) == [response]
        assert await bus.say(m.RequestOffers()) == []
        assert await bus.connect(version) == []

    on_a_bus(sequence, tmp_path)


@pytest.mark.parametrize("version", [0, 0x50004, 0x60001, 0xFFFFFFFF])
@pytest.mark.parametrize("vp", [0, 2])
def test_versions_that_are_none(tmp_path: Path, version: int, vp: int) -> None:
    """test_version_negotiation_not_supported: told so, on VP 0 if there is none of that number; nothing has changed."""

    async def sequence(bus: Bus) -> None:
        assert await bus.say(m.initiate_contact(version, target_vp=vp)) == [m.VersionResponse()]
        assert await bus.connect() == []

    on_a_bus(sequence, tmp_path)


def test_unload_with_open_channels(tmp_path: Path) -> None:
    """test_disconnect_open_channels: one answer, when both have stopped; then nothing but a contact is heard."""

    async def sequence(bus: Bus) -> None:
        devices = [device(1), device(2), device(3)]
        await bus.add(*devices)
        await bus.connect(Version.V4_0)
        await bus.gpadl_and_open(1, 1)
        await bus.gpadl_and_open(2, 2)
        assert await bus.say(m.Unload()) == [m.UnloadComplete()]
        assert [each.serving for each in devices] == [0, 0, 0]
        assert await bus.say(m.RequestOffers()) == []
        assert len(await bus.connect(Version.V4_0)) == 3

    on_a_bus(sequence, tmp_path)


def test_reserved_channels_to_the_end(tmp_path: Path) -> None:
    """test_reserved_channels: answers on the SINT of VP 1 that each message names, over UNLOAD and a new connection."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        page = 0x8000
        assert (await guest.do("wrmsr", vp=1, msr=int(Msr.SIMP), value=page | 1)).status == "ok"
        assert (await guest.do("wrmsr", vp=1, msr=int(Msr.SINT0 + 5), value=0xF5)).status == "ok"
        assert (await guest.do("wrmsr", vp=1, msr=int(Msr.SCONTROL), value=1)).status == "ok"

        async def apart() -> bytes:
            raw = await guest.read(page + 5 * 256, 256)
            await guest.write(page + 5 * 256, bytes(4))
            return raw[16 : 16 + raw[4]] if raw[:4] != bytes(4) else b""

        kept = device(1)
        await bus.add(kept, device(2))
        await bus.connect(Version.V4_0)
        await bus.gpadl()
        opening = m.OpenReservedChannel(channel_id=1, target_vp=1, target_sint=5, gpadl_id=GPADL, downstream_page=4)
        assert await bus.say(opening) == []
        assert await apart() == m.OpenChannelResult(channel_id=1).encode()
        assert await bus.say(m.CloseChannel(channel_id=1)) == []
        assert await bus.say(m.Unload()) == [m.UnloadComplete()]
        assert kept.serving == 1
        assert await bus.connect(Version.V6_0) == [(2, number(2), 0)]
        assert await bus.gpadl(2) == [m.GpadlCreated(channel_id=2, gpadl_id=GPADL)]
        assert await bus.say(m.CloseReservedChannel(channel_id=1, target_vp=1, target_sint=5)) == []
        assert await apart() == m.CloseReservedResponse(channel_id=1).encode()
        assert kept.serving == 0
        assert await bus.say(m.GpadlTeardown(channel_id=1, gpadl_id=GPADL)) == [m.GpadlTorndown(gpadl_id=GPADL)]
        await bus.gpadl_and_open(1, 77)

    on_a_bus(sequence, tmp_path)


def test_a_reset_closes_what_was_reserved(tmp_path: Path) -> None:
    """test_disconnected_reset: after UNLOAD too; the channel is offered anew, and its GPADL number is free."""

    async def sequence(bus: Bus) -> None:
        kept = device(1)
        await bus.add(kept)
        for _ in range(2):
            await bus.connect(Version.V4_0)
            await bus.gpadl()
            opening = m.OpenReservedChannel(channel_id=1, target_vp=0, target_sint=2, gpadl_id=GPADL, downstream_page=4)
            assert await bus.say(opening) == [m.OpenChannelResult(channel_id=1)]
            assert await bus.say(m.Unload()) == [m.UnloadComplete()]
            assert kept.serving == 1
            await bus.guest.do("reset")
            assert kept.serving == 0
            await bus.guest.boot()
        assert await bus.connect(Version.V4_0) == [(1, number(1), 0)]
        await bus.gpadl_and_open()
        assert faults(bus) == 0

    on_a_bus(sequence, tmp_path)


def test_modify_connection(tmp_path: Path) -> None:
    """test_modify_connection: other monitor pages, none, and such as cannot be; the channels stay as they are."""

    async def sequence(bus: Bus) -> None:
        kept = device(1)
        await bus.add(kept)
        await bus.connect(Version.V6_0, Feature.MODIFY_CONNECTION)
        await bus.gpadl_and_open()
        for to_child, to_root, state in (
            *((5, 6, 2), (0x6000, 0x7000, 0), (0x6000, 0, 2), (0x6000, 0x6000, 2)),
            *((1 << 40, 0x7000, 2), (0x9000, 0x8000, 0), (0, 0, 0)),
        ):
            asked = m.ModifyConnection(parent_to_child_monitor_page=to_child, child_to_parent_monitor_page=to_root)
            assert await bus.say(asked) == [m.ModifyConnectionResponse(connection_state=state)]
        assert kept.serving == 1

    on_a_bus(sequence, tmp_path)


def test_modify_connection_unsupported(tmp_path: Path) -> None:
    """test_modify_connection_unsupported: no answer where the feature was not agreed on, and the connection stays."""

    async def sequence(bus: Bus) -> None:
        await bus.contact(Version.V6_0)
        asked = m.ModifyConnection(parent_to_child_monitor_page=0x6000, child_to_parent_monitor_page=0x7000)
        assert await bus.say(asked) == []
        assert await bus.say(m.RequestOffers()) == [m.AllOffersDelivered()]

    on_a_bus(sequence, tmp_path)


def test_a_channel_without_interrupts(tmp_path: Path) -> None:
    """test_mnf_channel_open_with_interrupts_disabled: opened for VP FFFFFFFFh it is served, and its guest polls."""

    async def sequence(bus: Bus) -> None:
        guest = bus.guest
        await bus.connect(Version.V6_0)
        await guest.write(RINGS, bytes(8 << 12))
        await bus.gpadl()
        opening = m.OpenChannel(channel_id=1, open_id=1, gpadl_id=GPADL, downstream_page=4, target_vp=0xFFFFFFFF)
        assert await bus.say(opening) == [m.OpenChannelResult(channel_id=1, open_id=1)]
        rings = Rings(guest, RINGS, 4 << 12, 4 << 12, 0x2001)
        guest.events.clear()
        await rings.send(BEGIN_INITIALIZATION)
        assert len(await rings.received()) == 1
        assert (guest.events, await guest.flags()) == ([], set())

    on_a_bus(sequence, tmp_path, disk=True)


def test_messages_wait_for_their_slot_in_order(tmp_path: Path) -> None:
    """test_pending_messages: nothing is lost and nothing overtakes, however late the guest looks."""

    async def sequence(bus: Bus) -> None:
        await bus.add(*(device(value) for value in range(1, 21)))
        await bus.contact()
        assert await bus.guest.post(m.RequestOffers().encode()) == "SUCCESS"
        for channel_id in (3, 1, 2):
            for message in encode_gpadl(channel_id, channel_id, [page_range(range(16, 24))]):
                assert await bus.guest.post(message) == "SUCCESS"
        offers = await bus.heard()
        assert bus.offered(offers[:20]) == [(value, number(value), 0) for value in range(1, 21)]
        created = [m.GpadlCreated(channel_id=channel_id, gpadl_id=channel_id) for channel_id in (3, 1, 2)]
        assert offers[20:] == [m.AllOffersDelivered(), *created]

    on_a_bus(sequence, tmp_path)


def test_pause_and_resume(tmp_path: Path) -> None:
    """Nothing after PAUSE_RESPONSE; all that was held, in order, after RESUME."""

    async def sequence(bus: Bus) -> None:
        first = device(1)
        await bus.add(first)
        await bus.connect(Version.V6_0, Feature.PAUSE_RESUME)
        assert await bus.say(m.Pause()) == [m.PauseResponse()]
        assert await bus.add(device(2)) == []
        assert await bus.remove(first) == []
        offer, rescind = await bus.say(m.Resume())
        assert bus.offered([offer]) == [(2, number(2), 0)]
        assert rescind == m.RescindChannelOffer(channel_id=1)

    on_a_bus(sequence, tmp_path)


@pytest.mark.parametrize(("version", "silo"), [(0x40000, False), (0x40001, False), (0x50002, True), (0x50002, False)])
def test_a_socket_that_nobody_listens_on(tmp_path: Path, version: int, silo: bool) -> None:
    """test_hvsock: refused with both GUIDs from 4.1 on, in either length; before that there is no such answer."""

    async def sequence(bus: Bus) -> None:
        await bus.contact(version)
        kind = m.TlConnectRequest2 if silo else m.TlConnectRequest
        answer = await bus.say(kind(endpoint=number(7), service=number(8)))
        refused = m.TlConnectResult(endpoint=number(7), service=number(8), status=0xC0000236)
        assert answer == ([refused] if version >= 0x40001 else [])

    on_a_bus(sequence, tmp_path)


def test_gpadl_failures_and_the_same_number_again(tmp_path: Path) -> None:
    """test_gpadl_create_failure: an unknown channel, an offset past the page, and the same in two pieces."""

    async def sequence(bus: Bus) -> None:
        await bus.add(device(1))
        await bus.connect()
        good, bad = struct.pack("<QQ", 1, 0), struct.pack("<QQ", 1 | 0x1000 << 32, 0)

        def header(channel_id: int, size: int, ranges: int) -> bytes:
            return m.GpadlHeader(channel_id=channel_id, gpadl_id=1, byte_length=size, range_count=ranges).encode()

        assert await bus.say(header(100, 16, 1) + good) == [m.GpadlCreated(channel_id=100, gpadl_id=1, status=FAILURE)]
        failed = [m.GpadlCreated(channel_id=1, gpadl_id=1, status=FAILURE)]
        assert await bus.say(header(1, 16, 1) + bad) == failed
        assert await bus.say(header(1, 32, 2) + bad) == []
        assert await bus.say(m.GpadlBody(gpadl_id=1).encode() + good) == failed
        assert await bus.say(header(1, 16, 1) + good) == [m.GpadlCreated(channel_id=1, gpadl_id=1)]

    on_a_bus(sequence, tmp_path)


def test_a_gpadl_in_progress_at_a_reset(tmp_path: Path) -> None:
    """test_gpadl_in_progress_reset: its number is free for the next kernel, who sends it in two pieces."""

    async def sequence(bus: Bus) -> None:
        await bus.add(device(1))
        await bus.connect()
        piece = struct.pack("<QQ", 1, 0)
        header = m.GpadlHeader(channel_id=1, gpadl_id=1, byte_length=32, range_count=2).encode()
        assert await bus.say(header + piece) == []
        await bus.guest.do("reset")
        await bus.guest.boot()
        await bus.connect()
        assert await bus.say(header + piece) == []
        body = m.GpadlBody(gpadl_id=1).encode() + piece
        assert await bus.say(body) == [m.GpadlCreated(channel_id=1, gpadl_id=1)]

    on_a_bus(sequence, tmp_path)
