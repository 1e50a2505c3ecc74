"""One IPv4 interface: frames and times in, frames and events out. Child side.

    stack.receive(frames, now)          what came; `events` and `outbox` fill
    stack.send_udp(now, ...)            what a program wants; `outbox` fills, now or when ARP has answered
    stack.tick(now)                     when `deadline` has come

No clock, no Trio, no driver: `ip.py` brings them. Nothing that a frame says raises; what is wrong with it is counted.
As RFC 1122 asks of a host: pings are answered but not those to everybody, a datagram for a port that nobody has is
answered by "port unreachable", errors are never answered, and answers are limited in number. Packets too long for the
MTU go in fragments, and fragments are put together.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from hypervisor.clock import TICKS_PER_SECOND
from partitions.child.net.fragments import MAX_PAYLOAD, Reassembly, cut
from partitions.child.net.frames import (
    BROADCAST,
    BROADCAST_MAC,
    ICMP_HEADER,
    MORE_FRAGMENTS,
    NO_ADDRESS,
    NO_MAC,
    OFFSET_MASK,
    UDP_HEADER,
    Arp,
    ArpOperation,
    BadPacket,
    EtherType,
    IcmpType,
    Ipv4,
    Protocol,
    Unreachable,
    address_text,
    encode_arp,
    encode_icmp,
    encode_ipv4,
    encode_udp,
    ethernet_header,
    parse_arp,
    parse_ethernet,
    parse_icmp,
    parse_ipv4,
    parse_udp,
)
from partitions.child.net.neighbours import Neighbours

ANNOUNCEMENTS = 2
"""Of our address, when the interface begins and when the link comes up (RFC 5227)."""
ANNOUNCE_EVERY = 2 * TICKS_PER_SECOND
DEFEND_EVERY = 10 * TICKS_PER_SECOND
"""Between two announcements because somebody else uses our address."""
ERRORS_AT_ONCE = 8
"""ICMP errors that we send in a burst; after that ten a second."""
_ERROR_COST = TICKS_PER_SECOND // 10
MAX_DATA = MAX_PAYLOAD - UDP_HEADER
"""Bytes that one UDP datagram or one ping carries at most; both headers have eight bytes."""
_QUOTED = 28
"""Of a packet, in an ICMP error about it: its header and eight bytes more."""


class NoRoute(OSError):
    """The address is not in the interface's network, and there is no gateway to others."""


@attrs.frozen
class Datagram:
    """UDP for one of our ports."""

    port: int
    source: bytes
    source_port: int
    data: bytes


@attrs.frozen
class EchoReply:
    """An answer to a ping of ours."""

    source: bytes
    identifier: int
    sequence: int
    data: bytes


@attrs.frozen
class Failed:
    """A packet of ours will not arrive: nobody answered ARP, or somebody said so by ICMP."""

    protocol: int
    destination: bytes
    local: int
    """Our UDP port, or the identifier of the ping."""
    remote: int
    """Their UDP port, or the ping's sequence number."""
    reason: str


@attrs.frozen
class Conflict:
    """Somebody else uses our address."""

    mac: bytes


Event = Datagram | EchoReply | Failed | Conflict


@attrs.define
class StackCounters:
    """What came and went since the interface began."""

    frames_in: int = 0
    frames_out: int = 0
    not_ours: int = 0
    """For another VLAN, address or kind of protocol."""
    bad: int = 0
    """Cut off, contradictory, or with a wrong checksum."""
    arp_in: int = 0
    echo_requests: int = 0
    """That were answered."""
    echo_replies: int = 0
    datagrams_in: int = 0
    datagrams_out: int = 0
    no_port: int = 0
    """Datagrams for ports that nobody has."""
    errors_in: int = 0
    errors_out: int = 0
    fragments_in: int = 0
    lost: int = 0
    """Packets whose next hop never answered ARP."""
    conflicts: int = 0


