"""Addresses from a DHCP server: a small one of the test's own, in bytes of its own, and tshark as the judge of ours."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from partitions.child.net import dhcp, frames
from partitions.child.net.ip import HostUnreachable, Ip, leased_ip
from partitions.child.net.leases import NoLease
from tests.doubles.ethernet import CableEnd, judged, mac
from tests.doubles.guest_platform import FakePlatform
from tests.doubles.tshark import needs_tshark
from vsp_vsc.network.guest_queue import FrameQueue

DISCOVER, OFFER, REQUEST, ACK, NAK = 1, 2, 3, 5, 6
GATEWAY = bytes([10, 0, 0, 254])


@attrs.define
class Server:
    """Gives out 10.0.0.77/24; `answer` may say otherwise."""

    end: CableEnd
    seconds: int = 600
    heard: list[int] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)
    answer: Callable[[int], int | None] = lambda kind: OFFER if kind == DISCOVER else ACK
    address: bytes = bytes([10, 0, 0, 77])
    number_off: int = 0
    queue: FrameQueue = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.queue = self.end.frames()

    async def run(self) -> None:
        while True:
            frame = await self.queue.receive()
            if frames.parse_ethernet(frame).kind != frames.EtherType.IPV4:
                arp = frames.parse_arp(frame[14:])
                if arp.target == GATEWAY:
                    reply = frames.Arp(2, self.end.mac, GATEWAY, arp.sender_mac, arp.sender)
                    await self.send(arp.sender_mac, frames.EtherType.ARP, frames.encode_arp(reply))
                continue
            packet = frames.parse_ipv4(frame[14:])
            udp = frames.parse_udp(packet.source, packet.destination, packet.payload)
            assert (udp.source_port, udp.destination_port) == (68, 67)
            assert udp.data[236:240].hex() == "63825363"
            (kind,) = udp.data[udp.data.index(b"\x35\x01") + 2 :][:1]
            self.heard.append(kind)
            self.times.append(trio.current_time())
            said = self.answer(kind)
            if said is not None:
                await self.reply(said, udp.data)

    async def reply(self, kind: int, question: bytes) -> None:
        number = int.from_bytes(question[4:8], "big") + self.number_off
        head = struct.pack(">4BIHH", 2, 1, 6, 0, number, 0, 0) + bytes(4) + self.address + bytes(8) + question[28:44]
        options = bytes([53, 1, kind, 1, 4, 255, 255, 255, 0, 3, 4, *GATEWAY, 54, 4, *GATEWAY, 0, 51, 4])
        options += self.seconds.to_bytes(4, "big") + bytes([6, 8, 1, 1, 1, 1, 8, 8, 8, 8, 255])
        data = head + bytes(192) + b"\x63\x82\x53\x63" + options
        datagram = frames.encode_udp(GATEWAY, frames.BROADCAST, 67, 68, data)
        packet = frames.encode_ipv4(GATEWAY, frames.BROADCAST, 17, datagram, ident=1)
        await self.send(frames.BROADCAST_MAC, frames.EtherType.IPV4, packet)

    async def send(self, to: bytes, kind: int, payload: bytes) -> None:
        await self.end.send_batch([frames.ethernet_header(to, self.end.mac, kind) + payload])


def ends() -> tuple[CableEnd, CableEnd]:
    ours, theirs = CableEnd(mac(1)), CableEnd(mac(254))
    ours.peers, theirs.peers = [theirs], [ours]
    return ours, theirs


async def test_an_address_is_given(autojump_clock: MockClock) -> None:
    """Asked for, offered, requested and ours, with network, gateway and name servers."""
    ours, theirs = ends()
    server = Server(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        ip = await leased_ip(ours, FakePlatform())
        assert ip.address == "10.0.0.77/24"
        assert ip.lease is not None
        assert ip.stack.gateway == GATEWAY
        assert ip.lease.name_servers == (bytes([1, 1, 1, 1]), bytes([8, 8, 8, 8]))
        assert server.heard == [DISCOVER, REQUEST]
        nursery.cancel_scope.cancel()


async def test_answers_that_are_lost_or_no(autojump_clock: MockClock) -> None:
    """Each question is asked again; after a refusal all begins anew."""
    ours, theirs = ends()
    script = iter([None, OFFER, NAK, OFFER, ACK])
    server = Server(theirs, answer=lambda kind: next(script))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        ip = await leased_ip(ours, FakePlatform())
        assert ip.address == "10.0.0.77/24"
        assert server.heard == [DISCOVER, DISCOVER, REQUEST, DISCOVER, REQUEST]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("settings", [{"answer": lambda kind: None}, {"number_off": 1}, {"answer": lambda kind: ACK}])
async def test_nobody_gives_one(settings: dict[str, object], autojump_clock: MockClock) -> None:
    """No answer, answers to others, or one that was not asked for: after four questions that is said."""
    ours, theirs = ends()
    server = Server(theirs, **settings)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        with pytest.raises(NoLease, match="no DHCP server has given an address within 15 s"):
            await leased_ip(ours, FakePlatform())
        assert server.heard == [DISCOVER] * 4
        assert ours.queues[0].closed
        nursery.cancel_scope.cancel()


async def test_an_address_that_cannot_be(autojump_clock: MockClock) -> None:
    """Is the server's mistake, and said so."""
    ours, theirs = ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(theirs, address=bytes([127, 0, 0, 1])).run)
        with pytest.raises(NoLease, match=r"nonsense: 127\.0\.0\.1/24 is no address"):
            await leased_ip(ours, FakePlatform())
        nursery.cancel_scope.cancel()


