"""Devices that come and go while a VM runs: what the host opens and closes, and what the guest sees of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypervisor.wire import Guid
from partitions.child.devices import KEPT_CHANGES
from partitions.host import ExitReason, Host, HotPlugError, Vm, open_host
from partitions.topology_schema import DeviceTable, DiskTable, HostTable, Size, Topology, VmTable
from vmbus.channel import Channel
from vmbus.server.offers import Offer
from vmbus.server.opened import OpenedChannel

KIB = 1 << 10
INTERFACE = "7e570000-0000-4000-8000-000000000001"
WAITS = """
import trio
async def main(guest):
    print("up")
    async for change in guest.device_changes():
        if not change.arrived:
            await guest.departure(change.device)
        await guest.settled()
        disks = [disk.blocks * disk.block_size >> 10 for disk in guest.disks]
        print("+" if change.arrived else "-", change.name, change.device.channel_id, disks)
"""
READS = """
import trio
async def main(guest):
    changes = guest.device_changes()
    print("up")
    device = (await changes.receive()).device
    await guest.settled()
    disk = guest.disks[0]
    print("reading")
    try:
        while True:
            await disk.read(0, 8)
    except (OSError, trio.ClosedResourceError, trio.EndOfChannel) as error:
        print(type(error).__name__)
    await guest.departure(device)
    print("over", len(guest.bus.offers), len(guest.disks))
"""
OPENS = f"""
async def main(guest):
    changes = guest.device_changes()
    print("up")
    while True:
        change = await changes.receive()
        channel = await guest.open_channel("{INTERFACE}")
        print("open", change.device.channel_id)
        async for packet in channel:
            pass
        await guest.departure(change.device)
        await changes.receive()
        print("gone")
"""
BEHIND = """
async def main(guest):
    changes = guest.device_changes()
    print("up")
    await guest.sleep(60)
    print(len([change async for change in changes]), "changes were kept")
"""


@attrs.define
class Silent:
    """Serves and says nothing; `linger` is how long its end takes, in seconds."""

    offer: Offer = Offer(Guid(INTERFACE), Guid(INTERFACE), name="silent")
    linger: float = 0.0
    serving: int = 0

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        self.serving += 1
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.linger)
            self.serving -= 1


def machine(folder: Path, program: str, **more: object) -> Topology:
    (folder / "guest.py").write_text(program)
    return Topology(host=HostTable(), vm=[VmTable(name="vm", program="guest.py", **more)], folder=folder)  # type: ignore[arg-type]


def disk(name: str = "more.img", kib: int = 64) -> DiskTable:
    return DiskTable(path=name, size=Size(kib * KIB))


async def up(host: Host) -> Vm:
    vm = host["vm"]
    await vm.start()
    await says(vm, "up")
    return vm


async def says(vm: Vm, *last: str) -> None:
    """Everybody runs until nobody can; then these are the guest's last lines."""
    await wait_all_tasks_blocked()
    assert vm.console.lines()[-len(last) :] == list(last)


