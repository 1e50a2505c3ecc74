"""Keyboard and mouse of VMs that run programs: asked for in the topology, from the host's API to the guest's."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

import partitions
from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from partitions.child import kernel
from partitions.child.guest import Guest, GuestMain
from partitions.host import ExitReason, Host, Vm
from partitions.root.input import takes_unicode
from partitions.topology_schema import HostTable, InputName, Topology, VmTable
from tests.doubles.tshark import assert_clean, needs_tshark, read_info
from vsp_vsc.input_device import NoDriver
from vsp_vsc.mouse.protocol import Buttons

ALL = tuple(InputName)


def open_guest(main: GuestMain, devices: Sequence[InputName] = ALL) -> object:
    """A host whose VM `web` runs `main` and has these."""
    table = VmTable(name="web", input=list(devices))

    def backend(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        return TaskBackend(hypervisor, lambda machines: kernel.boot(machines, main, name=vm.name))

    topology = Topology(host=HostTable(), vm=[table], folder=Path())
    return partitions.open_host(topology, backends=backend)


async def started(host: Host) -> Vm:
    vm = host["web"]
    await vm.start()
    await trio.sleep(0.1)
    return vm


async def test_a_program_reads_what_people_type_and_where_they_point(autojump_clock: trio.abc.Clock) -> None:
    """Text, characters that no key has, and clicks; the tree shows both devices, and a VM that is off has none."""

    async def main(guest: Guest) -> None:
        keyboard, mouse = await guest.keyboard(), await guest.mouse()
        guest.print("hello,", await keyboard.read_line())
        while not (report := await mouse.receive()).buttons:
            pass
        guest.print(report.at(640, 480), report.buttons.name)

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        assert vm.keyboard is not None
        assert vm.mouse is not None
        assert await host.inspect("vm/web/devices/keyboard/state") == "ready"
        assert await host.inspect("vm/web/devices/mouse/state") == "ready"
        await vm.keyboard.type_text("Wörld\n")
        vm.mouse.point(100, 200, 640, 480)
        vm.mouse.point(100, 200, 640, 480, Buttons.LEFT)
        assert (await vm.wait()).reason is ExitReason.POWERED_OFF
        assert vm.console.lines() == ["hello, Wörld", "(100, 200) LEFT"]
        assert vm.keyboard is None
        assert vm.mouse is None


async def test_a_vm_has_what_its_topology_names(autojump_clock: trio.abc.Clock) -> None:
    """One alone is possible, and none is what a VM has by default."""

    async def main(guest: Guest) -> None:
        guest.print(*sorted(offer.name for offer in guest.bus.offers if hasattr(offer, "name")))
        await guest.sleep(10_000)

    for devices in ((), (InputName.KEYBOARD,), (InputName.MOUSE,)):
        async with open_guest(main, devices) as host:  # type: ignore[attr-defined]
            vm = await started(host)
            assert (vm.keyboard is not None, vm.mouse is not None) == tuple(one in devices for one in ALL)
            assert set(vm.devices) == set(devices)


async def test_a_reset_lets_go_of_every_key(autojump_clock: trio.abc.Clock) -> None:
    """The guest boots into a world where nothing is held, and its new driver types on."""

    async def main(guest: Guest) -> None:
        keyboard = await guest.keyboard()
        guest.print(await keyboard.read_line())

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        keyboard, mouse = vm.keyboard, vm.mouse
        keyboard.press(0x2A, 0x1D)
        mouse.move(1, 2, Buttons.LEFT)
        await vm.reset()
        assert keyboard.held == ()
        with pytest.raises(NoDriver):
            keyboard.press(0x1E)
        await trio.sleep(0.1)
        assert vm.keyboard is keyboard
        await keyboard.type_text("a\n")
        await vm.wait()
        assert vm.console.lines()[-1] == "a"


async def test_devices_come_and_go_while_busy(autojump_clock: trio.abc.Clock) -> None:
    """A keyboard that is pulled out ends its reader; one that is plugged in again has a driver soon."""

    async def main(guest: Guest) -> None:
        changes = guest.device_changes()
        keyboard = await guest.keyboard()
        try:
            while True:
                await keyboard.receive()
        except trio.EndOfChannel:
            guest.print("gone")
        while not (change := await changes.receive()).arrived:
            pass
        await guest.settled()
        guest.print(change.name, await (await guest.keyboard()).read_line())

    async with open_guest(main) as host:  # type: ignore[attr-defined]
        vm = await started(host)
        keyboard = vm.keyboard
        async with trio.open_nursery() as nursery:

            async def type_on() -> None:
                while keyboard.ready:
                    with contextlib.suppress(NoDriver):
                        await keyboard.type_text("much text\n" * 20)
                    await trio.sleep(0.01)

            nursery.start_soon(type_on)
            await trio.sleep(0.1)
            await vm.remove_device("keyboard")
        assert vm.console.lines() == ["gone"]
        await vm.add_device("keyboard", keyboard)
        await trio.sleep(0.1)
        await keyboard.type_text("back\n")
        await vm.wait()
        assert vm.console.lines()[-1] == "keyboard back"


@needs_tshark
async def test_recordings_tell_what_was_typed(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Wireshark, by our dissector, finds nothing wrong in what the devices say, and has words for each message."""

    async def main(guest: Guest) -> None:
        keyboard, mouse = await guest.keyboard(), await guest.mouse()
        await mouse.receive()
        await keyboard.read_line()

    file = tmp_path / "typed.pcapng"
    async with open_guest(main) as host:  # type: ignore[attr-defined]
        with host.record(file):
            vm = await started(host)
            vm.mouse.move(1, 2, Buttons.LEFT, -1)
            vm.keyboard.tap(0x3A, 0x1E)
            await vm.keyboard.type_text("ß\n")
            await vm.wait()
    assert_clean(file)
    told = " ".join(read_info(file))
    for words in (
        *("keyboard: PROTOCOL_REQUEST 1.0", "mouse: PROTOCOL_REQUEST 2.0", "mouse: INITIAL_DEVICE_INFO_ACK"),
        *("keyboard: EVENT 0x1e up", "EVENT 0xdf down", "LED_INDICATORS", "INPUT_REPORT at 1, 2 buttons 0x1"),
    ):
        assert words in told, words


@pytest.mark.parametrize(
    ("os_id", "takes"),
    [
        (0x0001_0400_0A00_4563, True),  # Windows 10
        (0xD041_0000_0001_0000, True),  # ours
        (0x8100_0000_060C_0000 | 1 << 63, False),  # Linux 6.12
        (0x8200_0000_0000_0000, False),  # FreeBSD
        (0, False),
    ],
)
def test_who_takes_characters(os_id: int, takes: bool) -> None:
    """Windows and model guests do; Linux would take them for scan codes."""
    assert takes_unicode(os_id) is takes


def test_the_model_guest_is_known() -> None:
    """What the kernel calls itself is what the host looks for."""
    assert takes_unicode(kernel.OS_ID)