async def test_the_device_goes_meanwhile(autojump_clock: MockClock) -> None:
    """Which is said, too."""
    ours, _ = ends()
    async with trio.open_nursery() as nursery:

        async def pull() -> None:
            await trio.sleep(2)
            ours.pull()

        nursery.start_soon(pull)
        with pytest.raises(OSError, match="gone"):
            await leased_ip(ours, FakePlatform())


async def run_for(server: Server, ours: CableEnd, seconds: float) -> Ip:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        ip = await leased_ip(ours, FakePlatform())
        nursery.start_soon(ip.run)
        await trio.sleep(seconds)
        ended = ip._end
        nursery.cancel_scope.cancel()
    ip._end = ended
    return ip


async def test_a_lease_is_renewed(autojump_clock: MockClock) -> None:
    """At half its time, from the address itself, for as long as the server agrees."""
    ours, theirs = ends()
    server = Server(theirs)
    ip = await run_for(server, ours, 2000)
    assert ip._end is None
    assert server.heard == [DISCOVER, REQUEST] + [REQUEST] * 6
    assert [round(time) for time in server.times[2:4]] == [300, 600]


@pytest.mark.parametrize("answer", [None, NAK])
async def test_a_lease_ends(answer: int | None, autojump_clock: MockClock) -> None:
    """When the server says so, or nothing until it is over: the address is given up."""
    ours, theirs = ends()
    server = Server(theirs)
    first = iter([OFFER, ACK])
    server.answer = lambda kind: next(first, answer)
    ip = await run_for(server, ours, 700)
    assert ip._end == (
        "the lease of the address has ended" if answer is None else "the DHCP server has taken the address back"
    )
    with pytest.raises(HostUnreachable, match="address"):
        ip.udp(7)


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes(data: bytes, behind_a_header: bool) -> None:
    """Are an answer or a bad packet, and never make a lease by themselves."""
    if behind_a_header:
        data = bytes([2, 1, 6, 0]) + bytes(232) + b"\x63\x82\x53\x63" + data
    try:
        dhcp.parse_reply(data)
    except frames.BadPacket:
        pass
    discovery = dhcp.Discovery(mac(1), 7)
    datagram = frames.encode_udp(GATEWAY, frames.BROADCAST, 67, 68, data)
    packet = frames.encode_ipv4(GATEWAY, frames.BROADCAST, 17, datagram, ident=1)
    assert discovery.receive(frames.ethernet_header(mac(1), mac(254), 0x0800) + packet) is False
    assert discovery.receive(data) is False


@needs_tshark
async def test_an_independent_reader_agrees(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Both questions, as tshark reads them."""
    ours, theirs = ends()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(theirs).run)
        await leased_ip(ours, FakePlatform())
        nursery.cancel_scope.cancel()
    names = ["_ws.col.Protocol", "dhcp.option.dhcp", "dhcp.option.requested_ip_address", "dhcp.hw.mac_addr"]
    assert judged(tmp_path / "dhcp.pcap", ours.log, names) == [
        ["DHCP", "1", "", "00:15:5d:00:00:01"],
        ["DHCP", "3", "10.0.0.77", "00:15:5d:00:00:01"],
    ]
