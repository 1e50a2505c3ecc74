"""DHCP, the asking side: an address, its network and its gateway from whoever gives them out. Child side.

Facts: RFC 2131 (messages and their order) and 2132 (options). `Discovery` is the part before there is an address:
frames in, frames out. Renewing goes by UDP like everything else, with `renewal` and `parse_reply`.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from partitions.child.net.frames import (
    BROADCAST,
    BROADCAST_MAC,
    NO_ADDRESS,
    BadPacket,
    EtherType,
    Protocol,
    encode_ipv4,
    encode_udp,
    ethernet_header,
    parse_ethernet,
    parse_ipv4,
    parse_udp,
)

SERVER_PORT, CLIENT_PORT = 67, 68
FOR_EVER = 0xFFFF_FFFF
"""A lease that does not end."""
USUAL_SECONDS = 3600
"""Of a lease that does not say."""

_HEADER = struct.Struct(">BBBBIHH4s4s4s4s16s64s128s4s")
_MAGIC = b"\x63\x82\x53\x63"
_ASK, _ANSWER, _ETHERNET, _BROADCAST_FLAG = 1, 2, 1, 0x8000
_LEAST_BYTES = 300
"""Of a message: relays of old drop shorter ones."""


class Option(enum.IntEnum):
    """Options that we send or read."""

    PAD = 0
    MASK = 1
    ROUTER = 3
    NAME_SERVERS = 6
    WANTED_ADDRESS = 50
    LEASE_SECONDS = 51
    MESSAGE = 53
    SERVER = 54
    PARAMETERS = 55
    END = 255


class Message(enum.IntEnum):
    """What a message says."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    ACK = 5
    NAK = 6


class Lease(NamedTuple):
    """What was given."""

    address: bytes
    prefix: int
    gateway: bytes | None
    seconds: int
    server: bytes
    name_servers: tuple[bytes, ...]


class Reply(NamedTuple):
    """A server's message."""

    kind: int
    number: int
    mac: bytes
    lease: Lease


def encode(kind: Message, mac: bytes, number: int, current: bytes, options: dict[Option, bytes]) -> bytes:
    """A client's message; `current` is the address it has, `number` tells conversations apart."""
    flags = _BROADCAST_FLAG if current == NO_ADDRESS else 0
    blank = NO_ADDRESS
    head = _HEADER.pack(_ASK, _ETHERNET, 6, 0, number, 0, flags, current, blank, blank, blank, mac, b"", b"", _MAGIC)
    said = {Option.MESSAGE: bytes([kind]), **options}
    wanted = bytes([Option.MASK, Option.ROUTER, Option.NAME_SERVERS, Option.LEASE_SECONDS])
    said[Option.PARAMETERS] = wanted
    tail = b"".join(bytes([option, len(value)]) + value for option, value in said.items())
    return (head + tail + bytes([Option.END])).ljust(_LEAST_BYTES, b"\0")


def parse_reply(data: bytes) -> Reply:
    """A server's message. Raises `BadPacket`."""
    if len(data) < _HEADER.size:
        raise BadPacket(f"a DHCP message of {len(data)} bytes")
    answer, _, _, _, number, _, _, _, given, _, _, mac, _, _, magic = _HEADER.unpack_from(data)
    if answer != _ANSWER or magic != _MAGIC:
        raise BadPacket("no DHCP answer")
    options = _options(data[_HEADER.size :])
    mask = int.from_bytes(options.get(Option.MASK, b"\xff\xff\xff\0")[:4], "big")
    routers, servers = options.get(Option.ROUTER, b""), options.get(Option.NAME_SERVERS, b"")
    lease = Lease(
        address=given,
        prefix=mask.bit_count(),
        gateway=routers[:4] if len(routers) >= 4 else None,
        seconds=int.from_bytes(options.get(Option.LEASE_SECONDS, USUAL_SECONDS.to_bytes(4, "big")), "big"),
        server=options.get(Option.SERVER, NO_ADDRESS)[:4].ljust(4, b"\0"),
        name_servers=tuple(servers[at : at + 4] for at in range(0, len(servers) - 3, 4)),
    )
    return Reply(options.get(Option.MESSAGE, b"\0")[0], number, mac[:6], lease)


def renewal(mac: bytes, number: int, lease: Lease) -> bytes:
    """Ask to keep the address; goes to the server from the address itself."""
    return encode(Message.REQUEST, mac, number, lease.address, {})


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    position = 0
    while position < len(data) and data[position] != Option.END:
        if data[position] == Option.PAD:
            position += 1
            continue
        if position + 1 >= len(data) or position + 2 + data[position + 1] > len(data):
            raise BadPacket("a DHCP option that is cut off")
        if data[position + 1]:
            found[data[position]] = data[position + 2 : position + 2 + data[position + 1]]
        position += 2 + data[position + 1]
    return found


class Discovery:
    """From no address to one: DISCOVER, an offer, REQUEST, and the server's word."""

    def __init__(self, mac: bytes, number: int) -> None:
        """`number` tells this conversation from others on the same network."""
        self._mac = mac
        self._number = number
        self._offer: Lease | None = None

    @property
    def frame(self) -> bytes:
        """What to send now, and again where no answer comes."""
        if self._offer is None:
            data = encode(Message.DISCOVER, self._mac, self._number, NO_ADDRESS, {})
        else:
            wanted = {Option.WANTED_ADDRESS: self._offer.address, Option.SERVER: self._offer.server}
            data = encode(Message.REQUEST, self._mac, self._number, NO_ADDRESS, wanted)
        datagram = encode_udp(NO_ADDRESS, BROADCAST, CLIENT_PORT, SERVER_PORT, data)
        packet = encode_ipv4(NO_ADDRESS, BROADCAST, Protocol.UDP, datagram, ident=0)
        return ethernet_header(BROADCAST_MAC, self._mac, EtherType.IPV4) + packet

    def receive(self, untrusted_frame: bytes) -> Lease | bool:
        """The lease, once it is ours; else whether there is something new to send. What is for others is nothing."""
        try:
            header = parse_ethernet(untrusted_frame)
            if header.kind != EtherType.IPV4:
                return False
            packet = parse_ipv4(untrusted_frame[header.start :])
            if packet.protocol != Protocol.UDP:
                return False
            udp = parse_udp(packet.source, packet.destination, packet.payload)
            if (udp.source_port, udp.destination_port) != (SERVER_PORT, CLIENT_PORT):
                return False
            reply = parse_reply(udp.data)
        except BadPacket:
            return False
        if reply.number != self._number or reply.mac != self._mac:
            return False
        if reply.kind == Message.OFFER and self._offer is None and reply.lease.prefix:
            self._offer = reply.lease
            return True
        if reply.kind == Message.ACK and self._offer is not None and reply.lease.prefix:
            return reply.lease
        if reply.kind == Message.NAK and self._offer is not None:
            self._offer = None
            return True
        return False
