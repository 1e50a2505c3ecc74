"""The real tools of Linux reach a partition: by a TAP device from a network namespace, and through QEMU's network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from partitions.host import Host, open_host
from partitions.topology import parse_topology
from tests.doubles.real_network import device_exists, namespace, needs, tool
from tests.doubles.tshark import needs_tshark, run_tshark

GUEST = """
async def main(guest):
    await guest.ip(guest.args["address"])
    print("up")
    await guest.sleep(60)
"""
PINGS = """
async def main(guest):
    network = await guest.network()
    while not network.link_up:
        await guest.sleep(0.01)
    ip = await guest.ip("10.0.2.15/24")
    for _ in range(40):
        try:
            await ip.ping("10.0.2.2", timeout=0.25)
            return print("answered")
        except TimeoutError:
            pass
"""
EXTERNAL = """
[[vm]]
name = "web"
program = "guest.py"
args = { address = "10.9.0.2/24" }
[[vm.nic]]
switch = "lan"
mac = "00-15-5D-09-00-02"
[[switch]]
name = "lan"
"""


@asynccontextmanager
async def running(folder: Path, text: str, guest: str = GUEST) -> AsyncIterator[Host]:
    """A host whose guests are up."""
    (folder / "guest.py").write_text(guest)
    async with open_host(parse_topology(text, folder)) as host:
        await host.start_all()
        for vm in host.values():
            with trio.fail_after(10):
                async for line in vm.console.follow():
                    if line.text == "up":
                        break
        yield host


async def uplink(host: Host) -> str:
    """The name of the TAP device."""
    name: str = await host.inspect("switch/lan/uplink/tap")
    return name


@needs("ping", "arping", "nmap")
@needs_tshark
async def test_real_tools_reach_a_partition(tmp_path: Path) -> None:
    """ping, arping and nmap from a namespace; a capture at the VM's port is what they saw, and clean to tshark."""
    with namespace() as outside:
        async with running(tmp_path, EXTERNAL + 'kind = "external"\n') as host:
            device = await uplink(host)
            outside.take(device, "10.9.0.1/24")
            with host.capture(tmp_path / "web.pcapng", "web/0") as capture:
                said = {
                    "ping": await outside.run("ping", "-c", "3", "-i", "0.05", "-W", "5", "10.9.0.2"),
                    "large": await outside.run("ping", "-c", "1", "-s", "4000", "-W", "5", "10.9.0.2"),
                    "arping": await outside.run("arping", "-c", "1", "-w", "5", "-I", device, "10.9.0.2"),
                    "nmap": await outside.run("nmap", "-sn", "-n", "--max-retries", "5", "10.9.0.2"),
                }
            assert "3 received" in said["ping"], said["ping"]
            assert "1 received" in said["large"], said["large"]
            assert "00:15:5d:09:00:02" in said["arping"], said["arping"]
            assert "Host is up" in said["nmap"], said["nmap"]
            assert "00:15:5D:09:00:02 (Microsoft)" in said["nmap"], said["nmap"]
            assert not capture.dropped
        assert device not in outside.ip("link"), "the device goes with the host"
    lines = run_tshark(
        tmp_path / "web.pcapng",
        "-Y",
        "icmp",
        *("-T", "fields", "-e", "frame.interface_name", "-e", "frame.packet_flags_direction"),
    ).splitlines()
    directions = [line.split() for line in lines]
    assert {name for name, _ in directions} == {"web/0"}
    assert len([way for _, way in directions if way.endswith("1")]) >= 4
    assert len([way for _, way in directions if way.endswith("2")]) >= 4
    assert "Malformed" not in run_tshark(tmp_path / "web.pcapng", "-V")


