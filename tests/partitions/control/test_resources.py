"""Limits, shares and pools of a running host, asked for from outside: requests, verbs, completion and paths."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from partitions.cli.completing import candidates
from partitions.cli.main import main
from partitions.host import Host, open_host
from partitions.inspect import InspectError
from partitions.remote import Remote, connect
from partitions.root.control_socket import open_control_socket
from partitions.topology import parse_topology
from tests.partitions.control.test_socket import denied

TOPOLOGY = """
[[pool]]
name = "prod"
cpu = { reserve = 150, limit = 250 }
[[vm]]
name = "web"
program = "guest.py"
memory = "2MiB"
pool = "prod"
cpu = { reserve = 50 }
[[vm.disk]]
path = "d.img"
size = "1MiB"
[[vm.nic]]
"""
GUEST = "async def main(guest):\n    await guest.sleep(1000)\n"
Capture = pytest.CaptureFixture[str]


@asynccontextmanager
async def asked(folder: Path, text: str = TOPOLOGY) -> AsyncIterator[tuple[Host, Remote, str]]:
    (folder / "guest.py").write_text(GUEST)
    async with (
        open_host(parse_topology(text, folder)) as host,
        open_control_socket(host, folder / "it.sock", topology="farm") as control,
        connect(control.path) as remote,
    ):
        await host.start_all()
        yield host, remote, str(control.path)


async def test_requests(tmp_path: Path) -> None:
    """Each answers with the node as it is then; what is refused says where and why, and nothing has changed."""
    async with asked(tmp_path) as (host, remote, _):
        row = await remote.ask("set", node="web", values={"cpu.limit": 75, "cpu.weight": "300"})
        assert (row["node"], row["parent"], row["on"]) == ("vm/web", "pool/prod", True)
        assert (row["controls"]["cpu.limit"], row["controls"]["cpu.weight"]) == (75.0, 300)
        assert row["reserved"] == {"cpu": 50.0, "memory": 2 << 20, "disk": 0, "network": 0}
        before = host["web"].settings
        kind, words = await denied(remote, "set", node="web", values={"cpu.weight": 5, "cpu.limit": 40})
        assert (kind, words) == (
            "refused",
            "vm/web.cpu.reserve: must not be above its limit of 40 %, is 50 %: lower it, or raise the limit",
        )
        assert host["web"].settings is before
        assert (await denied(remote, "set", node="wbe", values={"cpu.weight": 5})) == (
            "unknown_path",
            'wbe: no VM is called "wbe"; did you mean "web"?',
        )
        row = await remote.ask("add-pool", pool="lab", values={"parent": "prod", "disk.limit": 500})
        assert (row["node"], row["parent"], row["controls"]["disk.limit"]) == ("pool/lab", "pool/prod", 500)
        row = await remote.ask("set", node="web/disk/0", values={"iops.limit": 200, "weight": 7})
        assert (row["node"], row["controls"]["disk.0.iops.limit"], row["controls"]["disk.0.iops.weight"]) == (
            "vm/web",
            200,
            7,
        )
        row = await remote.ask("set", node="pool/prod/vm/web/nic/0", values={"limit": "8Mbit"})
        assert row["controls"]["nic.0.bandwidth.limit"] == 8_000_000
        assert (await denied(remote, "set", node="vm/web/disk/3", values={"limit": 1}))[1] == (
            "vm/web.disk.3.limit: there is no disk 3; there are: 0"
        )
        kind, words = await denied(remote, "add-pool", pool="a b")
        assert kind == "refused"
        assert 'is "a b"' in words
        assert (await remote.ask("move-pool", pool="pool/lab", parent="host"))["parent"] == "host"
        host_row, prod, lab = await remote.ask("pools")
        assert (host_row["inside"], prod["inside"], lab["inside"]) == (["pool/prod", "pool/lab"], ["vm/web"], [])
        assert (host_row["free"]["disk"], prod["reserved"]["cpu"], prod["free"]["cpu"]) == (None, 50.0, 100.0)
        assert (await denied(remote, "remove-pool", pool="prod"))[1].startswith("pool/prod: still has vm/web in it")
        assert [row["node"] for row in await remote.ask("remove-pool", pool="lab")] == ["host", "pool/prod"]


async def test_a_host_without_control_gets_it(tmp_path: Path) -> None:
    """The first request makes it, whatever runs by then."""
    async with asked(tmp_path, '[[vm]]\nname = "web"\nprogram = "guest.py"\n') as (host, remote, _):
        assert host.resource_control.made is None
        assert (await remote.ask("set", node="web", values={"cpu.limit": 50}))["controls"]["cpu.limit"] == 50.0
        assert host.resources.node("cpu", "vm/web").limit == 32768


async def test_verbs(tmp_path: Path, capsys: Capture) -> None:
    """`partita set` and `partita pool`: rows for programs, a table for people, refusals with status 1 or 2."""

    async def run(*words: str, status: int = 0) -> tuple[Any, str]:
        assert await trio.to_thread.run_sync(main, [*words, "--host", where]) == status
        captured = capsys.readouterr()
        return (captured.out, captured.err)

    async with asked(tmp_path) as (_, _, where):
        (row,) = json.loads((await run("set", "web", "cpu.limit=60"))[0])
        assert row["controls"]["cpu.limit"] == 60.0
        table = (await run("set", "pool/prod", "cpu.limit=200", "expandable=false", "-o", "table"))[0].splitlines()
        assert [line.split() for line in table[:5]] == [
            ["KEY", "VALUE"],
            ["parent", "host"],
            ["expandable", "false"],
            ["processors"],
            ["cpu.reserve", "150"],
        ]
        await run("pool", "add", "lab", "parent=prod", "cpu.weight=400")
        lines = (await run("pool", "list", "-o", "table"))[0].splitlines()
        assert (await run("pool", "-o", "table"))[0].splitlines() == lines
        assert [line.split()[:2] for line in lines] == [
            ["POOL", "IN"],
            ["host", "150"],
            ["pool/prod", "host"],
            ["pool/lab", "pool/prod"],
        ]
        assert "50 % of 150 %" in lines[2]
        assert "cpu 400" in lines[3]
        assert "still has vm/web" in (await run("pool", "remove", "prod", status=2))[1]
        await run("pool", "move", "lab", "host")
        await run("pool", "remove", "lab")
        for words, status, said in [
            (("set", "web", "cpu.limit"), 2, '"cpu.limit" is no KEY=VALUE, such as cpu.limit=50'),
            (("set", "web", "cpu.limit=1", "cpu.limit=2"), 2, "cpu.limit is given twice"),
            (("set", "web", "cpu.reserve=70"), 1, "must not be above its limit of 60 %, is 70 %"),
            (("set", "pool/prod", "cpu.reserve=500"), 1, "must not be above its limit of 200 %"),
            (("pool", "add"), 2, "pool add needs the NAME of a pool"),
            (("pool", "list", "prod"), 2, "pool list takes no name"),
            (("pool", "move", "prod"), 2, "pool move needs the NAME of a pool and the one that it goes to, or host"),
            (("pool", "remove", "prod", "now"), 2, '"now" is a word too many'),
        ]:
            assert said in (await run(*words, status=status))[1]


async def test_completion(tmp_path: Path) -> None:
    """VMs and pools that are there, and keys with a word on each."""

    async def offered(*words: str) -> list[str]:
        verb, *rest = words
        return [
            name for name, _ in await trio.to_thread.run_sync(lambda: list(candidates([verb, "--host", where, *rest])))
        ]

    async with asked(tmp_path) as (_, _, where):
        assert await offered("set", "") == ["web", "pool/prod"]
        assert await offered("set", "web", "cpu.l") == ["cpu.limit="]
        assert await offered("set", "web", "m") == ["memory="]
        assert "expandable=" in await offered("set", "pool/prod", "")
        assert await offered("pool", "m") == ["move"]
        assert await offered("pool", "move", "") == ["prod"]
        assert await offered("pool", "move", "prod", "") == ["host"]
        assert await offered("pool", "add", "lab", "disk.w") == ["disk.weight="]
        assert await offered("pool", "add", "lab", "cpu.c") == []


async def test_the_tree(tmp_path: Path) -> None:
    """`inspect` shows what each has and is entitled to, and its leaves can be set."""
    async with asked(tmp_path) as (host, _, _):
        pool = await host.inspect("resources/pool/prod")
        assert pool["expandable"] is True
        assert pool["cpu"] == {
            "reserve": "150",
            "limit": "250",
            "weight": 100,
            "period_ms": 10,
            "reserved_in_it": "50 %",
            "free": "100 %",
            "at_most": "250 %",
            "entitled": "100 %",
            "contended": False,
        }
        assert (await host.inspect("resources/host/memory"))["free"] == "8190 MiB"
        assert host.update("resources/vm/web/cpu/limit", "80") == "80"
        assert host.resources.vms["web"].cpu is not None
        assert (await host.inspect("resources/vm/web/cpu"))["at_most"] == "80 %"
        with pytest.raises(InspectError, match=r"resources/vm/web/cpu/limit: must not be above its limit of 40 %"):
            host.update("resources/vm/web/cpu/limit", "40")
        assert host.update("resources/vm/web/disk/0.iops.limit", "70") == "70"
        assert host.resources.node("disk", "vm/web/disk/0").limit == 70
        assert host.update("resources/vm/web/pool", "host") == '""'
        assert (await host.inspect("resources/vm/web/path")) == "vm/web"
