"""An IPv4 stack on a driver and on the guest's clock: pings and UDP sockets for programs. Child side.

    ip = await guest.ip("10.0.0.2/24")
    seconds = await ip.ping("10.0.0.3")
    async with ip.udp(7) as socket:
        data, sender = await socket.receive_from()
        await socket.send_to(data, sender)

One task hands the driver's frames to the stack, one waits for the stack's deadlines; what the stack wants to send goes
with the call that made it, or with these tasks. A program that does not read its sockets loses datagrams, as
everywhere.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import attrs
import trio

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.inspect import Branch, data
from partitions.child.net.frames import (
    Protocol as IpProtocol,
)
from partitions.child.net.frames import (
    address_text,
    mac_text,
    parse_address,
    parse_interface,
)
from partitions.child.net.stack import Conflict, Datagram, EchoReply, Event, Failed, NoRoute, Stack
from partitions.child.net.within import within
from vmbus.bell import Bell

if TYPE_CHECKING:
    from partitions.child.net.dhcp import Lease
    from vmbus.client.platform import GuestPlatform

__all__ = ["HostUnreachable", "Ip", "NoRoute", "PingTimeout", "UdpSocket"]

KEPT_DATAGRAMS = 256
"""Per socket; one more is dropped and counted."""
KEPT_ERRORS = 8
FIRST_EPHEMERAL_PORT, LAST_PORT = 49152, 65535
Peer = tuple[str, int]
"""Address and UDP port."""


class HostUnreachable(OSError):
    """The packet will not arrive, and somebody has said why."""


class PingTimeout(TimeoutError):
    """No answer came in time."""


class PortTaken(OSError):
    """Another socket has this UDP port."""


class Frames(Protocol):
    """What the stack needs of a driver's queue of frames."""

    async def receive_batch(self) -> Sequence[bytes]:
        """At least one frame. `EndOfChannel` when the device is gone."""

    def close(self) -> None:
        """No more frames are wanted."""


class Driver(Protocol):
    """What the stack needs of a network driver (`vsp_vsc.network.vsc.Network`)."""

    @property
    def mac(self) -> bytes:
        """Six bytes."""

    @property
    def mtu(self) -> int:
        """Bytes of an IPv4 packet at most."""

    def frames(self) -> Frames:
        """Each frame that comes from now on."""

    async def send_batch(self, frames: Sequence[bytes]) -> None:
        """All of them. `OSError` where the device is gone or its link is down."""

    async def link_change(self) -> bool:
        """Whether the link is up, when that changes next. `EndOfChannel` when the device is gone."""


@attrs.define(eq=False)
class _Ping:
    """One that is under way."""

    destination: bytes
    done: trio.Event = attrs.field(factory=trio.Event)
    at: int = 0
    """When the answer came."""
    problem: str = ""