async def test_a_controller_comes_and_goes(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Beside the one of the topology; the guest gets its disks, and its channel ID is free again afterwards."""
    async with open_host(machine(tmp_path, WAITS, disk=[disk("own.img", 32)]), clock="virtual") as host:
        vm = await up(host)
        assert list(vm.devices) == ["storage"]
        await vm.add_device("more", [disk("a.img", 64), disk("b.img", 128)])
        await says(vm, "+ storage 2 [32, 64, 128]")
        await vm.remove_device("more")
        await says(vm, "- storage 2 [32]")
        await vm.add_device("other", disk("a.img"))
        await says(vm, "+ storage 2 [32, 64]")
        assert list(vm.devices) == ["storage", "other"]
        assert vm.statistics().faults == 0


async def test_a_program_that_does_not_read_keeps_no_more_than_so_many(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Its channel ends when it is too far behind, and what is kept for it has a bound."""
    async with open_host(machine(tmp_path, BEHIND), clock="virtual") as host:
        vm = await up(host)
        for _ in range(KEPT_CHANGES // 2 + 3):
            await vm.add_device("more", Silent())
            await wait_all_tasks_blocked()
            await vm.remove_device("more")
            await wait_all_tasks_blocked()
        with trio.fail_after(600):
            await vm.wait()
        assert vm.console.lines()[-1] == f"{KEPT_CHANGES} changes were kept"


async def test_the_controller_of_the_topology_can_go_too(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Its image is closed then, so another may have it; at the next start it is back."""
    async with open_host(machine(tmp_path, WAITS, disk=[disk()]), clock="virtual") as host:
        vm = await up(host)
        await vm.remove_device("storage")
        await says(vm, "- storage 1 []")
        await vm.add_device("mine", disk())
        await says(vm, "+ storage 1 [64]")
        await vm.turn_off()
        assert list(vm.devices) == []
        await vm.start()
        assert list(vm.devices) == ["storage"]


async def test_nothing_is_kept_of_what_has_gone(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """But the count of what went through it: devices that had gone were once kept for that while the VM was on."""
    async with open_host(machine(tmp_path, WAITS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("more", disk())
        await wait_all_tasks_blocked()
        before = vm.statistics()
        silent = Silent()
        gone = weakref.ref(silent)
        await vm.add_device("silent", silent)
        del silent
        await vm.remove_device("silent")
        await vm.remove_device("more")
        await says(vm, "- storage 1 []")
        gc.collect()
        assert gone() is None
        assert vm.statistics().packets >= before.packets > 10


async def test_removal_in_the_middle_of_io(tmp_path: Path) -> None:
    """The guest's reads fail, its driver ends, and the VM lives. On the real clock, since it reads without a rest."""
    async with open_host(machine(tmp_path, READS)) as host:
        vm = host["vm"]
        with trio.fail_after(30):
            lines = vm.console.follow()
            await vm.start()
            await anext(lines)
            await vm.add_device("more", disk())
            assert (await anext(lines)).text == "reading"
            await vm.remove_device("more")
            end = await vm.wait()
        assert end.reason is ExitReason.POWERED_OFF, vm.console.text
        assert vm.console.lines()[-1] == "over 0 0"


async def test_removal_waits_for_the_device_and_not_for_the_guest(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A device may take its time to end; a paused guest answers no rescind, and need not."""
    device = Silent(linger=2.0)
    async with open_host(machine(tmp_path, OPENS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("silent", device)
        await says(vm, "open 1")
        await vm.pause()
        began = trio.current_time()
        await vm.remove_device("silent")
        assert trio.current_time() - began == pytest.approx(2.0)
        assert (device.serving, vm.devices) == (0, ())
        await vm.resume()
        await says(vm, "gone")


async def test_back_before_the_guest_has_let_go(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The same instance again while the guest still holds the ID: it is offered when the guest has released it."""
    device = Silent()
    async with open_host(machine(tmp_path, OPENS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("silent", device)
        await says(vm, "open 1")
        await vm.pause()
        await vm.remove_device("silent")
        await vm.add_device("silent", device)
        assert device.serving == 0
        await vm.resume()
        await says(vm, "gone", "open 1")
        assert device.serving == 1


async def test_what_was_added_stays_over_a_reset(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    async with open_host(
        machine(
            tmp_path,
            "async def main(guest):\n    await guest.settled()\n    print(len(guest.disks))\n    await guest.sleep(9)",
        ),
        clock="virtual",
    ) as host:
        vm = host["vm"]
        await vm.start()
        await wait_all_tasks_blocked()
        await vm.add_device("more", disk())
        await vm.reset()
        await trio.sleep(1)
        assert list(vm.devices) == ["more"]
        assert vm.console.lines()[-1] == "1"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda vm: vm.add_device("own", disk("b.img")), "there is a device 'own' already"),
        (lambda vm: vm.add_device("x", []), "device 'x': a controller without disks"),
        (lambda vm: vm.add_device("x", "dice.py:Dice"), "device 'x': must be a DeviceTable, DiskTables or a VSP"),
        (lambda vm: vm.add_device("x", 3), "with an offer and a serve, is 3"),
        (lambda vm: vm.add_device("x", DiskTable(path="missing.img")), "missing.img: No such file or directory"),
        (lambda vm: vm.add_device("x", disk("a.img")), "a.img is in use"),
        (lambda vm: vm.add_device("x", DeviceTable(vsp="no.py:Such")), "no.py"),
        (lambda vm: vm.remove_device("y"), "there is no device 'y'; there are: 'own'"),
    ],
)
async def test_refusals_say_why_and_change_nothing(
    tmp_path: Path, autojump_clock: trio.abc.Clock, act: Callable[[Vm], object], words: str
) -> None:
    async with open_host(machine(tmp_path, WAITS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("own", disk("a.img"))
        with pytest.raises(HotPlugError) as caught:
            await act(vm)  # type: ignore[misc]
        assert words in str(caught.value)
        assert list(vm.devices) == ["own"]


async def test_the_same_vsp_twice_is_refused(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The bus knows it by its instance."""
    async with open_host(machine(tmp_path, WAITS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("one", Silent())
        with pytest.raises(HotPlugError, match="silent: offered already"):
            await vm.add_device("two", Silent())


async def test_a_vm_that_is_off_has_no_devices(tmp_path: Path) -> None:
    async with open_host(machine(tmp_path, WAITS)) as host:
        for act in (host["vm"].add_device("x", disk()), host["vm"].remove_device("x")):
            with pytest.raises(HotPlugError, match="VM 'vm' is off"):
                await act


@attrs.define
class Polite(Silent):
    """Takes its leave, for so many seconds."""

    leave_taking: float = 1.0
    log: list[str] = attrs.field(factory=list)

    async def leave(self) -> None:
        self.log.append(f"leaves, serving {self.serving}")
        await trio.sleep(self.leave_taking)
        self.log.append(f"has left, serving {self.serving}")


async def test_a_device_takes_its_leave_before_the_guest_is_told(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """It serves meanwhile, and the name is taken; nobody can remove it a second time."""
    device = Polite()
    async with open_host(machine(tmp_path, OPENS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("polite", device)
        await says(vm, "open 1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.remove_device, "polite")
            await trio.sleep(0.5)
            await says(vm, "open 1")
            with pytest.raises(HotPlugError, match="there is no device 'polite'"):
                await vm.remove_device("polite")
        assert device.log == ["leaves, serving 1", "has left, serving 1"]
        await says(vm, "gone")
        assert list(vm.devices) == []


async def test_a_removal_that_is_cancelled_is_a_removal(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """In the middle of the device's leave: it goes without one."""
    device = Polite(leave_taking=9.0)
    async with open_host(machine(tmp_path, OPENS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("polite", device)
        await says(vm, "open 1")
        with trio.move_on_after(1) as scope:
            await vm.remove_device("polite")
        assert scope.cancelled_caught
        await says(vm, "gone")
        assert device.serving == 0


@pytest.mark.parametrize("act", [Vm.turn_off, Vm.reset])
async def test_an_end_or_a_reset_in_the_middle_of_a_leave(
    tmp_path: Path, autojump_clock: trio.abc.Clock, act: Callable[[Vm], object]
) -> None:
    """A VM that is off has no bus to take it from; one that was reset boots without the device."""
    device = Polite()
    async with open_host(machine(tmp_path, OPENS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("polite", device)
        await says(vm, "open 1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.remove_device, "polite")
            await wait_all_tasks_blocked()
            await act(vm)  # type: ignore[misc]
        assert list(vm.devices) == []
        assert device.serving == 0
        if act is Vm.reset:
            await vm.turn_off()
        assert vm.exit is not None
        vm.exit.raise_worker_failure()


async def test_power_off_in_the_middle_of_a_removal(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The removal ends with the VM, and the image is closed."""
    async with open_host(machine(tmp_path, OPENS), clock="virtual") as host:
        vm = await up(host)
        await vm.add_device("silent", Silent(linger=1.0))
        await says(vm, "open 1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.remove_device, "silent")
            await wait_all_tasks_blocked()
            await vm.turn_off()
        assert vm.exit is not None
        vm.exit.raise_worker_failure()
