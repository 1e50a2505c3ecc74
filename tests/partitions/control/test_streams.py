"""Looking into a host from outside: the tree, settings, and what crosses, as it comes."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hypervisor.trace import Layer, TraceEvent
from partitions.recording.event_codec import DROPPED
from partitions.recording.reader import RecordingReader
from partitions.remote import Remote, RequestDenied, connect
from partitions.root import control_requests
from tests.doubles.root import clean
from tests.partitions.control.test_socket import asked_host, denied


async def text_of(remote: Remote, **members: object) -> str:
    async with remote.stream("inspect", **members) as stream:
        data = b""
        while piece := await stream.receive():
            data += piece
    return data.decode()


async def test_the_tree_by_path(tmp_path: Path) -> None:
    """As JSON and as lines, so deep as asked; a path that is none gets the nearest, and the connection goes on."""
    async with asked_host(tmp_path) as (_, control, remote):
        assert await denied(remote, "inspect", path="vm/wep") == (
            "unknown_path",
            'there is no "wep" in vm; did you mean "web"?',
        )
        tree = json.loads(await text_of(remote, path="vm/web/settings", depth=1))
        assert (tree["name"], tree["processors"]) == ("web", 1)
        async with connect(control.path) as other:
            assert "state: off\n" in await text_of(other, path="vm/web", depth=1, form="tree")


async def test_a_tree_that_nobody_reads(tmp_path: Path) -> None:
    """A peer that goes in the middle of a tree leaves no task behind."""
    async with asked_host(tmp_path) as (_, control, remote):
        await remote.hello()
        stream = await trio.open_unix_socket(control.path)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await stream.send_all(b'{"op":"inspect"}\n')
        await wait_all_tasks_blocked()
        await stream.aclose()
        await wait_all_tasks_blocked()
        assert control.connections == 1


async def test_what_cannot_be_set_says_so(tmp_path: Path) -> None:
    """The tree's own words come through."""
    async with asked_host(tmp_path) as (_, _, remote):
        kind, words = await denied(remote, "update", path="host/seed", value="4")
        assert (kind, words) == ("unknown_path", '"host/seed" is a value that cannot be set')


async def recorded(where: Path, into: list[TraceEvent], which: str, *, task_status: trio.TaskStatus[None]) -> None:
    reader = RecordingReader()
    async with connect(where) as remote, remote.stream("trace", filter=which) as stream:
        task_status.started()
        while data := await stream.receive():
            into.extend(reader.feed(data))


@pytest.mark.parametrize("filter_", ["", "layer=state"])
async def test_a_recording_from_now_on(tmp_path: Path, filter_: str, autojump_clock: trio.abc.Clock) -> None:
    """The same events as a sink's of the host itself, to the last one; a filter leaves out the others.

    The host's end is the recording's, at once: it need not be cut off.
    """
    live: list[TraceEvent] = []
    got: list[TraceEvent] = []
    async with trio.open_nursery() as nursery, asked_host(tmp_path, clean, vms=("web",)) as (host, control, remote):
        await nursery.start(recorded, control.path, got, filter_)
        remove = host.trace.add_sink(live.append)
        await remote.ask("start", vm="web")
        await host["web"].wait()
        assert host.trace.on
        ended = trio.current_time()
        remove()  # what the host does when the socket is closed is nobody's to record
    assert trio.current_time() == ended
    wanted = [event for event in live if not filter_ or event.layer is Layer.STATE]
    assert [(event.event, event.words) for event in got if event.event != "recording_started"] == [
        (event.event, event.words) for event in wanted
    ]
    assert {event.vm for event in got if event.event == "vm_state"} == {"web"}


async def test_a_filter_that_is_none(tmp_path: Path) -> None:
    """Refused with the filter language's words, before anything is recorded."""
    async with asked_host(tmp_path) as (host, _, remote):
        with pytest.raises(RequestDenied, match=r"unknown VM .*did you mean"):
            await remote.ask("trace", filter="vm=wep")
        assert not host.trace.on


async def test_a_reader_of_a_recording_that_stalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    """The host goes on, keeps no more than the bound, and the recording says what is missing."""
    monkeypatch.setattr(control_requests, "TRACE_WAITING", 20_000)
    async with asked_host(tmp_path) as (host, control, _), connect(control.path) as other:
        await host["web"].start()
        async with other.stream("trace", filter="layer=state") as stream:
            for _ in range(3000):
                await host["web"].pause()
                await host["web"].resume()
            reader = RecordingReader()
            missing = seen = 0
            while seen + missing < 12_000:
                for event in reader.feed(await stream.receive()):
                    missing += event.fields["events"] if event.event == DROPPED else 0
                    seen += event.event == "vm_state"
                # Room again: this one event makes the recorder say what it had to leave out before it.
                if not missing and seen < 12_000:
                    await host["web"].pause()
                    await host["web"].resume()
            assert missing > 0


async def test_nobody_looks_nobody_pays(tmp_path: Path) -> None:
    """When the reader has gone the tap is off again."""
    async with asked_host(tmp_path) as (host, control, _):
        for said in (b'{"op":"trace"}\n', b'{"op":"trace","filter":"vm=web"}\n'):
            stream = await trio.open_unix_socket(control.path)
            await stream.send_all(said)
            await wait_all_tasks_blocked()
            assert host.trace.on
            await stream.aclose()
            await wait_all_tasks_blocked()
            assert not host.trace.on


async def test_a_mistake_of_ours_in_a_stream_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of ours in its middle would be taken for some of it; the host and others go on."""

    def fail(change: object, lost: int) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(control_requests, "_line_of", fail)
    async with asked_host(tmp_path) as (_, control, remote), connect(control.path) as other:
        async with other.stream("events") as stream:
            await remote.ask("start", vm="web")
            assert await stream.receive() == b""
        assert (await remote.ask("ps"))[0]["state"] == "running"
