"""`partita trace --host`: what happens in a running host, in all the forms that a recording has."""

from __future__ import annotations

import json
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import partitions
from partitions.cli import trace_sources
from partitions.cli.common import OK, USAGE
from partitions.cli.main import main
from partitions.root.control_socket import open_control_socket

READER = """\
    async def main(guest):
        disk = await guest.disk(0)
        while True:
            await disk.read(0)
            await guest.sleep(0.01)
"""
TOPOLOGY = """\
    [[vm]]
    name = "web"
    program = "web.py"
    memory = "4MiB"

    [[vm.disk]]
    path = "web.img"
    size = "1MiB"
"""


@asynccontextmanager
async def reading(folder: Path) -> AsyncIterator[str]:
    """A host whose guest reads a block a hundred times a second, by its socket's path."""
    (folder / "web.py").write_text(textwrap.dedent(READER))
    (folder / "topology.toml").write_text(textwrap.dedent(TOPOLOGY))
    async with partitions.open_host(folder) as host:
        await host.start_all()
        async with open_control_socket(host, folder / "host.sock") as control:
            yield str(control.path)


async def run(*arguments: str) -> int:
    """The command, on a Trio of its own in a thread, as it would be in another process."""
    return await trio.to_thread.run_sync(main, ["trace", *arguments])


async def test_lines_until_there_are_enough(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Filtered where they are made, shown as they come; --limit ends it."""
    async with reading(tmp_path) as path:
        arguments = ("--host", path, "--filter", "event=scsi_command,text=READ(10)", "--limit", "3", "-o", "json")
        assert await run(*arguments) == OK
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(line["vm"], line["words"]) for line in lines] == [("web", "SCSI READ(10) lba=0 blocks=1")] * 3


async def test_stories_and_tables(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of what happens within --for; a filter of requests takes no hop away."""
    async with reading(tmp_path) as path:
        assert await run("--host", path, "--for", "0.3", "--story", "slowest:text=READ", "-o", "json") == OK
        story = json.loads(capfd.readouterr().out)
        assert await run("--host", path, "--for", "0.3", "--requests", "--filter", "layer=device", "-o", "json") == OK
        table = json.loads(capfd.readouterr().out)
        assert await run("--host", path, "--for", "0.1", "--story", "web") == OK
        life = capfd.readouterr().out
    assert len(story["steps"]) == 10
    assert {row["hops"] for row in table["requests"]} >= {10}
    assert "VMBus 6.0; it was agreed on before this trace begins" in life


@pytest.mark.parametrize(
    ("arguments", "told"), [(("--requests",), True), (("--requests", "--for", "1"), False), ((), False)]
)
def test_what_needs_an_end_says_so(
    arguments: tuple[str, ...], told: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of what is still to come shows nothing for as long as nobody ends it."""

    async def nothing_comes(*_: object) -> None:
        return

    monkeypatch.setattr(trace_sources, "read_host", nothing_comes)
    main(["trace", "--host", *arguments])
    assert ("--for SECONDS sets a time" in capsys.readouterr().err) == told


async def test_recorded_to_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """-w keeps what comes as it comes: a recording like any other."""
    file = str(tmp_path / "live.pcapng")
    async with reading(tmp_path) as path:
        assert await run("--host", path, "--for", "0.3", "-w", file) == OK
    assert capfd.readouterr().err.endswith("bytes recorded\n")
    assert await run(file, "--requests", "-o", "json") == OK
    assert json.loads(capfd.readouterr().out)["requests"]


async def test_refusals(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No such host, a VM that the host has not got, a file that cannot be."""
    async with reading(tmp_path) as path:
        assert await run("--host", path + "x") == USAGE
        assert "host.sockx" in capfd.readouterr().err
        assert await run("--host", path, "--filter", "vm=wbe") == USAGE
        assert 'unknown VM "wbe"; did you mean "web"?' in capfd.readouterr().err
        assert await run("--host", path, "-w", str(tmp_path / "no" / "file")) == USAGE
        assert "No such file or directory" in capfd.readouterr().err
