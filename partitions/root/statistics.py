"""What went through a VM: the counters of its partition, its bus and its channels as one frozen value. Root side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from vmbus.server.limits import BusUse

if TYPE_CHECKING:
    from hypervisor.partition import Partition
    from partitions.root.devices import CountedDevice
    from vmbus.channel import ChannelStatistics
    from vmbus.server.service import VmbusServer


class VmStatistics(msgspec.Struct, frozen=True):
    """Counts since the VM was started; a reset does not set them back."""

    messages: int = 0
    """Channel messages, both ways."""
    packets: int = 0
    """Ring packets, both ways."""
    bytes: int = 0
    """Bytes through rings, both ways, packet headers included; data that a device moves in the guest's pages is not."""
    packets_in: int = 0
    """From the guest."""
    packets_out: int = 0
    """To the guest."""
    bytes_in: int = 0
    bytes_out: int = 0
    signals_in: int = 0
    """Times that the guest signalled an event."""
    signals_out: int = 0
    """Times that the host's end of a channel signalled the guest."""
    hypercalls: int = 0
    """By the guest."""
    interrupts: int = 0
    """Raised in the guest's processors."""
    port_accesses: int = 0
    """Port intercepts, console output above all."""
    faults: int = 0
    """The guest's mistakes on the bus: bad messages and devices that stopped over a packet."""
    bus: BusUse = BusUse()
    """What it has of the bus at this moment, and how often it was at a limit; docs/limits.md has the limits."""


def take_statistics(
    partition: Partition, server: VmbusServer | None, devices: Iterable[CountedDevice], left: ChannelStatistics
) -> VmStatistics:
    """Count now; `left` is what went through devices that are there no more."""
    counters = partition.counters
    bus = {} if server is None else server.counters
    channels = [left, *(device.channel_statistics() for device in devices)]
    if server is not None:
        channels.append(server.sockets.channel_statistics())
    packets_in = sum(channel.packets_in for channel in channels)
    packets_out = sum(channel.packets_out for channel in channels)
    bytes_in = sum(channel.bytes_in for channel in channels)
    bytes_out = sum(channel.bytes_out for channel in channels)
    return VmStatistics(
        messages=bus.get("messages_in", 0) + bus.get("messages_out", 0),
        packets=packets_in + packets_out,
        bytes=bytes_in + bytes_out,
        packets_in=packets_in,
        packets_out=packets_out,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        signals_in=counters["events_signaled"],
        signals_out=sum(channel.signals_sent for channel in channels),
        hypercalls=counters["hypercalls"],
        interrupts=counters["interrupts"],
        port_accesses=counters["port_intercepts"],
        faults=bus.get("faults", 0) + bus.get("devices_stopped", 0),
        bus=BusUse() if server is None else server.use(),
    )