class Ip:
    """An address on a network. Made by `guest.ip`."""

    def __init__(self, driver: Driver, platform: GuestPlatform, stack: Stack, lease: Lease | None = None) -> None:
        self.lease = lease
        """What a DHCP server gave, if one did."""
        self.stack = stack
        """The protocol itself: its counters, its neighbours."""
        self.conflicts: deque[str] = deque(maxlen=KEPT_ERRORS)
        """MAC addresses of those who use our address, as we noticed."""
        self._driver = driver
        self._frames = driver.frames()
        self._platform = platform
        self._sockets: dict[int, UdpSocket] = {}
        self._pings: dict[tuple[int, int], _Ping] = {}
        self._next_ping = 1 << 16
        """Identifier and sequence number of the last ping."""
        self._next_port = FIRST_EPHEMERAL_PORT
        self._earlier = Bell()
        self._sleeping_until = math.inf
        self._end: str | None = None

    @property
    def address(self) -> str:
        """With its prefix length: `10.0.0.2/24`."""
        return f"{address_text(self.stack.address)}/{self.stack.prefix}"

    @property
    def gateway(self) -> str | None:
        """The way to other networks."""
        return None if self.stack.gateway is None else address_text(self.stack.gateway)

    @property
    def neighbours(self) -> dict[str, str]:
        """MAC addresses by IPv4 addresses, as far as they are known now."""
        table = self.stack.neighbours.table(self._platform.reference_time())
        return {address_text(address): mac_text(mac) for address, (mac, _) in table.items() if mac is not None}

    # ---------------------------------------------------------------------------------------------------- for programs

    async def ping(self, address: str, *, size: int = 56, timeout: float = 1.0) -> float:
        """Seconds until the answer to `size` bytes. `PingTimeout`, `HostUnreachable`, `NoRoute`, `ValueError`."""
        self._check()
        self._next_ping = self._next_ping + 1 & 0xFFFF_FFFF
        key = self._next_ping >> 16, self._next_ping & 0xFFFF
        ping = self._pings[key] = _Ping(parse_address(address))
        try:
            payload = bytes(index & 0xFF for index in range(size))
            began = self._platform.reference_time()
            self.stack.send_echo(began, ping.destination, *key, payload)
            await self._after()
            await self.within(timeout, ping.done.wait)
        finally:
            del self._pings[key]
        if ping.problem:
            raise HostUnreachable(f"{address}: {ping.problem}")
        if not ping.done.is_set():
            raise PingTimeout(f"{address} has not answered within {timeout:g} s")
        return (ping.at - began) / TICKS_PER_SECOND

    def udp(self, port: int = 0) -> UdpSocket:
        """A socket on this port, or on a free one. `PortTaken`."""
        self._check()
        if not 0 <= port <= LAST_PORT:
            raise ValueError(f"{port} is no port: they go from 1 to {LAST_PORT}, and 0 takes a free one")
        if not port:
            port = self._free_port()
        elif port in self._sockets:
            raise PortTaken(f"UDP port {port} is in use")
        socket = self._sockets[port] = UdpSocket(self, port)
        self.stack.ports.add(port)
        return socket

    def close(self, reason: str = "the address was given up") -> None:
        """End: sockets and pings fail with this reason, and no frame of others reaches us."""
        self._finish(reason)

    def inspect(self) -> Branch:
        """Address, neighbours, sockets, counters."""
        return Branch(
            {
                "address": self.address,
                "gateway": self.gateway,
                "vlan": self.stack.vlan,
                "neighbours": lambda: data(self.neighbours),
                "sockets": lambda: data({str(port): len(socket) for port, socket in self._sockets.items()}),
                "counters": lambda: data(attrs.asdict(self.stack.counters)),
            }
        )

    # ------------------------------------------------------------------------------------------------ behind the scene

    async def run(self) -> None:
        """Task: until the device is gone, or `close`."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._follow_link)
                if self.lease is not None:
                    from partitions.child.net.leases import keep

                    nursery.start_soon(keep, self, self.lease, self._platform)
                self.stack.start(self._platform.reference_time())
                await self._after()
                while True:
                    frames = await self._frames.receive_batch()
                    self.stack.receive(frames, self._platform.reference_time())
                    await self._after()
        except* (trio.EndOfChannel, trio.ClosedResourceError, OSError):
            self._finish("the network device is gone")
        finally:
            self._finish("the guest's network was stopped")

    async def send(self, port: int, destination: bytes, destination_port: int, payload: bytes) -> None:
        """For sockets: a datagram."""
        self._check()
        self.stack.send_udp(self._platform.reference_time(), port, destination, destination_port, payload)
        await self._after()

    def forget(self, port: int) -> None:
        """For sockets: the port is free."""
        if self._sockets.pop(port, None) is not None:
            self.stack.ports.discard(port)

    async def _after(self) -> None:
        """What the stack has to say, to programs and to the wire; and its next deadline may have come nearer."""
        stack = self.stack
        if stack.events:
            events, stack.events = stack.events, []
            for event in events:
                self._tell(event)
        deadline = stack.deadline
        if deadline is not None and deadline < self._sleeping_until:
            self._earlier.ring()
        if stack.outbox:
            frames, stack.outbox = stack.outbox, []
            await self._driver.send_batch(frames)
        else:
            await trio.lowlevel.checkpoint()

    def _tell(self, event: Event) -> None:
        match event:
            case Datagram():
                socket = self._sockets.get(event.port)
                if socket is not None:
                    socket.put(event.data, (address_text(event.source), event.source_port))
            case EchoReply():
                ping = self._pings.get((event.identifier, event.sequence))
                if ping is not None and ping.destination == event.source:
                    ping.at = self._platform.reference_time()
                    ping.done.set()
            case Failed():
                ping = self._pings.get((event.local, event.remote))
                socket = self._sockets.get(event.local)
                if event.protocol == IpProtocol.ICMP and ping is not None:
                    ping.problem = event.reason
                    ping.done.set()
                elif event.protocol == IpProtocol.UDP and socket is not None:
                    socket.fail(f"{address_text(event.destination)} port {event.remote}: {event.reason}")
            case Conflict():
                self.conflicts.append(mac_text(event.mac))

    async def _keep_time(self) -> None:
        """Wait for the stack's deadlines, on the guest's clock."""
        while True:
            deadline = self.stack.deadline
            if deadline is None:
                self._sleeping_until = math.inf
                await self._earlier.wait()
                continue
            self._sleeping_until = deadline
            wait = max(0, deadline - self._platform.reference_time()) / TICKS_PER_SECOND
            if wait:
                await self.within(wait, self._earlier.wait)
            self._sleeping_until = -math.inf
            self.stack.tick(self._platform.reference_time())
            await self._after()

    async def _follow_link(self) -> None:
        """Say anew who we are when the link comes back: we may be at another place."""
        while True:
            if await self._driver.link_change():
                self.stack.start(self._platform.reference_time())
                await self._after()

    async def within(self, seconds: float, wait: Callable[[], Awaitable[object]]) -> None:
        """Wait for something, but no longer than so many seconds of the guest's clock."""
        await within(self._platform, seconds, wait)

    def _free_port(self) -> int:
        for _ in range(FIRST_EPHEMERAL_PORT, LAST_PORT + 1):
            port = self._next_port
            self._next_port = port + 1 if port < LAST_PORT else FIRST_EPHEMERAL_PORT
            if port not in self._sockets:
                return port
        raise PortTaken("all ephemeral UDP ports are in use")

    def _check(self) -> None:
        if self._end is not None:
            raise HostUnreachable(self._end)

    def _finish(self, reason: str) -> None:
        if self._end is None:
            self._end = reason
            self._frames.close()
            for ping in self._pings.values():
                ping.problem = reason
                ping.done.set()
            for socket in list(self._sockets.values()):
                socket.fail(reason, ended=True)


