"""Network adapters and captures of a running host, asked for from outside."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from partitions.cli.main import main
from partitions.host import Host, open_host
from partitions.remote import Remote, connect
from partitions.root.control_socket import ControlSocket, open_control_socket
from partitions.topology import parse_topology
from tests.doubles.tshark import needs_tshark, run_tshark
from tests.partitions.control.test_socket import denied

TOPOLOGY = """
[[vm]]
name = "web"
program = "guest.py"
[[vm.nic]]
switch = "lan"
[[vm]]
name = "db"
program = "guest.py"
[[vm.nic]]
switch = "lan"
[[switch]]
name = "lan"
[[switch]]
name = "wan"
"""
GUEST = """
async def main(guest):
    ip = await guest.ip("10.0.0.%d/24" % (1 if guest.name == "web" else 2))
    if guest.name == "web":
        print(await ip.ping("10.0.0.2", timeout=5) < 5)
    await guest.sleep(1000)
"""


@asynccontextmanager
async def asked(folder: Path) -> AsyncIterator[tuple[Host, ControlSocket, Remote]]:
    """A host with two switches, and a connection to it."""
    (folder / "guest.py").write_text(GUEST)
    async with (
        open_host(parse_topology(TOPOLOGY, folder)) as host,
        open_control_socket(host, folder / "it.sock", topology="farm") as control,
        connect(control.path) as remote,
    ):
        yield host, control, remote


async def test_adapters_come_go_and_are_plugged(tmp_path: Path) -> None:
    """What Python's methods do, with the adapter for an answer, and their words for a no."""
    async with asked(tmp_path) as (host, _, remote):
        row = await remote.ask("add-nic", vm="web", switch="wan", vlan=7, name="back", acl=[{"action": "deny"}])
        assert (row["number"], row["port"], row["switch"], row["vlan"], row["name"]) == (1, "web/1", "wan", 7, "back")
        assert host["web"].settings.nic[1].acl[0].remote == "any"
        assert (await remote.ask("connect-nic", vm="web", number=1, switch="lan"))["switch"] == "lan"
        assert (await remote.ask("connect-nic", vm="web", number=1))["link"] == "down"
        assert [nic["number"] for nic in await remote.ask("remove-nic", vm="web", number=0)] == [1]
        kind, words = await denied(remote, "add-nic", vm="web", switch="lam")
        assert (kind, words) == ("refused", 'switch: no switch is called "lam"; did you mean "lan"?')
        assert (await denied(remote, "remove-nic", vm="web", number=0))[0] == "refused"


@needs_tshark
async def test_frames_from_now_on(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The stream is what a file would be, to the end of the host; a port that is none, or taken, is refused."""
    got = bytearray()

    async def record(where: Path, *, task_status: trio.TaskStatus[None]) -> None:
        async with connect(where) as other, other.stream("capture", ports=["web/0", "db/0"]) as stream:
            task_status.started()
            while data := await stream.receive():
                got.extend(data)

    async with trio.open_nursery() as nursery, asked(tmp_path) as (host, control, remote):
        kind, words = await denied(remote, "capture", ports=["web/8"])
        assert (kind, words) == ("unknown_path", 'no port is called "web/8"; did you mean "web/0"?')
        await nursery.start(record, control.path)
        assert (await denied(remote, "capture", ports=["db/0"]))[1] == "db/0 is captured already"
        await remote.ask("start", vm="db")
        await remote.ask("start", vm="web")
        await trio.sleep(3)
        assert host["web"].console.text.strip() == "True"
    (tmp_path / "got.pcapng").write_bytes(got)
    rows = run_tshark(tmp_path / "got.pcapng", "-Y", "icmp", "-T", "fields", "-e", "frame.interface_name").split()
    assert sorted(rows) == ["db/0"] * 2 + ["web/0"] * 2


async def test_a_reader_that_goes_leaves_the_port(tmp_path: Path) -> None:
    """Somebody else can have it then."""
    async with asked(tmp_path) as (host, control, _):
        for _ in range(2):
            async with connect(control.path) as other, other.stream("capture", ports=["web/0"]) as stream:
                assert (await stream.receive())[:4] == b"\x0a\x0d\x0d\x0a"
            with trio.fail_after(5):
                while host.network.switches().is_watched("web/0"):  # noqa: ASYNC110  # no event says so
                    await trio.sleep(0.01)


async def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table with the adapter; a capture to a file; the Tab key knows switches and ports."""
    async with asked(tmp_path) as (host, control, _):
        await host["db"].start()

        async def verb(*words: str) -> str:
            status = await trio.to_thread.run_sync(main, words)
            captured = capsys.readouterr()
            assert status == 0, captured.err
            return captured.out

        at = ("--host", str(control.path))
        said = await verb("add-nic", *at, "web", "wan", "--name", "back", "--spoofing", "-o", "table")
        assert re.search(r"1 +web/1 +back +wan +00-15-5D-.*up", said), said
        assert host["web"].settings.nic[1].spoofing
        macs = [nic.mac for nic in host["web"].nics.values()]
        assert " ".join(macs) in await verb("ps", *at, "-o", "table")
        assert "down" in await verb("connect-nic", *at, "web", "1")
        assert "web/1" not in await verb("remove-nic", *at, "web", "1")
        await verb("capture", *at, "db/0", "-w", str(tmp_path / "x.pcapng"), "--for", "0.2")
        assert (tmp_path / "x.pcapng").read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
        assert (await verb("__complete", "connect-nic", *at, "web", "0", "")).split() == ["lan", "wan"]
        assert (await verb("__complete", "capture", *at, "")).split() == ["db/0"]
