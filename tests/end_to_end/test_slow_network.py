"""Delay, rate and loss as programs that are not ours measure them: ping and curl, through TAP devices."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from partitions.host import Host, open_host
from partitions.root.tap import open_tap
from partitions.root.uplinks import TapLink
from partitions.topology import parse_topology
from tests.doubles.real_network import Namespace, namespace, needs, tool
from vsp_vsc.network.shaping.settings import Bandwidth
from vsp_vsc.network.switch.ports import Port
from vsp_vsc.network.switch.settings import PortSettings

GUEST = """
async def main(guest):
    await guest.ip("10.9.0.2/24")
    print("up")
    await guest.sleep(60)
"""
TOPOLOGY = """
[[vm]]
name = "web"
program = "guest.py"
memory = "16MiB"
[[vm.nic]]
switch = "lan"
NIC
[[switch]]
name = "lan"
kind = "external"
SWITCH
"""
PAYLOAD = 1460 / 1514
"""Of a full TCP segment of a frame; some have options."""


@asynccontextmanager
async def running(folder: Path, nic: str = "", switch: str = "") -> AsyncIterator[tuple[Host, Namespace]]:
    """A guest at 10.9.0.2, and a namespace at 10.9.0.1 at the other end of the switch."""
    (folder / "guest.py").write_text(GUEST)
    topology = parse_topology(TOPOLOGY.replace("NIC", nic).replace("SWITCH", switch), folder)
    with namespace() as outside:
        async with open_host(topology) as host:
            outside.take(await host.inspect("switch/lan/uplink/tap"), "10.9.0.1/24")
            await host.start_all()
            with trio.fail_after(10):
                async for line in host["web"].console.follow():
                    if line.text == "up":
                        break
            yield host, outside


async def pinged(outside: Namespace, count: int = 5) -> list[float]:
    """Milliseconds of each round trip, as ping says; the first, which asks for the address, left out."""
    said = await outside.run("ping", "-c", str(count + 1), "-i", "0.05", "-W", "2", "10.9.0.2")
    return [float(time) for time in re.findall(r"time=([\d.]+) ms", said)][1:]


@needs("ping")
async def test_ping_measures_the_delay(tmp_path: Path) -> None:
    """The guest's cable is there and back; the uplink's adds to it; taken away while the host runs, both are gone."""
    async with running(tmp_path, 'link = { delay = "30ms" }') as (host, outside):
        times = await pinged(outside)
        assert 60 <= min(times) < 78
        host.update("switch/lan/controls/cable/delay", "10ms")
        times = await pinged(outside)
        assert 80 <= min(times) < 98
        host.update("switch/lan/controls/cable/delay", "0ms")
        host.resources.set("vm/web", "nic.0.link.delay", "0ms")
        assert min(await pinged(outside)) < 18


@needs("ping")
async def test_ping_counts_what_is_lost(tmp_path: Path) -> None:
    """Everything while all is lost, and nothing afterwards."""
    async with running(tmp_path, 'link = { loss = 100, direction = "in" }') as (host, outside):
        said = await outside.run("ping", "-c", "3", "-i", "0.05", "-W", "0.2", "10.9.0.2")
        assert "3 packets transmitted, 0 received" in said
        assert await host.inspect("switch/lan/ports/web/0/shaped/in/lost") >= 1
        host.update("switch/lan/ports/web/0/cable/loss", "0")
        assert len(await pinged(outside)) == 5


@needs("curl")
@pytest.mark.parametrize("control", ["port", "switch", "cable"])
async def test_curl_measures_the_rate(tmp_path: Path, control: str) -> None:
    """TCP of two kernels through the switch, 16 Mbit/s by the sender's limit, the switch's bandwidth or its cable."""
    mbit = 16
    text = TOPOLOGY.replace("NIC", "").replace("SWITCH", "").replace("guest.py", "idle")
    topology = parse_topology(text, tmp_path)
    (tmp_path / "data").write_bytes(bytes(1_000_000))
    with ExitStack() as stack:
        outside, server = stack.enter_context(namespace()), stack.enter_context(namespace())
        async with open_host(topology) as host, trio.open_nursery() as nursery:
            switches = host.network.switches()
            outside.take(await host.inspect("switch/lan/uplink/tap"), "10.9.0.1/24")
            device = open_tap("srv", name="", mac=None, mtu=1500)
            port = Port("lan:second", bytes(6), PortSettings(spoofing=True, storm_limit=0))
            link = TapLink(device, port, host.trace)
            stack.callback(link.close)
            host.switches["lan"].connect(port)
            switches.ports["lan:second"] = port
            nursery.start_soon(link.run)
            server.take(device.name, "10.9.0.9/24")
            if control == "switch":
                host.update("switch/lan/controls/bandwidth", f"{mbit}Mbit")
            elif control == "cable":
                host.update("switch/lan/controls/cable/rate", f"{mbit}Mbit")
            else:
                switches.controls().shaping.change("lan:second", Bandwidth(limit=mbit * 1_000_000), None, "")
            command = [tool("ip"), "netns", "exec", server.name, sys.executable, "-m", "http.server", "8000"]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
            nursery.start_soon(partial(trio.run_process, command, check=False, **quiet))
            said = "0 0 0"
            with trio.fail_after(20):
                while said.endswith(" 0"):  # the server is not up yet
                    said = await outside.run(
                        *("curl", "-s", "-o", "/dev/null", "--max-time", "10", "http://10.9.0.9:8000/data"),
                        *("--write-out", "%{time_starttransfer} %{time_total} %{size_download}"),
                    )
            nursery.cancel_scope.cancel()
    begin, end, size = (float(word) for word in said.split())
    assert size == 1_000_000
    assert 0.5 < size * 8 / (end - begin) / (mbit * 1_000_000 * PAYLOAD) < 1.1, said
