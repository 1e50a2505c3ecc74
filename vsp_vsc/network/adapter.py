"""What a guest's network adapter is and has been told, shared by its channels. Pure. Root side."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from hypervisor.inspect import Branch, Hex, data
from vsp_vsc.network.ndis import (
    ETHERNET_ENCAPSULATION,
    MAX_LSO_SIZE,
    MIN_LSO_SEGMENTS,
    ChecksumCapability,
    Offload,
)
from vsp_vsc.network.protocol import DEFAULT_MTU, version_words
from vsp_vsc.network.rndis import PacketFilter

if TYPE_CHECKING:
    from vsp_vsc.network.buffers import LentBuffer, ReceiveBuffer
    from vsp_vsc.network.port import SwitchPort
    from vsp_vsc.network.spreading import Spreading

LINK_SPEED = 10_000_000_000
"""Bits a second, as Microsoft's switch says of a virtual adapter."""


class RndisState(enum.Enum):
    """How far the RNDIS conversation is."""

    INITIALIZING = "initializing"
    OPERATIONAL = "operational"
    HALTED = "halted"


class Task(enum.IntFlag):
    """A checksum that the adapter does."""

    IPV4_HEADER = 1
    TCP_IPV4 = 2
    UDP_IPV4 = 4
    TCP_IPV6 = 8
    UDP_IPV6 = 16


ALL_TASKS = Task.IPV4_HEADER | Task.TCP_IPV4 | Task.UDP_IPV4 | Task.TCP_IPV6 | Task.UDP_IPV6


@attrs.define
class Offloads:
    """What of all that it can do the adapter does."""

    transmit: Task = ALL_TASKS
    receive: Task = ALL_TASKS
    lso_ipv4: bool = True
    lso_ipv6: bool = True

    def set(self, task: Task, *, transmit: bool, receive: bool) -> None:
        """A checksum, on or off."""
        self.transmit = self.transmit | task if transmit else self.transmit & ~task
        self.receive = self.receive | task if receive else self.receive & ~task

    def encode(self) -> bytes:
        """As NDIS_OFFLOAD."""
        offload = Offload(
            ipv4_transmit=_ipv4(self.transmit),
            ipv4_receive=_ipv4(self.receive),
            ipv6_transmit=_ipv6(self.transmit),
            ipv6_receive=_ipv6(self.receive),
            lso_ipv4_encapsulation=ETHERNET_ENCAPSULATION if self.lso_ipv4 else 0,
            lso_ipv4_max_size=MAX_LSO_SIZE if self.lso_ipv4 else 0,
            lso_ipv4_min_segments=MIN_LSO_SEGMENTS if self.lso_ipv4 else 0,
            lso_ipv6_encapsulation=ETHERNET_ENCAPSULATION if self.lso_ipv6 else 0,
            lso_ipv6_max_size=MAX_LSO_SIZE if self.lso_ipv6 else 0,
            lso_ipv6_min_segments=MIN_LSO_SEGMENTS if self.lso_ipv6 else 0,
            lso_ipv6_options=_IP_AND_TCP_OPTIONS if self.lso_ipv6 else 0,
        )
        return offload.encode()

    def inspect(self) -> Branch:
        """By name."""
        return Branch(
            {
                "transmit": self.transmit.name or "none",
                "receive": self.receive.name or "none",
                "lso_ipv4": self.lso_ipv4,
                "lso_ipv6": self.lso_ipv6,
            }
        )


_IP_AND_TCP_OPTIONS = int(ChecksumCapability.IP_OPTIONS | ChecksumCapability.TCP_OPTIONS)


def _ipv4(tasks: Task) -> int:
    can = ChecksumCapability
    flags = 0
    if tasks & Task.IPV4_HEADER:
        flags |= can.IP_OPTIONS | can.IPV4_HEADER
    if tasks & Task.TCP_IPV4:
        flags |= can.IP_OPTIONS | can.TCP_OPTIONS | can.TCP
    if tasks & Task.UDP_IPV4:
        flags |= can.IP_OPTIONS | can.UDP
    return flags


def _ipv6(tasks: Task) -> int:
    can = ChecksumCapability
    flags = 0
    if tasks & Task.TCP_IPV6:
        flags |= can.IP_OPTIONS | can.TCP_OPTIONS | can.TCP
    if tasks & Task.UDP_IPV6:
        flags |= can.IP_OPTIONS | can.UDP
    return flags


