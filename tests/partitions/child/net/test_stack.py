"""The IPv4 stack as frames and times."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partitions.child.net import frames as f
from partitions.child.net.fragments import MAX_PACKETS, TIMEOUT, cut
from partitions.child.net.neighbours import LIFETIME, MAX_ASKED, MAX_KNOWN, MAX_WAITING, REFRESH
from partitions.child.net.stack import Conflict, Datagram, EchoReply, Failed, NoRoute, Stack
from tests.doubles.ethernet import SECOND, exchange, judged, mac, stack
from tests.doubles.tshark import needs_tshark


def ip_of(number: int) -> bytes:
    return bytes([10, 0, 0, number])


def from_(number: int, to: Stack, payload: bytes, protocol: int = 17, *, destination: bytes | None = None) -> bytes:
    """A frame for a stack."""
    target = destination or to.address
    packet = f.encode_ipv4(ip_of(number), target, protocol, payload, ident=1)
    return f.ethernet_header(to.mac, mac(number), f.EtherType.IPV4) + packet


def arp_from(number: int, target: bytes, operation: int = 1, *, sender: bytes | None = None) -> bytes:
    packet = f.Arp(operation, mac(number), sender or ip_of(number), f.NO_MAC, target)
    return f.ethernet_header(f.BROADCAST_MAC, mac(number), f.EtherType.ARP) + f.encode_arp(packet)


# --- pings and datagrams


def test_a_ping_and_its_answer() -> None:
    """ARP first, by both; then the echo, with the same data."""
    one, two = stack(1), stack(2)
    one.send_echo(0, two.address, 7, 1, b"data")
    exchange(0, one, two)
    assert one.events == [EchoReply(two.address, 7, 1, b"data")]
    assert two.counters.echo_requests == 1
    assert one.neighbours.lookup(two.address, 0) == two.mac
    assert two.neighbours.lookup(one.address, 0) == one.mac, "who asks for us will talk to us"


def test_a_datagram_and_a_port_that_nobody_has() -> None:
    """One arrives; the other comes back as an error that says which socket it is about."""
    one, two = stack(1), stack(2)
    two.ports.add(7)
    one.send_udp(0, 5000, two.address, 7, b"hello")
    one.send_udp(0, 5001, two.address, 8, b"hello")
    exchange(0, one, two)
    assert two.events == [Datagram(7, one.address, 5000, b"hello")]
    assert one.events == [Failed(17, two.address, 5001, 8, "10.0.0.2 says: port unreachable")]


def test_to_oneself() -> None:
    """Without the wire."""
    one = stack(1)
    one.ports.add(7)
    one.send_udp(0, 5000, one.address, 7, b"me")
    one.send_echo(0, one.address, 1, 1, b"")
    assert one.events == [Datagram(7, one.address, 5000, b"me"), EchoReply(one.address, 1, 1, b"")]
    assert one.outbox == []


def test_to_everybody() -> None:
    """Both broadcast addresses reach all who have the port, and nobody complains; pings to all are not answered."""
    one, two, three = stack(1), stack(2), stack(3)
    two.ports.add(7)
    for address in (f.BROADCAST, bytes([10, 0, 0, 255])):
        one.send_udp(0, 5000, address, 7, b"all")
        one.send_echo(0, address, 1, 1, b"")
    exchange(0, one, two, three)
    assert two.events == [Datagram(7, one.address, 5000, b"all")] * 2
    assert (one.events, three.events) == ([], [])


def test_ways() -> None:
    """By the gateway where there is one; else `NoRoute` says from where there is none."""
    one, gateway = stack(1, gateway="10.0.0.9"), stack(9)
    one.send_udp(0, 1, bytes([8, 8, 8, 8]), 53, b"")
    exchange(0, one, gateway)
    assert gateway.counters.not_ours == 1, "it came to the gateway's MAC address, which forwards nothing"
    with pytest.raises(NoRoute, match=r"no way to 8\.8\.8\.8 from 10\.0\.0\.0/24 without a gateway"):
        stack(2).send_udp(0, 1, bytes([8, 8, 8, 8]), 53, b"")
    for nowhere in ("127.0.0.1", "0.1.2.3", "240.0.0.1"):
        with pytest.raises(NoRoute):
            one.send_udp(0, 1, f.parse_address(nowhere), 53, b"")
    one.send_udp(0, 1, bytes([224, 130, 0, 251]), 53, b"")
    assert one.outbox[-1][:6].hex("-") == "01-00-5e-02-00-fb"


@pytest.mark.parametrize(
    ("address", "prefix", "gateway"),
    [
        ("10.0.0.0", 24, None),
        ("10.0.0.255", 24, None),
        ("127.0.0.1", 8, None),
        ("224.0.0.1", 4, None),
        ("10.0.0.1", 24, "10.0.0.1"),
        ("10.0.0.1", 24, "10.0.1.1"),
        ("255.255.255.255", 32, None),
        ("0.0.0.1", 8, None),
    ],
)
def test_addresses_that_no_host_can_have(address: str, prefix: int, gateway: str | None) -> None:
    """And gateways that cannot be reached."""
    with pytest.raises(ValueError, match=r"address|gateway"):
        Stack(mac(1), f.parse_address(address), prefix, f.parse_address(gateway) if gateway else None)


def test_two_hosts_on_a_link_of_two() -> None:
    """A prefix of 31 has no addresses to lose (RFC 3021)."""
    ends = [Stack(mac(number), bytes([10, 0, 0, number]), 31) for number in (0, 1)]
    ends[0].send_echo(0, ends[1].address, 1, 1, b"")
    exchange(0, *ends)
    assert len(ends[0].events) == 1


def test_vlans_are_apart() -> None:
    """Frames of another VLAN, or of none, are not heard; a tag with a priority alone is none."""
    one, two, plain = stack(1, vlan=7), stack(2, vlan=7), stack(3)
    one.send_echo(0, two.address, 1, 1, b"")
    one.send_echo(0, plain.address, 1, 2, b"")
    exchange(0, one, two, plain)
    assert one.events == [EchoReply(two.address, 1, 1, b"")]
    assert plain.counters.arp_in == 0
    request = arp_from(2, plain.address)
    plain.receive([request[:12] + b"\x81\x00\xe0\x00" + request[12:]], 0)
    assert plain.counters.arp_in == 1


# --- ARP


def test_nobody_answers() -> None:
    """Three requests a second apart, then each packet that waited has failed; the next one asks anew."""
    one = stack(1)
    one.send_echo(0, ip_of(9), 1, 1, b"")
    one.send_udp(0, 5000, ip_of(9), 7, b"x")
    requests = []
    while (deadline := one.deadline) is not None:
        requests += one.outbox
        one.outbox = []
        one.tick(deadline)
    assert len(requests) == 3
    assert one.counters.lost == 2
    reason = "no answer to ARP"
    assert one.events == [Failed(1, ip_of(9), 1, 1, reason), Failed(17, ip_of(9), 5000, 7, reason)]
    one.send_echo(deadline or 0, ip_of(9), 1, 2, b"")
    assert len(one.outbox) == 1


def test_the_cache_is_asked_again_in_time() -> None:
    """An address in use is confirmed by a request to it alone, and is not used when it is too old."""
    one, two = stack(1), stack(2)
    one.send_echo(0, two.address, 1, 1, b"")
    exchange(0, one, two)
    one.send_echo(REFRESH, two.address, 1, 2, b"")
    assert [frame[:6] for frame in one.outbox] == [two.mac, two.mac], "the ping, and a request"
    one.send_echo(REFRESH, two.address, 1, 3, b"")
    assert len(one.outbox) == 3, "one request a second"
    exchange(REFRESH, one, two)
    one.send_echo(REFRESH + SECOND, two.address, 1, 4, b"")
    assert len(one.outbox) == 1, "the answer has confirmed it"
    one.outbox = []
    one.send_echo(REFRESH + LIFETIME, two.address, 1, 5, b"")
    assert [frame[:6] for frame in one.outbox] == [f.BROADCAST_MAC]


def test_what_is_learned_from_whom() -> None:
    """RFC 826: who asks for us is taken in; others are only brought up to date."""
    one = stack(1)
    one.receive([arp_from(5, ip_of(6))], 0)
    assert len(one.neighbours) == 0
    one.receive([arp_from(5, one.address)], 0)
    assert one.neighbours.lookup(ip_of(5), 0) == mac(5)
    moved = f.Arp(1, mac(77), ip_of(5), f.NO_MAC, ip_of(5))
    one.receive([f.ethernet_header(f.BROADCAST_MAC, mac(77), f.EtherType.ARP) + f.encode_arp(moved)], 0)
    assert one.neighbours.lookup(ip_of(5), 0) == mac(77)
    one.receive([arp_from(8, one.address, sender=bytes([192, 168, 0, 1]))], 0)
    assert one.neighbours.lookup(bytes([192, 168, 0, 1]), 0) is None, "not of this network"
    one.receive([arp_from(8, one.address, sender=f.NO_ADDRESS)], 0)
    assert one.neighbours.lookup(f.NO_ADDRESS, 0) is None, "somebody who only asks whether the address is free"
    assert one.outbox[-1][6:12] == one.mac, "and who is told that it is not"


def test_announcements_and_a_conflict() -> None:
    """Two announcements; somebody else with our address is answered by one more, and not in a storm."""
    one = stack(1)
    one.start(0)
    one.tick(one.deadline or 0)
    assert one.deadline is None
    announcement = one.outbox[0]
    assert one.outbox == [announcement] * 2
    arp = f.parse_arp(announcement[14:])
    assert (arp.sender, arp.target, announcement[:6]) == (one.address, one.address, f.BROADCAST_MAC)
    one.outbox = []
    for second in range(12):
        one.receive([arp_from(5, ip_of(1), sender=ip_of(1))], second * SECOND)
    assert one.outbox == [announcement] * 2
    assert one.events == [Conflict(mac(5))] * 2
    assert one.counters.conflicts == 12
    assert len(one.neighbours) == 0


def test_the_cache_has_limits() -> None:
    """Known addresses, addresses that are asked for, and packets that wait for one: the oldest go."""
    one = Stack(mac(1), bytes([10, 0, 0, 1]), 8)
    for index in range(MAX_KNOWN + 5):
        packet = f.Arp(1, mac(2), bytes([10, 1, index >> 8, index & 0xFF]), f.NO_MAC, one.address)
        frame = f.ethernet_header(f.BROADCAST_MAC, mac(2), f.EtherType.ARP) + f.encode_arp(packet)
        one.receive([frame], index)
    assert len(one.neighbours) == MAX_KNOWN
    assert one.neighbours.lookup(bytes([10, 1, 0, 4]), 300) is None
    assert one.neighbours.lookup(bytes([10, 1, 0, 5]), 300) is not None
    two = Stack(mac(1), bytes([10, 0, 0, 1]), 8)
    for index in range(MAX_ASKED + 3):
        two.send_udp(0, 1, bytes([10, 2, 0, index]), 7, b"")
    assert len(two.neighbours) == MAX_ASKED
    assert two.counters.lost == 3
    for _ in range(MAX_WAITING + 2):
        two.send_udp(0, 1, bytes([10, 2, 0, 50]), 7, b"")
    assert two.counters.lost == 3 + 3


# --- fragments


@given(st.integers(0, 9000), st.integers(576, 1500), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_packets_in_pieces_come_together(size: int, mtu: int, choose: random.Random) -> None:
    """In any order, and twice too."""
    one, two = stack(1, mtu=mtu), stack(2, mtu=mtu)
    data = choose.randbytes(size)
    one.send_echo(0, two.address, 1, 1, data)
    for end, other in ((one, two), (two, one)) * 3:
        frames, end.outbox = end.outbox, []
        frames = frames * 2 if len(frames) > 1 else frames
        choose.shuffle(frames)
        assert all(len(frame) <= 14 + mtu for frame in frames)
        other.receive(frames, 0)
    assert EchoReply(two.address, 1, 1, data) in one.events
    assert one.reassembly.deadline is None or size > mtu - 28


def fragment(to: Stack, start: int, data: bytes, *, more: bool, ident: int = 5) -> bytes:
    word = start >> 3 | (0x2000 if more else 0)
    packet = f.encode_ipv4(ip_of(2), to.address, 17, data, ident=ident, fragment=word)
    return f.ethernet_header(to.mac, mac(2), f.EtherType.IPV4) + packet


@pytest.mark.parametrize(
    "pieces",
    [
        [(0, 16, True), (8, 16, False)],
        [(0, 8, True), (16, 8, False), (24, 8, False)],
        [(0, 12, True)],
        [(0, 0, True)],
        [(65528, 16, False)],
        [(16, 8, True), (8, 0, False)],
    ],
)
def test_pieces_that_contradict_one_another(pieces: list[tuple[int, int, bool]]) -> None:
    """Overlap, two ends, a length that no piece can have, past the end: the packet is dropped and nothing is kept."""
    one = stack(1)
    one.receive([fragment(one, start, bytes(size), more=more) for start, size, more in pieces], 0)
    assert one.counters.bad == 1
    assert one.reassembly.deadline is None
    assert one.events == []


def test_pieces_whose_rest_never_comes() -> None:
    """Are given up after half a minute, or when too many others begin."""
    one = stack(1)
    for ident in range(MAX_PACKETS + 1):
        one.receive([fragment(one, 0, bytes(8), more=True, ident=ident)], ident)
    assert one.reassembly.given_up == 1
    assert one.deadline == 1 + TIMEOUT
    one.tick(TIMEOUT + MAX_PACKETS)
    assert one.reassembly.given_up == MAX_PACKETS + 1
    assert one.deadline is None


def test_pieces_end_on_eighths() -> None:
    """All but the last; that is what the offset can say."""
    pieces = list(cut(bytes(3000), 1000))
    assert [len(piece) for _, piece in pieces] == [976, 976, 976, 72]
    assert [word & 0x1FFF for word, _ in pieces] == [0, 122, 244, 366]
    assert [word >> 13 for word, _ in pieces] == [1, 1, 1, 0]


# --- what may come from a wire


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_any_frames(frames: list[bytes]) -> None:
    """Nothing raises, and nothing that is no packet for us is answered."""
    one = stack(1)
    one.receive(frames, 0)
    head = f.ethernet_header(one.mac, mac(2), f.EtherType.IPV4)
    one.receive([head + frame for frame in frames], 0)
    one.receive([head + b"\x45" + frame for frame in frames], 0)
    one.receive([f.ethernet_header(one.mac, mac(2), f.EtherType.ARP) + frame for frame in frames], 0)
    assert one.outbox == []


@given(st.binary(max_size=60), st.integers(0, 255), st.integers(0, 255))
def test_any_icmp(data: bytes, kind: int, code: int) -> None:
    """Errors about packets that we never sent, of whatever bytes, are nothing to us."""
    one = stack(1)
    one.receive([from_(2, one, f.encode_icmp(kind, code, 0, data), 1)], 0)
    assert all(isinstance(event, EchoReply) for event in one.events)


@pytest.mark.parametrize(
    ("source", "fragment", "told"), [(1, 0, True), (9, 0, False), (1, 0x2000, True), (1, 185, False)]
)
def test_errors_about_whose_packets(source: int, fragment: int, told: bool) -> None:
    """Ours only, and the first fragment only: the others do not say which socket they were of."""
    one = stack(1)
    quoted = f.encode_ipv4(ip_of(source), ip_of(2), 17, struct.pack(">HHHH", 5000, 7, 8, 0), ident=1, fragment=fragment)
    one.receive([from_(2, one, f.encode_icmp(f.IcmpType.TIME_EXCEEDED, 0, 0, quoted), 1)], 0)
    assert one.events == ([Failed(17, ip_of(2), 5000, 7, "10.0.0.2 says: time exceeded")] if told else [])


def test_errors_are_limited_and_never_about_errors() -> None:
    """Eight at once, then ten a second; none about an ICMP error, and none to a packet for all."""
    one, two = stack(1), stack(2)
    one.send_echo(0, two.address, 1, 1, b"")
    exchange(0, one, two)
    datagram = f.encode_udp(ip_of(2), ip_of(1), 1, 9, b"")
    one.receive([from_(2, one, datagram)] * 50, 0)
    assert one.counters.errors_out == 8
    one.receive([from_(2, one, datagram)] * 50, SECOND // 2)
    assert one.counters.errors_out == 8 + 5
    error = f.encode_icmp(f.IcmpType.UNREACHABLE, 3, 0, bytes(28))
    sent = len(one.outbox)
    to_all = f.encode_udp(ip_of(2), f.BROADCAST, 1, 9, b"")
    one.receive([from_(2, one, error, 1), from_(2, one, to_all, destination=f.BROADCAST)], 10 * SECOND)
    assert len(one.outbox) == sent
    one.receive([from_(2, one, b"", 99)], 11 * SECOND)
    assert f.parse_icmp(f.parse_ipv4(one.outbox[-1][14:]).payload).code == f.Unreachable.PROTOCOL


def test_what_is_not_for_us() -> None:
    """Other MAC addresses, other IPv4 addresses, our own frames come back, other protocols: counted, no more."""
    one = stack(1)
    stray = from_(2, one, b"")
    frames = [
        mac(9) + stray[6:],
        from_(2, one, b"", destination=ip_of(8)),
        stray[:6] + one.mac + stray[12:],
        f.ethernet_header(one.mac, mac(2), 0x86DD) + bytes(40),
    ]
    one.receive(frames, 0)
    assert one.counters.not_ours == len(frames)
    everybody = f.encode_ipv4(f.BROADCAST, one.address, 17, b"", ident=1)
    one.receive([f.ethernet_header(one.mac, mac(2), f.EtherType.IPV4) + everybody], 0)
    assert one.counters.bad == 1
    assert (one.outbox, one.events) == ([], [])


def test_too_long() -> None:
    """More than an IPv4 packet holds is the caller's mistake."""
    one = stack(1)
    with pytest.raises(ValueError, match="65507 are the limit"):
        one.send_udp(0, 1, ip_of(2), 7, bytes(65508))
    with pytest.raises(ValueError, match="65507 are the limit"):
        one.send_echo(0, ip_of(2), 1, 1, bytes(65508))
    one.send_udp(0, 1, ip_of(2), 7, bytes(65507))
    assert attrs.asdict(one.counters)["datagrams_out"] == 1


@needs_tshark
def test_a_conversation_as_tshark_sees_it(tmp_path: Path) -> None:
    """Announcement, ARP, ping with fragments, datagrams and errors: nothing malformed, every checksum right."""
    one, two = stack(1), stack(2)
    log: list[bytes] = []
    two.ports.add(7)
    one.start(0)
    one.send_echo(0, two.address, 1, 1, bytes(range(256)) * 12)
    exchange(0, one, two, log=log)
    one.send_udp(0, 5000, two.address, 7, b"hello")
    one.send_udp(0, 5000, two.address, 8, b"hello")
    exchange(0, one, two, log=log)
    rows = judged(tmp_path / "talk.pcap", log, ["_ws.col.Protocol", "icmp.type", "icmp.code", "arp.isgratuitous"])
    assert rows[0] == ["ARP", "", "", "1"]
    assert [row[0] for row in rows].count("ICMP") == 3, "two pings put together, and an error"
    assert rows[-1] == ["ICMP", "3", "3", ""]
    assert len(one.events) == 2
