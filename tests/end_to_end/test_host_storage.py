"""The whole way, guest program to image file, through the Python API."""

from __future__ import annotations

import gc
import hashlib
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.machine import Machine
from hypervisor.trace import Layer, TraceEvent
from partitions.compose import guest_entry
from partitions.determinism import run
from partitions.host import ExitReason, Host, StartFailed, VmState, open_host
from partitions.topology_schema import DeviceTable, DiskTable, Size, Topology, VmTable
from vmbus.server.connection import Phase
from vsp_vsc.storage.protocol import STORAGE_INTERFACE

MIB = 1 << 20


def folder_with(tmp_path: Path, **programs: str) -> Path:
    for name, source in programs.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    return tmp_path


def vm(name: str, program: str, *disks: DiskTable, **settings: Any) -> VmTable:
    return VmTable(name=name, program=f"{program}.py", memory=Size(8 * MIB), disk=list(disks), **settings)


WRITER = """
    import hashlib
    async def main(guest):
        disk = await guest.disk(0)
        data = bytes(range(256)) * 2 * disk.blocks
        await disk.write(0, data, fua=True)
        await disk.flush()
        print("wrote", hashlib.sha256(data).hexdigest())
"""

READER = """
    import hashlib
    async def main(guest):
        disk = await guest.disk(0)
        data = await disk.read(0, disk.blocks)
        print("read", hashlib.sha256(data).hexdigest())
        return 0 if disk.read_only else 1
"""


async def test_two_guests_and_an_image(tmp_path: Path) -> None:
    """One guest writes an image, others read the same bytes, and so does the host; on the real clock, with threads."""
    folder = folder_with(tmp_path, writer=WRITER, reader=READER)
    image = DiskTable(path="d.img", size=Size(MIB))
    shared = DiskTable(path="d.img", read_only=True)
    topology = Topology(
        vm=[vm("writer", "writer", image), vm("one", "reader", shared), vm("two", "reader", shared)], folder=folder
    )
    async with open_host(topology) as host:
        with trio.fail_after(10):
            await host["writer"].start()
            assert (await host["writer"].wait()).ok
            await host["one"].start()
            await host["two"].start()
            exits = await host.wait_all()
        digest = hashlib.sha256((tmp_path / "d.img").read_bytes()).hexdigest()
        assert host["writer"].console.lines() == [f"wrote {digest}"]
        assert host["one"].console.lines() == host["two"].console.lines() == [f"read {digest}"]
        assert all(ended.ok for ended in exits.values())
        moved = host["one"].statistics()
        assert moved.packets_in == moved.packets_out > 0
        assert moved.messages > 8
        assert moved.bytes == moved.bytes_in + moved.bytes_out