@attrs.define
class Counters:
    """What an adapter counts, over all openings of its channels."""

    sent_frames: int = 0
    """From the guest into the switch; so are the other two."""
    sent_bytes: int = 0
    sent_messages: int = 0
    segmented: int = 0
    """Frames that were cut into segments."""
    filled: int = 0
    """Frames whose checksums were filled in."""
    received_frames: int = 0
    """From the switch to the guest."""
    received_bytes: int = 0
    received_packets: int = 0
    """Ring packets that they came in."""
    filtered: int = 0
    """Frames that the guest has not asked for."""
    dropped: int = 0
    """Frames for the guest that it had no room for."""
    too_long: int = 0
    """Frames for the guest that no piece of its receive buffer holds."""
    refused: int = 0
    """Messages with a mistake that cost the guest no more than that message."""
    bad_completions: int = 0
    unwell_completions: int = 0
    """Completions that say that the guest could not take what it was sent."""
    control: int = 0
    """RNDIS control messages that were answered."""


@attrs.define(eq=False)
class AdapterState:
    """One adapter, from one opening of its primary channel to the end of it."""

    port: SwitchPort
    name: str
    max_channels: int
    """The primary one included."""
    counters: Counters
    version: int = 0
    """Of NVSP; 0 if none is agreed on."""
    ndis: tuple[int, int] | None = None
    """The guest's version of NDIS."""
    config_mtu: int = 0
    """What SEND_NDIS_CONFIG said, made good, with the Ethernet header; 0 as long as it has said nothing."""
    capabilities: int = 0
    receive: ReceiveBuffer | None = None
    send: LentBuffer | None = None
    rndis: RndisState = RndisState.INITIALIZING
    filter: int = 0
    """`PacketFilter` bits."""
    address: bytes = b""
    """The guest's own choice of an Ethernet address, the port's until it makes one."""
    multicast: tuple[bytes, ...] = ()
    offloads: Offloads = attrs.field(factory=Offloads)
    offloads_changed: bool = False
    """The guest waits to be told what holds now."""
    marks_good: bool = False
    """Frames for the guest say that their checksums are good. Not before the guest asks for it: it costs time."""
    several_packets: bool = False
    spreading: Spreading | None = None
    channels: int = 1
    """How many the guest was granted, the primary one included."""

    def __attrs_post_init__(self) -> None:
        self.address = self.port.mac

    @property
    def mtu(self) -> int:
        """Bytes behind the Ethernet header that a frame may have: as many as the guest and the port take."""
        return min((self.config_mtu or DEFAULT_MTU) - 14, self.port.mtu)

    def reset(self) -> None:
        """RNDIS RESET or HALT: as after INITIALIZE, but for what was agreed on before."""
        self.filter = 0
        self.multicast = ()
        self.offloads = Offloads()
        self.offloads_changed = self.marks_good = self.several_packets = False
        self.spreading = None

    def wants(self, frame: bytes) -> bool:
        """Whether the guest's filter lets a frame through."""
        chosen = self.filter
        if chosen & PacketFilter.PROMISCUOUS:
            return True
        if not frame[0] & 1:
            return bool(chosen & PacketFilter.DIRECTED) and frame[:6] == self.address
        if frame[:6] == b"\xff\xff\xff\xff\xff\xff":
            return bool(chosen & PacketFilter.BROADCAST)
        if chosen & PacketFilter.ALL_MULTICAST:
            return True
        return bool(chosen & PacketFilter.MULTICAST) and frame[:6] in self.multicast

    def release(self) -> None:
        """Both buffers go back to the guest."""
        if self.receive is not None:
            self.receive.buffer.release()
            self.receive = None
        if self.send is not None:
            self.send.release()
            self.send = None

    def inspect(self) -> Branch:
        """Settings, and the buffers."""
        receive, spreading = self.receive, self.spreading
        shown: dict[str, object] = {
            "nvsp": version_words(self.version) if self.version else "none",
            "ndis": "none" if self.ndis is None else ".".join(map(str, self.ndis)),
            "mtu": self.mtu,
            "capabilities": Hex(self.capabilities),
            "rndis": self.rndis.value,
            "filter": PacketFilter(self.filter).name or "none",
            "address": self.address.hex("-"),
            "multicast": len(self.multicast),
            "marks_good": self.marks_good,
            "several_packets": self.several_packets,
            "channels": self.channels,
            "send_buffer_bytes": 0 if self.send is None else self.send.size,
            "offloads": self.offloads.inspect,
        }
        if receive is not None:
            shown["receive_buffer"] = receive.inspect
        if spreading is not None:
            shown["spreading"] = data({"hash": Hex(spreading.info), "table": str(sorted(set(spreading.table)))})
        return Branch(shown)