class Stack:
    """One address on one network, by one MAC address and at most one VLAN."""

    def __init__(
        self, mac: bytes, address: bytes, prefix: int, gateway: bytes | None = None, *, mtu: int = 1500, vlan: int = 0
    ) -> None:
        """`ValueError` for an address that no host can have, or a gateway in another network."""
        self.mac, self.address, self.prefix, self.gateway, self.mtu, self.vlan = (
            mac,
            address,
            prefix,
            gateway,
            mtu,
            vlan,
        )
        self._mask = (0xFFFF_FFFF << 32 - prefix) & 0xFFFF_FFFF
        self._network = int.from_bytes(address, "big") & self._mask
        self._everybody = {BROADCAST}
        if prefix < 31:
            self._everybody.add((self._network | ~self._mask & 0xFFFF_FFFF).to_bytes(4, "big"))
        if address in self._everybody or address[0] in (0, 127) or address[0] >= 224:
            raise ValueError(f"{address_text(address)}/{prefix} is no address of a host")
        if prefix < 31 and int.from_bytes(address, "big") == self._network:
            raise ValueError(f"{address_text(address)} is the address of the network itself")
        if gateway is not None and (gateway == address or not self._on_link(gateway)):
            raise ValueError(f"the gateway {address_text(gateway)} is no other host of the interface's own network")
        self.neighbours = Neighbours()
        self.reassembly = Reassembly()
        self.counters = StackCounters()
        self.ports: set[int] = set()
        """UDP ports that somebody has; others are told that theirs is not there."""
        self.outbox: list[bytes] = []
        """Frames to send. The owner takes them."""
        self.events: list[Event] = []
        """What programs should hear of. The owner takes them."""
        self._ident = 0
        self._announced_at = 0
        self._announcements = 0
        self._defended_at: int | None = None
        self._errors_paid = -(1 << 62)
        """Up to when the errors we have sent are paid for; it may be a burst ahead of the time."""

    # ------------------------------------------------------------------------------------------------------------ time

    def start(self, now: int) -> None:
        """The link is up: say who is here."""
        self.neighbours.forget()
        self._announcements = ANNOUNCEMENTS
        self._announce(now)

    @property
    def deadline(self) -> int | None:
        """When `tick` is due."""
        next_announcement = self._announced_at + ANNOUNCE_EVERY if self._announcements else None
        times = (next_announcement, self.neighbours.deadline, self.reassembly.deadline)
        return min((time for time in times if time is not None), default=None)

    def tick(self, now: int) -> None:
        """Do what is due."""
        if self._announcements and now - self._announced_at >= ANNOUNCE_EVERY:
            self._announce(now)
        self.neighbours.tick(now)
        self.reassembly.tick(now)
        self._after_neighbours()

    # --------------------------------------------------------------------------------------------------------- sending

    def send_udp(self, now: int, port: int, destination: bytes, destination_port: int, data: bytes) -> None:
        """A datagram from our port. `NoRoute`; `ValueError` where it is too long."""
        if len(data) > MAX_DATA:
            raise ValueError(f"a datagram of {len(data)} bytes, {MAX_DATA} are the limit")
        datagram = encode_udp(self.address, destination, port, destination_port, data)
        self._send(destination, Protocol.UDP, datagram, now)
        self.counters.datagrams_out += 1

    def send_echo(self, now: int, destination: bytes, identifier: int, sequence: int, data: bytes) -> None:
        """A ping. `NoRoute`; `ValueError` where it is too long."""
        if len(data) > MAX_DATA:
            raise ValueError(f"a ping of {len(data)} bytes, {MAX_DATA} are the limit")
        message = encode_icmp(IcmpType.ECHO_REQUEST, 0, identifier << 16 | sequence, data)
        self._send(destination, Protocol.ICMP, message, now)

    def _send(self, destination: bytes, protocol: int, payload: bytes, now: int) -> None:
        mac, hop = self._way(destination, now)
        self._ident = self._ident + 1 & 0xFFFF
        for fragment, piece in cut(payload, self.mtu):
            packet = encode_ipv4(self.address, destination, protocol, piece, ident=self._ident, fragment=fragment)
            if destination == self.address:
                self._packet(packet, now)
            elif mac is None:
                self.neighbours.wait(hop, packet, now)
            else:
                self._frame(mac, EtherType.IPV4, packet)
        self._after_neighbours()

    def _way(self, destination: bytes, now: int) -> tuple[bytes | None, bytes]:
        """The MAC address to send to, if it is known, and whose it is."""
        if destination in self._everybody:
            return BROADCAST_MAC, destination
        if 224 <= destination[0] < 240:
            return b"\x01\x00\x5e" + bytes([destination[1] & 0x7F]) + destination[2:], destination
        if destination == self.address:
            return self.mac, destination
        hop = destination if self._on_link(destination) else self.gateway
        if hop is None or destination[0] in (0, 127) or destination[0] >= 240:
            ours = f"{address_text(self._network.to_bytes(4, 'big'))}/{self.prefix}"
            raise NoRoute(
                f"no way to {address_text(destination)} from {ours} {'' if hop else 'without a gateway'}".strip()
            )
        return self.neighbours.lookup(hop, now), hop

    def _on_link(self, address: bytes) -> bool:
        return int.from_bytes(address, "big") & self._mask == self._network

    def _frame(self, destination: bytes, kind: int, payload: bytes) -> None:
        self.outbox.append(ethernet_header(destination, self.mac, kind, self.vlan) + payload)
        self.counters.frames_out += 1

    def _announce(self, now: int) -> None:
        self._announced_at = now
        self._announcements = max(0, self._announcements - 1)
        self._arp(ArpOperation.REQUEST, BROADCAST_MAC, NO_MAC, self.address)

    def _arp(self, operation: ArpOperation, to: bytes, target_mac: bytes, target: bytes) -> None:
        self._frame(to, EtherType.ARP, encode_arp(Arp(operation, self.mac, self.address, target_mac, target)))

    def _after_neighbours(self) -> None:
        """Send what the cache wants asked, and tell of what it has given up."""
        neighbours = self.neighbours
        for address, mac in neighbours.requests:
            self._arp(ArpOperation.REQUEST, mac or BROADCAST_MAC, NO_MAC, address)
        neighbours.requests.clear()
        for packet in neighbours.lost:
            self.counters.lost += 1
            self._failed(packet, "no answer to ARP")
        neighbours.lost.clear()

    # ------------------------------------------------------------------------------------------------------- receiving

    def receive(self, frames: Sequence[bytes], now: int) -> None:
        """Frames that came, in order."""
        for frame in frames:
            self.counters.frames_in += 1
            try:
                header = parse_ethernet(frame)
                if header.vlan != self.vlan or header.source == self.mac:
                    self.counters.not_ours += 1
                elif header.kind == EtherType.IPV4 and header.destination in (self.mac, BROADCAST_MAC):
                    self._packet(frame[header.start :], now, to_all=header.destination == BROADCAST_MAC)
                elif header.kind == EtherType.ARP:
                    self._arp_came(parse_arp(frame[header.start :]), now)
                else:
                    self.counters.not_ours += 1
            except BadPacket:
                self.counters.bad += 1
        self._after_neighbours()

    def _arp_came(self, arp: Arp, now: int) -> None:
        self.counters.arp_in += 1
        if arp.sender_mac == self.mac:
            return
        if arp.sender == self.address:
            self._conflict(arp, now)
            return
        for_us = arp.target == self.address
        if arp.sender != NO_ADDRESS and self._on_link(arp.sender) and not arp.sender_mac[0] & 1:
            for packet in self.neighbours.learn(arp.sender, arp.sender_mac, now, create=for_us):
                self._frame(arp.sender_mac, EtherType.IPV4, packet)
        if for_us and arp.operation == ArpOperation.REQUEST:
            self._arp(ArpOperation.REPLY, arp.sender_mac, arp.sender_mac, arp.sender)

    def _conflict(self, arp: Arp, now: int) -> None:
        """We keep our address and say so, though not without end (RFC 5227, 2.4 c)."""
        self.counters.conflicts += 1
        if self._defended_at is None or now - self._defended_at >= DEFEND_EVERY:
            self._defended_at = now
            self._arp(ArpOperation.REQUEST, BROADCAST_MAC, NO_MAC, self.address)
            self.events.append(Conflict(arp.sender_mac))

    def _packet(self, data: bytes, now: int, *, to_all: bool = False) -> None:
        packet: Ipv4 | None = parse_ipv4(data)
        assert packet is not None
        if packet.destination != self.address and packet.destination not in self._everybody:
            self.counters.not_ours += 1
            return
        if packet.source in self._everybody or packet.source[0] >= 224:
            raise BadPacket("a packet from nobody")
        if packet.fragment & (OFFSET_MASK | MORE_FRAGMENTS):
            self.counters.fragments_in += 1
            packet = self.reassembly.add(packet, now)
            if packet is None:
                return
        to_all = to_all or packet.destination != self.address
        if packet.protocol == Protocol.ICMP:
            self._icmp(packet, now, to_all=to_all)
        elif packet.protocol == Protocol.UDP:
            self._udp(packet, now, to_all=to_all)
        else:
            self._refuse(packet, Unreachable.PROTOCOL, now, to_all=to_all)

    def _udp(self, packet: Ipv4, now: int, *, to_all: bool) -> None:
        udp = parse_udp(packet.source, packet.destination, packet.payload)
        if udp.destination_port in self.ports:
            self.counters.datagrams_in += 1
            self.events.append(Datagram(udp.destination_port, packet.source, udp.source_port, udp.data))
        else:
            self.counters.no_port += 1
            self._refuse(packet, Unreachable.PORT, now, to_all=to_all)

    def _icmp(self, packet: Ipv4, now: int, *, to_all: bool) -> None:
        icmp = parse_icmp(packet.payload)
        match icmp.kind:
            case IcmpType.ECHO_REQUEST if not to_all:
                self.counters.echo_requests += 1
                answer = encode_icmp(IcmpType.ECHO_REPLY, 0, icmp.rest, icmp.data)
                self._answer(packet.source, answer, now)
            case IcmpType.ECHO_REPLY:
                self.counters.echo_replies += 1
                self.events.append(EchoReply(packet.source, icmp.rest >> 16, icmp.rest & 0xFFFF, icmp.data))
            case IcmpType.UNREACHABLE | IcmpType.TIME_EXCEEDED:
                self.counters.errors_in += 1
                self._failed(icmp.data, _reason(icmp.kind, icmp.code, packet.source))
            case _:
                self.counters.not_ours += 1

    def _refuse(self, packet: Ipv4, code: Unreachable, now: int, *, to_all: bool) -> None:
        """Tell the sender, unless the packet was for everybody, and not more often than is good."""
        if to_all or packet.source == NO_ADDRESS:
            return
        paid = max(self._errors_paid, now - ERRORS_AT_ONCE * _ERROR_COST)
        if paid + _ERROR_COST > now:
            return
        self._errors_paid = paid + _ERROR_COST
        self.counters.errors_out += 1
        quoted = packet.header + packet.payload[:ICMP_HEADER]
        self._answer(packet.source, encode_icmp(IcmpType.UNREACHABLE, code, 0, quoted), now)

    def _answer(self, destination: bytes, message: bytes, now: int) -> None:
        try:
            self._send(destination, Protocol.ICMP, message, now)
        except NoRoute:
            self.counters.lost += 1

    def _failed(self, untrusted_packet: bytes, reason: str) -> None:
        """A packet of ours, or as much of it as an error quotes; errors about errors and about others' are nothing."""
        length = (untrusted_packet[0] & 0xF) * 4 if untrusted_packet else 0
        if len(untrusted_packet) < max(length + 8, _QUOTED) or untrusted_packet[12:16] != self.address:
            return
        protocol, destination, quoted = untrusted_packet[9], untrusted_packet[16:20], untrusted_packet[length:]
        if untrusted_packet[6] << 8 & OFFSET_MASK or untrusted_packet[7]:
            return  # not the first fragment: whose it was is not in it
        if protocol == Protocol.UDP:
            local, remote = int.from_bytes(quoted[:2], "big"), int.from_bytes(quoted[2:4], "big")
        elif protocol == Protocol.ICMP and quoted[0] == IcmpType.ECHO_REQUEST:
            local, remote = int.from_bytes(quoted[4:6], "big"), int.from_bytes(quoted[6:8], "big")
        else:
            return
        self.events.append(Failed(protocol, destination, local, remote, reason))


def _reason(kind: int, code: int, reporter: bytes) -> str:
    if kind == IcmpType.TIME_EXCEEDED:
        words = "time exceeded"
    elif code in _CODES:
        words = f"{_CODES[code]} unreachable" if code < 4 else _CODES[code]
    else:
        words = f"unreachable, code {code}"
    return f"{address_text(reporter)} says: {words}"


_CODES = {int(code): code.name.lower().replace("_", " ") for code in Unreachable}
