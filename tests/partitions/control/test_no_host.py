"""What answers at a socket may be no host, or another version's: that is said, and is no traceback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from partitions import control_folder, remote
from partitions.cli.events import follow
from partitions.remote import HostGone, connect, running_hosts

BEGINS = b'{"id":null,"ok":true,"result":null}\n'


@asynccontextmanager
async def listening(path: Path, answer: bytes) -> AsyncIterator[Path]:
    """A socket at which this is the answer to everything."""
    path.parent.mkdir(mode=0o700, exist_ok=True)

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)

    with trio.socket.socket(trio.socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listener)])
            yield path
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\n",
        b"\x1b[31m\xff\n",
        b"[" * 100_000 + b"\n",
        b"3\n",
        b"{}\n",
        b'{"id":null,"ok":true,"result":[1]}\n',
        b'{"id":null,"ok":true,"result":{"name":7}}\n',
        b'{"id":null,"ok":false,"error":7}\n',
    ],
)
async def test_who_answers_is_no_host(tmp_path: Path, answer: bytes) -> None:
    """`--host` led to some other program's socket, as Docker's: its words ended the command with a traceback."""
    async with listening(tmp_path / "it.sock", answer) as path, connect(path) as host:
        with pytest.raises(HostGone, match=r"it\.sock: what answers there is no host"):
            await host.hello()


async def test_one_that_is_no_host_hides_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any socket in the folder was asked who it is, and one odd answer ended every verb."""
    monkeypatch.setattr(control_folder, "_SHARED", str(tmp_path))
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    folder = control_folder.make(environment)
    async with listening(folder / f"odd-1{control_folder.SUFFIX}", b"HTTP/1.1 400 Bad Request\n"):
        assert await running_hosts(environment) == []


async def test_a_stream_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a good answer may be anything too: lines that are no changes, a line without end."""
    monkeypatch.setattr(remote, "MAX_ANSWER", 1000)
    for rest, words in (b"\x1b[31m\xff\n", "no host"), (b"x" * 5000, "a line of more than 1000 bytes"):
        place = tmp_path / f"{len(rest)}.sock"
        async with listening(place, BEGINS + rest) as path, connect(path) as host:
            with pytest.raises(HostGone, match=words):
                await follow(host, None, "json")
