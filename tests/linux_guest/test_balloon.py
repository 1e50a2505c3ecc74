"""Linux's hv_balloon as the other end of dynamic memory: pages out and back, and memory that there was not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from partitions.host import Host, Vm
from partitions.root.memory_state import CannotResize, MemoryState
from tests.linux_guest import guest

MODULES = ("hv_vmbus", "hv_utils", "hv_balloon")
MIB = 1 << 20
MEMORY = 256
"""MiB at boot."""
OUT = 64
CHUNK = 128
"""MiB in which Linux adds memory."""
DRIVERS = """
mount -t debugfs debug /sys/kernel/debug
echo online >/sys/devices/system/memory/auto_online_blocks
all; dmesg | grep -i balloon
"""
LOOK = """
grep -E '^(MemTotal|MemFree|MemAvailable):' /proc/meminfo
cat /sys/kernel/debug/hv-balloon 2>/dev/null || true
"""


def until(name: str, mebibytes: int) -> str:
    """A step that waits until hv_balloon has counted so much, and a little longer."""
    return f"await 120 grep -qE '{name} *: {mebibytes * 256}$' /sys/kernel/debug/hv-balloon; sleep 1"


ONLINE = """
for block in /sys/devices/system/memory/memory*; do echo ${block##*/} $(cat $block/state); done
cat /proc/iomem | grep -i 'System RAM'
"""


class Seen:
    """What the host knew while the guest ran."""

    def __init__(self) -> None:
        self.states: dict[str, MemoryState] = {}
        self.refusals: dict[str, str] = {}
        self.plugged = False

    async def sized(self, name: str, vm: Vm, size: int) -> None:
        try:
            await vm.set_memory(size * MIB)
        except CannotResize as error:
            self.refusals[name] = str(error)
        memory = vm.memory
        assert memory is not None
        self.states[name] = memory

    async def out(self, host: Host, vm: Vm) -> None:
        """64 MiB less."""
        self.plugged = "dynamic-memory" in vm.devices
        await self.sized("out", vm, MEMORY - OUT)

    async def back(self, host: Host, vm: Vm) -> None:
        """And more again."""
        await self.sized("back", vm, MEMORY)

    async def added(self, host: Host, vm: Vm) -> None:
        """A chunk on top, and half of one."""
        await self.sized("added", vm, MEMORY + CHUNK)
        await self.sized("half", vm, MEMORY + CHUNK + CHUNK // 2)

    async def floor(self, host: Host, vm: Vm) -> None:
        """Far below what it can live with."""
        await self.sized("floor", vm, 32)

    async def again(self, host: Host, vm: Vm) -> None:
        """All of it."""
        await self.sized("again", vm, MEMORY + CHUNK + CHUNK // 2)

    async def reports(self, host: Host, vm: Vm) -> None:
        """The first comes after 45 seconds of the guest's."""
        with trio.move_on_after(90):
            while (memory := vm.memory) is None or memory.demand is None:  # noqa: ASYNC110  # as a person would
                await trio.sleep(0.5)
        assert vm.memory is not None
        self.states["reported"] = vm.memory


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def balloon(tmp_path_factory: pytest.TempPathFactory, seen: Seen) -> guest.Evidence:
    """One boot; each change of the host's is made while a step waits, and the next step looks."""
    steps = {
        "drivers": DRIVERS,
        "before": LOOK,
        "out": until("pages_ballooned", OUT) + "; cut -d. -f1 /proc/uptime >/probed",
        "less": LOOK,
        "back": until("pages_ballooned", 0),
        "whole": LOOK,
        "added": until("pages_added", CHUNK + CHUNK // 2),
        "more": LOOK + ONLINE,
        "floor": "sleep 20",
        "least": LOOK,
        "again": until("pages_ballooned", 0),
        "reports": "until [ $(cut -d. -f1 /proc/uptime) -ge $(($(cat /probed) + 50)) ]; do sleep 1; done",
        "complaints": "dmesg | grep -iE 'balloon|hotplug|hot add' | grep -iE 'error|fail|warn|bad|bug' || true",
    }
    during = {
        "again": seen.again,
        "out": seen.out,
        "back": seen.back,
        "added": seen.added,
        "floor": seen.floor,
        "reports": seen.reports,
    }
    plan = guest.Plan(steps=steps, modules=MODULES, memory=MEMORY * MIB, timeout=300)
    return guest.boot(plan, tmp_path_factory.mktemp("balloon"), during)


def meminfo(text: str) -> dict[str, int]:
    """KiB by name."""
    lines = [line.split() for line in text.splitlines() if line.startswith("Mem")]
    return {name.rstrip(":"): int(number) for name, number, *_ in lines}


def test_64_mebibytes_out_and_back(balloon: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """The guest's free memory falls by what the host takes, and is there again after it was given back."""
    before, less, whole = (meminfo(balloon[step])["MemFree"] for step in ("before", "less", "whole"))
    out, back = seen.states["out"], seen.states["back"]
    assert (out.assigned, out.ballooned) == ((MEMORY - OUT) * MIB, OUT * MIB)
    assert (back.assigned, back.ballooned) == (MEMORY * MIB, 0)
    assert abs(before - less - OUT * 1024) < 8 * 1024
    assert abs(before - whole) < 8 * 1024
    assert "out" not in seen.refusals
    assert "back" not in seen.refusals
    evidence("hv_balloon", f"{OUT} MiB out and back: MemFree {before}, {less}, {whole} KiB")


def test_memory_is_added(balloon: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """A chunk of 128 MiB is taken and onlined, and then half of another: the pages that were offered, and no others."""
    assert not seen.refusals.keys() & {"added", "half"}
    assert seen.states["added"].added == CHUNK * MIB
    assert seen.states["half"].added == (CHUNK + CHUNK // 2) * MIB
    total, more = (meminfo(balloon[step])["MemTotal"] for step in ("before", "more"))
    assert abs(more - total - (CHUNK + CHUNK // 2) * 1024) < 8 * 1024
    evidence("hv_balloon", f"hot add of {CHUNK + CHUNK // 2} MiB: MemTotal {total}, then {more} KiB")


def test_it_keeps_its_floor(balloon: guest.Evidence, seen: Seen) -> None:
    """What Linux does not give, the host is told that it does not have; the guest lives, and gets all back."""
    assert "has no more to give" in seen.refusals["floor"]
    assert seen.states["floor"].assigned > 100 * MIB
    assert seen.states["floor"].ballooned > 100 * MIB
    assert meminfo(balloon["least"])["MemFree"] < meminfo(balloon["more"])["MemFree"]
    assert seen.states["again"].ballooned == 0


def test_its_reports(balloon: guest.Evidence, seen: Seen) -> None:
    """Committed memory with the driver's floor, without its balloon: something between the floor and all there is."""
    reported = seen.states["reported"]
    assert reported.demand is not None
    assert 100 * MIB < reported.demand < reported.visible


def test_the_device_came_when_it_was_wanted(balloon: guest.Evidence, seen: Seen) -> None:
    """A VM without dynamic memory boots without the device."""
    assert not seen.plugged
    assert balloon["complaints"].strip() == ""
