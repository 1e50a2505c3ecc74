"""A host's control socket: what is asked is done, by whom is told, and no peer can disturb the host."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from hypervisor.machine import Machine
from hypervisor.trace import Layer, TraceEvent
from partitions import control_protocol, ports
from partitions.host import Host, VmState
from partitions.remote import HostGone, Remote, RequestDenied, connect
from partitions.root import control_requests, control_socket
from partitions.root.control_socket import ControlSocket, open_control_socket
from tests.doubles.root import bare_host, clean, held, idle, power_off, say, vm_table

Guest = Callable[[Machine], Awaitable[None]]


@asynccontextmanager
async def asked_host(
    path: Path, guest: Guest = idle, *, vms: tuple[str, ...] = ("web", "db")
) -> AsyncIterator[tuple[Host, ControlSocket, Remote]]:
    async with (
        bare_host(guest, *map(vm_table, vms), folder=path) as host,
        open_control_socket(host, path / "it.sock", topology="farm") as control,
        connect(control.path) as remote,
    ):
        yield host, control, remote


async def denied(remote: Remote, op: str, **members: Any) -> tuple[str, str]:
    with pytest.raises(RequestDenied) as caught:
        await remote.ask(op, **members)
    return caught.value.kind, str(caught.value)


async def test_the_life_of_a_vm(tmp_path: Path) -> None:
    """Each verb does what the Python API does, and answers with how the VM is then."""
    async with asked_host(tmp_path) as (host, control, remote):
        greeting = await remote.hello()
        assert (greeting.name, greeting.pid, greeting.vms) == ("farm", os.getpid(), ["web", "db"])
        assert [row["state"] for row in await remote.ask("ps")] == ["off", "off"]
        for op, state in (
            *(("start", "running"), ("pause", "paused"), ("resume", "running"), ("reset", "running")),
            ("stop", "off"),
        ):
            row = await remote.ask(op, vm="web", **({"force": True} if op == "stop" else {}))
            assert (op, row["state"], host["web"].state.value) == (op, state, state)
        assert (row["exit"], row["by"]) == ("turned off", f"control socket, uid {os.getuid()} pid {os.getpid()}")
        (counters,) = await remote.ask("stats", vm="web")
        assert counters["port_accesses"] > 0
        await remote.ask("start", vm="db")
        assert [row["state"] for row in await remote.ask("down", force=True)] == ["off", "off"]
        assert control.down.is_set()
    assert not control.path.exists()


async def test_disks_come_and_go(tmp_path: Path) -> None:
    """The arguments are those of `[[vm.disk]]`, and the answers are the disks as they are."""
    async with asked_host(tmp_path) as (host, _, remote):
        disk = await remote.ask("add-disk", vm="web", path="a.img", size="1MiB")
        assert (disk["lun"], disk["size"], disk["read_only"]) == (0, 1 << 20, False)
        assert list(host["web"].disks) == [0]
        wrong = {"limit": 5, "reserve": 6}
        kind, words = await denied(remote, "add-disk", vm="web", path="b.img", size="1MiB", iops=wrong)
        assert (kind, "must not be above its limit of 5 IOPS" in words) == ("refused", True)
        kind, words = await denied(remote, "add-disk", vm="web", path="b.img", lun=0)
        assert (kind, words) == ("refused", "LUN 0 is taken; leave it out, and a free one is used")
        assert (await denied(remote, "add-disk", vm="web", path="b.img", size="1 furlong"))[0] == "refused"
        assert await remote.ask("remove-disk", vm="web", lun=0) == []
        assert (await denied(remote, "remove-disk", vm="web", lun=0))[0] == "refused"


async def test_who_stopped_whom(tmp_path: Path) -> None:
    """Trace events say who asked: of a request, what it changes, and the end; not of what a guest does by itself."""
    events: list[TraceEvent] = []
    async with asked_host(tmp_path, clean, vms=("web",)) as (host, _, remote):
        host.trace.add_sink(lambda event: events.append(event) if event.layer is Layer.STATE else None)
        await remote.ask("start", vm="web")
        await host["web"].wait()
    told = [(event.event, event.fields.get("by")) for event in events if event.event.startswith(("vm_", "control_"))]
    us = f"control socket, uid {os.getuid()} pid {os.getpid()}"
    assert told == [
        *(("control_request", us), ("vm_state", us)),  # start, off -> starting
        *(("vm_state", None), ("vm_state", None), ("vm_ended", None)),  # it ran, and powered itself off
    ]
    assert events[0].words == f"start, asked by {us}"


async def test_errors_say_what_would_work(tmp_path: Path) -> None:
    """An unknown VM: the nearest; a wrong state: which state it is in, which is needed, what goes now."""
    async with asked_host(tmp_path) as (_, _, remote):
        assert await denied(remote, "start", vm="wep") == ("unknown_vm", 'no VM is called "wep"; did you mean "web"?')
        kind, words = await denied(remote, "pause", vm="web")
        assert kind == "wrong_state"
        assert words == "pause is for a VM that is running; web is off, for which there is: start"
        await remote.ask("start", vm="web")
        _, words = await denied(remote, "start", vm="web")
        assert words.startswith("start is for a VM that is off or saved or waiting; web is running, for which there is")
        assert (await remote.ask("ps"))[0]["state"] == "running"  # the connection goes on


async def test_every_verb_has_its_word() -> None:
    """What people can ask for by a verb has a name in the words of a refusal."""
    asked = {event for event in control_requests.VmEvent if event.requested}
    assert asked - set(control_requests.VERBS) == {control_requests.VmEvent.DESTROY}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"\xff\xfe\x00", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 60_000, "Expected `object`"),
        (b"3", "Expected `object`"),
        (b"{}", "missing required field `op`"),
        (b'{"op":"stap","vm":"web","id":7}', 'did you mean "stop"?'),
        (b'{"op":"start"}', "missing required field `vm`"),
        (b'{"op":"start","vm":"web","force":1}', "unknown field `force`"),
        (b'{"op":"stop","vm":"web","grace":-1}', "grace: Expected `float` >= 0"),
        (b'{"op":"stop","vm":"web","grace":1e999}', "grace: Number out of range"),
        (b'{"op":"start","vm":"w\\u0000eb"}', "no VM is called"),
        (b'{"op":"add-disk","vm":"web","path":"a\\u0000b"}', "there is no file"),
        (b'{"op":"inspect","path":"vm/%b"}' % (b"a/" * 30_000), "path: Expected `str` of length <= 4096"),
        (b'{"op":"trace","filter":"event=%b"}' % (b"*a" * 30_000), "filter: Expected `str` of length <= 4096"),
    ],
)
async def test_garbage_gets_an_error_line(tmp_path: Path, line: bytes, words: str) -> None:
    """Whatever the line, one answer says what is wrong with it, and the connection goes on."""
    async with asked_host(tmp_path) as (host, control, _):
        async with await trio.open_unix_socket(control.path) as stream:
            await stream.send_all(line + b'\n\n{"op":"ps","id":8}\n')
            lines = control_protocol.Lines()
            answers: list[dict[str, Any]] = []
            while len(answers) < 2:
                lines.feed(await stream.receive_some())
                while (one := lines.next()) is not None:
                    answers.append(json.loads(one))
            assert not answers[0]["ok"]
            assert words in answers[0]["message"]
            assert answers[0]["id"] == (7 if b'"id":7' in line else None)
            assert (answers[1]["ok"], answers[1]["id"]) == (True, 8)
        assert host["web"].state is VmState.OFF


async def test_lines_without_words_hold_up_nobody(tmp_path: Path) -> None:
    """Each is passed over at once, and all that had come were, 60,000 in a row: the host stood still meanwhile."""
    async with asked_host(tmp_path) as (_, control, _), trio.open_nursery() as nursery:
        rounds = 0

        async def others() -> None:
            nonlocal rounds
            while True:
                await trio.lowlevel.checkpoint()
                rounds += 1

        async with await trio.open_unix_socket(control.path) as stream:
            await stream.send_all(b"\n" * 20_000)
            nursery.start_soon(others)
            await stream.send_all(b'{"op":"hello"}\n')
            assert b'"ok":true' in await stream.receive_some()
            assert rounds > 5_000
            nursery.cancel_scope.cancel()


async def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    """Past the limit there is one error, and the connection ends; the next one is served."""
    async with asked_host(tmp_path) as (_, control, remote):
        async with await trio.open_unix_socket(control.path) as stream:
            await stream.send_all(b"x" * (control_protocol.MAX_LINE + 1))
            answer = json.loads(await stream.receive_some())
            assert (answer["error"], answer["message"]) == ("bad_line", "a line has at most 65536 bytes")
            assert await stream.receive_some() == b""
        assert await remote.ask("ps")


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One too many gets an error and is closed; when another has gone there is room again."""
    monkeypatch.setattr(control_socket, "MAX_CONNECTIONS", 2)
    async with asked_host(tmp_path) as (_, control, remote):
        await remote.hello()
        async with connect(control.path) as second:
            await second.hello()
            async with connect(control.path) as third:
                assert await denied(third, "hello") == ("busy", "there are 2 connections already; close one")
        await wait_all_tasks_blocked()
        async with connect(control.path) as fourth:
            await fourth.hello()


