"""Linux's hv_netvsc on a switch with the machine's own kernel, by TAP, and a model guest. Root side."""

from __future__ import annotations

import hashlib
import http.server
import os
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from partitions.host import Host, Vm
from partitions.topology_schema import NicTable, Size, SwitchTable, VmTable
from tests.linux_guest import guest
from vsp_vsc.network.switch.kinds import SwitchKind

MODULES = ("hv_vmbus", "hv_netvsc")
HOST, LINUX, MODEL = "10.213.77.1", "10.213.77.2", "10.213.77.3"
PORT = 8077
MEBIBYTES = 3
PROGRAM = f'''
async def main(guest):
    ip = await guest.ip("{MODEL}/24")
    while True:
        try:
            await ip.ping("{LINUX}")
        except OSError:
            await guest.sleep(0.2)
            continue
        print("linux answered")
        await guest.sleep(1)
'''
LACK = (
    "making a TAP device needs root"
    if os.geteuid() != 0
    else "there is no /dev/net/tun"
    if not Path("/dev/net/tun").exists()
    else "ping is not installed (Debian: iputils-ping)"
    if shutil.which("ping") is None
    else ""
)
pytestmark = pytest.mark.skipif(bool(LACK), reason=LACK)

UP = f"all; await 20 test -d /sys/class/net/eth0; ip addr add {LINUX}/24 dev eth0; ip link set eth0 up"
INTERFACE = "cd /sys/class/net/eth0; cat address carrier mtu operstate; ls queues"
FETCH = f"wget -q -O - http://{HOST}:{PORT}/blob | md5sum"
SERVE = f"""
mkdir /www; dd if=/dev/urandom of=/www/blob bs=65536 count={MEBIBYTES * 16} 2>/dev/null; md5sum </www/blob
httpd -p 80 -h /www; await 60 wget -q -O /dev/null http://{HOST}:{PORT}/done
"""
SMALLER = f"ip link set eth0 mtu 1400 && ping -c 2 -s 1372 -W 10 {HOST} && cat /sys/class/net/eth0/mtu"
CABLE = """
await 30 grep -qx 0 /sys/class/net/eth0/carrier && echo out
await 30 grep -qx 1 /sys/class/net/eth0/carrier && echo in
"""
GONE = f"ping {HOST} >/dev/null 2>&1 & await 30 test ! -e /sys/class/net/eth0 && echo gone"
BACK = f"await 30 test -e /sys/class/net/eth0; ip addr add {LINUX}/24 dev eth0; ip link set eth0 up"
STEPS = {
    "up": UP,
    "interface": INTERFACE,
    "channels": "ls -d /sys/class/net/eth0/device/channels/* | wc -l",
    "ping": f"await 10 ping -c 1 {HOST}; ping -c 3 -W 10 {HOST}",
    "sizes": f"ping -c 2 -s 1472 -W 10 {HOST} && ping -c 2 -s 8000 -W 10 {HOST}",
    "model": f"ping -c 2 -W 10 {MODEL}",
    "fetch": FETCH,
    "serve": SERVE,
    "smaller": SMALLER,
    "counters": "cat /sys/class/net/eth0/statistics/[rt]x_errors",
    "cable": CABLE,
    "gone": GONE,
    "back": f"{BACK}; await 10 ping -c 1 {HOST}",
    "complaints": "dmesg | grep -E 'hv_|vmbus|eth0' | grep -iE 'error|fail|warn|timed out|invalid|short' || true",
}


class Server(http.server.BaseHTTPRequestHandler):
    """The host's pages: a file, and whether it has fetched the guest's."""

    blob = os.urandom(MEBIBYTES << 20)
    done = False

    def do_GET(self) -> None:
        there = self.path == "/blob" or (self.path == "/done" and type(self).done)
        self.send_response(200 if there else 404)
        self.end_headers()
        if there:
            self.wfile.write(self.blob if self.path == "/blob" else b"done")

    def log_message(self, *words: object) -> None:
        """Say nothing."""


