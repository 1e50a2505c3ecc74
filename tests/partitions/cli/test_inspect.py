"""`partita inspect`, from the command line to a host that runs in the same process, and back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import partitions
from partitions.cli.common import FAILED, OK, USAGE
from partitions.cli.main import main
from partitions.host import Host
from partitions.root.control_socket import open_control_socket
from partitions.topology_schema import DiskTable, HostTable, Size, Topology, VmTable


@asynccontextmanager
async def asked(folder: Path) -> AsyncIterator[tuple[Host, str]]:
    """A host whose VM idles, with its socket's path."""
    vm = VmTable(name="web", program="idle", disk=[DiskTable(path="d.img", size=Size(1 << 20))])
    async with partitions.open_host(Topology(host=HostTable(), vm=[vm], folder=folder)) as host:
        await host.start_all()
        async with open_control_socket(host, folder / "host.sock") as control:
            yield host, str(control.path)


async def run(*arguments: str) -> int:
    """The command, on a Trio of its own in a thread, as it would be in another process."""
    return await trio.to_thread.run_sync(main, ["inspect", *arguments])


async def test_what_is_at_a_path(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One level, or as many as asked for; lines for people and JSON say the same."""
    async with asked(tmp_path) as (_, path):
        assert await run("--host", path, "-o", "tree") == OK
        assert capfd.readouterr().out == "host/\nhypervisor/\nvm/\ntrace/\n"
        assert await run("--host", path, "-o", "tree", "vm/web/settings/disk", "-r") == OK
        assert capfd.readouterr().out.startswith("0/\n  path: d.img\n  type: disk\n")
        assert await run("--host", path, "vm/web", "-l", "2") == OK
        shown = json.loads(capfd.readouterr().out)
        assert (shown["state"], shown["settings"]["disk"]) == ("running", "/")
        assert await run("--host", path, "-o", "json", "vm/web/state") == OK
        assert capfd.readouterr().out == '"running"\n'
        assert await run("--host", path, "-r") == OK
        assert json.loads(capfd.readouterr().out)["vm"]["web"]["worker"]["resets"] == 0


async def test_setting_a_value(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The new value is printed; what cannot be is refused in words."""
    depth = "vm/web/devices/storage/disks/0/queue_depth"
    async with asked(tmp_path) as (host, path):
        assert await run("--host", path, "-u", "9", depth) == OK
        assert capfd.readouterr().out == "9\n"
        assert await host.inspect(depth) == 9
        assert await run("--host", path, "-u", "none", depth) == USAGE
        assert "a queue depth is a number from 1 to 1024, not 'none'" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vm/wbe"], 'there is no "wbe" in vm; did you mean "web"?'),
        (["-u", "1"], "-u needs the PATH"),
        (["-u", "1", "vm", "-r"], "does not go with -r and -l"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Exit status 2, and what would be right."""
    async with asked(tmp_path) as (_, path):
        assert await run("--host", path, *arguments) == USAGE
        assert words in capfd.readouterr().err


@pytest.mark.parametrize("levels", ["0", "-1", "many"])
def test_a_number_of_levels(levels: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At least one."""
    assert main(["inspect", "-l", levels]) == USAGE
    assert "must be a number of levels" in capsys.readouterr().err or levels == "-1"


async def test_an_answer_that_was_cut_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A host that ends in the middle: what came is shown, and the exit status is not 0."""

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(1000)
        await stream.send_all(b'{"ok":true,"id":null,"result":null}\n{"vm":{')
        await stream.aclose()

    raw = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await raw.bind(str(tmp_path / "s"))
    raw.listen(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [trio.SocketListener(raw)])
        assert await run("--host", str(tmp_path / "s")) == FAILED
        nursery.cancel_scope.cancel()
    said = capfd.readouterr()
    assert said.out == '{"vm":{'
    assert "ended in the middle" in said.err
