"""Memory that comes and goes, from the host's API and its balancer to a model guest's kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

import partitions
from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.scheduler.tree import ResourceError
from hypervisor.trace import TraceEvent
from partitions.child import kernel
from partitions.child.guest import Guest, GuestMain
from partitions.child.memory import SWAP_SECONDS
from partitions.host import CannotSave, Host, Vm
from partitions.root.memory_state import CannotResize, MemoryState, fixed_memory
from partitions.topology_controls import DynamicMemoryTable, PoolMemoryTable, PoolTable
from partitions.topology_schema import HostTable, Size, Topology, VmTable
from tests.doubles.root import bare_host, idle
from vsp_vsc.memory.guest import floor_pages

MIB = 1 << 20


def open_guests(
    *vms: tuple[VmTable, GuestMain], memory: int = 1024, pools: Sequence[PoolTable] = (), **keys: Any
) -> Any:
    """A host of `memory` MiB, and of `keys`, whose VMs run these; each may go on from a saved state."""
    mains: Mapping[str, GuestMain] = {table.name: main for table, main in vms}

    def backend(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        async def boot(machines: Any) -> None:
            await kernel.boot(machines, mains[vm.name], name=vm.name)

        async def resume(machines: Any) -> None:
            await kernel.boot(machines, mains[vm.name], name=vm.name, resumed=True)

        return TaskBackend(hypervisor, boot, resume)

    tables = [table for table, _ in vms]
    host = HostTable(memory=Size(memory * MIB), **keys)
    topology = Topology(host=host, vm=tables, pool=list(pools), folder=Path())
    return partitions.open_host(topology, backends=backend)


def fixed(name: str = "web", memory: int = 64) -> VmTable:
    """Without dynamic memory; MiB."""
    return VmTable(name=name, memory=Size(memory * MIB))


def dynamic(name: str, minimum: int, memory: int, maximum: int, **keys: Any) -> VmTable:
    """With; MiB."""
    table = DynamicMemoryTable(minimum=Size(minimum * MIB), maximum=Size(maximum * MIB), **keys)
    return VmTable(name=name, memory=Size(memory * MIB), dynamic_memory=table)


def state(vm: Vm) -> MemoryState:
    """Of a VM that is on."""
    memory = vm.memory
    assert memory is not None
    return memory


def resident(host: Host, name: str) -> int:
    """Bytes that the system keeps for a VM's memory."""
    partition = host.vmms.vms[name].worker.partition  # type: ignore[union-attr]
    assert partition is not None
    blocks = {block for _, block, _, _, _ in partition.memory.extents()}
    return sum(os.fstat(block.fd).st_blocks * 512 for block in blocks if block.fd is not None)


async def forever(guest: Guest) -> None:
    """A program that does nothing."""
    await guest.sleep(1e6)


