"""A guest at the far end of the boundary driver: each act is a JSON line in, each answer the lines that came out."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine import Machine
from hypervisor.msr import Msr
from partitions import determinism
from partitions.boundary.driver import Backends, Session
from partitions.boundary.host_side import HostSide
from partitions.boundary.protocol import Line, encode
from partitions.host import Host, open_host
from partitions.topology import Topology
from partitions.topology_schema import VmTable

HYPERCALL_PAGE, MESSAGE_PAGE, FLAGS_PAGE, INPUT, OUTPUT = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
RINGS = 0x10000
RING_PAGES = 4
"""Of each ring, control page included; the guest's own comes first."""
DATA = 0x40000
VECTOR = 0xF3
SINT = 2
POST, SIGNAL = 0x5C, 0x1005D
GUEST_OS_ID = 0x8100_0006_0C75_0000
"""Linux 6.12.117's."""

Result = TypeVar("Result")


class Answer(dict[str, Any]):
    """One answer line."""

    @property
    def status(self) -> str:
        """Of a hypercall, by name; of anything that was refused, why."""
        return str(self.get("status") or self.get("fault") or self.get("error") or "ok")


class BoundaryGuest:
    """One VM's guest. `events` has what came unasked since the last `taken`."""

    def __init__(self, session: Session, lines: list[Line], host: Host) -> None:
        self._session = session
        self._lines = lines
        self.host = host
        self.events: list[dict[str, Any]] = []
        self.message_page, self.flags_page = MESSAGE_PAGE, FLAGS_PAGE

    async def do(self, op: str, **members: Any) -> Answer:
        """One command; exactly one answer, and the events before it are kept."""
        return await self.line(json.dumps({"op": op, **members}).encode())

    async def line(self, line: bytes) -> Answer:
        """One line as it stands."""
        await self._session.handle(line)
        said = [json.loads(encode(line)) for line in self._lines]
        self._lines.clear()
        answers = [line for line in said if "ok" in line]
        assert len(answers) == 1
        assert "ok" in said[-1]
        self.events += said[:-1]
        return Answer(answers[0])

    async def read(self, gpa: int, length: int) -> bytes:
        """Guest memory."""
        return bytes.fromhex((await self.do("read", gpa=gpa, length=length))["data"])

    async def write(self, gpa: int, data: bytes) -> None:
        """Guest memory."""
        assert (await self.do("write", gpa=gpa, data=data.hex()))["ok"]

    async def wrmsr(self, msr: int, value: int) -> str:
        """`ok` or the fault."""
        return (await self.do("wrmsr", msr=int(msr), value=value)).status

    async def call(self, control: int, data: bytes = b"", at: int = INPUT, output: int = OUTPUT) -> Answer:
        """A hypercall with its input in memory."""
        if data:
            await self.write(at, data)
        return await self.do("hypercall", control=control, input=at, output=output)

    # What Linux does.

    async def boot(self) -> None:
        """Guest OS ID, hypercall page, and the SynIC in Linux's order."""
        for msr, value in (
            (Msr.GUEST_OS_ID, GUEST_OS_ID),
            (Msr.HYPERCALL, HYPERCALL_PAGE | 1),
            (Msr.SIMP, MESSAGE_PAGE | 1),
            (Msr.SIEFP, FLAGS_PAGE | 1),
            (Msr.SINT2, VECTOR),
            (Msr.SCONTROL, 1),
        ):
            assert await self.wrmsr(msr, value) == "ok"

    async def post(self, payload: bytes, connection: int = 1, *, message_type: int = 1, size: int | None = None) -> str:
        """HvPostMessage; the status."""
        size = len(payload) if size is None else size
        header = struct.pack("<IIII", connection, 0, message_type, size)
        return (await self.call(POST, header + payload)).status

    async def signal(self, connection: int, flag: int = 0, reserved: int = 0) -> str:
        """HvSignalEvent, fast; the status."""
        return (await self.do("hypercall", control=SIGNAL, input=connection | flag << 32 | reserved << 48)).status

    async def messages(self) -> list[bytes]:
        """Every message that is there, each slot emptied and EOM written where it says that more wait."""
        taken = []
        slot = self.message_page + SINT * 256
        while True:
            raw = await self.read(slot, 256)
            if raw[:4] == bytes(4):
                return taken
            taken.append(raw[16 : 16 + raw[4]])
            await self.write(slot, bytes(4))
            if (await self.read(slot + 5, 1))[0] & 1:
                await self.wrmsr(Msr.EOM, 0)

    async def say(self, payload: bytes, connection: int = 1) -> list[bytes]:
        """Post a message that the hypervisor takes, and take what the host answers."""
        assert await self.post(payload, connection) == "SUCCESS"
        return await self.messages()

    async def flags(self) -> set[int]:
        """The event flags that are set; cleared."""
        page = self.flags_page + SINT * 256
        bits = int.from_bytes(await self.read(page, 256), "little")
        await self.write(page, bytes(256))
        return {bit for bit in range(2048) if bits >> bit & 1}

    async def connect(self, version: int = 0x50003, *, offers: bool = True) -> list[bytes]:
        """Contact and, unless told, the offers; returns the offers."""
        contact = struct.pack("<IIIIQQQ", 14, 0, version, 0, 2, 0, 0)
        (response,) = await self.say(contact, 4 if version >= 0x50000 else 1)
        assert response[:9] == struct.pack("<IIB", 15, 0, 1)
        if not offers:
            return []
        *offered, last = await self.say(struct.pack("<II", 3, 0))
        assert last == struct.pack("<II", 4, 0)
        return offered

    async def gpadl(self, channel: int, gpadl: int, pages: Sequence[int]) -> list[bytes]:
        """One range of whole pages, at most 26; what the host answers."""
        words = [len(pages) << 12, *pages]
        header = struct.pack("<IIIIHH", 8, 0, channel, gpadl, 8 * len(words), 1)
        return await self.say(header + struct.pack(f"<{len(words)}Q", *words))

    async def open(self, channel: int, gpadl: int, downstream: int = RING_PAGES, vp: int = 0) -> list[bytes]:
        """OPENCHANNEL; what the host answers."""
        return await self.say(struct.pack("<IIIIIII", 5, 0, channel, channel, gpadl, vp, downstream) + bytes(120))

    async def open_channel(self, channel: int = 1, gpadl: int = 0xE1E10) -> Rings:
        """GPADL and open, all well."""
        first = RINGS >> 12
        await self.write(RINGS, bytes(2 * RING_PAGES << 12))
        (created,) = await self.gpadl(channel, gpadl, range(first, first + 2 * RING_PAGES))
        assert created == struct.pack("<IIIII", 10, 0, channel, gpadl, 0)
        (opened,) = await self.open(channel, gpadl)
        assert opened == struct.pack("<IIIII", 6, 0, channel, channel, 0)
        return Rings(self, RINGS, RING_PAGES << 12, RING_PAGES << 12, 0x2000 | channel)