async def test_only_the_owner_is_served(tmp_path: Path) -> None:
    """The kernel's word on the peer is asked, whatever the modes of files say; the modes say the same."""
    async with (
        bare_host(idle, folder=tmp_path) as host,
        open_control_socket(host, tmp_path / "a.sock", owner=os.getuid() + 1) as control,
        connect(control.path) as remote,
    ):
        mode = stat.S_IMODE(control.path.stat().st_mode)
        assert mode == 0o600
        assert await denied(remote, "ps") == ("refused", "this socket is its owner's alone")


async def test_a_peer_that_goes_leaves_nothing(tmp_path: Path) -> None:
    """In the middle of a line, of a stream, of a console: its tasks end; a request that was begun is finished."""
    async with asked_host(tmp_path) as (host, control, _):
        await host["web"].start()
        before, files = len(host.vmms.feed._subscriptions), len(os.listdir("/proc/self/fd"))
        for said in (
            *(b"", b'{"op":"p', b'{"op":"events"}\n', b'{"op":"console","vm":"web"}\n'),
            *(b'{"op":"events","vm":"web"}\n', b'{"op":"pause","vm":"web"}\n'),
        ):
            stream = await trio.open_unix_socket(control.path)
            await stream.send_all(said)
            await wait_all_tasks_blocked()
            await stream.aclose()
            await wait_all_tasks_blocked()
            assert control.connections == 1
        assert host["web"].state is VmState.PAUSED
        assert len(host.vmms.feed._subscriptions) == before
        assert not host["web"]._managed.feed._subscriptions
        assert not host["web"].console._readers
        assert len(os.listdir("/proc/self/fd")) == files


