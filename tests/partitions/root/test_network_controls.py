"""Bandwidth and cables of VMs on a host: from the topology, changed while it runs, seen in the tree."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from hypervisor.scheduler.tree import ResourceError
from partitions.host import Host, NicError, open_host
from partitions.inspect import InspectError
from partitions.root.hotplug import HotPlug, HotPlugError
from partitions.topology import parse_topology

GUEST = """
async def main(guest):
    ip = await guest.ip(guest.args["address"])
    for peer in guest.args.get("pings", []):
        while True:
            try:
                seconds = await ip.ping(peer)
            except OSError:
                await guest.sleep(0.01)
                continue
            print(f"{seconds * 1000:.3f}")
            await guest.sleep(0.001)
    if "sends" in guest.args:
        with ip.udp() as socket:
            for number in range(guest.args["sends"]):
                await socket.send_to(b"%04d" % number + bytes(1454), ("10.0.0.9", 7))
                if number % 50 == 49:
                    await guest.sleep(guest.args.get("pause", 0.1))
    if "counts" in guest.args:
        with ip.udp(7) as socket:
            while True:
                data, (address, _) = await socket.receive_from()
                print(f"{guest.time():.4f} {address} {data[:4].decode()}")
    await guest.sleep(3600)
"""
TWO = """
[host]
seed = 3
[[switch]]
name = "lan"
[[vm]]
name = "web"
program = "guest.py"
memory = "16MiB"
args = { address = "10.0.0.1/24" WEB }
[[vm.nic]]
switch = "lan"
NIC
[[vm]]
name = "db"
program = "guest.py"
memory = "16MiB"
args = { address = "10.0.0.9/24" DB }
[[vm.nic]]
switch = "lan"
"""


@asynccontextmanager
async def running(folder: Path, web: str = "", nic: str = "", db: str = "", text: str = TWO) -> AsyncIterator[Host]:
    """Two guests on a switch, on the virtual clock."""
    (folder / "guest.py").write_text(GUEST)
    text = text.replace("WEB", web).replace("NIC", nic).replace("DB", db)
    async with open_host(parse_topology(text, folder), clock="virtual") as host:
        await host.start_all()
        yield host


def pings(host: Host) -> list[float]:
    """Milliseconds."""
    return [float(line) for line in host["web"].console.text.split()]


async def test_delay_is_in_every_ping(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Exactly twice, on the virtual clock; a change is in the next one, and is a setting of the VM from then on."""
    async with running(tmp_path, ', pings = ["10.0.0.9", "10.0.0.9", "10.0.0.9"]', 'link = { delay = "40ms" }') as host:
        await trio.sleep(0.25)
        assert pings(host)[1:] == [80.0]
        host.update("switch/lan/ports/web/0/cable/delay", "5 ms")
        assert await host.inspect("switch/lan/ports/web/0/cable/delay") == "5ms"
        await trio.sleep(1)
        assert pings(host)[-1] == 10.0
        assert host["web"].settings.nic[0].link.delay == 5_000_000  # type: ignore[union-attr]
        await host["web"].turn_off()
        await host["web"].start()
        await trio.sleep(1)
        assert pings(host)[-1] == 10.0
        shaped = await host.inspect("switch/lan/ports/web/0/shaped/out")
        assert shaped["frames"] == shaped["arrived"] + shaped["on_the_way"] > 3