class Rings:
    """The guest's ends of a channel's rings, by plain reads and writes of memory."""

    def __init__(self, guest: BoundaryGuest, base: int, outgoing: int, incoming: int, connection: int) -> None:
        """`outgoing` and `incoming` are bytes, control pages included."""
        self._guest = guest
        self.out_page, self.in_page = base, base + outgoing
        self.out_size, self.in_size = outgoing - 4096, incoming - 4096
        self.connection = connection
        self._written = self._read = 0

    def go_on_as(self, guest: BoundaryGuest) -> Rings:
        """The same rings, where they stand, in the hands of a guest that was restored."""
        other = copy.copy(self)
        other._guest = guest
        return other

    async def put(self, raw: bytes) -> None:
        """Bytes at the write index, published, and a signal."""
        assert len(raw) < self.out_size, "the host reads as fast as this guest writes"
        room = self.out_size - self._written
        await self._guest.write(self.out_page + 4096 + self._written, raw[:room])
        if raw[room:]:
            await self._guest.write(self.out_page + 4096, raw[room:])
        self._written = (self._written + len(raw)) % self.out_size
        await self._guest.write(self.out_page, struct.pack("<I", self._written))
        assert await self._guest.signal(self.connection) == "SUCCESS"

    async def send(
        self, payload: bytes, transaction: int = 1, *, kind: int = 6, flags: int = 1, extended: bytes = b""
    ) -> None:
        """One packet as it should be."""
        body = extended + payload.ljust(-(-len(payload) // 8) * 8, b"\0")
        head = struct.pack("<HHHHQ", kind, 2 + len(extended) // 8, 2 + len(body) // 8, flags, transaction)
        await self.put(head + body + struct.pack("<Q", self._written << 32))

    async def received(self) -> list[tuple[bytes, bytes]]:
        """What the host has sent since: (descriptor, body) each."""
        guest = self._guest
        (end,) = struct.unpack("<I", await guest.read(self.in_page, 4))
        length = (end - self._read) % self.in_size
        ring = await guest.read(self.in_page + 4096, self.in_size)
        raw = (ring * 2)[self._read : self._read + length]
        packets = []
        position = 0
        while position < length:
            total = struct.unpack_from("<H", raw, position + 4)[0] * 8
            packets.append((raw[position : position + 16], raw[position + 16 : position + total]))
            place = (self._read + position) % self.in_size
            assert raw[position + total : position + total + 8] == struct.pack("<Q", place << 32)
            position += total + 8
        self._read = end
        await guest.write(self.in_page + 4, struct.pack("<I", end))
        return packets


def at_rest(guest: BoundaryGuest, rings: Rings) -> Callable[[], Awaitable[list[tuple[int, int, bytes]]]]:
    """Tells what the host has sent since: (type, transaction, everything behind the descriptor) each."""

    async def heard() -> list[tuple[int, int, bytes]]:
        await guest.do("settle")
        return [(head[0], int.from_bytes(head[8:16], "little"), body) for head, body in await rings.received()]

    return heard


@asynccontextmanager
async def boundary_guest(
    topology: Topology,
    *,
    siblings: dict[str, Callable[[Machine], Awaitable[object]]] | None = None,
    restore: Path | None = None,
) -> AsyncIterator[BoundaryGuest]:
    """The first VM of a topology by the boundary driver; the others are model guests. Needs a clock that stands.

    With `restore` it goes on from that file.
    """
    lines: list[Line] = []
    boundary = Backends(lines.append)
    driven, *others = topology.vm

    def backends(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        if vm.name == driven.name:
            return boundary(hypervisor, vm)
        guest = (siblings or {})[vm.name]

        async def entry(machines: Sequence[Machine]) -> None:
            await guest(machines[0])

        return TaskBackend(hypervisor, entry)

    async with (
        open_host(topology, clock="virtual", backends=backends) as host,
        trio.open_nursery() as nursery,
    ):
        vm = host[driven.name]
        session = Session(vm, boundary, lines.append, HostSide(host, vm, lines.append, nursery))
        await nursery.start(session.tell_changes)
        for other in others:
            await host[other.name].start()
        if restore is None:
            await session.start()
        else:
            await vm.restore(restore)
        lines.clear()
        yield BoundaryGuest(session, lines, host)
        nursery.cancel_scope.cancel()


def run(async_fn: Callable[..., Awaitable[Result]], *args: Any) -> Result:
    """A session's run: the virtual clock, which moves only when told."""
    return determinism.run(async_fn, *args, clock="virtual", seed=0, autojump=False)
