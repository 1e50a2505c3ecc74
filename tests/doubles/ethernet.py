"""A cable with IP stacks at its ends, and what tshark says of frames."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from hypervisor.clock import TICKS_PER_SECOND
from partitions.child.net.frames import parse_address
from partitions.child.net.ip import Ip, new_stack
from partitions.child.net.stack import Stack
from tests.doubles.guest_platform import FakePlatform
from tests.doubles.tshark import run_tshark
from vsp_vsc.network.guest_queue import FrameQueue

SECOND = TICKS_PER_SECOND


def mac(number: int) -> bytes:
    return bytes.fromhex("00155d0000") + bytes([number])


def stack(number: int, *, gateway: str | None = None, mtu: int = 1500, vlan: int = 0) -> Stack:
    """10.0.0.`number`/24."""
    return Stack(
        mac(number),
        bytes([10, 0, 0, number]),
        24,
        parse_address(gateway) if gateway is not None else None,
        mtu=mtu,
        vlan=vlan,
    )


def exchange(now: int, *stacks: Stack, log: list[bytes] | None = None) -> None:
    """Carry frames until nobody has any: each reaches all others, as on one wire."""
    for _ in range(100):
        going = [(one, one.outbox) for one in stacks if one.outbox]
        if not going:
            return
        for one, _ in going:
            one.outbox = []
        for sender, frames in going:
            if log is not None:
                log += frames
            for other in stacks:
                if other is not sender:
                    other.receive(frames, now)
    raise AssertionError("they never stop")


@attrs.define(eq=False)
class CableEnd:
    """A network driver without a device."""

    mac: bytes
    mtu: int = 1500
    peers: list[CableEnd] = attrs.field(factory=list)
    queues: list[FrameQueue] = attrs.field(factory=list)
    log: list[bytes] = attrs.field(factory=list)
    link_up: bool = True
    gone: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event)

    def frames(self) -> FrameQueue:
        self.queues.append(FrameQueue())
        return self.queues[-1]

    async def send_batch(self, frames: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        if self.gone:
            raise OSError("gone")
        self.log += frames
        for peer in self.peers if self.link_up else ():
            if peer.link_up:
                for queue in peer.queues:
                    queue.put(frames)

    async def link_change(self) -> bool:
        await self._changed.wait()
        if self.gone:
            raise trio.EndOfChannel
        return self.link_up

    def link(self, up: bool) -> None:
        self.link_up = up
        self._changed.set()
        self._changed = trio.Event()

    def pull(self) -> None:
        """The device is taken away."""
        self.gone = True
        self._changed.set()
        for queue in self.queues:
            queue.end()


@asynccontextmanager
async def cable(*numbers: int, vlan: int = 0) -> AsyncIterator[list[tuple[Ip, CableEnd]]]:
    """Hosts 10.0.0.n on one wire."""
    ends = [CableEnd(mac(number)) for number in numbers]
    for end in ends:
        end.peers = [other for other in ends if other is not end]
    platform = FakePlatform()
    async with trio.open_nursery() as nursery:
        hosts = []
        for number, end in zip(numbers, ends, strict=True):
            ip = Ip(end, platform, new_stack(end, f"10.0.0.{number}/24", None, vlan))
            nursery.start_soon(ip.run)
            hosts.append((ip, end))
        yield hosts
        nursery.cancel_scope.cancel()


def write_pcap(path: Path, frames: Sequence[bytes]) -> Path:
    """A classic capture file, link type Ethernet."""
    records = [struct.pack("<IIII", index, 0, len(frame), len(frame)) + frame for index, frame in enumerate(frames)]
    path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1) + b"".join(records))
    return path


def judged(path: Path, frames: Sequence[bytes], names: Sequence[str]) -> list[list[str]]:
    """The values of these fields in each frame, as tshark reads it, which finds no fault and all checksums right."""
    sums = ["ip.checksum.status", "udp.checksum.status", "icmp.checksum.status"]
    arguments = ["-T", "fields", "-E", "separator=|", "-E", "occurrence=f"]
    arguments += ["-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE"]
    for name in (*sums, "_ws.malformed", *names):
        arguments += ["-e", name]
    rows = [line.split("|") for line in run_tshark(write_pcap(path, frames), *arguments).splitlines()]
    assert len(rows) == len(frames)
    for row in rows:
        assert "0" not in row[:3], f"a bad checksum: {row}"  # 1 is good, 2 one in a quoted packet that is cut off
        assert not row[3], f"malformed: {row}"
    return [row[4:] for row in rows]