async def test_a_limit_is_set_on_a_vm_that_runs(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """By `resources.set`, by the tree, by its shorter name: from then on and after a restart. 1,500 bytes a frame."""
    async with running(tmp_path, ", sends = 1000", db=", counts = true") as host:
        await trio.sleep(0.21)
        before = len(host["db"].console.text.splitlines())
        assert before == 150
        host.resources.set("vm/web", "nic.0.bandwidth.limit", "120Kbit")
        host.resources.set("vm/web", "nic.0.limit", "120Kbit")
        host.resources.set("vm/web", "nic.0.bandwidth.burst", 1522)
        await trio.sleep(10)
        assert len(host["db"].console.text.splitlines()) - before == pytest.approx(100, abs=1)
        host.update("switch/lan/ports/web/0/bandwidth/limit", "12Mbit")
        assert await host.inspect("switch/lan/ports/web/0/bandwidth/limit") == 12_000_000
        await trio.sleep(0.1)
        assert len(host["db"].console.text.splitlines()) - before == pytest.approx(200, abs=2)
        figures = host.network.switches().figures()["web/0"]
        assert figures.sent_bits >= 350 * 12_000
        assert figures.queued_frames > 300
        assert figures.delayed_frames > 150
        queue = await host.inspect("switch/lan/ports/web/0/shaped/queue")
        assert queue["queued_frames"] == figures.queued_frames
        host.update("switch/lan/ports/web/0/bandwidth/limit", "0")
        await trio.sleep(0.5)
        assert host.network.switches().figures()["web/0"].queued_frames == 0


async def test_what_is_asked_for_must_make_sense(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The key is named and what it takes; nothing is half done."""
    async with running(tmp_path, nic='bandwidth = { reserve = "1Mbit", limit = "2Mbit" }') as host:
        before = host["web"].settings
        for key, value, words in (
            ("bandwidth/limit", "fast", 'must be a rate such as "8Mbit"'),
            ("bandwidth/limit", "1Kbit", "must not be above its limit of 1 Kbit/s"),
            ("bandwidth/weight", "0", "must be at least 1"),
            ("bandwidth/burst", "100", "must hold a frame, 1522 bytes"),
            ("cable/delay", "50", 'has no unit; write "50ms"'),
            ("cable/delay", "50 years", 'unknown unit "years"'),
            ("cable/loss", "101", "must be at most 100"),
            ("cable/gap", "5", "does nothing without reorder"),
            ("cable/direction", "up", "known are both, out, in"),
            ("cable/burst_loss/r", "-1", "must be at least 0"),
        ):
            with pytest.raises(InspectError, match=re.escape(words)):
                host.update(f"switch/lan/ports/web/0/{key}", value)
        assert host["web"].settings == before
        with pytest.raises(ResourceError, match="reserve"):
            host.resources.set("vm/web", "nic.0.bandwidth.reserve", "3Mbit")
        with pytest.raises(ResourceError, match="must hold a frame"):
            host.resources.set("vm/web", "nic.0.bandwidth.burst", 100)
        with pytest.raises(NicError, match=r"bandwidth\.reserve"):
            await host["db"].add_nic("lan", bandwidth={"reserve": "2Mbit", "limit": "1Mbit"})
        assert host["web"].settings == before


async def test_a_switch_is_given_less_and_its_ports_share(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """`controls/bandwidth` of a switch, live; weights of adapters decide then, also of one that came later."""
    async with running(tmp_path, nic="bandwidth = { weight = 300, queue = 5000 }") as host:
        assert host.update("switch/lan/controls/bandwidth", "8Mbit")
        number = await host["db"].add_nic("lan", bandwidth={"weight": 100, "queue": 5000})
        ports = host.network.switches().ports
        for port, to in ((ports["web/0"], ports["db/0"]), (ports[f"db/{number}"], ports["web/0"])):
            frame = (to.mac + port.mac + b"\x88\xb5").ljust(1000, b"x")
            port.transmit([frame] * 3000)
        await trio.sleep(1)
        figures = host.network.switches().figures()
        assert figures["web/0"].sent_bits == pytest.approx(6_000_000, abs=30_000)
        assert figures[f"db/{number}"].sent_bits == pytest.approx(2_000_000, abs=30_000)
        await host["db"].remove_nic(number)
        await trio.sleep(0.4)
        assert host.network.switches().figures()["web/0"].sent_bits == pytest.approx(9_200_000, abs=40_000)
        host.update("switch/lan/controls/bandwidth", "0")
        assert host.network.switches().figures()["web/0"].queued_frames == 0


async def test_pools_have_limits_on_networks(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """From the topology, then changed; a VM that leaves the pool is free."""
    text = TWO.replace('name = "web"', 'name = "web"\npool = "user"') + (
        '[[pool]]\nname = "user"\nnetwork = { limit = "800Kbit" }\n'
    )
    async with running(tmp_path, text=text) as host:
        ports = host.network.switches().ports
        web, db = ports["web/0"], ports["db/0"]
        frame = (db.mac + web.mac + b"\x88\xb5").ljust(1000, b"x")

        async def sent(seconds: float) -> float:
            before = web.sent_bytes
            await trio.sleep(seconds)
            return (web.sent_bytes - before) * 8 / seconds

        web.transmit([frame] * 900)
        assert await sent(1) == pytest.approx(800_000, abs=8_001)
        host.resources.set("pool/user", "network.limit", "80Kbit")
        assert await sent(2) == pytest.approx(80_000, abs=8_001)
        assert host.network.switches().figures()["web/0"].queued_frames > 700
        host.resources.set("vm/web", "pool", "")
        assert host.network.switches().figures()["web/0"].queued_frames == 0
        assert "user" in host.network.switches().controls().shaping.pools
        host.resources.remove_pool("user")
        assert not host.network.switches().controls().shaping.pools


async def test_reservations_are_admitted(
    tmp_path: Path, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has 10 Mbit/s gives no more away: not to an adapter that comes, nor live."""
    text = TWO.replace("seed = 3", 'seed = 3\nbandwidth = "10Mbit"')
    async with running(tmp_path, nic='bandwidth = { reserve = "6Mbit" }', text=text) as host:
        with pytest.raises(NicError, match="4 Mbit/s"):
            await host["db"].add_nic("lan", bandwidth={"reserve": "5Mbit"})
        assert len(host["db"].nics) == 1

        def fails(*_: object) -> None:
            raise HotPlugError("no room on the bus")

        with monkeypatch.context() as patch:
            patch.setattr(HotPlug, "add", fails)
            with pytest.raises(NicError, match="no room on the bus"):
                await host["db"].add_nic("lan", bandwidth={"reserve": "4Mbit"})
        host.update("switch/lan/ports/web/0/bandwidth/reserve", "10Mbit")
        host.update("switch/lan/ports/web/0/bandwidth/reserve", "6Mbit")
        number = await host["db"].add_nic("lan", bandwidth={"reserve": "4Mbit"})
        with pytest.raises(InspectError, match="cannot be granted"):
            host.update("switch/lan/ports/web/0/bandwidth/reserve", "7Mbit")
        await host["db"].remove_nic(number)
        host.update("switch/lan/ports/web/0/bandwidth/reserve", "7Mbit")


async def test_a_host_without_controls_has_nothing_in_the_way(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """No lane, no timer, and looking makes none."""
    async with running(tmp_path) as host:
        shown = await host.inspect("switch/lan")
        assert shown["ports"]["web/0"]["bandwidth"]["limit"] == 0
        assert "shaped" not in shown["ports"]["web/0"]
        assert all(port.outlet is None for port in host.network.switches().ports.values())
        assert host.network.switches().figures()["web/0"].queued_frames == 0


SCRIPT = """
import sys
from pathlib import Path
import trio
from partitions.determinism import run
from partitions.host import open_host
from partitions.topology import parse_topology

async def main():
    folder = Path(sys.argv[1])
    async with open_host(parse_topology((folder / "t.toml").read_text(), folder), clock="virtual") as host:
        await host.start_all()
        await trio.sleep(3)
        print(host["db"].console.text, host["web"].console.text)
        print(host.network.switches().ports["web/0"].drops)

run(main, clock="virtual", seed=3)
"""


def test_i15_the_same_seed_gives_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """I15: whatever the hash seed; every frame that is lost, and when each of the others arrives.

    Once in this process, which has a hash seed of its own, and once in another.
    """
    (tmp_path / "guest.py").write_text(GUEST)
    (tmp_path / "run.py").write_text(SCRIPT)
    link = 'link = { delay = "20ms", jitter = "30ms", loss = 10, duplicate = 5, reorder = 5, corrupt = 2 }\n'
    text = TWO.replace("WEB", ", sends = 200").replace("DB", ", counts = true")
    (tmp_path / "t.toml").write_text(text.replace("NIC", link + 'bandwidth = { limit = "4Mbit" }'))
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path)])
    runpy.run_path(str(tmp_path / "run.py"))
    here = capsys.readouterr().out
    there = subprocess.run(
        [sys.executable, tmp_path / "run.py", tmp_path],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert here.count("10.0.0.1") > 100
    assert "link_loss" in here
    assert there == here
