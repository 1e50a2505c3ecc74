"""Every example runs and says what it is expected to say: on the real clock and on the virtual one, again and again."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import partitions.host
from partitions.examples import examples
from partitions.host import ExitReason, Host
from partitions.topology import TopologyError, add_disk, load_topology

EXPECTED = Path(__file__).parent / "expected"
NEED_A_KERNEL = ["20-linux"]
"""Not run here: their kernels are fetched by a script. tests/linux_guest boots the same."""
SERVES = "11-http-over-socket"
"""Has no end of its own, and clients on the real clock: a test below is one."""
NAMES = [example.name for example in examples() if example.name not in (*NEED_A_KERNEL, SERVES)]
MEASURE = [name for name in NAMES if name.startswith("3")]
"""Their guests tell what they got and how long it took: exact on the virtual clock only, and they take their time."""
PROGRAM_LINES = 80


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the example, since some of them make images beside their topology."""
    name = request.param
    source = next(example.folder for example in examples() if example.name == name)
    copied = tmp_path / name
    shutil.copytree(source, copied, ignore=shutil.ignore_patterns("*.img", "*.sock", "*.vsock", "__pycache__"))
    return copied


every_example = pytest.mark.parametrize("folder", NAMES, indirect=True)
timeless_examples = pytest.mark.parametrize("folder", [name for name in NAMES if name not in MEASURE], indirect=True)


async def run_to_the_end(host: Host) -> None:
    with trio.fail_after(30):
        await host.start_all()
        await host.wait_all()
    for vm in host.values():
        assert vm.exit is not None
        vm.exit.raise_worker_failure()


def compare(host: Host, folder: Path) -> None:
    """Each VM's end and console, against the file of its name."""
    expected = {path.stem: path.read_text() for path in (EXPECTED / folder.name).glob("*.txt")}
    said = {name: plain(f"{vm.exit}\n\n{vm.console.text}".replace(str(folder), "FOLDER")) for name, vm in host.items()}
    assert said == expected


def plain(text: str) -> str:
    """Without the marks below a traceback's lines, which each Python draws differently."""
    return "".join(line for line in text.splitlines(keepends=True) if line.strip(" ~^\n") or not line.strip())


def test_every_example_has_an_expectation() -> None:
    """A new example without an expected output would pass by saying nothing."""
    assert sorted(path.name for path in EXPECTED.iterdir()) == sorted(NAMES)
    assert NAMES


@timeless_examples
async def test_an_example_says_what_it_should(folder: Path) -> None:
    """On the real clock, with threads for the disk's writes; the second run finds the images of the first."""
    for _ in range(2):
        async with partitions.host.open_host(folder) as host:
            await run_to_the_end(host)
        compare(host, folder)


@every_example
async def test_an_example_says_the_same_on_the_virtual_clock(folder: Path, autojump_clock: MockClock) -> None:
    """Time that jumps changes nothing in what guests see of one another."""
    async with partitions.host.open_host(folder, clock="virtual") as host:
        await run_to_the_end(host)
    compare(host, folder)


@every_example
def test_an_example_is_short_and_explained(folder: Path) -> None:
    """At most 80 lines a program, and a README that says what to watch."""
    for program in folder.glob("*.py"):
        assert len(program.read_text().splitlines()) <= PROGRAM_LINES
    assert "What to watch" in (folder / "README.md").read_text()


@pytest.mark.parametrize("folder", NEED_A_KERNEL, indirect=True)
def test_a_kernel_that_was_not_fetched_is_all_that_is_wrong(folder: Path) -> None:
    """The topology is right but for the files that its script makes, and the script is named."""
    for file in ("vmlinuz", "initrd.img"):
        (folder / file).unlink(missing_ok=True)
    with pytest.raises(TopologyError) as caught:
        load_topology(folder)
    assert [problem.path for problem in caught.value.problems] == ['vm[0] "linux".kernel', 'vm[0] "linux".initrd']
    assert all(
        f"get it with: {os.path.relpath(folder / 'get-kernel')}" in problem.reason for problem in caught.value.problems
    )
    for file in ("vmlinuz", "initrd.img"):
        (folder / file).write_bytes(b"")
    assert [vm.name for vm in load_topology(folder).vm] == ["linux", "neighbour"]
    assert "What to watch" in (folder / "README.md").read_text()


@pytest.mark.parametrize("folder", ["03-disk"], indirect=True)
async def test_any_file_can_be_a_disk(folder: Path, tmp_path: Path) -> None:
    """`--disk VM=PATH`: the guest reads the very bytes of the file, and the file stays as it is."""
    file = tmp_path / "any.bin"
    file.write_bytes(hashlib.sha256(b"any").digest() * 48 * 100)
    before = file.read_bytes()
    topology = load_topology(folder)
    for vm in ("reader", "writer"):
        topology = add_disk(topology, vm, str(file), read_only=True)
    async with partitions.host.open_host(topology) as host:
        await run_to_the_end(host)
    line = f"disk {{}}: {len(before)} bytes, sha256 {hashlib.sha256(before).hexdigest()}"
    assert line.format(2) in host["reader"].console.lines()
    assert line.format(1) in host["writer"].console.lines()
    assert file.read_bytes() == before