async def test_a_fixed_vm_is_resized(autojump_clock: trio.abc.Clock) -> None:
    """Down by the balloon, and the host's memory really falls; up again; above what it was built with by hot add.

    The device is not there before somebody wants that, and a host whose VMs all stay as they are balances nothing.
    """
    guests: list[Guest] = []

    async def main(guest: Guest) -> None:
        guests.append(guest)
        await guest.memory.use(24 * MIB, touch=True)
        guest.memory.release()
        await forever(guest)

    async with open_guests((fixed(), main)) as host:
        vm = host["web"]
        assert vm.memory is None
        await vm.start()
        await trio.sleep(1)
        memory = guests[0].memory
        assert "dynamic-memory" not in vm.devices
        assert host.vid._desk is None
        assert state(vm).assigned == 64 * MIB
        assert await host.inspect("vm/web/memory/physical_memory") == 64 * MIB
        assert await host.inspect("vm/web/memory/driver") == "none"
        before = resident(host, "web")
        assert before > 24 * MIB

        got = await vm.set_memory("44MiB")
        assert (got.assigned, got.ballooned, got.cause) == (44 * MIB, 20 * MIB, "asked")
        assert memory.ballooned == 20 * MIB
        assert resident(host, "web") < before - 16 * MIB
        assert host.vid.vm_memory_used == 44 * MIB
        await trio.sleep(2)
        assert len(host.hypervisor.timers) == 0

        got = await vm.set_memory("64MiB")
        assert (got.assigned, got.ballooned, memory.ballooned, got.cause) == (64 * MIB, 0, 0, "")
        got = await vm.set_memory("224MiB")
        assert (got.assigned, got.added, memory.added) == (224 * MIB, 160 * MIB, 160 * MIB)
        assert await memory.use(200 * MIB) == 0
        assert host.vid.vm_memory_used == 224 * MIB
        assert got.added_memory == 180 * MIB
        assert got.removed_memory == 20 * MIB

        with pytest.raises(CannotResize, match=r"has \d+ MiB now|has .* now: its guest gave .* no more to give"):
            await vm.set_memory("64MiB")
        with pytest.raises(CannotResize, match="multiple of 2 MiB"):
            await vm.set_memory(3 * MIB)
        with pytest.raises(CannotResize, match="has no dynamic memory"):
            await vm.set_memory(minimum="32MiB")
        assert host.vid.vm_memory_used == state(vm).assigned

        left = state(vm).assigned
        assert vm.settings.memory == left
        await vm.reset()
        assert state(vm).assigned == host.vid.vm_memory_used == 64 * MIB
        await trio.sleep(5)
        assert state(vm).assigned == host.vid.vm_memory_used == guests[1].memory.size == left
        await vm.turn_off()
        assert host.vid.vm_memory_used == host.hypervisor.discarded_bytes == 0


async def test_a_fixed_vm_is_resized_by_its_settings(autojump_clock: trio.abc.Clock) -> None:
    """`partita set web memory=...` takes effect in steps of the balancer, which then rests; a reset VM gets it again.

    What the host has not is refused, and nothing changes.
    """
    async with open_guests((fixed("web", 96), forever), (fixed("other"), forever), memory=256) as host:
        vm = host["web"]
        await host.start_all()
        host.resources.set("vm/web", "memory", "80MiB")
        await trio.sleep(5)
        assert (state(vm).assigned, state(vm).ballooned, state(vm).cause) == (80 * MIB, 16 * MIB, "asked")
        assert len(host.hypervisor.timers) == 0
        with pytest.raises(ResourceError, match="memory"):
            host.resources.set("vm/web", "memory", "194MiB")
        host.resources.set("vm/web", "memory", "192MiB")
        await trio.sleep(5)
        assert (state(vm).assigned, state(vm).added) == (192 * MIB, 96 * MIB)
        assert state(vm).minimum == state(vm).maximum == 192 * MIB
        assert host.vid.vm_memory_free == 0
        await vm.reset()
        await trio.sleep(5)
        assert state(vm).assigned == 192 * MIB
        await vm.turn_off()
        await vm.start()
        assert state(vm) == fixed_memory(vm.settings)
        assert state(vm).assigned == 192 * MIB


async def test_a_guest_that_refuses(autojump_clock: trio.abc.Clock) -> None:
    """Never again is kept to; a guest at its floor keeps what it has, and whoever asked is told."""

    async def main(guest: Guest) -> None:
        guest.memory.hot_add = False
        await forever(guest)

    async with open_guests((fixed(), main)) as host:
        vm = host["web"]
        await vm.start()
        with pytest.raises(CannotResize, match="took 0 bytes of 64 MiB and takes no more, ever"):
            await vm.set_memory("128MiB")
        assert state(vm).assigned == host.vid.vm_memory_used == 64 * MIB
        with pytest.raises(CannotResize, match="takes no more"):
            await vm.set_memory("128MiB")
        assert (await vm.set_memory("62MiB")).assigned == 62 * MIB
        assert await host.inspect("vm/web/memory/last_refusal") == "its guest takes no more memory, ever"
        with pytest.raises(CannotResize, match=r"gave .* and has no more to give") as refused:
            await vm.set_memory("2MiB")
        assert str(refused.value).startswith('VM "web" has ')
        assert state(vm).assigned > floor_pages(64 * 256) << 12
        assert await host.inspect("vm/web/memory/last_refusal")


