"""The same disk reads through a whole host, the start of an idle child, and the root's memory. Both sides.

The guest is booted by the host API on the `task` backend: its kernel, VMBus, storage driver, ring, VSP and image are
all in the way, as for any guest.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

import partitions
from benchmarks import storage
from benchmarks.measure import ROUNDS, compare, table
from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from partitions.child import kernel
from partitions.child.guest import Guest
from partitions.topology_schema import DiskTable, HostTable, Size, Topology, VmTable
from vsp_vsc.storage.vsc import Disk

IDLE_MEMORY = 16 << 20
BENCH_MEMORY = 64 << 20
BOOTS = 60
Main = Callable[[Guest], Awaitable[None]]


def topology(image: Path, memory: int) -> Topology:
    """One VM with the image as its only disk."""
    vm = VmTable(name="bench", program="idle", memory=Size(memory), disk=[DiskTable(path=str(image), read_only=True)])
    return Topology(host=HostTable(), vm=[vm], folder=image.parent)


def guest_of(main: Main) -> Callable[[Hypervisor, VmTable], Backend]:
    """A backend factory whose guests run `main`, so that a benchmark can take its own figures."""

    def make(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        return TaskBackend(hypervisor, lambda machines: kernel.boot(machines, main, name=vm.name))

    return make


def on_host(reader: Callable[[Disk], Awaitable[float]], image: Path) -> float:
    """Seconds an operation of `reader`, run by a guest program on its disk 0."""
    figures: list[float] = []

    async def program(guest: Guest) -> None:
        figures.append(await reader(await guest.disk(0)))

    async def main() -> None:
        async with partitions.open_host(topology(image, BENCH_MEMORY), backends=guest_of(program)) as host:
            await host["bench"].start()
            await host["bench"].wait()

    trio.run(main)
    return figures[0]


def idle_child_ms(image: Path) -> float:
    """Median milliseconds from `start` until an idle child's program has its disk: 16 MiB, one processor."""
    times: list[float] = []

    async def main() -> None:
        ready: list[trio.Event] = []

        async def program(guest: Guest) -> None:
            await guest.disk(0)
            ready[-1].set()
            await guest.sleep(3600)

        async with partitions.open_host(topology(image, IDLE_MEMORY), backends=guest_of(program)) as host:
            vm = host["bench"]
            for _ in range(BOOTS):
                ready.append(trio.Event())
                begin = time.perf_counter()
                await vm.start()
                await ready[-1].wait()
                times.append(time.perf_counter() - begin)
                await vm.turn_off()

    trio.run(main)
    return statistics.median(times) * 1e3


def root_rss_mib(image: Path) -> float:
    """Resident memory of a fresh process whose host runs one idle child, in MiB."""
    command = [sys.executable, "-m", "benchmarks.host", str(image)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """All keys that go through a whole host; prints the medians."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.raw"
        storage.make_image(image)
        small = compare(
            {
                "trio_open_file": functools.partial(storage.trio_open_file_random, image),
                "preadv": functools.partial(storage.preadv_random, image),
                "partita": functools.partial(on_host, storage.random_batches, image),
                "partita, 32 tasks": functools.partial(on_host, storage.random_tasks, image),
            },
            rounds,
        )
        print("\n4 KiB random reads, 32 under way\n" + table(small, "preadv"))
        large = compare(
            {
                "preadv": functools.partial(storage.preadv_sequential, image),
                "partita": functools.partial(on_host, storage.sequential_buffers, image),
            },
            rounds,
        )
        print("\n256 KiB sequential reads, 8 under way\n" + table(large, "preadv"))
        return {
            "storage.randread4k_qd32.vs_trio_open_file": small["trio_open_file"] / small["partita"],
            "storage.randread4k_qd32.vs_preadv": small["preadv"] / small["partita"],
            "storage.seqread256k_qd8.vs_preadv": large["preadv"] / large["partita"],
            "root.rss_mib": root_rss_mib(image),
            "boot.idle_child_ms": idle_child_ms(image),
        }


async def _idle_host(image: Path) -> None:
    ready = trio.Event()

    async def program(guest: Guest) -> None:
        await guest.disk(0)
        ready.set()
        await guest.sleep(3600)

    async with partitions.open_host(topology(image, IDLE_MEMORY), backends=guest_of(program)) as host:
        await host["bench"].start()
        await ready.wait()
        print(_resident_mib())


def _resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(resident.split()[1]) / 1024


if __name__ == "__main__":
    trio.run(_idle_host, Path(sys.argv[1]))