@pytest.mark.parametrize("folder", ["04-hotplug"], indirect=True)
def test_the_hotplug_script_shows_a_disk_come_and_go(folder: Path) -> None:
    """What its README promises: the host reads in the closed file what the guest has written."""
    done = subprocess.run([sys.executable, "plug.py"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert [line for line in said if "thermometer" not in line][:5] == [
        "desk | devices at the start: 0",
        "desk | came: storage, on channel 1",
        "desk | disk: 64 KiB, and our mark is on it",
        "host | plugged in: spare",
        "host | the guest was here",
    ]
    assert "desk | went: storage" in said[5:]  # a thermometer may have come meanwhile
    assert said[-1] == "powered off"


@pytest.mark.parametrize("folder", ["10-ping"], indirect=True)
async def test_a_cable_is_pulled(folder: Path, autojump_clock: MockClock) -> None:
    """What the README promises of steady.toml: no answer without a cable, answers with it, and ports to look at."""
    async with partitions.host.open_host(folder / "steady.toml") as host:
        await host.start_all()
        await trio.sleep(3)
        vm = host["caller"]
        await vm.connect_nic(0, None)
        await trio.sleep(3)
        assert vm.console.lines()[-1] == "10.0.0.2 has not answered within 0.5 s"
        await vm.connect_nic(0, "lan")
        await trio.sleep(3)
        assert vm.console.lines()[-1].endswith(" ms")
        assert sorted(host.switches["lan"].ports) == ["caller/0", "echo/0"]


@pytest.mark.parametrize("folder", ["13-integration"], indirect=True)
def test_the_host_asks_each_component(folder: Path) -> None:
    """What its README promises: lost and found, both ways, copied, frozen and thawed, set again, gone with a reason."""
    done = subprocess.run([sys.executable, "ask.py"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "kvp: at your service | Partita guest kernel",
        "heartbeat: lost contact",
        "heartbeat: ok (applications healthy)",
        "file-copy: True",
        "vss: frozen - now its disks can be copied",
        "vss: thawed",
        "time-sync: set 2 times, wrong by 0 now",
        "shutdown: powered off",
        "time-sync: the host has told me the date: True",
        "kvp: the host calls me steward",
        f"file-copy: /srv/README.md has come, {(folder / 'README.md').stat().st_size} bytes",
        "vss: written out; I hold still",
        "vss: I go on",
        "shutdown: power off, because: the example is over",
    ]


@pytest.mark.parametrize("folder", ["05-crash"], indirect=True)
async def test_a_crash_is_reported_with_its_line(folder: Path, autojump_clock: MockClock) -> None:
    """The crash registers carry the message and the line; the sibling worked on after it."""
    async with partitions.host.open_host(folder) as host:
        await run_to_the_end(host)
    end = host["fragile"].exit
    assert end is not None
    assert end.crash is not None
    assert end.reason is ExitReason.CRASHED
    assert end.crash.text.startswith("ZeroDivisionError: division by zero\nTraceback")
    source = (folder / "fragile.py").read_text().splitlines()
    assert source[end.crash.parameters[2] - 1].strip() == "return cake / guests"
    steady = host["steady"].exit
    assert steady is not None
    assert steady.ok
    assert steady.ended_at > end.ended_at


@pytest.mark.parametrize("folder", ["01-message"], indirect=True)
async def test_the_way_of_a_message_is_in_the_trace(folder: Path, autojump_clock: MockClock) -> None:
    """Nonsense on the bus costs its sender nothing and is counted; version negotiation is there to be watched."""
    seen: list[str] = []
    async with partitions.host.open_host(folder, sinks=[lambda event: seen.append(event.event)]) as host:
        await run_to_the_end(host)
    order = [event for event in seen if event in ("initiate_contact", "version_response", "request_offers", "unload")]
    assert order[0] == "initiate_contact"
    assert order.count("unload") == 2
    assert sum(host.trace.warnings.values()) >= 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed (Debian: apt-get install curl)")
@pytest.mark.parametrize("folder", [SERVES], indirect=True)
async def test_the_web_server_of_a_guest(folder: Path) -> None:
    """curl fetches two pages from the partition over one connection."""
    with trio.fail_after(30):
        async with partitions.host.open_host(load_topology(folder)) as host:
            await host.start_all()
            urls = ["http://web/first", "http://web/second"]
            call = ["curl", "--silent", "--retry", "5", "--unix-socket", str(folder / "http.sock"), *urls]
            done = await trio.run_process(call, capture_stdout=True)
            pages = [line.partition("you asked for ")[2] for line in done.stdout.decode().splitlines()]
            assert pages == ["/first", "/second"]
            assert "web: /second" in host["web"].console.text
