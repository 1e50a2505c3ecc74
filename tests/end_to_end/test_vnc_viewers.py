"""Real VNC clients on a partition's screen: vncdotool types and captures, TigerVNC's viewer shows it in a window."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from PIL import Image

import partitions
from partitions.host import Vm
from partitions.topology_schema import HostTable, ScreenTable, Topology, VmTable

VNCDO = Path(sys.executable).with_name("vncdo")
VIEWER, XVFB = shutil.which("xtigervncviewer"), shutil.which("Xvfb")
needs_viewer = pytest.mark.skipif(
    not (VIEWER and XVFB), reason="xtigervncviewer or Xvfb is not installed (Debian: tigervnc-viewer, xvfb)"
)
WIDTH, HEIGHT = 640, 480
PATIENCE_SECONDS = 30
LOOK_SECONDS = 0.05
GUEST = """
async def main(guest):
    screen, keyboard, mouse = await guest.screen(), await guest.keyboard(), await guest.mouse()
    for row in range(16):
        for column in range(16):
            screen.fill(column * 40, row * 30, 40, 30, row << 20 | column << 12 | (row ^ column) << 4)
    screen.fill(0, 0, screen.width, 2, 0xFFFF00)
    await screen.flush()
    print("drawn")
    guest.start_soon(follow, guest, screen, mouse)
    while (line := await keyboard.read_line()) != "bye":
        screen.text(40, 200, line, 0xFFFFFF)
        await screen.flush()
        print("line", line)

async def follow(guest, screen, mouse):
    async for report in mouse:
        if report.buttons:
            x, y = report.at(screen.width, screen.height)
            screen.fill(x, y, 16, 16, 0xFF0000)
            await screen.flush()
            print("click", x, y, report.buttons.name)
"""


@asynccontextmanager
async def console(folder: Path) -> AsyncIterator[Vm]:
    """A VM with a screen whose guest has drawn."""
    (folder / "guest.py").write_text(GUEST)
    screen = ScreenTable(width=WIDTH, height=HEIGHT, vnc=0)
    table = VmTable(name="desk", program="guest.py", screen=screen)
    with trio.fail_after(PATIENCE_SECONDS):
        async with partitions.open_host(Topology(host=HostTable(), vm=[table], folder=folder)) as host:
            await host["desk"].start()
            await printed(host["desk"], "drawn")
            yield host["desk"]


async def printed(vm: Vm, line: str) -> None:
    """Until its console has that line."""
    with vm.console.listen() as reader:
        while line not in vm.console.lines():
            await reader.receive()


async def vncdo(vm: Vm, *words: str | Path) -> None:
    """A client of its own, from its coming to its going."""
    call = [str(VNCDO), "--nocursor", "-t", "20", "-s", f"127.0.0.1::{vm.vnc_port}", *map(str, words)]
    done = await trio.run_process(call, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def screen_of(vm: Vm) -> Image.Image:
    """What the guest shows, out of its memory."""
    screen = vm.screen
    assert screen is not None
    size = screen.width, screen.height
    return Image.frombytes("RGB", size, screen.pixels(0, 0, *size), "raw", "BGRX")


async def test_vncdotool_types_and_captures(tmp_path: Path) -> None:
    """What it types and clicks comes to the guest; what it captures is the screen, pixel by pixel."""
    async with console(tmp_path) as vm:
        first = tmp_path / "first.png"
        await vncdo(vm, "capture", first)
        assert Image.open(first).convert("RGB").tobytes() == screen_of(vm).tobytes()
        await vncdo(vm, "type", 'Hello, "World"! <{}>', "key", "enter", "move", "320", "240", "click", "1")
        await printed(vm, 'line Hello, "World"! <{}>')
        await printed(vm, "click 320 240 LEFT")
        second = tmp_path / "second.png"
        await vncdo(vm, "capture", second)
        shown = screen_of(vm)
        assert Image.open(second).convert("RGB").tobytes() == shown.tobytes()
        assert shown.getpixel((325, 245)) == (255, 0, 0)
        await vncdo(vm, "type", "bye", "key", "enter")
        await vm.wait()


class Display:
    """An X server in memory, whose screen is a file."""

    def __init__(self, number: int, file: Path) -> None:
        self.name = f":{number}"
        self._file = file

    def window(self) -> Image.Image | None:
        """The guest's screen in it, found by the yellow line at its top; None as long as there is none."""
        data = self._file.read_bytes()
        head = struct.unpack_from(">20I", data)
        header, width, height, pitch, colours = head[0], head[4], head[5], head[12], head[19]
        start = header + 12 * colours
        picture = Image.frombytes("RGB", (width, height), data[start : start + pitch * height], "raw", "BGRX", pitch)
        mask = picture.point(lambda value: 255 if value > 128 else 0)
        line = b"\xff\xff\0" * WIDTH
        at = mask.tobytes().find(line)
        if at < 0:
            return None
        x, y = at // 3 % width, at // 3 // width
        return picture.crop((x, y, x + WIDTH, y + HEIGHT))


@asynccontextmanager
async def running(call: list[str], **options: Any) -> AsyncIterator[trio.Process]:
    """A program, until the block ends."""
    process = await trio.lowlevel.open_process(call, **options)
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


@asynccontextmanager
async def display(folder: Path) -> AsyncIterator[Display]:
    """While the block runs."""
    call = [str(XVFB), "-displayfd", "1", "-screen", "0", "1024x768x24", "-fbdir", str(folder), "-nolisten", "tcp"]
    async with running(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        number = b""
        while not number.endswith(b"\n"):
            number += await process.stdout.receive_some()
        yield Display(int(number), folder / "Xvfb_screen0")


@needs_viewer
@pytest.mark.parametrize(
    ("options", "colours"),
    [((), 256), (("-AutoSelect=0", "-PreferredEncoding=Raw", "-FullColor=0", "-LowColorLevel=1"), 4)],
    ids=["compressed", "raw, 64 colours"],
)
async def test_tigervnc_shows_it(tmp_path: Path, options: tuple[str, ...], colours: int) -> None:
    """In a window, in its own format of pixels, and what changes then too."""
    async with console(tmp_path) as vm, display(tmp_path) as x:
        call = [str(VIEWER), "-display", x.name, "-Shared=1", *options, f"127.0.0.1::{vm.vnc_port}"]
        with (tmp_path / "viewer.log").open("wb") as log:
            async with running(call, stdout=log, stderr=log, env={"HOME": str(tmp_path)}):
                await seen(x, vm, colours)
                assert vm.keyboard is not None
                await vm.keyboard.type_text("It is there\n")
                await printed(vm, "line It is there")
                await seen(x, vm, colours)


async def seen(x: Display, vm: Vm, colours: int) -> None:
    """Until the window has what the guest shows, in so many shades a colour; without what the viewer itself writes."""
    last = colours - 1
    below_the_hint = (0, 150, WIDTH, HEIGHT)
    shades = [round((value * last + 127) // 255 * 255 / last) for value in range(256)]
    wanted = screen_of(vm).point(shades * 3).crop(below_the_hint).tobytes()
    while True:
        window = x.window()
        if window is not None and window.crop(below_the_hint).tobytes() == wanted:
            return
        await trio.sleep(LOOK_SECONDS)
