"""Integration components of VMs that run programs: asked for in the topology, from the host's API to the guest's."""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio

import partitions
from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from partitions.child import kernel
from partitions.child.guest import Guest, GuestMain
from partitions.host import Contact, ExitReason, Host, NoAnswer, Pool, Vm, VmState
from partitions.topology_schema import HostTable, IntegrationName, Topology, VmTable
from vsp_vsc.integration.heartbeat.vsp import HeartbeatState

ALL = tuple(IntegrationName)


def open_guest(main: GuestMain, components: Sequence[IntegrationName] | None = ALL) -> object:
    """A host whose VM `web` runs `main` and has these components."""
    table = VmTable(name="web", integration=None if components is None else list(components))

    def backend(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        return TaskBackend(hypervisor, lambda machines: kernel.boot(machines, main, name=vm.name))

    topology = Topology(host=HostTable(), vm=[table], folder=Path())
    return partitions.open_host(topology, backends=backend)


async def wait(guest: Guest) -> None:
    try:
        await guest.sleep(10_000)
    finally:
        print("cleaned up")


async def started(host: Host) -> Vm:
    vm = host["web"]
    await vm.start()
    await trio.sleep(0.1)
    return vm


async def test_shutting_down_goes_by_the_component(autojump_clock: trio.abc.Clock) -> None:
    """The program is cancelled and cleans up, the guest powers off with exit code 0, and no button was pressed."""
    pressed: list[str] = []

    async def main(guest: Guest) -> None:
        try:
            await guest.sleep(10_000)
        finally:
            guest.print("button", guest.machine.port_in(0x604, 2))

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        host.trace.add_sink(lambda event: pressed.append(event.words) if "flags 0x" in event.words else None)
        ended = await vm.shut_down()
        assert (ended.reason, ended.exit_code) == (ExitReason.POWERED_OFF, 0)
        assert vm.console.lines()[-1] == "button 0"
        assert pressed == ["shut down, flags 0x0"]
        assert vm.integration == {}


async def test_without_the_component_the_button_is_pressed(autojump_clock: trio.abc.Clock) -> None:
    """A VM that runs a program has none unless its topology says so."""
    async with open_guest(wait, None) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert vm.integration == {}
        with pytest.raises(
            NoAnswer, match=r'kvp: the VM has no such component; its topology .* integration = \["kvp"\]'
        ):
            await vm.kvp.items()
        assert not await vm.restart()
        assert (await vm.shut_down()).reason is ExitReason.POWERED_OFF
        for question in (vm.kvp.items, vm.freeze, vm.thaw):
            with pytest.raises(NoAnswer, match="the VM is off; start it"):
                await question()


async def test_a_guest_that_refuses_feels_the_button(autojump_clock: trio.abc.Clock) -> None:
    """It may say no to the request; the button is another matter."""

    async def main(guest: Guest) -> None:
        driver = await guest.driver("shutdown")
        driver.on_request = lambda flags, text: False
        await wait(guest)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert not await vm.restart()
        assert (await vm.shut_down()).reason is ExitReason.POWERED_OFF


async def test_a_driver_that_a_program_takes_off(autojump_clock: trio.abc.Clock) -> None:
    """Contact is gone with the channel, and the guest can still be shut down."""

    async def main(guest: Guest) -> None:
        await guest.settled()
        for name in ("shutdown", "heartbeat"):
            await guest.unbind(name)
        await wait(guest)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert vm.integration["shutdown"] is vm.integration["heartbeat"] is Contact.NONE
        assert vm.integration["kvp"] is Contact.READY
        assert (await vm.shut_down()).reason is ExitReason.POWERED_OFF


async def test_restart_on_request(autojump_clock: trio.abc.Clock) -> None:
    """The guest goes the whole way back and boots again, in the same run."""
    boots = 0

    async def main(guest: Guest) -> None:
        nonlocal boots
        boots += 1
        await guest.sleep(10_000)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert await vm.restart()
        await trio.sleep(0.1)
        assert (vm.state, boots) == (VmState.RUNNING, 2)
        assert vm.integration["shutdown"] is Contact.READY
        assert (await vm.shut_down()).resets == 1


async def test_the_heart_of_a_paused_and_of_a_reset_guest(autojump_clock: trio.abc.Clock) -> None:
    """A pause is no loss; a reset begins anew; off is no contact."""
    async with open_guest(wait) as host:  # type: ignore[attr-defined]
        vm = host["web"]
        assert vm.heartbeat.state is HeartbeatState.NO_CONTACT
        await started(host)
        await trio.sleep(5)
        assert vm.heartbeat.state is HeartbeatState.OK
        await vm.pause()
        await trio.sleep(60)
        assert vm.heartbeat.state is HeartbeatState.OK
        await vm.resume()
        await trio.sleep(5)
        assert (vm.heartbeat.state, vm.heartbeat.missed) == (HeartbeatState.OK, 0)
        before = vm.heartbeat.beats
        await vm.reset()
        await trio.sleep(3)
        assert vm.heartbeat.state is HeartbeatState.OK
        assert vm.heartbeat.beats < before
        await vm.turn_off()
        assert vm.heartbeat.state is HeartbeatState.NO_CONTACT


async def test_the_guest_knows_the_date_after_a_pause_too(autojump_clock: trio.abc.Clock) -> None:
    """The virtual clock's day, by the guest's own reference time."""
    told: list[datetime.datetime] = []

    async def main(guest: Guest) -> None:
        driver = await guest.driver("time-sync")
        while True:
            await guest.sleep(1)
            told.append(driver.now())

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        began = trio.current_time()
        vm = await started(host)
        await trio.sleep(3)
        await vm.pause()
        await trio.sleep(1000)
        await vm.resume()
        await trio.sleep(3)
        day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        elapsed = datetime.timedelta(seconds=trio.current_time() - began)
        assert abs(told[0] - day) < datetime.timedelta(seconds=2)
        assert abs(told[-1] - day - elapsed) < datetime.timedelta(seconds=1.5)
        await vm.turn_off()


async def test_components_come_and_go_while_busy(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """One that is pulled out ends its host's question at once, and no other's; plugged in again, it works again."""
    source = tmp_path / "file"
    source.write_bytes(bytes(1 << 20))

    async def frozen_once(vm: Vm) -> None:
        async with vm.frozen():
            await trio.sleep(0.01)

    work: dict[str, Callable[[Vm], Awaitable[object]]] = {
        "kvp": lambda vm: vm.kvp.items(Pool.AUTO),
        "vss": frozen_once,
        "file copy": lambda vm: vm.copy_file(source, "/srv/file", overwrite=True, create_path=True),
    }

    async def without_end(vm: Vm, name: str) -> None:
        while True:
            await work[name](vm)

    async def busy(vm: Vm, name: str) -> None:
        with pytest.raises(NoAnswer, match=r"the channel was closed|the guest's driver has gone"):
            await without_end(vm, name)

    async with open_guest(wait) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        integration = vm._managed.worker.integration
        for component in integration.components:
            name = component.words
            async with trio.open_nursery() as nursery:
                if name in work:
                    nursery.start_soon(busy, vm, name)
                    for _ in range(40):
                        await trio.lowlevel.checkpoint()
                await vm.remove_device(name)
                assert [one for one, contact in vm.integration.items() if contact is not Contact.READY] == [name]
            await vm.add_device(name, component)
            await trio.sleep(0.1)
            assert vm.integration[name] is Contact.READY
            if name in work:
                await work[name](vm)
        await trio.sleep(10)
        assert vm.heartbeat.state is HeartbeatState.OK
        assert vm.console.text == ""
        await vm.shut_down()


async def test_items_between_a_program_and_the_host(autojump_clock: trio.abc.Clock) -> None:
    """The kernel's own facts, the program's items, and what the host sets."""
    got: list[object] = []

    async def main(guest: Guest) -> None:
        kvp = await guest.driver("kvp")
        kvp.pools[Pool.GUEST]["state"] = "ready"
        while "go" not in kvp.pools[Pool.EXTERNAL]:
            await guest.sleep(1)
        got.append(kvp.pools[Pool.EXTERNAL]["go"])

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert vm.kvp.contact is Contact.READY
        assert (await vm.kvp.items())["FullyQualifiedDomainName"] == "web"
        assert await vm.kvp.get("state") == "ready"
        await vm.kvp.set("go", 7)
        assert (await vm.wait()).ok
        assert got == [7]
