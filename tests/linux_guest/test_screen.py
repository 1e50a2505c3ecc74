"""Linux's hyperv_drm on our screen: what it asks, where it has its pixels, and that a picture shows each of them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio

from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT
from hypervisor.trace import Layer, TraceEvent
from partitions.host import Host, Vm
from partitions.root.chipset import acpi
from partitions.root.screen import take_png
from partitions.topology_schema import ScreenTable
from tests.doubles.pictures import read_png, rgb_of
from tests.linux_guest import guest, parts
from vsp_vsc.video.framebuffer import Framebuffer, Rect
from vsp_vsc.video.protocol import VRAM_BYTES

WIDTH, HEIGHT = 800, 600
PITCH = 4 * WIDTH
PATIENCE = 60.0
"""Seconds that a picture may take to get from /dev/fb0 to the host: the driver copies it in the background."""
PATTERN = random.Random(98).randbytes(PITCH * HEIGHT)
BAND = Rect(0, 100, WIDTH, 50)
RED = b"\x10\x20\xe0\x00" * (WIDTH * BAND.height)
READ_ON = "read go"
"""A step that waits until the host has seen enough and types a line."""
DEVICE = "d=$(cd /sys/bus/vmbus/drivers/hyperv_drm; echo *-*-*-*-*)"

STEPS = {
    "driver": "all; await 30 test -e /dev/fb0; dmesg | grep -i -E 'hyperv_drm|synthvid'",
    "mode": "cd /sys/class/graphics/fb0; cat name virtual_size bits_per_pixel stride",
    # The console on the screen has a cursor that blinks.
    "no console": "for c in /sys/class/vtconsole/*; do if grep -q 'frame buffer' $c/name; then echo 0 >$c/bind; fi;"
    " done; echo unbound",
    # Several lines at once: of a write that is exactly one, this kernel takes the changed part for empty.
    "draw": "dd if=/pattern of=/dev/fb0 bs=192000 2>/dev/null; echo drawn",
    "picture": READ_ON,
    "watched": READ_ON,
    "draw a band": "dd if=/band of=/dev/fb0 bs=160000 seek=2 conv=notrunc 2>/dev/null; echo drawn",
    "band": READ_ON,
    "unbind": f"{DEVICE}; echo $d; echo $d >/sys/bus/vmbus/drivers/hyperv_drm/unbind; echo $d >/device",
    "off": READ_ON,
    "bind": "cat /device >/sys/bus/vmbus/drivers/hyperv_drm/bind; await 30 test -e /dev/fb0; echo back",
    "on": READ_ON,
    "complaints": "dmesg | grep -iE 'drm.*(error|time out|unable|failed)' || true",
}


class Seen:
    """What the host saw while the guest ran."""

    def __init__(self) -> None:
        self.picture = (0, 0, b"")
        self.damage: list[Rect] = []
        self.band = b""
        self.places: list[int] = []
        """Where the guest had its pixels: at first, without a driver, and with it again."""
        self.off = b""
        self.sent: list[str] = []
        self._watching = trio.CancelScope()

    async def see_picture(self, host: Host, vm: Vm) -> None:
        screen = _screen(vm)
        with trio.move_on_after(PATIENCE):
            while screen.pixels(0, 0, WIDTH, HEIGHT) != _visible(PATTERN):  # noqa: ASYNC110 - what is not told
                await trio.sleep(0.1)
        self.picture = read_png(await take_png(screen))
        self.places.append(_place(host, vm))
        vm.console.send(b"\n")

    async def watch(self, host: Host, vm: Vm) -> None:
        """A viewer comes, stays until it has seen the band, and goes."""
        screen = _screen(vm)
        with screen.watch() as damage:
            damage.take()
            await trio.sleep(2)  # the guest is told, and may say at once that all is new
            damage.take()
            vm.console.send(b"\n")
            with trio.move_on_after(PATIENCE):
                while not any(rect.y < BAND.bottom and rect.bottom > BAND.y for rect in self.damage):
                    await damage.wait()
                    self.damage += damage.take()[1]
                while screen.pixels(*BAND) != RED:  # noqa: ASYNC110
                    await trio.sleep(0.1)
        self.band = screen.pixels(*BAND)

    async def go_on(self, host: Host, vm: Vm) -> None:
        vm.console.send(b"\n")

    async def see_nothing(self, host: Host, vm: Vm) -> None:
        with trio.move_on_after(PATIENCE):
            while _screen(vm).active:  # noqa: ASYNC110
                await trio.sleep(0.1)
        self.off = _screen(vm).pixels(0, 0, WIDTH, 1)
        self.places.append(_place(host, vm))
        vm.console.send(b"\n")

    async def see_it_again(self, host: Host, vm: Vm) -> None:
        with trio.move_on_after(PATIENCE):
            while not _screen(vm).active:  # noqa: ASYNC110
                await trio.sleep(0.1)
        self.places.append(_place(host, vm))
        vm.console.send(b"\n")

    def note(self, event: TraceEvent) -> None:
        if event.layer is Layer.DEVICE and event.event.startswith("video"):
            self.sent.append(f"{event.event}: {event.words}")


def _screen(vm: Vm) -> Framebuffer:
    assert vm.screen is not None
    return vm.screen


def _visible(pixels: bytes) -> bytes:
    """The fourth byte of a pixel means nothing."""
    seen = bytearray(pixels)
    seen[3::4] = bytes(len(pixels) // 4)
    return bytes(seen)


def _place(host: Host, vm: Vm) -> int:
    """The first address in the window for devices that has memory; 0 for none."""
    memory: GuestMemory = host.hypervisor.by_id(vm.partition_id or 0).memory
    first = acpi.MMIO_BASE >> PAGE_SHIFT
    found = [gpn for gpn, _, _, count, _ in memory.extents() if gpn >= first and count == VRAM_BYTES >> PAGE_SHIFT]
    return found[0] << PAGE_SHIFT if found else 0


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[guest.Evidence, Seen]:
    plan = guest.Plan(
        steps=STEPS,
        modules=("hv_vmbus", "hyperv_drm"),
        kernel=parts.OUTER,
        memory=320 << 20,
        timeout=400,
        screen=ScreenTable(width=WIDTH, height=HEIGHT),
        extra={"pattern": PATTERN, "band": RED},
    )
    seen = Seen()
    during = {
        "picture": seen.see_picture,
        "watched": seen.watch,
        "band": seen.go_on,
        "off": seen.see_nothing,
        "on": seen.see_it_again,
    }
    return guest.boot(plan, tmp_path_factory.mktemp("screen"), during, sinks=[seen.note]), seen


def test_the_driver_takes_the_screen(told: tuple[guest.Evidence, Seen], evidence: Callable[[str, str], None]) -> None:
    """Version 3.5, the mode of the topology, and nothing that it complains of."""
    steps, seen = told
    assert "Synthvid Version major 3, minor 5" in steps["driver"]
    name, size, depth, stride = steps["mode"].split("\n")[:4]
    assert "hyperv" in name
    assert (size, depth, stride) == (f"{WIDTH},{HEIGHT}", "32", str(PITCH))
    assert steps["complaints"] == ""
    assert not any("refused" in line or "stopped" in line for line in seen.sent)
    evidence("screen", steps["driver"] + "\n" + "\n".join(seen.sent))


def test_a_picture_has_every_pixel(told: tuple[guest.Evidence, Seen]) -> None:
    """1.9 MB of noise, written to /dev/fb0 by dd, come back in the screenshot, each in its place."""
    _, seen = told
    width, height, rgb = seen.picture
    assert (width, height) == (WIDTH, HEIGHT)
    assert rgb == rgb_of(_visible(PATTERN))


def test_a_viewer_hears_of_changes(told: tuple[guest.Evidence, Seen]) -> None:
    """While somebody looks the driver says what it has drawn; a rectangle around it, and not the whole screen."""
    _, seen = told
    assert seen.band == RED
    assert "video_screen: somebody looks" in seen.sent
    assert "video_screen: nobody looks any more" in seen.sent
    around = seen.damage[0]
    for rect in seen.damage[1:]:
        around = around.around(rect)
    assert around.y <= BAND.y
    assert around.bottom >= BAND.bottom


def test_its_memory_comes_and_goes_with_the_driver(told: tuple[guest.Evidence, Seen]) -> None:
    """8 MiB in the window, where the driver asked; none while it is unbound, and the screen is black then."""
    _, seen = told
    first, none, again = seen.places
    assert acpi.MMIO_BASE <= first <= acpi.MMIO_BASE + acpi.MMIO_LENGTH - VRAM_BYTES
    assert none == 0
    assert seen.off == bytes(PITCH)
    assert again != 0


def test_a_kernel_with_hyperv_fb_has_no_screen(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It looks for a graphics card on a PCI bus first, which this machine has not; docs/console.md says so."""
    plan = guest.Plan(
        steps={"driver": "all; await 30 sh -c 'dmesg | grep -q PCI.Hyper'; dmesg | grep hyperv_fb; test ! -e /dev/fb0"},
        modules=("hv_vmbus", "hyperv_fb"),
        screen=ScreenTable(width=WIDTH, height=HEIGHT),
    )
    told = guest.boot(plan, tmp_path_factory.mktemp("fb"))
    assert "Unable to find PCI Hyper-V video" in told["driver"]