async def test_a_crash_and_a_sibling(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A program's exception is its VM's crash, told by the crash registers; its sibling works on."""
    folder = folder_with(
        tmp_path,
        fragile="async def main(guest):\n    await guest.sleep(1)\n    {}['key']\n",
        steady="async def main(guest):\n    for n in range(5):\n        await guest.sleep(1)\n        print(n)\n",
    )
    async with open_host(Topology(vm=[vm("fragile", "fragile"), vm("steady", "steady")], folder=folder)) as host:
        await host.start_all()
        crashed = await host["fragile"].wait()
        assert host["steady"].state is VmState.RUNNING
        assert (crashed.reason, crashed.exit_code, crashed.detail) == (ExitReason.CRASHED, 1, "KeyError: 'key'")
        assert "fragile.py" in host["fragile"].console.text
        assert (await host["steady"].wait()).ok
        assert host["steady"].console.lines() == ["0", "1", "2", "3", "4"]


async def test_a_reset_keeps_disks_and_forgets_memory(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A guest that resets itself finds its disk as it left it and boots from nothing otherwise."""
    folder = folder_with(
        tmp_path,
        counter="""
        seen = []
        async def main(guest):
            seen.append(1)
            disk = await guest.disk(0)
            block = bytearray(await disk.read(0, 1))
            block[0] += 1
            await disk.write(0, bytes(block))
            print("boot", block[0], "seen", len(seen))
            if block[0] < 4:
                await guest.reset()
        """,
    )
    topology = Topology(vm=[vm("c", "counter", DiskTable(path="c.img", size=Size(MIB)))], folder=folder)
    async with open_host(topology) as host:
        await host["c"].start()
        ended = await host["c"].wait()
        assert (ended.ok, ended.resets) == (True, 3)
        assert host["c"].console.lines() == [f"boot {number} seen 1" for number in (1, 2, 3, 4)]


async def test_a_reset_ends_the_old_guests_bus(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """No device serves rings in memory that is another guest's now, even if that one never comes to the bus."""
    boots = 0

    def backend(hypervisor: Hypervisor, settings: VmTable) -> Backend:
        kernel, _ = guest_entry(settings, topology)

        async def entry(machines: Sequence[Machine]) -> None:
            nonlocal boots
            boots += 1
            if boots == 1:
                await kernel(machines)
            await trio.sleep_forever()

        return TaskBackend(hypervisor, entry)

    disk = DiskTable(path="d.img", size=Size(MIB))
    idle = VmTable(name="i", program="idle", memory=Size(4 * MIB), disk=[disk])
    topology = Topology(vm=[idle], folder=tmp_path)
    async with open_host(topology, backends=backend) as host:
        await host["i"].start()
        await trio.sleep(1)
        worker = host["i"]._managed.worker
        assert worker is not None
        assert worker.server is not None
        assert worker.server.phase is Phase.CONNECTED
        await host["i"].reset()
        await trio.sleep(1)
        assert (boots, worker.server.phase, host.winhv.flags.taken) == (2, Phase.DISCONNECTED, 0)


async def test_operations_in_the_middle_of_io(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Pause, reset and turning off hit a guest at full tilt; it stands still, boots again, or is gone without trace."""
    folder = folder_with(
        tmp_path,
        busy="""
        async def main(guest):
            disk = await guest.disk(0)
            n = 0
            while True:
                await disk.write(n % 64, bytes([n % 256]) * 512)
                assert (await disk.read(n % 64, 1))[0] == n % 256
                await guest.sleep(0.001)
                n += 1
        """,
    )
    topology = Topology(vm=[vm("b", "busy", DiskTable(path="b.img", size=Size(MIB)), processors=2)], folder=folder)
    async with open_host(topology) as host:
        guest = host["b"]
        await guest.start()
        held = None
        for _ in range(5):
            await trio.sleep(0.1)
            before = guest.statistics().packets
            await guest.pause()
            await trio.testing.wait_all_tasks_blocked()
            at_pause = guest.statistics().packets
            await trio.sleep(10)
            assert guest.statistics().packets == at_pause
            await guest.resume()
            await trio.sleep(0.1)
            assert guest.statistics().packets > before + 20
            await guest.reset()
            await trio.sleep(0.05)
            now = (host.winhv.flags.taken, len(host.winhv.port_ids.in_use), len(host.hypervisor.root.ports))
            assert held in (None, now)
            held = now
        await guest.turn_off()
        assert guest.exit is not None
        assert guest.exit.resets == 5
        assert (host.winhv.flags.taken, len(host.winhv.port_ids.in_use), len(host.hypervisor.root.ports)) == (0, 0, 0)


async def test_a_disk_is_taken_away_in_the_middle_of_io_and_comes_back(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """The guest's calls fail at once, its driver lets go, and the same disk, offered again, is found and works."""
    folder = folder_with(
        tmp_path,
        loses="""
        async def main(guest):
            disk = await guest.disk(0)
            await disk.write(8, b"kept" * 128, fua=True)
            try:
                while True:
                    await disk.read_many([(8 * number, 8) for number in range(32)])
                    await guest.sleep(0.001)
            except Exception as error:
                print(type(error).__name__)
            while disk in guest.disks or not guest.disks:
                await guest.sleep(0.01)
            disk = await guest.disk(0)
            print((await disk.read(8))[:4])
        """,
    )
    topology = Topology(vm=[vm("v", "loses", DiskTable(path="d.img", size=Size(MIB)))], folder=folder)
    async with open_host(topology) as host:
        await host["v"].start()
        await trio.sleep(0.1)
        worker = host.vmms.find("v").worker
        assert worker is not None
        assert worker.server is not None
        taken = next(
            offered for offered in worker.server.offered if offered.device.offer.interface == STORAGE_INTERFACE
        )
        worker.server.rescind(taken)
        await trio.sleep(0.1)
        worker.server.offer(taken.device)
        assert (await host["v"].wait()).ok
        assert host["v"].console.lines() == ["StorageGone", "b'kept'"]


async def test_a_bug_in_a_device_stays_in_its_vm(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A VSP that raises what is no fault of the guest's: that VM goes off with the traceback, its sibling works on."""
    folder = folder_with(
        tmp_path,
        vsp="""
        from hypervisor.wire import Guid
        from vmbus.server.offers import Offer
        class Buggy:
            offer = Offer(Guid("11111111-2222-3333-4444-555555555555"), Guid("99999999-2222-3333-4444-555555555555"))
            async def serve(self, channel, opened):
                await channel.receive()
                raise RuntimeError("a bug of ours")
        """,
        opens="""
        from vmbus.ring import Packet, PacketType
        async def main(guest):
            channel = await guest.open_channel("11111111-2222-3333-4444-555555555555")
            await guest.sleep(1)
            await channel.send(Packet(PacketType.INBAND, 0, 0, 0, bytes(8)))
            await guest.sleep(100)
        """,
        steady="async def main(guest):\n    await guest.sleep(5)\n",
    )
    buggy = vm("buggy", "opens", device=[DeviceTable(vsp="vsp.py:Buggy")])
    async with open_host(Topology(vm=[buggy, vm("steady", "steady")], folder=folder)) as host:
        await host.start_all()
        exits = await host.wait_all()
        assert exits["steady"].ok
        assert (exits["buggy"].reason, exits["buggy"].ok) == (ExitReason.WORKER_FAILED, False)
        assert str(exits["buggy"]) == "worker failed: RuntimeError: a bug of ours"
        assert "vsp.py" in exits["buggy"].traceback
        assert exits["buggy"].uptime == pytest.approx(1)


async def test_the_power_button(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The kernel cancels the program, which may tidy up and write its last block; then it powers off by itself."""
    folder = folder_with(
        tmp_path,
        tidy="""
        async def main(guest):
            disk = await guest.disk(0)
            print("up")
            try:
                await guest.sleep(1000)
            finally:
                print("tidy")
        """,
    )
    topology = Topology(vm=[vm("t", "tidy", DiskTable(path="t.img", size=Size(MIB)))], folder=folder)
    async with open_host(topology) as host:
        await host.start_all()
        await trio.sleep(1)
        ended = await host["t"].shut_down(grace=5)
        assert ended.reason is ExitReason.POWERED_OFF
        assert host["t"].console.lines()[:2] == ["up", "tidy"]


async def test_many_idle_children(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Fifty at once, each with its disk and its channel; afterwards nothing is held."""
    gc.collect()  # what earlier tests left to the collector must not go while this one counts
    files = len(os.listdir("/proc/self/fd"))
    vms = [
        VmTable(
            name=f"vm{number}",
            program="idle",
            memory=Size(4 * MIB),
            disk=[DiskTable(path=f"{number}.img", size=Size(MIB))],
        )
        for number in range(50)
    ]
    async with open_host(Topology(vm=vms, folder=tmp_path)) as host:
        await host.start_all()
        await trio.sleep(1)
        assert {guest.state for guest in host.values()} == {VmState.RUNNING}
        assert host.winhv.flags.taken == 50
        assert all(guest.statistics().packets >= 8 for guest in host.values())
        assert host.winhv.stray == 0
        await host.shut_down_all()
        exits = await host.wait_all()
        assert {ended.reason for ended in exits.values()} == {ExitReason.POWERED_OFF}
        assert (host.winhv.flags.taken, len(host.hypervisor.partitions)) == (0, 1)
        assert host.winhv.port_ids.in_use == host.winhv.connection_ids.in_use == set()
    assert len(os.listdir("/proc/self/fd")) == files


async def test_a_program_that_cannot_be_read(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Found when the VM starts, if nobody has looked before: words, no worker failure."""
    folder = folder_with(tmp_path, wrong="async def main(guest:\n")
    async with open_host(Topology(vm=[vm("a", "wrong"), vm("b", "missing")], folder=folder)) as host:
        for name in ("a", "b"):
            with pytest.raises(StartFailed) as failed:
                await host[name].start()
            assert failed.value.exit.reason is ExitReason.NOT_STARTED


def test_the_same_seed_gives_the_same_trace(tmp_path: Path) -> None:
    """On the virtual clock a run is a function of its topology and seed: every event, every field, every time."""
    folder = folder_with(tmp_path, writer=WRITER)

    def once(seed: int) -> list[TraceEvent]:
        events: list[TraceEvent] = []
        disks = [DiskTable(path=f"{name}.img", size=Size(64 * 1024)) for name in "ab"]
        for name in "ab":  # how a disk is called goes into its identity, so it has to be the same image, made afresh
            (tmp_path / f"{name}.img").unlink(missing_ok=True)
        topology = Topology(vm=[vm("a", "writer", disks[0]), vm("b", "writer", disks[1])], folder=folder)

        async def main() -> None:
            async with open_host(topology, clock="virtual", sinks=[events.append]) as host:
                await host.start_all()
                await host.wait_all()
                check(host)

        run(main, clock="virtual", seed=seed)
        return events

    def check(host: Host) -> None:
        assert all(guest.exit is not None and guest.exit.ok for guest in host.values())

    first, again = once(7), once(7)
    assert len(first) > 200
    assert {Layer.CONTROL, Layer.PACKET, Layer.HYPERCALL, Layer.DEVICE} <= {event.layer for event in first}
    assert first == again
