"""A guest program on the hypervisor's synthetic timers, from `guest.timers` to the queue and back as interrupts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from hypervisor.privileges import Privilege
from hypervisor.trace import Sink, TraceEvent
from partitions import determinism
from partitions.host import ExitReason, Vm, open_host
from partitions.root.worker import vm_privileges
from partitions.topology_schema import Backend, Size, Topology, VmTable
from tests.doubles.root import topology, vm_table

ONE_SHOT = """
async def main(guest):
    timer = guest.timers[3]
    began = guest.time()
    timer.start(0.25)
    assert await timer.wait() == 1
    print(round(guest.time() - began, 4))
    timer.start(1)
    timer.start(0.5)
    await timer.wait()
    print(round(guest.time() - began, 4))
    timer.start(0.1)
    timer.stop()
    await guest.sleep(1)
    print(timer.expirations, timer.waiting)
"""
TICKING = """
async def main(guest):
    fast, slow = guest.timers[:2]
    fast.start(0.01, periodic=True)
    slow.start(0.1, periodic=True)
    for _ in range(5):
        await slow.wait()
    print(fast.expirations, slow.expirations)
"""
PAUSED = """
async def main(guest):
    timer = guest.timers[0]
    timer.start(2)
    await timer.wait()
    print(round(guest.time(), 3))
"""
NONE = """
async def main(guest):
    try:
        guest.timers
    except RuntimeError as error:
        print(error)
"""
LEFT_RUNNING = """
async def main(guest):
    guest.timers[0].start(0.001, periodic=True)
"""


def host_of(folder: Path, program: str, synthetic_timers: bool | None = None) -> Topology:
    (folder / "guest.py").write_text(program)
    table: VmTable = vm_table("web", program="guest.py", memory=Size(4 << 20), synthetic_timers=synthetic_timers)
    return topology(table, folder=folder)


def printed(
    folder: Path,
    program: str,
    synthetic_timers: bool | None = None,
    pause: float = 0,
    sinks: Sequence[Sink] = (),
) -> list[str]:
    """What the program printed, on the virtual clock; paused for so long after a second."""

    async def session() -> list[str]:
        async with open_host(host_of(folder, program, synthetic_timers), sinks=sinks) as host:
            vm: Vm = host["web"]
            await vm.start()
            if pause:
                await trio.sleep(1)
                await vm.pause()
                await trio.sleep(pause)
                await vm.resume()
            record = await vm.wait()
            record.raise_worker_failure()
            assert record.reason is ExitReason.POWERED_OFF, record
            assert not host.hypervisor.timers
            return vm.console.text.split("\n")[:-1]

    return determinism.run(session, clock="virtual", seed=1)


def test_one_shots_expire_when_they_were_set_to(tmp_path: Path) -> None:
    """Started anew before its time a timer has only the new one; stopped it has none."""
    assert printed(tmp_path, ONE_SHOT) == ["0.25", "0.75", "2 0"]


def test_two_rhythms_beside_each_other(tmp_path: Path) -> None:
    (line,) = printed(tmp_path, TICKING)
    fast, slow = map(int, line.split())
    assert slow == 5
    assert fast in (49, 50)


def test_a_pause_does_not_count(tmp_path: Path) -> None:
    """The count is in the partition's time, which stands while the VM is paused."""
    (line,) = printed(tmp_path, PAUSED, pause=100)
    assert float(line) == pytest.approx(2, abs=0.01)


def test_a_topology_can_withhold_them(tmp_path: Path) -> None:
    (line,) = printed(tmp_path, NONE, synthetic_timers=False)
    assert "no synthetic timers" in line


def test_the_kernel_stops_what_a_program_left_running(tmp_path: Path) -> None:
    """Before it takes the SynIC down, so that no interrupt comes to nobody."""
    events: list[TraceEvent] = []
    assert printed(tmp_path, LEFT_RUNNING, sinks=[events.append]) == []
    written = [event.words for event in events if event.event == "write_msr"]
    last = max(place for place, name in enumerate(written) if name.startswith("STIMER0"))
    assert written[last] == "STIMER0_CONFIG"
    assert last < max(place for place, name in enumerate(written) if name == "SCONTROL")
    assert written.count("STIMER0_CONFIG") == 3, "stopped, started, stopped"


@pytest.mark.parametrize(
    ("backend", "wanted", "offered"),
    [
        (Backend.TASK, None, True),
        (Backend.TASK, False, False),
        (Backend.KVM, None, False),
        (Backend.KVM, True, True),
        (Backend.KVM, False, False),
    ],
)
def test_who_is_offered_timers(backend: Backend, wanted: bool | None, offered: bool) -> None:
    """Not a Linux kernel, unless its topology says so: it would leave its processor for each one that it sets."""
    privileges = vm_privileges(vm_table("web", backend=backend, synthetic_timers=wanted))
    assert bool(privileges & Privilege.ACCESS_SYNTHETIC_TIMER_MSRS) == offered
    idle = Privilege.ACCESS_GUEST_IDLE_MSR | Privilege.ACCESS_STATS_MSR
    assert privileges & idle == (0 if backend is Backend.KVM else idle)
