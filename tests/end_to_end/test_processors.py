"""Virtual processors of whole VMs on logical ones: controlled, traced, paused, reset, saved, recorded, and repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hypervisor.properties import Property
from hypervisor.scheduler.events import LOST
from hypervisor.trace import SCHEDULER_EVENTS, Layer, TraceEvent
from partitions import determinism
from partitions.cli.main import main as partita
from partitions.host import Host, open_host
from partitions.recording.reader import read_recording
from tests.partitions.boundary.test_record_replay import record, replay

BUSY = """
async def main(guest):
    for cpu in guest.cpus:
        guest.start_soon(cpu.run, 1e6)
    await guest.sleep(guest.args["seconds"])
    print(round(sum(cpu.times().run for cpu in guest.cpus), 3))
"""
STUBBORN = """
async def main(guest):
    await guest.cpu.run(1)
    print(f"{guest.time():.1f}", *(f"{part:.1f}" for part in guest.cpu.times()), f"{guest.cpu.steal:.1f}")

async def resume(guest):
    print("awake")
    await main(guest)
"""


def machine(folder: Path, lps: int, vms: dict[str, str], program: str = BUSY, **args: object) -> Path:
    """A topology of VMs that run one program; what is special of each is TOML."""
    (folder / "program.py").write_text(program)
    tables = [f"[host]\nlogical_processors = {lps}\n"]
    given = ", ".join(f"{key} = {value}" for key, value in args.items())
    for name, more in vms.items():
        keys = f'program = "program.py"\nmemory = "4MiB"\nargs = {{ {given} }}'
        tables.append(f'[[vm]]\nname = "{name}"\n{keys}\n{more}\n')
    (folder / "topology.toml").write_text("\n".join(tables))
    return folder


def said(host: Host) -> dict[str, str]:
    return {name: vm.console.text.strip() for name, vm in host.items()}


async def until_the_end(host: Host) -> None:
    await host.start_all()
    await host.wait_all()
    for vm in host.values():
        assert vm.exit is not None
        vm.exit.raise_worker_failure()


async def test_weights_of_vms(tmp_path: Path, autojump_clock: MockClock) -> None:
    """E1 from a topology: 10, 20 and 70 % of one LP, and the host's figures say what the guests say."""
    weights = {name: f"cpu = {{ weight = {weight} }}" for name, weight in (("a", 100), ("b", 200), ("c", 700))}
    async with open_host(machine(tmp_path, 1, weights, seconds=10)) as host:
        with trio.move_on_after(9):
            await until_the_end(host)
        shares = {}
        for name, vm in host.items():
            path = f"hypervisor/partitions/{vm.partition_id}/vps/0/cpu"
            spent = [await host.inspect(f"{path}/{state}_ns") for state in ("run", "ready", "capped", "halted")]
            assert sum(spent) == pytest.approx(9e9, abs=1e6)
            shares[name] = spent[0] / 9e9
            assert await host.inspect(f"{path}/counters/% Guest Run Time") == pytest.approx(100 * shares[name], abs=0.2)
        assert list(shares.values()) == pytest.approx([0.1, 0.2, 0.7], abs=0.003)
        assert await host.inspect("hypervisor/scheduler/contended") is True
        await host.wait_all()
        assert [float(words) for words in said(host).values()] == pytest.approx([1, 2, 7], abs=0.03)


async def test_a_live_vm_is_changed(tmp_path: Path, autojump_clock: MockClock) -> None:
    """By the root's hypercall and by the host: the next window is as they say, and the two know of one another."""
    async with open_host(machine(tmp_path, 2, {"a": "", "b": ""}, seconds=100)) as host:
        await host.start_all()
        a, partition_id = host["a"], host["a"].partition_id
        assert partition_id is not None

        async def percent() -> int:
            await trio.sleep(0.1)
            before = a.run_time
            await trio.sleep(0.1)
            return round((a.run_time - before) / 10_000)

        assert await percent() == 100
        host.winhv.set_partition_property(partition_id, Property.CPU_CAP, 0x4000)
        assert await percent() == 25
        host.resources.set("vm/a", "cpu.limit", 10)
        assert await percent() == 10
        assert host.winhv.get_partition_property(partition_id, Property.CPU_CAP) == 0x10000 // 10


