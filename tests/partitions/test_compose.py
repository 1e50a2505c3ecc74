"""Root and child together: what a line in a topology becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hypervisor.trace import TraceEvent
from partitions.compose import guest_entry
from partitions.host import ExitReason, Host, VmState, open_host
from partitions.topology_schema import DiskTable, Size, Topology, VmTable


def topology(folder: Path, program: str, *, disks: tuple[str, ...] = (), **keys: object) -> Topology:
    (folder / "guest.py").write_text(program)
    tables = [DiskTable(path=path, size=Size(1 << 20)) for path in disks]
    vm = VmTable(name="web", program="guest.py", memory=Size(8 << 20), disk=tables, **keys)  # type: ignore[arg-type]
    return Topology(vm=[vm], folder=folder)


async def finish(host: Host) -> str:
    """Run `web` to its end; its console."""
    with trio.fail_after(60):
        await host["web"].start()
        end = await host["web"].wait()
    end.raise_worker_failure()
    return host["web"].console.text


async def test_arguments_and_exit_code_pass_through(tmp_path: Path, autojump_clock: MockClock) -> None:
    """`args` of the topology are `guest.args`; what `main` returns is the exit code."""
    program = "async def main(guest):\n    print(guest.name, guest.args['n'])\n    return guest.args['n']\n"
    async with open_host(topology(tmp_path, program, args={"n": 3})) as host:
        assert await finish(host) == "web 3\n"
        assert (host["web"].exit.reason, host["web"].exit.exit_code) == (ExitReason.POWERED_OFF, 3)


async def test_every_boot_has_a_fresh_module_and_fresh_memory(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A guest that restarts itself finds nothing of its former life but its disks."""
    program = """
count = 0
async def main(guest):
    global count
    count += 1
    old = bytes(guest.machine.memory[0x300000:0x300004])
    guest.machine.memory[0x300000:0x300004] = b"mark"
    disk = await guest.disk(0)
    boots = (await disk.read(0))[0]
    await disk.write(0, bytes([boots + 1]) * 512, fua=True)
    print("boot", boots, "count", count, "memory", old)
    if boots < 2:
        await guest.reset()
"""
    async with open_host(topology(tmp_path, program, disks=("d.img",))) as host:
        text = await finish(host)
        assert text == "".join(f"boot {n} count 1 memory {bytes(4)}\n" for n in range(3))
        assert host["web"].exit.resets == 2


async def test_a_program_restarts_in_order(tmp_path: Path, autojump_clock: MockClock) -> None:
    """It is cancelled and cleans up, the bus is left, and only then comes the reset; a policy has nothing to do."""
    program = """
async def main(guest):
    disk = await guest.disk(0)
    boots = (await disk.read(0))[0]
    await disk.write(0, bytes([boots + 1]) * 512, fua=True)
    print("boot", boots)
    if boots < 2:
        try:
            await guest.restart()
        finally:
            print("cleaned up")
    return 5
"""
    seen: list[TraceEvent] = []
    async with open_host(topology(tmp_path, program, disks=("d.img",)), sinks=[seen.append]) as host:
        text = await finish(host)
        assert text == "boot 0\ncleaned up\nboot 1\ncleaned up\nboot 2\n"
        record = host["web"].exit
        assert (record.reason, record.exit_code, record.resets) == (ExitReason.POWERED_OFF, 5, 2)
    unloads = [event for event in seen if event.event == "unload"]
    assert len(unloads) == 3, "each boot has left the bus"


