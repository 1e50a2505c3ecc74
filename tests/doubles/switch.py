"""A switch with scripted adapters, and frames for it."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Any

from vsp_vsc.network.switch.addresses import BROADCAST
from vsp_vsc.network.switch.frames import IPV4, IPV6, tagged
from vsp_vsc.network.switch.kinds import SwitchKind
from vsp_vsc.network.switch.ports import Port
from vsp_vsc.network.switch.settings import PortSettings
from vsp_vsc.network.switch.switch import VirtualSwitch

SECOND = 10_000_000


def mac(number: int) -> bytes:
    """An address from Hyper-V's range."""
    return bytes.fromhex("00155d") + number.to_bytes(3, "big")


def stranger(number: int) -> bytes:
    """An address of somebody outside."""
    return bytes.fromhex("020000") + number.to_bytes(3, "big")


def ethernet(to: bytes, source: bytes, payload: bytes = b"hello", *, kind: bytes = b"\x88\xb5", vlan: int = 0) -> bytes:
    """A frame; with a tag if it has a VLAN."""
    frame = to + source + kind + payload
    return tagged(frame, vlan) if vlan else frame


def udp4(source_port: int, port: int, *, source: str = "10.0.0.1", to: str = "10.0.0.2", options: int = 0) -> bytes:
    """An IPv4 packet with a UDP header, up to the payload."""
    header = bytes([0x45 + options]) + bytes(8) + b"\x11" + bytes(2)
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(to).packed
    return header + addresses + bytes(4 * options) + source_port.to_bytes(2, "big") + port.to_bytes(2, "big") + bytes(4)


def ip6(protocol: int, payload: bytes, *, source: str = "fe80::1", to: str = "ff02::1") -> bytes:
    """An IPv6 packet."""
    addresses = ipaddress.IPv6Address(source).packed + ipaddress.IPv6Address(to).packed
    return b"\x60" + bytes(3) + len(payload).to_bytes(2, "big") + bytes([protocol, 255]) + addresses + payload


class Plug:
    """An adapter that takes what comes, up to `room`, and may answer at once."""

    def __init__(self, port: Port, answer: Callable[[bytes], bytes | None] | None = None) -> None:
        self.port = port
        self.got: list[bytes] = []
        self.batches: list[int] = []
        self.links: list[bool] = []
        self.room = 1 << 30
        self.answer = answer
        port.attach(self)

    def deliver(self, frames: Sequence[bytes]) -> int:
        """Take them."""
        taken = list(frames[: self.room])
        self.got += taken
        self.batches.append(len(taken))
        if self.answer is not None:
            answers = [answer for frame in taken if (answer := self.answer(frame)) is not None]
            if answers:
                self.port.transmit(answers)
        return len(taken)

    def link_changed(self, up: bool) -> None:
        """Note it."""
        self.links.append(up)

    def take(self) -> list[bytes]:
        """What has come since the last time."""
        got, self.got = self.got, []
        return got


class Lan:
    """A switch on a clock that the test moves, with plugs by number, whose addresses are `mac(number)`."""

    def __init__(self, kind: SwitchKind = SwitchKind.PRIVATE) -> None:
        self.now = 0
        self.switch = VirtualSwitch("lan", kind, lambda: self.now)

    def plug(self, number: int, address: bytes | None = None, **settings: Any) -> Plug:
        """A port with these settings and an adapter at it."""
        port = Port(f"vm{number}/0", mac(number) if address is None else address, PortSettings(**settings))
        self.switch.connect(port)
        return Plug(port)

    def drops(self, plug: Plug) -> dict[str, int]:
        """What its port has dropped, by reason."""
        return {str(reason): count for reason, count in plug.port.drops.items()}


__all__ = ["BROADCAST", "IPV4", "IPV6", "SECOND", "Lan", "Plug", "ethernet", "ip6", "mac", "stranger", "udp4"]