@needs("ping")
async def test_the_host_itself_reaches_a_partition(tmp_path: Path) -> None:
    """An internal switch has an address of the host's; the address and the device are gone afterwards."""
    text = EXTERNAL.replace("10.9.0.2", "10.213.77.2") + 'kind = "internal"\naddress = "10.213.77.1/24"\n'
    async with running(tmp_path, text) as host:
        device = await uplink(host)
        done = await trio.run_process(
            ["ping", "-c", "2", "-i", "0.05", "-W", "5", "10.213.77.2"], capture_stdout=True, check=False
        )
        assert b"2 received" in done.stdout, done.stdout
        station = (await host.inspect("switch/lan/ports/lan:host/mac")).replace("-", ":").lower()
        shown = await trio.run_process([tool("ip"), "link", "show", device], capture_stdout=True)
        assert station in shown.stdout.decode()
    assert not device_exists(device)


SETPRIV = shutil.which("setpriv")


@needs("ping")
@pytest.mark.skipif(SETPRIV is None, reason="setpriv is not installed (Debian: apt-get install util-linux)")
def test_a_device_that_root_has_made_needs_no_root(tmp_path: Path) -> None:
    """Without CAP_NET_ADMIN a run takes the device that is there; and is told what to do where there is none."""
    assert SETPRIV is not None
    device = f"pu{os.getpid() % 100000}"
    (tmp_path / "guest.py").write_text(PINGS.replace("10.0.2.15/24", "10.215.3.2/24").replace("10.0.2.2", "10.215.3.1"))
    (tmp_path / "topology.toml").write_text(EXTERNAL + f'kind = "internal"\ntap = "{device}"\n')
    command = [SETPRIV, "--bounding-set=-net_admin", sys.executable, "-m", "partitions.cli.main", "run", str(tmp_path)]

    def run() -> tuple[str, str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout, done.stderr

    assert f"let root make it once: sudo ip tuntap add dev {device} mode tap user" in run()[1]
    subprocess.run([tool("ip"), "tuntap", "add", "dev", device, "mode", "tap", "user", str(os.getuid())], check=True)
    try:
        subprocess.run([tool("ip"), "addr", "add", "10.215.3.1/24", "dev", device], check=True)
        subprocess.run([tool("ip"), "link", "set", device, "up"], check=True)
        assert "web | answered" in run()[0]
    finally:
        subprocess.run([tool("ip"), "link", "del", device], check=True)


QEMU = shutil.which("qemu-system-x86_64")


GIVEN = """
async def main(guest):
    await (await guest.network()).wait_link()
    ip = await guest.ip("dhcp")
    print("given", ip.address, ip.lease.seconds > 60)
    while True:
        try:
            await ip.ping("10.0.2.2", timeout=1)
            print("answered")
            break
        except OSError as error:
            print(error)
"""


@pytest.mark.skipif(QEMU is None, reason="QEMU is not installed (Debian: apt-get install qemu-system-x86)")
@pytest.mark.parametrize("given", [False, True])
async def test_qemu_brings_a_guest_into_its_network(given: bool, tmp_path: Path) -> None:
    """`listen` speaks as `-netdev stream`: behind QEMU's user network a gateway answers, and nobody had to be root.

    Its DHCP server gives the guest an address.
    """
    assert QEMU is not None
    (tmp_path / "guest.py").write_text(GIVEN if given else PINGS)
    text = EXTERNAL + 'kind = "external"\nlisten = "lan.sock"\n'
    async with open_host(parse_topology(text, tmp_path)) as host, trio.open_nursery() as nursery:
        assert (await host.inspect("switch/lan/ports/lan:uplink/link")) == "down"
        peer = [
            *(QEMU, "-M", "none", "-nodefaults", "-display", "none"),
            *("-netdev", f"stream,id=s,server=off,addr.type=unix,addr.path={tmp_path / 'lan.sock'}"),
            *("-netdev", "user,id=u", "-netdev", "hubport,id=h1,hubid=0,netdev=s"),
            *("-netdev", "hubport,id=h2,hubid=0,netdev=u"),
        ]
        speak = partial(trio.run_process, peer, stderr=subprocess.DEVNULL, check=False)
        process = await nursery.start(speak)
        vm = host["web"]
        await vm.start()
        with trio.fail_after(20):
            await vm.wait()
        assert re.search("answered", vm.console.text), vm.console.text
        assert not given or vm.console.lines()[0] == "given 10.0.2.15/24 True"
        process.terminate()
    assert not (tmp_path / "lan.sock").exists()