async def test_a_peer_that_does_not_read_holds_up_nobody(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Its requests wait with it; the host and others go on, and after a while it counts as gone."""
    async with asked_host(tmp_path) as (_, control, remote):
        stream = await trio.open_unix_socket(control.path)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with trio.move_on_after(1):
            while True:
                await stream.send_all(b'{"op":"stats"}\n')
        assert (await remote.ask("start", vm="web"))["state"] == "running"
        await trio.sleep(2 * control_socket.SEND_SECONDS)
        assert control.connections == 1
        await stream.aclose()


async def test_events_are_followed(tmp_path: Path) -> None:
    """Each change is a line: from what to what, why, who asked, how it ended. The host's end is the stream's."""
    got: list[dict[str, Any]] = []

    async def follow(remote: Remote, vm: str | None, *, task_status: trio.TaskStatus[None]) -> None:
        async with remote.stream("events", vm=vm) as stream:
            task_status.started()
            async for line in stream.lines():
                got.append(json.loads(line))

    async with trio.open_nursery() as nursery:  # noqa: SIM117  # the host ends first, and with it the follower
        async with asked_host(tmp_path) as (_, control, remote), connect(control.path) as other:
            await nursery.start(follow, other, "web")
            await remote.ask("start", vm="db")
            await remote.ask("start", vm="web")
            await remote.ask("stop", vm="web", force=True)
            with trio.fail_after(10):
                while len(got) < 4:
                    await trio.lowlevel.checkpoint()
    assert [(line["before"], line["after"], line["cause"]) for line in got] == [
        ("off", "starting", "start"),
        ("starting", "running", "started"),
        ("running", "turning_off", "turn_off"),
        ("turning_off", "off", "ended"),
    ]
    assert {line["vm"] for line in got} == {"web"}
    assert (got[2]["by"], got[3]["words"]) == (f"control socket, uid {os.getuid()} pid {os.getpid()}", "turned off")


async def test_a_slow_follower_is_told_what_it_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    """Changes wait for it up to a bound; past that the oldest go, and the next line says how many."""
    monkeypatch.setattr(control_requests, "EVENTS_WAITING", 4)
    async with asked_host(tmp_path) as (host, control, _), connect(control.path) as other:
        await host["web"].start()
        async with other.stream("events") as stream:
            other._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(2000):
                await host["web"].pause()
                await host["web"].resume()
            seen = lost = 0
            async for line in stream.lines():
                change = control_protocol.msgspec.json.decode(line, type=control_protocol.Change)
                seen, lost = seen + 1, lost + change.lost
                if seen + lost == 8000:
                    break
            assert lost > 0


async def test_the_console_both_ways(tmp_path: Path) -> None:
    """What was printed before, what is printed now, what is typed; the stream ends when the VM is off."""

    async def echo(machine: Machine) -> None:
        say(machine, "one\ntwo\nthree\n")
        typed = b""
        while not typed.endswith(b"q"):
            while machine.port_in(ports.COM1_LINE_STATUS, 1) & 1:
                typed += bytes([machine.port_in(ports.COM1, 1)])
            await trio.lowlevel.checkpoint()
        say(machine, f"got {typed.decode()}")
        power_off(machine)

    async with asked_host(tmp_path, echo) as (host, control, remote):
        await remote.ask("start", vm="web")
        while "three" not in host["web"].console.text:
            await trio.lowlevel.checkpoint()
        async with connect(control.path) as terminal, terminal.stream("console", vm="web", tail=2) as console:
            assert await console.receive() == b"two\nthree\n"
            await console.send(b"hello q")
            output = b""
            while data := await console.receive():
                output += data
            assert output == b"got hello q"
        assert host["web"].state is VmState.OFF


async def test_a_mistake_of_ours_is_the_requests_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told with its traceback in the trace, and neither the host nor the connection ends."""
    events: list[str] = []
    async with asked_host(tmp_path) as (host, _, remote):
        host.trace.add_sink(lambda event: events.append(event.words) if event.event == "control_failed" else None)
        monkeypatch.setattr(control_requests, "counters_of", lambda vm, source: 1 // 0)
        kind, words = await denied(remote, "stats")
        assert (kind, words[:43]) == ("internal", "a mistake of the host's: ZeroDivisionError:")
        assert "Traceback" in events[0]
        assert await remote.ask("ps")


async def test_the_end_waits_for_answers_and_not_for_the_idle(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A request that ends the host is answered; a peer that just sits there costs no time."""
    answers: list[Any] = []

    async def ask_down(path: Path) -> None:
        async with connect(path) as remote:
            answers.append(await remote.ask("down"))

    async with trio.open_nursery() as nursery, bare_host(idle, vm_table(), folder=tmp_path) as host:
        async with open_control_socket(host, tmp_path / "a.sock") as control:
            sitting = await trio.open_unix_socket(control.path)
            await host["web"].start()
            nursery.start_soon(ask_down, control.path)
            await control.down.wait()
            await host.wait_all()
            began = trio.current_time()
        assert trio.current_time() == began
    await sitting.aclose()
    assert answers[0][0]["state"] == "off"


async def test_nothing_of_the_host_is_held(tmp_path: Path) -> None:
    """A VM that was started, watched and stopped by the socket leaves what one leaves that was not."""
    async with asked_host(tmp_path) as (host, _, remote):
        await host["web"].start()
        await host["web"].turn_off()
        before = held(host)
        await remote.ask("start", vm="web")
        await remote.ask("stop", vm="web", force=True)
        assert held(host) == before


def test_lines_are_cut_however_they_come() -> None:
    """The same lines and the same rest for every way of cutting the bytes."""
    data = b"x" * 20 + b"\na\n\nbc\nrest"
    for size in range(1, len(data) + 1):
        lines = control_protocol.Lines(20)
        found: list[bytes] = []
        for start in range(0, len(data), size):
            lines.feed(data[start : start + size])
            while (line := lines.next()) is not None:
                found.append(line)
        assert (found, lines.take()) == ([b"x" * 20, b"a", b"", b"bc"], b"rest")
    lines.feed(b"x" * 21)
    with pytest.raises(control_protocol.LineTooLong):
        lines.next()


async def test_a_host_that_ends_under_a_request(tmp_path: Path) -> None:
    """Who asks hears that the host is gone, and no traceback."""
    async with asked_host(tmp_path) as (_, control, remote):
        await remote.hello()
    with pytest.raises(HostGone):
        await remote.ask("ps")
    with pytest.raises(HostGone, match="No such file"):
        async with connect(control.path):
            pass


NEARLY = rb'\{"op":"(stop|save|inspect|add-disk)"(,"[a-z_]{1,6}":[0-9"a-z.-]{1,6}){0,4}\}'


@given(st.binary(max_size=300) | st.from_regex(NEARLY))
def test_no_line_is_an_exception(untrusted_line: bytes) -> None:
    """Whatever the bytes, there is a request, or a `BadLine` and no other exception."""
    try:
        assert isinstance(control_protocol.decode(untrusted_line), control_protocol.Request)
    except control_protocol.BadLine:
        pass