async def test_what_the_top_level_of_a_module_raises_is_the_guests_crash(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """A program is loaded inside its own guest, so a mistake there never reaches the root."""
    async with open_host(topology(tmp_path, "async def main(guest): pass\nprint(1 / 0)\n")) as host:
        text = await finish(host)
        assert host["web"].exit.reason is ExitReason.CRASHED
    assert f'File "{tmp_path}/guest.py", line 2, in <module>' in text
    assert "partitions/child" not in text, "the kernel's frames are trimmed"


async def test_the_power_button_ends_an_idle_guest(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The built-in program does nothing and leaves in order."""
    settings = VmTable(name="web", program="idle", memory=Size(2 << 20))
    async with open_host(Topology(vm=[settings], folder=tmp_path)) as host:
        await host["web"].start()
        await trio.sleep(3)
        assert host["web"].state is VmState.RUNNING
        end = await host["web"].shut_down(10)
        assert (end.reason, end.exit_code) == (ExitReason.POWERED_OFF, 0)


async def test_a_guest_cleans_up_after_the_power_button(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The disk still works while the program cleans up."""
    program = """
import trio
async def main(guest):
    disk = await guest.disk(0)
    try:
        await guest.sleep(1000)
    finally:
        with trio.CancelScope(shield=True):
            await disk.write(1, b"bye!" * 128)
            await disk.flush()
"""
    async with open_host(topology(tmp_path, program, disks=("d.img",))) as host:
        await host["web"].start()
        await trio.sleep(1)
        end = await host["web"].shut_down(10)
    assert (end.reason, end.exit_code) == (ExitReason.POWERED_OFF, 0)
    assert (tmp_path / "d.img").read_bytes()[512:1024] == b"bye!" * 128


async def test_a_pause_stops_time_sleep_and_work(tmp_path: Path, autojump_clock: MockClock) -> None:
    """While the VM is paused none of its clocks goes on."""
    program = (
        "async def main(guest):\n    await guest.sleep(2)\n    await guest.work(2)\n    print(round(guest.time(), 2))\n"
    )
    async with open_host(topology(tmp_path, program)) as host:
        vm = host["web"]
        await vm.start()
        for _ in range(2):
            await trio.sleep(1)
            await vm.pause()
            await trio.sleep(100)
            await vm.resume()
        assert (await vm.wait()).ok
        assert vm.console.text == "4.0\n"
        assert trio.current_time() == pytest.approx(204, abs=0.1)


async def test_a_disk_without_its_driver_is_a_channel(tmp_path: Path, autojump_clock: MockClock) -> None:
    """`unbind` takes the kernel's driver off; the program speaks the protocol itself, and the disk calls end."""
    program = """
import struct
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.storage.vsc import StorageGone
async def main(guest):
    disk = await guest.disk(0)
    await guest.unbind("storage")
    print(guest.disks)
    try:
        await disk.read(0)
    except StorageGone:
        print("gone")
    channel = await guest.open_channel("storage")
    begin = struct.pack("<III", 7, 1, 0).ljust(64, b"\\0")
    await channel.send(Packet(PacketType.INBAND, COMPLETION_REQUESTED, 5, 0, begin))
    answer = await channel.receive()
    print(answer.transaction_id, struct.unpack_from("<III", answer.payload))
    await guest.unbind("storage")
"""
    async with open_host(topology(tmp_path, program, disks=("d.img",))) as host:
        assert await finish(host) == "()\ngone\n5 (1, 0, 0)\n"


async def test_a_missing_disk_is_explained_with_those_that_are_there(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The message answers the next question, too."""
    async with open_host(topology(tmp_path, "async def main(guest): await guest.disk(1)", disks=("d.img",))) as host:
        text = await finish(host)
    assert text.endswith("NoSuchDevice: no disk 1: this guest has disk 0 (1024 KiB)\n")


async def test_a_rescinded_disk_is_an_error_to_its_users_alone(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Hot removal: the driver ends, `guest.disks` is empty, the guest goes on."""
    program = """
from vsp_vsc.storage.vsc import StorageGone
async def main(guest):
    disk = await guest.disk(0)
    print(len(guest.disks), len(guest.bus.offers))
    await guest.sleep(2)
    print(len(guest.disks), len(guest.bus.offers))
    try:
        await disk.read(0)
    except StorageGone as gone:
        print(type(gone).__name__)
"""
    async with open_host(topology(tmp_path, program, disks=("d.img",))) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(1)
        server = host.vmms.find("web").worker.server
        for offered in server.offered:
            server.rescind(offered)
        end = await vm.wait()
        end.raise_worker_failure()
        assert vm.console.text == "1 1\n0 0\nStorageGone\n"
        assert end.ok


async def test_two_processors_work_at_the_same_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Work on one processor does not hold up the other; on one processor it takes turns."""
    program = """
async def main(guest):
    async with __import__("trio").open_nursery() as nursery:
        for vp in guest.args["vps"]:
            nursery.start_soon(lambda vp=vp: guest.work(1, vp=vp))
    print(round(guest.time()))
"""
    for vps, seconds in (([0, 1], 1), ([1, 1], 2)):
        async with open_host(topology(tmp_path, program, processors=2, args={"vps": vps})) as host:
            assert await finish(host) == f"{seconds}\n"


def test_a_mistake_in_a_program_is_known_before_anything_starts(tmp_path: Path) -> None:
    """The file is compiled when the VM is composed, not when its processor runs."""
    bad = topology(tmp_path, "async def main(guest) pass")
    with pytest.raises(SyntaxError):
        guest_entry(bad.vm[0], bad)