async def test_a_guest_without_a_driver(autojump_clock: trio.abc.Clock) -> None:
    """Nobody waits for it longer than he wants to, and the VM is as before."""

    async with bare_host(idle, fixed()) as host:
        vm = host["web"]
        await vm.start()
        began = trio.current_time()
        with pytest.raises(CannotResize, match=r"has no driver for dynamic memory \(no driver\)"):
            await vm.set_memory("48MiB", patience=5)
        assert trio.current_time() == began + 5
        assert state(vm).assigned == 64 * MIB


async def test_a_guest_that_reports_and_does_not_answer(autojump_clock: trio.abc.Clock) -> None:
    """Whoever asked gives up after his patience, whatever else the guest says; the VM goes on, and is asked no more."""

    async def main(guest: Guest) -> None:
        driver: Any = await guest.driver("dynamic-memory")
        driver._inflate = lambda wanted: []
        await forever(guest)

    warned: list[TraceEvent] = []
    async with open_guests((dynamic("web", 64, 256, 512), main)) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(0.1)
        began = trio.current_time()
        host.trace.add_sink(warned.append)
        with pytest.raises(CannotResize, match="256 MiB now: its guest does not answer"):
            await vm.set_memory("128MiB", patience=5)
        assert trio.current_time() == pytest.approx(began + 5)
        assert state(vm).driver == "ready"
        await trio.sleep(60)
        assert state(vm).driver == "does not answer"
        (warning,) = [event for event in warned if event.event == "memory_not_answered"]
        assert warning.words == "its guest has not answered a question about its memory (balloon) for 60 s"
        assert state(vm).demand is not None
        assert state(vm).assigned == host.vid.vm_memory_used == 256 * MIB


