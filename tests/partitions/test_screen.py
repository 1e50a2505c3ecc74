"""A VM with a screen, from its topology to a picture of it: it is reset, saved, plugged in, and leaves nothing."""

from __future__ import annotations

import gc
import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
import trio.testing

import partitions
from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.trace import Layer, TraceEvent
from partitions.child import kernel
from partitions.child.devices import NoSuchDevice
from partitions.child.guest import Guest, GuestMain
from partitions.decode.summary import summary
from partitions.host import ExitReason, Host, NoScreen, Vm, VmState
from partitions.root.screen import Screen as HostScreen
from partitions.topology_schema import HostTable, ScreenTable, Size, Topology, VmTable
from tests.doubles.pictures import read_png, rgb_of
from vsp_vsc.video.framebuffer import Framebuffer, Rect
from vsp_vsc.video.terminal import Terminal
from vsp_vsc.video.vsp import VideoVsp

SMALL = ScreenTable(width=640, height=480)


def open_guest(
    main: GuestMain, screen: ScreenTable | None = SMALL, **settings: object
) -> AbstractAsyncContextManager[Host]:
    """A host whose VM `desk` runs `main`."""
    table = VmTable(name="desk", screen=screen, memory=Size(8 << 20), **settings)  # type: ignore[arg-type]

    def backend(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        return TaskBackend(hypervisor, lambda machines: kernel.boot(machines, main, name=vm.name, args=vm.args))

    return partitions.open_host(Topology(host=HostTable(), vm=[table], folder=Path()), backends=backend)


async def started(host: Host, seconds: float = 0.1) -> tuple[Vm, Framebuffer]:
    """On, and its guest as far as it comes by itself."""
    vm = host["desk"]
    await vm.start()
    await trio.sleep(seconds)
    screen = vm.screen
    assert screen is not None
    return vm, screen


async def painter(guest: Guest) -> None:
    """Fills the screen with a colour that says how often it has booted."""
    screen = await guest.screen()
    screen.fill(0, 0, screen.width, screen.height, 0x804020)
    screen.text(8, 16, "painted")
    await guest.sleep(1e6)


async def test_a_picture_of_what_is_drawn(autojump_clock: trio.abc.Clock) -> None:
    """The file has the guest's very pixels, without a word from the guest that it drew."""
    async with open_guest(painter) as host:
        vm, screen = await started(host)
        width, height, rgb = read_png(await vm.screenshot())
        assert (width, height) == (640, 480)
        assert rgb[:3] == b"\x80\x40\x20"
        assert rgb == rgb_of(screen.pixels(0, 0, 640, 480))
        assert len(set(rgb[3 * 640 * 16 : 3 * 640 * 32])) > 3, "there are letters on it"
        await vm.pause()
        assert read_png(await vm.screenshot())[2] == rgb


async def test_why_there_is_no_picture(autojump_clock: trio.abc.Clock) -> None:
    """Off, or without a screen: said with what to do; a guest that shows nothing has a black one."""

    async def blind(guest: Guest) -> None:
        with pytest.raises(NoSuchDevice, match="no device video"):
            await guest.screen()
        guest.print("as it should be")

    async with open_guest(blind, None) as host:
        vm = host["desk"]
        await vm.start()
        with pytest.raises(NoScreen, match=r'VM "desk" has no screen: give it a \[vm.screen\] table'):
            await vm.screenshot()
        await vm.wait()
        assert vm.console.text == "as it should be\n"
        assert vm.screen is None

    async def idle(guest: Guest) -> None:
        await guest.unbind("video")
        await guest.sleep(1e6)

    async with open_guest(idle, ScreenTable()) as host:
        with pytest.raises(NoScreen, match='VM "desk" is off: start it'):
            await host["desk"].screenshot()
        vm, screen = await started(host)
        assert not screen.active
        assert read_png(await vm.screenshot()) == (1024, 768, bytes(1024 * 768 * 3))
        await vm.turn_off()
        assert vm.screen is None


async def test_a_screen_brings_keyboard_and_mouse(autojump_clock: trio.abc.Clock) -> None:
    """The whole desk by one table."""
    async with open_guest(painter) as host:
        vm, _ = await started(host)
        assert vm.keyboard is not None
        assert vm.mouse is not None
        assert len(vm.devices) == 3


async def test_resets_in_the_middle_of_drawing(autojump_clock: trio.abc.Clock) -> None:
    """From outside and by the guest itself: the screen goes off, comes back, and a viewer sees it all."""
    boots = 0

    async def wild(guest: Guest) -> None:
        nonlocal boots
        boots += 1
        screen = await guest.screen()
        for number in range(1000):
            screen.fill(number % 600, number % 400, 40, 40, boots)
            await screen.flush()
            if boots == 2 and number == 300:
                await guest.reset()
            await guest.sleep(0.001)

    async with open_guest(wild) as host:
        vm, screen = await started(host)
        with screen.watch() as damage:
            await vm.reset()
            await trio.sleep(0.5)
            assert boots == 3
            assert vm.screen is screen, "the same for viewers, over resets"
            resized, rects = damage.take()
            assert resized
            assert rects == [Rect(0, 0, 640, 480)]
            await trio.sleep(0.2)
            resized, rects = damage.take()
            assert not resized
            assert rects
        assert screen.pixels(0, 0, 1, 1) == b"\x03\0\0\0"
        assert vm.exit is None


async def test_a_guest_goes_on_drawing_where_it_was_saved(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """A screen does not keep a VM from being saved; its guest comes back to it as drivers do after a sleep."""
    async with partitions.open_host(program(tmp_path), clock="virtual") as host:
        vm, screen = await started(host)
        before = await vm.screenshot()
        saved = await vm.save()
        assert vm.state is VmState.SAVED
        await vm.start()
        await trio.sleep(0.2)
        assert vm.exit is None
        assert read_png(await vm.screenshot()) == read_png(before)
        assert saved.exists()
        assert vm.screen is not screen


def program(folder: Path) -> Path:
    """A guest that can be saved is a file's."""
    (folder / "desk.py").write_text(PROGRAM)
    (folder / "topology.toml").write_text(
        '[[vm]]\nname = "desk"\nprogram = "desk.py"\nmemory = "8MiB"\n[vm.screen]\nwidth = 640\nheight = 480\n'
    )
    return folder


PROGRAM = """
async def paint(guest):
    screen = await guest.screen()
    screen.fill(10, 10, 100, 100, 0x00FF00)
    screen.text(200, 200, "still here")
    await screen.flush()
    await guest.sleep(1e6)


async def main(guest):
    await paint(guest)


async def resume(guest):
    await paint(guest)
"""


async def test_a_screen_that_is_plugged_in_and_pulled_out(autojump_clock: trio.abc.Clock) -> None:
    """While the guest draws: its driver comes and goes, its pages with it, and the VM does not mind."""
    pages: list[int] = []

    async def main(guest: Guest) -> None:
        free = guest.platform._pages  # type: ignore[attr-defined]  # what no program needs to know
        pages.append(free.free_pages)
        changes = guest.device_changes()
        async for change in changes:
            if not change.arrived:
                await guest.departure(change.device)
                await guest.sleep(0.01)
                pages.append(free.free_pages)
                continue
            screen = await guest.screen()
            terminal = Terminal(screen)

            async def scribble() -> None:
                while screen.width:  # noqa: B023
                    terminal.print("scribble")  # noqa: B023
                    await screen.flush()  # noqa: B023
                    await guest.sleep(0.01)

            guest.start_soon(scribble)

    async with open_guest(main, None) as host:
        vm = host["desk"]
        await vm.start()
        await trio.sleep(0.1)
        for _ in range(5):
            device = VideoVsp(640, 480, host.trace, vm.partition_id or 0)
            with device.framebuffer.watch() as damage:
                await vm.add_device("extra", device)
                await trio.sleep(0.3)
                assert device.framebuffer.active
                assert damage.take()[1]
                await vm.remove_device("extra")
                await trio.sleep(0.1)
                assert not device.framebuffer.active
        assert vm.exit is None, vm.exit
        assert len(pages) == 6
        assert len(set(pages)) == 1


async def test_nothing_is_left(autojump_clock: trio.abc.Clock) -> None:
    """Starts, resets and stops with viewers: no page, no descriptor and no mapping more than before."""

    def held(host: Host) -> tuple[int, int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("memfd:")
        return host.hypervisor.root_bytes, len(os.listdir("/proc/self/fd")), maps

    async with open_guest(painter) as host:
        levels = []
        for _ in range(6):
            vm, screen = await started(host)
            with screen.watch():
                await trio.sleep(0.1)
                await vm.reset()
                await trio.sleep(0.1)
            await vm.turn_off()
            levels.append(held(host))
        assert len(set(levels[1:])) == 1


async def test_the_tree_and_the_trace_show_it(autojump_clock: trio.abc.Clock) -> None:
    """Mode and viewers by path; messages in words, whoever looks."""
    events: list[TraceEvent] = []
    async with open_guest(painter) as host:
        host.trace.add_sink(events.append)
        _vm, screen = await started(host)
        with screen.watch():
            await trio.sleep(0.1)
            tree = str(await host.inspect("vm/desk"))
        assert "'width': 640" in tree
        assert "'viewers': 1" in tree
        assert "'version': '3.5'" in tree
    words = [event.words for event in events]
    assert "version 3.5, 640x480" in words
    assert "somebody looks" in words
    packets = [event for event in events if event.layer is Layer.PACKET and event.data]
    said = {summary(Layer.DEVICE, event.data, "video", event.direction) for event in packets}
    assert {"VERSION_REQUEST 3.5", "RESOLUTION_RESPONSE", "VRAM_LOCATION", "SITUATION_UPDATE_ACK", "DIRT"} <= said


async def test_a_guest_without_memory_for_its_screen(autojump_clock: trio.abc.Clock) -> None:
    """One that has too little for the mode hears why, from its kernel and from the call."""

    async def main(guest: Guest) -> None:
        try:
            await guest.screen()
        except NoSuchDevice as error:
            guest.print(error)

    async with open_guest(main, ScreenTable(width=1920, height=1080)) as host:
        vm = host["desk"]
        await vm.start()
        end = await vm.wait()
        assert end.reason is ExitReason.POWERED_OFF
        assert "adjacent guest pages" in vm.console.text


def test_what_a_vm_without_a_screen_loads() -> None:
    """Nothing of it: neither side pays for what it does not have."""
    import subprocess
    import sys

    code = """
import sys, trio, partitions
async def main():
    async with partitions.open_host("01-message", clock="virtual") as host:
        await host.start_all(); await host.wait_all()
trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
print([name for name in sys.modules if "video" in name or name.endswith((".screen", ".png"))])
"""
    run = subprocess.run(
        [sys.executable, "-c", "import trio.testing\n" + code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip().endswith("[]")
    assert HostScreen.__module__ == "partitions.root.screen"
