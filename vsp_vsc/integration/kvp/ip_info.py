"""The addresses of a guest's network adapter, as KVP messages carry them. Both sides.

Two layouts: texts with semicolons between addresses, behind two bytes of header, which Linux speaks; and from version
5.0 on numbers, behind four. The host names an adapter by the text that the guest knows it by: its MAC when it asks
(`00:15:5D:01:02:03`, to Linux), its GUID when it sets.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec

from hypervisor.wire import BadValue, Wire, at, wire
from hypervisor.wire.scalars import u8, u16, u32
from vsp_vsc.integration.kvp.protocol import KvpHeader, Operation
from vsp_vsc.integration.protocol import Version

BINARY_VERSION: Final = Version(5, 0)
"""The first with addresses as numbers."""
_PREFIX: Final = 2
"""Bytes of header in front of the texts, which need no alignment but their own."""
_MOST, _MOST_GATEWAYS = 64, 5
IPV4, IPV6 = 1, 2
IP_MESSAGE_SIZE: Final = 7428
"""Of each message about addresses, texts or numbers: two bytes of header, and the texts."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
bytes256 = Annotated[bytes, "256s"]
bytes2048 = Annotated[bytes, "2048s"]
bytes1024 = Annotated[bytes, "1024s"]
bytes80 = Annotated[bytes, "80s"]
bytes20 = Annotated[bytes, "20s"]


class IpInfo(msgspec.Struct, frozen=True):
    """An adapter's addresses."""

    adapter: str
    dhcp: bool = False
    addresses: tuple[Interface, ...] = ()
    """With their prefixes."""
    gateways: tuple[Address, ...] = ()
    name_servers: tuple[Address, ...] = ()


@wire(size=7426, spec="Linux uapi hyperv.h, struct hv_kvp_ipaddr_value")
class IpTexts(Wire):
    """Before version 5.0: UTF-16, NUL at the end, semicolons between."""

    adapter: bytes256 = at(0, default=b"")
    families: u8 = at(256, default=0)
    dhcp: u8 = at(257, default=0)
    addresses: bytes2048 = at(258, default=b"")
    subnets: bytes2048 = at(2306, default=b"")
    gateways: bytes1024 = at(4354, default=b"")
    name_servers: bytes2048 = at(5378, default=b"")


@wire(size=3712, spec="openvmm hyperv_ic_protocol, MessageIpAddressInfoBinary")
class IpNumbers(Wire):
    """From version 5.0 on: counts, then arrays of fixed length."""

    ipv4_addresses: u32 = at(0, default=0)
    ipv6_addresses: u32 = at(4, default=0)
    ipv4_gateways: u32 = at(8, default=0)
    ipv6_gateways: u32 = at(12, default=0)
    ipv4_name_servers: u32 = at(16, default=0)
    ipv6_name_servers: u32 = at(20, default=0)
    adapter: bytes256 = at(24, default=b"")
    families: u8 = at(280, default=0)
    dhcp: u8 = at(281, default=0)
    padding: u16 = at(282, default=0)
    ipv4_address_array: bytes256 = at(284, default=b"")
    ipv6_address_array: bytes1024 = at(540, default=b"")
    ipv4_subnet_array: bytes256 = at(1564, default=b"")
    """Masks."""
    ipv6_subnet_array: bytes256 = at(1820, default=b"")
    """Lengths of prefixes, a u32 each."""
    ipv4_gateway_array: bytes20 = at(2076, default=b"")
    ipv6_gateway_array: bytes80 = at(2096, default=b"")
    ipv4_name_server_array: bytes256 = at(2176, default=b"")
    ipv6_name_server_array: bytes1024 = at(2432, default=b"")
    origins: bytes256 = at(3456, default=b"")


def encode_ip(operation: Operation, info: IpInfo, version: Version) -> bytes:
    """A whole message, or its answer. Raises `ValueError` for more than there is room for."""
    body = _numbers(info) if version >= BINARY_VERSION else _texts(info)
    header = KvpHeader(operation, 0).encode()
    return (header[: _offset(version)] + body).ljust(IP_MESSAGE_SIZE, b"\0")


def decode_ip(untrusted: bytes, version: Version) -> IpInfo:
    """The addresses in a message. Raises `WireError`."""
    try:
        if version >= BINARY_VERSION:
            return _of_numbers(IpNumbers.decode(untrusted, _offset(version)))
        return _of_texts(IpTexts.decode(untrusted, _offset(version)))
    except ValueError as error:
        raise BadValue(f"addresses of an adapter: {error}") from None


def _offset(version: Version) -> int:
    return KvpHeader.SIZE if version >= BINARY_VERSION else _PREFIX


def _families(info: IpInfo) -> int:
    versions = {address.version for address in info.addresses}
    return (IPV4 if 4 in versions else 0) | (IPV6 if 6 in versions else 0)


# --- texts


def _texts(info: IpInfo) -> bytes:
    return IpTexts(
        _text([info.adapter], 256),
        _families(info),
        int(info.dhcp),
        _text([address.ip for address in info.addresses], 2048),
        _text([_subnet(address) for address in info.addresses], 2048),
        _text(info.gateways, 1024),
        _text(info.name_servers, 2048),
    ).encode()