class Seen:
    """What the host did and heard while the guest ran."""

    def __init__(self) -> None:
        self.ping = ""
        self.fetched = ""

    async def ping_guest(self, host: Host, vm: Vm) -> None:
        """The machine's own ping."""
        words = ["ping", "-c", "3", "-W", "10", LINUX]
        done = await trio.run_process(words, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        self.ping = done.stdout.decode()

    async def fetch(self, host: Host, vm: Vm) -> None:
        """Once the guest serves it."""
        self.fetched = await trio.to_thread.run_sync(self._fetch)
        Server.done = True

    def _fetch(self) -> str:
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"http://{LINUX}/blob", timeout=60) as answer:
                    return hashlib.md5(answer.read()).hexdigest()
            except urllib.error.URLError:
                threading.Event().wait(0.2)
        return "never answered"

    async def pull(self, host: Host, vm: Vm) -> None:
        """The cable, out and in again."""
        await vm.connect_nic(0, None)
        await trio.sleep(5)
        await vm.connect_nic(0, "lan")

    async def remove(self, host: Host, vm: Vm) -> None:
        await trio.sleep(1)
        await vm.remove_nic(0)

    async def add(self, host: Host, vm: Vm) -> None:
        await vm.add_nic("lan")


@pytest.fixture(scope="module")
def seen() -> Seen:
    return Seen()


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory, seen: Seen) -> guest.Evidence:
    folder = tmp_path_factory.mktemp("network")
    (folder / "model.py").write_text(PROGRAM)
    plan = guest.Plan(
        steps=STEPS,
        modules=MODULES,
        processors=2,
        switches=[SwitchTable(name="lan", kind=SwitchKind.INTERNAL, address=f"{HOST}/24")],
        nics=[NicTable(switch="lan")],
        others=[VmTable(name="model", program="model.py", memory=Size(16 << 20), nic=[NicTable(switch="lan")])],
    )
    during = {
        "sizes": seen.ping_guest,
        "serve": seen.fetch,
        "cable": seen.pull,
        "gone": seen.remove,
        "back": seen.add,
    }
    server = None

    async def listen(host: Host, vm: Vm) -> None:
        nonlocal server
        server = http.server.ThreadingHTTPServer((HOST, PORT), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()

    try:
        return guest.boot(plan, folder, {**during, "up": listen})
    finally:
        if server is not None:
            server.shutdown()
            server.server_close()


def answered(words: str, count: int) -> bool:
    """Whether a ping of busybox's or iputils' lost nothing."""
    return f"{count} packets transmitted, {count} " in words and " 0% packet loss" in words


def test_the_interface(linux: guest.Evidence, evidence: Callable[[str, str], None]) -> None:
    """hv_netvsc has made eth0 with an address of Hyper-V's range, a link, and a queue for each processor."""
    address, carrier, mtu, state, *queues = linux["interface"].split()
    assert address.startswith("00:15:5d:")
    assert (carrier, mtu, state) == ("1", "1500", "up")
    assert {"rx-0", "rx-1"} <= set(queues)
    assert linux["channels"] == "2"
    evidence("hv_netvsc", linux["interface"])


def test_ping_both_ways(linux: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """The guest reaches the machine's kernel through TAP, in one frame and in fragments, and is reached by its ping."""
    assert answered(linux["ping"], 3)
    assert linux["sizes"].count(" 0% packet loss") == 2
    assert answered(seen.ping, 3)
    evidence("hv_netvsc", f"{linux['ping']}\n{seen.ping}")


def test_a_model_guest_and_a_kernel(linux: guest.Evidence) -> None:
    """A program of ours on the same switch answers the kernel's pings."""
    assert answered(linux["model"], 2)


def test_download_both_ways(linux: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """What is fetched by HTTP has its server's checksum, in either direction."""
    there, back = linux["fetch"].split()[0], linux["serve"].split()[0]
    assert there == hashlib.md5(Server.blob).hexdigest()
    assert back == seen.fetched
    evidence("hv_netvsc", f"{MEBIBYTES} MiB fetched each way, checksums {there} and {back}")


def test_changes_while_it_runs(linux: guest.Evidence) -> None:
    """A smaller MTU, which closes and opens the channel; the cable out and in; the adapter away and back."""
    assert linux["smaller"].splitlines()[-1] == "1400"
    assert linux["cable"].split() == ["out", "in"]
    assert linux["gone"] == "gone"
    assert " 0% packet loss" in linux["back"]


def test_nobody_complains(linux: guest.Evidence) -> None:
    """No error is counted or printed in the guest; none of its messages was wrong to the host."""
    assert linux["counters"].split() == ["0", "0"]
    assert linux["complaints"] == ""
    assert linux.statistics.faults == 0