async def test_a_pause_gives_the_processor_away(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A paused VM's work waits and its neighbour has all; its own clock stands, so nothing was stolen meanwhile."""
    folder = machine(tmp_path, 1, {"a": "", "b": ""}, STUBBORN)
    async with open_host(folder) as host:
        await host.start_all()
        await trio.sleep(0.6)
        await host["a"].pause()
        await trio.sleep(0.8)
        assert host["b"].exit is not None
        await trio.sleep(99)
        await host["a"].resume()
        await host.wait_all()
        assert said(host) == dict.fromkeys("ab", "1.3 1.0 0.3 0.0 1.3 0.3")


async def test_a_reset_in_the_middle_of_work(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The work of the old life is gone, the processor's run time begins anew, and it has its share again."""
    folder = machine(tmp_path, 1, {"a": "cpu = { limit = 50 }"}, STUBBORN)
    async with open_host(folder) as host:
        await host.start_all()
        await trio.sleep(0.5)
        await host["a"].reset()
        assert (await host["a"].wait()).ok
        assert said(host)["a"] == "2.0 1.0 1.0 0.0 2.0 1.0"


async def test_saved_at_work(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A saved guest begins its work again in another host, under the controls that it has there."""
    folder = machine(tmp_path, 1, {"a": "cpu = { limit = 50 }"}, STUBBORN)
    async with open_host(folder) as host:
        await host["a"].start()
        await trio.sleep(0.5)
        file = await host["a"].save()
    async with open_host(folder) as host:
        await host["a"].restore(file)
        await host.wait_all()
        assert said(host)["a"].splitlines()[-2:] == ["awake", "2.5 1.0 1.0 0.0 2.0 1.0"]


async def test_what_a_guest_must_not_ask_it_can_do(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Work on one processor by two tasks is one after the other and steals nothing; `cpus` are all."""
    program = """
import trio
async def main(guest):
    async with trio.open_nursery() as nursery:
        for cpu in (guest.cpus[1], guest.cpus[1], guest.cpu):
            nursery.start_soon(cpu.run, 0.2)
    await guest.sleep(0.1)
    for cpu in guest.cpus:
        print(cpu.index, *(f"{part:.1f}" for part in cpu.times()), end=" ")
"""
    async with open_host(machine(tmp_path, 2, {"a": "processors = 2"}, program)) as host:
        await until_the_end(host)
        assert said(host)["a"] == "0 0.2 0.0 0.3 0.5 1 0.4 0.0 0.1 0.5"


# --- the same again


@pytest.mark.parametrize(("example", "vm"), [("30-hard-cap", "capped"), ("31-reservation", "owner")])
def test_a_record_of_scheduled_work_replays(example: str, vm: str, tmp_path: Path) -> None:
    """The guest's part comes from the record, its neighbours compete with it as they did: byte for byte."""
    lines = record(example, vm, tmp_path / "record")
    assert any('"event":"worked"' in line for line in lines)
    assert replay(example, vm, tmp_path / "record").ok


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Across runs and values of PYTHONHASHSEED: every slice, and everything else that happened."""
    layers = "layer=" + "|".join(layer.value for layer in Layer)
    command = ["run", "31-reservation", "--clock", "virtual", "--seed", "9", "--trace-filter", layers, "--trace"]
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert partita([*command, str(here)]) == 0
    subprocess.run(
        [sys.executable, "-c", "from partitions.cli.main import main; main()", *command, str(there)],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        check=True,
        capture_output=True,
        timeout=60,
    )
    assert here.read_bytes().count(b'"layer":"scheduler"') > 100
    assert here.read_bytes() == there.read_bytes()


# --- its events


def test_the_schedule_is_seen_by_whom_asks_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines, a recording and a timeline with the layer named have every slice; without it none of them has any."""
    files = {name: str(tmp_path / name) for name in ("t.jsonl", "t.pcapng", "t.json")}
    ways = ["--trace", files["t.jsonl"], "--pcap", files["t.pcapng"], "--timeline", files["t.json"]]
    run = ["run", "30-hard-cap", "--clock", "virtual", *ways]
    partita([*run, "--trace-filter", "layer=scheduler|state"])
    lines = [json.loads(line) for line in Path(files["t.jsonl"]).read_text().splitlines()]
    slices = [line for line in lines if line["layer"] == "scheduler"]
    assert {line["event"] for line in slices} == {"dispatch", "capped", "block", "continue"}
    assert slices[0]["words"] == "VP 0 gets LP 0 for at most 1 ms"
    assert slices[0]["vp"] == slices[0]["lp"] == 0
    capped = [line["words"] for line in slices if line["event"] == "capped"]
    assert capped[0] == "VP 0 leaves LP 0 after 2.5 ms: its budget for this period is used up"
    recorded = [event for event in read_recording(Path(files["t.pcapng"])) if event.layer is Layer.SCHEDULER]
    assert [(event.event, event.words) for event in recorded] == [(line["event"], line["words"]) for line in slices]
    timeline = json.loads(Path(files["t.json"]).read_text())
    assert "LP 0" in {entry["args"].get("name") for entry in timeline if entry["ph"] == "M"}
    assert sum(entry["ph"] == "B" and entry["name"] == "capped VP 0" for entry in timeline) == len(
        [line for line in slices if line["event"] == "dispatch"]
    )
    capsys.readouterr()
    for more in ([], ["--sequence"], ["--requests"], ["-o", "json"], ["--filter", "layer=scheduler,event=capped"]):
        partita(["trace", files["t.pcapng"], *more])
    assert "its budget for this period is used up" in capsys.readouterr().out
    partita([*run, "--trace-filter", "event=capped|vm_state"])
    assert Path(files["t.jsonl"]).read_text().count('"scheduler"') == len(capped)
    partita(run)
    assert '"scheduler"' not in Path(files["t.jsonl"]).read_text()
    assert {name for name, _ in LOST.values()} | {"dispatch", "continue"} == SCHEDULER_EVENTS


def test_events_have_the_times_of_slices(tmp_path: Path) -> None:
    """Each begins where the one before on that LP ended, whoever looks; a sink that has not asked gets none."""
    seen: list[TraceEvent] = []
    others: list[TraceEvent] = []

    async def main() -> None:
        folder = machine(tmp_path, 1, {"a": "", "b": "cpu = { weight = 300 }"}, seconds=0.5)
        async with open_host(folder, sinks=[others.append]) as host:
            await host.start_all()
            await trio.sleep(0.1)
            remove = host.trace.add_sink(seen.append, scheduler=True)
            await trio.sleep(0.2)
            remove()
            await host.wait_all()

    determinism.run(main, clock="virtual", seed=1)
    slices = [event for event in seen if event.layer is Layer.SCHEDULER]
    assert not [event for event in others if event.layer is Layer.SCHEDULER]
    assert 1_000_000 <= slices[0].time <= slices[-1].time <= 3_000_000
    assert [event.time for event in slices] == sorted(event.time for event in slices)
    ends = [event for event in slices if event.event == "slice_end"]
    assert sum(event.fields["ran_ns"] for event in ends[1:]) == pytest.approx(2e8, abs=3e7)
    assert [event.event for event in slices].count("continue") >= 5
    assert {event.fields["lp"] for event in slices} == {0}


# --- an hour


def an_hour(folder: Path, seconds: int) -> float:
    """64 busy VPs of 8 VMs on 8 LPs, by weights 1:2:3; returns the seconds of our own processor that it took."""
    vms = {f"vm{n}": f"processors = 8\ncpu = {{ weight = {100 * (n % 3 + 1)} }}" for n in range(8)}
    folder = machine(folder, 8, vms, seconds=seconds)
    began = time.process_time()

    async def main() -> dict[str, str]:
        async with open_host(folder, clock="virtual") as host:
            await until_the_end(host)
            assert host.hypervisor.scheduler.wakes <= 2 * seconds + 200, "nobody wakes for slices"
            return said(host)

    runs = determinism.run(main, clock="virtual", seed=1)
    whole = sum(n % 3 + 1 for n in range(8))
    for number, words in enumerate(runs.values()):
        assert float(words) == pytest.approx(seconds * 8 * (number % 3 + 1) / whole, abs=8 * 0.03)
    return time.process_time() - began


def test_nobody_wakes_for_slices(tmp_path: Path) -> None:
    """A hundredth of the hour below, and what it costs to wake is counted."""
    an_hour(tmp_path, 36)


@pytest.mark.slow
def test_an_hour_of_64_on_8_takes_less_than_a_minute(tmp_path: Path) -> None:
    """2.88 million slices."""
    assert an_hour(tmp_path, 3600) < 60