class UdpSocket:
    """One UDP port. Made by `Ip.udp`; close it, or use `with`."""

    def __init__(self, ip: Ip, port: int) -> None:
        self.port = port
        """Ours."""
        self.dropped = 0
        """Datagrams that came while `KEPT_DATAGRAMS` were unread."""
        self._ip = ip
        self._kept: deque[tuple[bytes, Peer]] = deque()
        self._problems: deque[str] = deque(maxlen=KEPT_ERRORS)
        self._ended: str | None = None
        self._closed = False
        self._arrived = Bell()

    def __len__(self) -> int:
        """Datagrams that wait to be read."""
        return len(self._kept)

    def __bool__(self) -> bool:
        """A socket is one, also when nothing waits."""
        return True

    async def send_to(self, data: bytes, peer: Peer) -> None:
        """A datagram. That it arrives is not known. `NoRoute`, `HostUnreachable` when the device is gone."""
        if self._closed:
            raise trio.ClosedResourceError
        address, port = peer
        if not 1 <= port <= LAST_PORT:
            raise ValueError(f"{port} is no UDP port")
        await self._ip.send(self.port, parse_address(address), port, bytes(data))

    async def receive_from(self, *, timeout: float | None = None) -> tuple[bytes, Peer]:
        """The next datagram and whose it is. `TimeoutError` if none comes in `timeout` seconds of the guest's clock.

        `HostUnreachable` where one that this socket has sent was refused: once for each, as sockets everywhere do it.
        """
        if timeout is None:
            await self._wait()
        else:
            await self._ip.within(timeout, self._wait)
        if self._closed:
            raise trio.ClosedResourceError
        if self._kept:
            return self._kept.popleft()
        if self._problems:
            raise HostUnreachable(self._problems.popleft())
        if self._ended is not None:
            raise HostUnreachable(self._ended)
        raise TimeoutError(f"no datagram came to port {self.port} within {timeout:g} s")

    async def _wait(self) -> None:
        """Until there is something to say."""
        await trio.lowlevel.checkpoint()
        while not (self._closed or self._kept or self._problems or self._ended is not None):
            await self._arrived.wait()

    def close(self) -> None:
        """Give the port back; who waits for a datagram gets `trio.ClosedResourceError`."""
        if not self._closed:
            self._closed = True
            self._ip.forget(self.port)
            self._arrived.ring()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def put(self, data: bytes, peer: Peer) -> None:
        """For the stack: a datagram has come."""
        if len(self._kept) >= KEPT_DATAGRAMS:
            self.dropped += 1
            return
        self._kept.append((data, peer))
        self._arrived.ring()

    def fail(self, problem: str, *, ended: bool = False) -> None:
        """For the stack: a datagram of ours will not arrive, or nothing will ever again."""
        if ended:
            self._ended = problem
        else:
            self._problems.append(problem)
        self._arrived.ring()


def new_stack(driver: Driver, address: str, gateway: str | None, vlan: int) -> Stack:
    """From what a program says. `ValueError` names what is wrong."""
    ours, prefix = parse_interface(address)
    if not 0 <= vlan <= 4094:
        raise ValueError(f"{vlan} is no VLAN: they go from 1 to 4094, and 0 is none")
    return Stack(
        driver.mac,
        ours,
        prefix,
        None if gateway is None else parse_address(gateway),
        mtu=driver.mtu,
        vlan=vlan,
    )


async def leased_ip(driver: Driver, platform: GuestPlatform) -> Ip:
    """With an address from a DHCP server. `OSError` where none gives one."""
    from partitions.child.net.leases import NoLease, obtain  # which an address of one's own does not need

    lease = await obtain(driver, platform)
    try:
        stack = Stack(driver.mac, lease.address, lease.prefix, lease.gateway, mtu=driver.mtu)
    except ValueError as error:
        raise NoLease(f"the DHCP server gives nonsense: {error}") from None
    return Ip(driver, platform, stack, lease)
