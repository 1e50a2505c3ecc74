"""1,024 VMs on one host, as many as Hyper-V allows: their start, their memory, and what they cost a packet. Both sides.

Start and memory are those of idle children, each a 16 MiB `task` VM that runs the built-in idle program, in a fresh
process. A packet's cost is a round trip to a VSP that answers each packet with itself, both ends asleep in between:

- one active VM alone on its host, and one among 1,024 idle ones: two processes that are asked in turns
- every VM active at once: the time all take together, by the number of round trips
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import trio

import partitions
from benchmarks.inspecting import look_at
from benchmarks.measure import ROUNDS
from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.pages import PAGE_SHIFT
from hypervisor.wire import Guid
from partitions.child import kernel
from partitions.child.guest import Guest
from partitions.topology_schema import HostTable, Size, Topology, VmTable
from vmbus.channel import Channel
from vmbus.ring import Packet, PacketType
from vmbus.server.connection import Phase
from vmbus.server.offers import Offer
from vmbus.server.opened import OpenedChannel
from vmbus.server.service import VmbusServer

VMS: Final = 1024
IDLE_MEMORY: Final = 16 << 20
GPADL_BYTES: Final = 16 << 20
ECHO: Final = Guid("5ca1ab1e-0000-4000-8000-000000000001")
TRIPS: Final = 1000
"""Round trips of a lone VM in a round."""
TRIPS_OF_EACH: Final = 4
"""Round trips of each VM in a round in which all are active."""
STARTS: Final = 3
"""Fresh processes in which all VMs start."""
SETTLE: Final = 0.2
"""Seconds for what a start leaves behind to end."""


class Echo:
    """A VSP that answers each packet with itself."""

    offer = Offer(interface=ECHO, instance=ECHO, name="echo")

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Until the guest closes."""
        while True:
            await channel.send_batch(await channel.receive_batch())


def topology(count: int, memory: int = IDLE_MEMORY) -> Topology:
    """So many idle VMs, and the memory for them."""
    vms = [VmTable(name=f"vm-{number}", program="idle", memory=Size(memory)) for number in range(count)]
    return Topology(host=HostTable(memory=Size(count * memory)), vm=vms, folder=Path())


# --- start and memory


async def idle_host() -> dict[str, float]:
    """All idle VMs: from the first start until the last guest runs its program, resident memory of each, and a look."""
    async with partitions.open_host(topology(VMS)) as host:
        before = resident_kib()
        begin = time.perf_counter()
        await host.start_all()
        for name in host:  # after which a kernel only runs its program
            await server_of(host, name).wait_phase(Phase.CONNECTED)
        started = time.perf_counter() - begin
        await trio.sleep(SETTLE)
        resident = (resident_kib() - before) / VMS
        seen = await look_at(host)
        return {
            f"scale.{VMS}.start_s": started,
            f"scale.{VMS}.rss_kib_each": resident,
            f"inspect.{VMS}_ms": seen["ms"],
            "inspect.longest_stall_ms": seen["longest_stall_ms"],
        }


def server_of(host: partitions.Host, name: str) -> VmbusServer:
    """The bus of a VM that is on."""
    worker = host.vmms.find(name).worker
    assert worker is not None, "it is on"
    assert worker.server is not None, "it is on"
    return worker.server


def resident_kib() -> float:
    """Of this process."""
    status = Path("/proc/self/status").read_text()
    return float(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1])


# --- packets


class Sleepers:
    """Guest programs that sleep until they are asked for round trips, each on a channel of its own."""

    def __init__(self, count: int) -> None:
        self.all_asleep = trio.Event()
        """So many run their programs."""
        self._count = count
        self._wanted: dict[str, trio.Event] = {}
        self._trips = 0
        self._busy = 0
        self._done = trio.Event()

    async def program(self, guest: Guest) -> None:
        """Sleep; open the channel at the first request."""
        channel: Channel | None = None
        packet = Packet(PacketType.INBAND, 0, 1, 0, bytes(64))
        while True:
            wanted = self._wanted[guest.name] = trio.Event()
            if len(self._wanted) == self._count:
                self.all_asleep.set()
            await wanted.wait()
            if channel is None:
                channel = await open_echo(guest)
            for _ in range(self._trips):
                await channel.send(packet)
                await channel.receive()
            self._busy -= 1
            if not self._busy:
                self._done.set()

    async def round(self, names: Sequence[str], trips: int) -> float:
        """Seconds a round trip, over as many of each of these VMs at once."""
        self._trips, self._busy, self._done = trips, len(names), trio.Event()
        gc.collect()
        gc.disable()  # as `measure.compare` does
        begin = time.perf_counter()
        for name in names:
            self._wanted[name].set()
        await self._done.wait()
        gc.enable()
        return (time.perf_counter() - begin) / (trips * len(names))