async def test_demand_and_its_buffer(autojump_clock: trio.abc.Clock) -> None:
    """A dynamic VM follows its guest: idle memory comes back, what is wanted is given, at 120 % of the demand.

    Bounds change while it runs, by the API and by the tree, and a bad one changes nothing.
    """
    wants: list[int] = [0]

    async def main(guest: Guest) -> None:
        while True:
            if wants[0]:
                await guest.memory.use(wants[0])
                wants[0] = 0
            await guest.sleep(1)

    async with open_guests((dynamic("web", 64, 512, 1024), main), memory=4096) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(30)
        idle = state(vm)
        assert idle.demand is not None
        assert idle.target == -(-idle.demand // 4096 * 120 // 100) * 4096
        assert idle.target <= idle.assigned <= idle.target * 34 // 32
        assert idle.cause == "idle"
        wants[0] = 500 * MIB
        await trio.sleep(30)
        busy = state(vm)
        assert busy.demand is not None
        assert busy.demand > 500 * MIB
        assert busy.ballooned == 0
        assert busy.added > 0
        assert busy.pressure is not None
        assert 80 <= busy.pressure <= 85
        assert await host.inspect("vm/web/memory/current_pressure") == busy.pressure
        assert await host.inspect("vm/web/memory/physical_memory") == busy.assigned
        assert await host.inspect("vm/web/memory/guest_visible_physical_memory") == busy.visible
        assert await host.inspect("vm/web/memory/added_memory") == busy.added_memory

        host.resources.set("vm/web", "memory.maximum", "560MiB")
        await trio.sleep(10)
        assert state(vm).assigned <= 560 * MIB * 34 // 32
        with pytest.raises(CannotResize, match=r"minimum.*must not be above"):
            await vm.set_memory(minimum="1GiB")
        with pytest.raises(CannotResize, match="buffer"):
            await vm.set_memory(buffer=-1)
        assert state(vm).minimum == 64 * MIB
        got = await vm.set_memory("540MiB", maximum="1GiB")
        assert got.assigned == 540 * MIB
        await trio.sleep(5)
        assert state(vm).assigned == 540 * MIB
        await vm.set_memory()
        await trio.sleep(10)
        assert state(vm).assigned > 600 * MIB


async def test_others_make_room_for_one_that_starts(autojump_clock: trio.abc.Clock) -> None:
    """What an idle VM has above its minimum is taken back before another starts; what is not enough is said."""
    async with open_guests(
        (dynamic("a", 64, 256, 256, buffer=100), forever), (fixed("b", 96), forever), memory=300
    ) as host:
        await host["a"].start()
        await trio.sleep(2)
        await host["a"].set_memory("256MiB")
        await host["a"].set_memory()
        await host["b"].start()
        assert state(host["a"]).assigned <= (300 - 96) * MIB
        assert host.vid.vm_memory_free >= 0
        assert state(host["a"]).removed_memory > 0
        await trio.sleep(10)
        assert host.vid.vm_memory_free >= 0


async def test_others_make_room_for_one_that_grows(autojump_clock: trio.abc.Clock) -> None:
    """A fixed VM is given more, which an idle dynamic one has to give back first."""
    async with open_guests((dynamic("a", 64, 256, 256), forever), (fixed("b", 64), forever), memory=330) as host:
        await host.start_all()
        await trio.sleep(2)
        await host["a"].set_memory("256MiB")
        await host["a"].set_memory()
        got = await host["b"].set_memory("160MiB")
        assert got.assigned == 160 * MIB
        assert state(host["a"]).assigned <= 170 * MIB
        assert host.vid.vm_memory_free >= 0
        with pytest.raises(CannotResize, match="memory"):
            await host["b"].set_memory("300MiB")
        assert state(host["b"]).assigned == 160 * MIB


async def test_a_guest_that_uses_all_at_once(autojump_clock: trio.abc.Clock) -> None:
    """From its first instruction on, before its drivers have their rings: the kernel swaps for its own needs, too, and
    the host hears of what is wanted.
    """
    guests: list[Guest] = []

    async def main(guest: Guest) -> None:
        guests.append(guest)
        await guest.memory.use(300 * MIB)
        await forever(guest)

    async with open_guests((dynamic("web", 64, 128, 512), main)) as host:
        await host["web"].start()
        await trio.sleep(30)
        assert state(host["web"]).driver == "ready"
        assert state(host["web"]).added >= 256 * MIB
        assert await guests[0].memory.touch() > 0
        assert guests[0].memory.swapped == 0


async def test_contention_is_by_weight(autojump_clock: trio.abc.Clock) -> None:
    """Two guests that want more than there is share it 1:3, none is ever below its minimum; the host is short."""

    async def main(guest: Guest) -> None:
        guest.memory.swap_size = 1024 * MIB
        await guest.sleep(5)
        await guest.memory.use(500 * MIB)
        await forever(guest)

    tables = [dynamic(name, 64, 128, 1024, weight=weight) for name, weight in (("a", 1000), ("b", 3000))]
    async with open_guests(*((table, main) for table in tables), memory=600) as host:
        await host.start_all()
        for _ in range(30):
            await trio.sleep(5)
            assert host.vid.vm_memory_free >= 0
            assert all(state(vm).assigned >= 64 * MIB for vm in host.values())
        a, b = (state(vm) for vm in host.values())
        assert a.target is not None
        assert b.target is not None
        assert a.demand is not None
        assert a.target < a.demand
        assert abs(3 * a.target - b.target) <= 8 * MIB
        assert a.assigned <= a.target + 8 * MIB
        assert (a.cause or b.cause) in ("", "host")
        assert host.vid.desk.figures().state == "low"


async def test_a_limit_below_its_memory(autojump_clock: trio.abc.Clock) -> None:
    """E31: a limit of 64 MiB and 96 MiB of memory: 32 MiB are ballooned, and a guest that uses all of it swaps, though
    the host has memory.
    """
    guests: list[Guest] = []

    async def main(guest: Guest) -> None:
        guests.append(guest)
        guest.memory.cache(40 * MIB)
        await guest.sleep(30)
        await guest.memory.use(90 * MIB)
        await forever(guest)

    table = dynamic("web", 32, 96, 96)
    table.pool = "p"
    pool = PoolTable(name="p", memory=PoolMemoryTable(limit=Size(64 * MIB)))
    async with open_guests((table, main), pools=[pool]) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(25)
        assert state(vm).assigned in (62 * MIB, 64 * MIB)
        await trio.sleep(25)
        memory = guests[0].memory
        assert state(vm).assigned == 64 * MIB
        assert memory.ballooned == 32 * MIB
        assert memory.swapped >= 27 * MIB
        assert state(vm).cause == "limit"
        assert host.vid.desk.figures().state == "high"
        host.resources.set("pool/p", "memory.limit", 0)
        await trio.sleep(5)
        assert await memory.touch() > 0
        assert memory.swapped == 0
        assert state(vm).assigned == 96 * MIB


async def test_a_limit_holds_from_the_start(autojump_clock: trio.abc.Clock) -> None:
    """E31 of a guest that uses all of its memory before anybody has asked for some: its kernel swaps for the balloon.

    To the page, at once, and without a way around it for who asks for a size.
    """

    async def main(guest: Guest) -> None:
        await guest.memory.use(90 * MIB)
        await forever(guest)

    table = dynamic("web", 32, 96, 128)
    table.pool = "p"
    pool = PoolTable(name="p", memory=PoolMemoryTable(limit=Size(65 * MIB)))
    async with open_guests((table, main), pools=[pool]) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(3)
        now = state(vm)
        assert (now.assigned, now.ballooned, now.cause) == (65 * MIB, 31 * MIB, "limit")
        assert (now.swapped or 0) // MIB == 26
        assert host.vid.desk.figures().state == "high"
        with pytest.raises(CannotResize, match=r"80 MiB are more than the limit of pool/p, 65 MiB"):
            await vm.set_memory("80MiB")
        begin = trio.current_time()
        assert (await vm.set_memory("62MiB")).assigned == 62 * MIB
        assert trio.current_time() - begin == pytest.approx(3 * 256 * SWAP_SECONDS)
        host.resources.set("pool/p", "memory.limit", "60MiB")
        await trio.sleep(2)
        assert state(vm).assigned == 60 * MIB
        assert (state(vm).swapped or 0) // MIB == 31


async def test_a_guest_has_its_host_look_four_times_a_window_at_most(
    autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can open its channel, and reset itself, as often as it likes; all VMs are looked at each time."""
    looks = 0
    table = dynamic("web", 32, 64, 128)
    table.pool = "p"
    async with open_guests((table, forever), pools=[PoolTable(name="p")]) as host:
        await host["web"].start()
        await trio.sleep(1)
        desk = host.vid.desk
        look = desk.balance

        def counted() -> None:
            nonlocal looks
            looks += 1
            look()

        monkeypatch.setattr(desk, "balance", counted)
        worker = host.vmms.vms["web"].worker
        assert worker is not None
        memory = worker.memory
        assert memory is not None
        for _ in range(1000):
            memory.began()
            await trio.sleep(0.001)
        assert 30 <= looks <= 42


async def test_nobody_grows_past_a_limit(autojump_clock: trio.abc.Clock) -> None:
    """A pool never has more than its limit, also where one in it does not give what another is due."""

    def program(use: int, swap: int) -> GuestMain:
        async def main(guest: Guest) -> None:
            guest.memory.swap_size = swap * MIB
            await guest.memory.use(use * MIB)
            await forever(guest)

        return main

    vms = [
        (dynamic("keeps", 32, 100, 256, weight=100), program(98, 0)),
        (dynamic("grows", 32, 64, 256, weight=9000), program(250, 1024)),
        (dynamic("also", 32, 32, 256, weight=9000), program(250, 1024)),
    ]
    for (table, _), pool in zip(vms, "pqq", strict=True):
        table.pool = pool
    pools = [
        PoolTable(name="p", memory=PoolMemoryTable(limit=Size(200 * MIB))),
        PoolTable(name="q", parent="p"),
    ]
    async with open_guests(*vms, pools=pools) as host:
        await host.start_all()
        for _ in range(20):
            await trio.sleep(0.5)
            assert sum(state(vm).assigned for vm in host.values()) <= 200 * MIB
        has = {name: state(vm).assigned // MIB for name, vm in host.items()}
        assert has["keeps"] == 100
        assert sum(has.values()) == 200
        assert sum(state(host[name]).target or 0 for name in ("grows", "also")) > 130 * MIB


async def test_pools_share_memory(autojump_clock: trio.abc.Clock) -> None:
    """Pools 1:3 of what is left, VMs 1:1 inside of one; a pool's limit is kept to, and so is its reservation.

    The same guests in all: each wants more than it can get.
    """

    async def main(guest: Guest) -> None:
        guest.memory.swap_size = 4096 * MIB
        await guest.sleep(3)
        await guest.memory.use(600 * MIB)
        await forever(guest)

    def pool(name: str, **keys: Any) -> PoolTable:
        return PoolTable(name=name, memory=PoolMemoryTable(**keys))

    tables = {name: dynamic(name, 32, 64, 1024) for name in ("a", "b1", "b2", "c")}
    for name, table in tables.items():
        table.pool = name[0]
    pools = [pool("a", weight=1000), pool("b", weight=3000), pool("c", weight=10_000, limit=Size(100 * MIB))]
    async with open_guests(*((table, main) for table in tables.values()), memory=900, pools=pools) as host:
        await host.start_all()
        await trio.sleep(60)
        has = {name: state(vm).assigned / MIB for name, vm in host.items()}
        assert has["c"] == pytest.approx(100, abs=4)
        assert has["a"] == pytest.approx(200, abs=8)
        assert has["b1"] == pytest.approx(300, abs=8)
        assert has["b2"] == pytest.approx(300, abs=8)
        assert host.vid.vm_memory_free >= 0
        assert state(host["a"]).cause == ""
        host.resources.set("pool/c", "memory.limit", "0")
        host.resources.set("pool/a", "memory.reserve", "200MiB")
        await trio.sleep(60)
        assert all(state(vm).assigned >= 32 * MIB for vm in host.values())
        assert host.vid.vm_memory_free >= 0
        assert state(host["a"]).assigned >= 192 * MIB


async def test_a_saved_vm_and_its_memory(autojump_clock: trio.abc.Clock) -> None:
    """With a balloon it goes on elsewhere, the balloon gone; with added memory it is not saved, and goes on here."""
    async with open_guests((fixed(), forever)) as host:
        vm = host["web"]
        await vm.start()
        await vm.set_memory("48MiB")
        kept = await vm.checkpoint()
        assert state(vm).ballooned == 16 * MIB
        await vm.set_memory("128MiB")
        with pytest.raises(CannotSave, match="64 MiB of memory were added"):
            await vm.checkpoint()
        assert state(vm).assigned == 128 * MIB
        await vm.turn_off()
        with pytest.raises(partitions.StartFailed, match="not the VM that was saved"):
            await vm.revert(kept)


async def test_a_dynamic_vm_is_saved_with_its_balloon(autojump_clock: trio.abc.Clock) -> None:
    """Its driver begins anew where it wakes up, with all that it was built with."""
    async with open_guests((dynamic("web", 16, 128, 128), forever)) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(10)
        assert state(vm).ballooned > 0
        kept = await vm.checkpoint()
        await vm.revert(kept)
        assert host.vid.vm_memory_used == state(vm).assigned
        await trio.sleep(10)
        assert state(vm).driver == "ready"
        assert state(vm).ballooned > 0
        assert host.vid.vm_memory_used == state(vm).assigned
        await vm.turn_off()
        assert host.vid.vm_memory_used == host.hypervisor.discarded_bytes == 0


async def test_pages_in_the_balloon_are_emptied(autojump_clock: trio.abc.Clock) -> None:
    """A guest that writes to pages that it gave away takes the host's memory for a minute at most."""
    guests: list[Guest] = []

    async def main(guest: Guest) -> None:
        guests.append(guest)
        await forever(guest)

    async with open_guests((dynamic("web", 16, 128, 128), main)) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(10)
        worker = host.vmms.vms["web"].worker
        assert worker is not None
        assert worker.memory is not None
        (run, *_) = worker.memory.device.ballooned
        memory = guests[0].machine.memory
        before = resident(host, "web")
        for page in range(run.first, run.first + 1024):
            memory[page << 12] = 1
        assert resident(host, "web") >= before + 4 * MIB
        await trio.sleep(70)
        assert resident(host, "web") <= before + 64 * 1024
        assert await host.inspect("vm/web/memory/used_while_ballooned") == 4 * MIB
        await trio.sleep(70)
        assert await host.inspect("vm/web/memory/used_while_ballooned") == 4 * MIB
        assert memory[run.first << 12] == 0