def _subnet(address: Interface) -> str:
    return str(address.netmask) if address.version == 4 else str(address.network.prefixlen)


def _text(parts: Iterable[object], room: int) -> bytes:
    raw = ";".join(map(str, parts)).encode("utf-16-le") + b"\0\0"
    if len(raw) > room:
        raise ValueError(f"{len(raw)} bytes of text where {room} are the limit")
    return raw


def _parts(untrusted: bytes) -> list[str]:
    text = untrusted.decode("utf-16-le").split("\0", 1)[0]
    return [part.strip() for part in text.split(";") if part.strip()]


def _of_texts(untrusted: IpTexts) -> IpInfo:
    addresses, subnets = _parts(untrusted.addresses), _parts(untrusted.subnets)
    if len(addresses) > _MOST:
        raise ValueError(f"{len(addresses)} addresses")
    # Linux names subnets of IPv6 addresses as it likes, and none at all for some.
    masks = [subnets[number] if number < len(subnets) else "" for number in range(len(addresses))]
    return IpInfo(
        "".join(_parts(untrusted.adapter)[:1]),
        bool(untrusted.dhcp),
        tuple(_interface(address, mask) for address, mask in zip(addresses, masks, strict=True)),
        tuple(ipaddress.ip_address(part) for part in _parts(untrusted.gateways)),
        tuple(ipaddress.ip_address(part) for part in _parts(untrusted.name_servers)),
    )


def _interface(address: str, mask: str) -> Interface:
    address = address.partition("%")[0]
    return ipaddress.ip_interface(f"{address}/{mask.removeprefix('/')}" if mask else address)


# --- numbers


def _numbers(info: IpInfo) -> bytes:
    ordered = [one for version in (4, 6) for one in info.addresses if one.version == version]
    four, six = _split(one.ip for one in ordered)
    gates, gates6 = _split(info.gateways)
    names, names6 = _split(info.name_servers)
    masks = b"".join(one.netmask.packed for one in ordered if one.version == 4)
    lengths = b"".join(one.network.prefixlen.to_bytes(4, "little") for one in ordered if one.version == 6)
    for what, most in ((four, _MOST), (six, _MOST), (names, _MOST), (names6, _MOST), (gates, 5), (gates6, 5)):
        if len(what) > most:
            raise ValueError(f"{len(what)} addresses where {most} are the limit")
    origin = (1 if info.dhcp else 2).to_bytes(2, "little")
    return IpNumbers(
        len(four),
        len(six),
        len(gates),
        len(gates6),
        len(names),
        len(names6),
        _text([info.adapter], 256),
        _families(info),
        int(info.dhcp),
        0,
        b"".join(four),
        b"".join(six),
        masks,
        lengths,
        b"".join(gates),
        b"".join(gates6),
        b"".join(names),
        b"".join(names6),
        origin * len(ordered),
    ).encode()


def _split(addresses: Iterable[Address]) -> tuple[list[bytes], list[bytes]]:
    every = list(addresses)
    return [one.packed for one in every if one.version == 4], [one.packed for one in every if one.version == 6]


def _of_numbers(untrusted: IpNumbers) -> IpInfo:
    four = _array(untrusted.ipv4_address_array, 4, untrusted.ipv4_addresses, _MOST)
    six = _array(untrusted.ipv6_address_array, 16, untrusted.ipv6_addresses, _MOST)
    masks = _array(untrusted.ipv4_subnet_array, 4, len(four), _MOST)
    lengths = _array(untrusted.ipv6_subnet_array, 4, len(six), _MOST)
    interfaces = [f"{_address(raw)}/{_address(mask)}" for raw, mask in zip(four, masks, strict=True)]
    interfaces += [
        f"{_address(raw)}/{int.from_bytes(length, 'little')}" for raw, length in zip(six, lengths, strict=True)
    ]
    gateways = _array(untrusted.ipv4_gateway_array, 4, untrusted.ipv4_gateways, _MOST_GATEWAYS)
    gateways += _array(untrusted.ipv6_gateway_array, 16, untrusted.ipv6_gateways, _MOST_GATEWAYS)
    names = _array(untrusted.ipv4_name_server_array, 4, untrusted.ipv4_name_servers, _MOST)
    names += _array(untrusted.ipv6_name_server_array, 16, untrusted.ipv6_name_servers, _MOST)
    return IpInfo(
        "".join(_parts(untrusted.adapter)[:1]),
        bool(untrusted.dhcp),
        tuple(ipaddress.ip_interface(one) for one in interfaces),
        tuple(map(_address, gateways)),
        tuple(map(_address, names)),
    )


def _array(untrusted: bytes, width: int, untrusted_count: int, most: int) -> list[bytes]:
    if untrusted_count > most:
        raise ValueError(f"{untrusted_count} addresses where {most} are the limit")
    return [untrusted[at : at + width] for at in range(0, width * untrusted_count, width)]


def _address(raw: Sequence[int] | bytes) -> Address:
    return ipaddress.ip_address(bytes(raw))