async def open_echo(guest: Guest) -> Channel:
    """The device may be on its way."""
    while not guest.bus.offers:
        await guest.sleep(0.001)
    return await guest.open_channel(ECHO)


def guests_of(main: Callable[[Guest], Awaitable[None]]) -> Callable[[Hypervisor, VmTable], Backend]:
    """A backend factory whose guests run `main`."""
    return lambda hypervisor, vm: TaskBackend(hypervisor, lambda machines: kernel.boot(machines, main, name=vm.name))


async def answer_rounds(count: int) -> None:
    """A host with so many VMs; each line that comes asks for a round: `one` or `all`. The answer is its figure."""
    sleepers = Sleepers(count)
    async with partitions.open_host(topology(count), backends=guests_of(sleepers.program)) as host:
        await host.start_all()
        await sleepers.all_asleep.wait()
        names = list(host)
        give_echo(host, names[0])
        await sleepers.round(names[:1], 1)
        print("ready", flush=True)
        for line in sys.stdin:
            if line == "all\n":
                for name in names:
                    give_echo(host, name)
                await sleepers.round(names, 1)
            which, trips = (names[:1], TRIPS) if line == "one\n" else (names, TRIPS_OF_EACH)
            print(await sleepers.round(which, trips), flush=True)


def give_echo(host: partitions.Host, name: str) -> None:
    """Offer the VM the device, unless it has it."""
    with contextlib.suppress(ValueError):  # it is offered already
        server_of(host, name).offer(Echo())


class Asked:
    """A process with a host, which is asked for rounds; while it is not asked it sleeps."""

    def __init__(self, count: int) -> None:
        command = [sys.executable, "-m", "benchmarks.scale", str(count)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def ask(self, what: str) -> float:
        """One figure."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        """Let it close its host."""
        self.process.communicate()


def packet_costs(rounds: int = ROUNDS) -> dict[str, float]:
    """How much more a packet costs among many VMs; prints the medians."""
    alone, crowd = Asked(1), Asked(VMS)
    singles = [(alone.ask("one"), crowd.ask("one")) for _ in range(rounds + 1)][1:]
    together = [(alone.ask("one"), crowd.ask("all")) for _ in range(rounds // 2 + 1)][1:]
    alone.end()
    crowd.end()
    single, among = (statistics.median(figures) for figures in zip(*singles, strict=True))
    print(f"\na packet there and back: {single * 1e6:.1f} us alone, {among * 1e6:.1f} us among {VMS} idle VMs")
    everyone = statistics.median(crowded for _, crowded in together)
    print(f"with all {VMS} VMs active: {everyone * 1e6:.1f} us")
    return {
        "scale.packet_cost_1024_vs_1": among / single,
        "scale.packet_cost_1024_active_vs_1": statistics.median(crowded / own for own, crowded in together),
    }


# --- GPADLs


async def gpadl_ms() -> float:
    """Median milliseconds from the client's request until it has the host's answer: 16 MiB, 4,096 pages."""
    times: list[float] = []

    async def program(guest: Guest) -> None:
        await open_echo(guest)
        channel_id = guest.bus.offers[0].channel_id
        pages = GPADL_BYTES >> PAGE_SHIFT
        first = guest.platform.allocate_pages(pages)
        bus = guest._devices._bus  # what a driver has; programs have no use for it
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            gpadl = await bus.create_gpadl(channel_id, range(first, first + pages), GPADL_BYTES)
            times.append(time.perf_counter() - begin)
            await bus.teardown_gpadl(gpadl)

    async with partitions.open_host(topology(1, 4 * GPADL_BYTES), backends=guests_of(program)) as host:
        vm = next(iter(host.values()))
        await vm.start()
        give_echo(host, vm.name)
        await vm.wait()
    return statistics.median(times[1:]) * 1e3


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """All keys of this file."""
    idle = [idle_figures() for _ in range(STARTS)]
    figures = {key: statistics.median(each[key] for each in idle) for key in idle[0]}
    return figures | packet_costs(rounds) | {"gpadl.16mib_ms": trio.run(gpadl_ms)}


def idle_figures() -> dict[str, float]:
    """Of `idle_host` in a process of its own, since what ran here before has left memory behind to be used again."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.scale"], stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    if len(sys.argv) > 1:
        trio.run(answer_rounds, int(sys.argv[1]))
    else:
        print(json.dumps(trio.run(idle_host)))
