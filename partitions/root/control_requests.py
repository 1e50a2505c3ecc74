"""What a host does for each request on its control socket, and the answers. Root side.

A request that was begun is finished, whether or not its peer waits for the answer: half a shutdown helps nobody.
"""

from __future__ import annotations

import difflib
import struct
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from hypervisor.clock import seconds
from hypervisor.trace import Layer, Level
from partitions import control_protocol as protocol
from partitions.figures import counters_of, figures_of
from partitions.host import (
    CannotSave,
    DiskError,
    Host,
    InvalidTransition,
    NicError,
    NoScreen,
    SocketRefused,
    StartFailed,
    UnknownVm,
    Vm,
    VmEvent,
    VmState,
    VmStateChange,
)
from partitions.lifecycle import allowed
from partitions.op_lines import Id
from partitions.root.asking import asked_by
from partitions.root.control_socket import ControlSocket, Link
from partitions.surroundings import is_virtual

if TYPE_CHECKING:
    from partitions.recording.buffer import BlockBuffer

ROWS_AT_ONCE: Final = 16
"""Rows that are made before others get their turn: about a third of a millisecond."""
RETRY_SECONDS: Final = 0.02
"""How often a full serial port is tried again."""
EVENTS_WAITING: Final = 1024
TRACE_WAITING: Final = 8 << 20
"""Bytes of a recording that wait for its reader."""

VERBS: Final = {
    VmEvent.START: "start",
    VmEvent.PAUSE: "pause",
    VmEvent.RESUME: "resume",
    VmEvent.RESET: "reset",
    VmEvent.SAVE: "save",
    VmEvent.SHUT_DOWN: "stop",
    VmEvent.TURN_OFF: "stop --force",
}
"""What people call the requests."""


class Denied(Exception):
    """A request that is not done; the text says why, for people."""

    def __init__(self, kind: protocol.ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def refusal(kind: protocol.ErrorKind, message: str, request_id: Id = None) -> bytes:
    """The line of an answer that is no."""
    return protocol.encode(protocol.Refused(id=request_id, error=kind, message=message))


async def converse(link: Link) -> None:
    """Answer line after line, until the peer goes, the host ends, or a stream has taken the connection."""
    lines = protocol.Lines()
    while True:
        try:
            while (untrusted_line := lines.next()) is None:
                with link.control.until_closing() as wait:
                    data = await link.receive()
                if wait.cancelled_caught or not data:
                    return
                lines.feed(data)
        except protocol.LineTooLong:
            await link.answer(refusal("bad_line", f"a line has at most {protocol.MAX_LINE} bytes"))
            return
        if not untrusted_line.strip():
            await trio.lowlevel.checkpoint()  # a megabyte of line ends is no reason to hold up others
            continue
        try:
            request = protocol.decode(untrusted_line)
        except protocol.BadLine as error:
            if not await link.answer(refusal("bad_line", str(error), error.request_id)):
                return
            continue
        with asked_by(link.peer):
            if not await _answer(link, request, lines):
                return


async def _answer(link: Link, request: protocol.Request, lines: protocol.Lines) -> bool:
    """Do it and say so; whether the connection goes on."""
    stream, before = STREAMS.get(type(request)), link.answered
    try:
        if stream is not None:
            await stream(link, request, lines)
            return False
        done = protocol.Answer(id=request.id, result=await act(link.control, request, link.peer))
        return await link.answer(protocol.encode(done))
    except Denied as denied:
        return await link.answer(refusal(denied.kind, str(denied), request.id))
    except Exception as error:  # our own mistake: this request's answer, as a worker's is its VM's end
        trace = link.control.host.trace
        if trace.on:
            words = f"{type(request).__name__}: {''.join(traceback.format_exception(error))}"
            trace.emit(Layer.STATE, "control_failed", 0, level=Level.ERROR, words=words)
        if link.answered > before:
            return False  # in the middle of a stream, where a line of ours would be taken for some of it
        words = f"a mistake of the host's: {type(error).__name__}: {error}"
        return await link.answer(refusal("internal", words, request.id))


async def act(control: ControlSocket, request: protocol.Request, by: str) -> Any:
    """The result of a request that has one. Raises `Denied`."""
    host = control.host
    match request:
        case protocol.Hello():
            return greeting(control)
        case protocol.Ps():
            return await _rows(host, request.vm, figures_of)
        case protocol.Stats():
            from partitions.resources.collect import Source

            source = Source(host)
            return await _rows(host, request.vm, lambda vm: counters_of(vm, source))
        case protocol.Update():
            from partitions.inspect import InspectError, host_tree, update

            _tell(host, None, request, by)
            try:
                return update(host_tree(host), request.path, request.value)
            except InspectError as error:
                raise Denied("unknown_path", str(error)) from None
        case protocol.Set() | protocol.Pools() | protocol.AddPool() | protocol.RemovePool() | protocol.MovePool():
            from partitions.root.control_resources import use_resources
            from partitions.root.resources import ResourceError

            if not isinstance(request, protocol.Pools):
                _tell(host, None, request, by)
            try:
                return use_resources(host, request)
            except ResourceError as error:
                raise Denied("refused" if error.key else "unknown_path", str(error)) from None
        case protocol.Down():
            _tell(host, None, request, by)
            control.down.set()
            if request.force:
                host.turn_all_off()
            else:
                await host.shut_down_all(request.grace)
            await host.wait_all()
            return await _rows(host, None, figures_of)
        case protocol.VmRequest():
            vm = find(host, request.vm)
            _tell(host, vm, request, by)
            return await change(vm, request)
        case _:
            raise AssertionError(f"{request} is not decoded")


async def change(vm: Vm, request: protocol.VmRequest) -> Any:
    """The result of a request about one VM. Raises `Denied`."""
    try:
        match request:
            case protocol.Start():
                await vm.start()
            case protocol.Stop():
                # One that waits for its restart has no guest to ask.
                if request.force or vm.state is VmState.WAITING:
                    await vm.turn_off()
                elif request.restart or request.hibernate:
                    await _stop_otherwise(vm, request)
                else:
                    await vm.shut_down(request.grace, reason=request.reason, insist=request.insist)
            case protocol.Kvp() | protocol.Copy() | protocol.Freeze() | protocol.Thaw():
                from partitions.root.control_integration import ask_guest

                return await ask_guest(vm, request)
            case protocol.TypeText() | protocol.Keys():
                from partitions.root.control_input import use_keyboard

                return await use_keyboard(vm, request)
            case protocol.Pause():
                await vm.pause()
            case protocol.Resume():
                await vm.resume()
            case protocol.Reset():
                await vm.reset()
            case protocol.Save():
                path = await vm.save(request.path)
                return {**msgspec.structs.asdict(figures_of(vm)), "path": str(path)}
            case protocol.Screenshot():
                return await _screenshot(vm)
            case protocol.AddDisk():
                lun = await vm.add_disk(
                    request.path,
                    size=request.size,
                    read_only=request.read_only,
                    block_size=request.block_size,
                    type=request.type,
                    lun=request.lun,
                    iops=request.iops,
                )
                return vm.disks[lun]
            case protocol.RemoveDisk():
                await vm.remove_disk(request.lun)
                return list(vm.disks.values())
            case protocol.AddNic():
                asked = msgspec.structs.asdict(request)
                keys = {key: asked[key] for key in asked.keys() - {"id", "vm"} if asked[key] is not None}
                number = await vm.add_nic(**keys)
                return vm.nics[number]
            case protocol.RemoveNic():
                await vm.remove_nic(request.number)
                return list(vm.nics.values())
            case protocol.ConnectNic():
                await vm.connect_nic(request.number, request.switch)
                return vm.nics[request.number]
            case _:
                raise AssertionError(f"{request} is not decoded")
    except InvalidTransition as error:
        raise Denied("wrong_state", wrong_state(vm.name, error.state, error.event)) from None
    except (StartFailed, CannotSave, NoScreen, DiskError, NicError, ValueError) as error:
        raise Denied("refused", str(error)) from None
    return figures_of(vm)


async def _screenshot(vm: Vm) -> dict[str, Any]:
    """The picture's own size, which the screen's may not be any more."""
    png = await vm.screenshot()
    width, height = struct.unpack_from(">II", png, 16)
    return {"vm": vm.name, "width": width, "height": height, "png": png}


async def _stop_otherwise(vm: Vm, request: protocol.Stop) -> None:
    """Restart or hibernate. Raises `Denied` with the guest's words."""
    if request.restart and request.hibernate:
        raise Denied("bad_line", "restart and hibernate exclude each other")
    if request.restart:
        done = await vm.restart(request.grace, reason=request.reason, insist=request.insist)
    else:
        done = await vm.hibernate(request.grace, reason=request.reason)
    if not done:
        what = "restart" if request.restart else "hibernate"
        why = vm.shutdown_outcome or 'its topology does not name "shutdown" under integration'
        said = f"it said that it would, and has not within {request.grace:g} s" if why == "accepted" else why
        raise Denied("refused", f"{vm.name} did not {what}: {said}")


def greeting(control: ControlSocket) -> protocol.Greeting:
    """Who is here."""
    import os

    host = control.host
    return protocol.Greeting(
        name=control.name,
        pid=os.getpid(),
        clock="virtual" if is_virtual(None) else "real",
        seconds=seconds(host.hypervisor.clock()),
        vms=list(host),
    )


def find(host: Host, name: str) -> Vm:
    """The VM of that name. Raises `Denied` with the nearest that there is."""
    try:
        return host[name]
    except UnknownVm:
        near = difflib.get_close_matches(name, host, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(host) or 'none'}"
        raise Denied("unknown_vm", f'no VM is called "{name}"; {hint}') from None


def wrong_state(name: str, state: VmState, event: VmEvent) -> str:
    """Why a request does not go with a VM's state, in which states it would, and what goes with this one."""
    needed = " or ".join(_said(other) for other in VmState if other.settled and allowed(other, event))
    now = ", ".join(verb for other, verb in VERBS.items() if allowed(state, other)) or "nothing: wait a moment"
    return f"{VERBS[event]} is for a VM that is {needed}; {name} is {_said(state)}, for which there is: {now}"


def _said(state: VmState) -> str:
    return state.value.replace("_", " ")


async def _rows(host: Host, name: str | None, make: Callable[[Vm], Any]) -> list[Any]:
    """A row for each VM, or the one; others get their turn in between."""
    if name is not None:
        return [make(find(host, name))]
    rows = []
    for number, vm in enumerate(list(host.values()), 1):
        rows.append(make(vm))
        if number % ROWS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return rows


def _tell(host: Host, vm: Vm | None, request: protocol.Request, by: str) -> None:
    """An event for each request that changes something, done or not: what it does has events of its own."""
    trace = host.trace
    if not trace.on:
        return
    asked = msgspec.to_builtins(request)
    members = {key: value for key, value in asked.items() if key not in ("id", "vm", "op") and value is not None}
    if isinstance(request, protocol.TypeText):
        members = {"characters": len(request.text)}  # it may be a password
    said = "".join(f" {key}={value}" for key, value in members.items())
    trace.emit(
        *(Layer.STATE, "control_request", 0 if vm is None else vm.partition_id or 0),
        vm="" if vm is None else vm.name,
        level=Level.INFO,
        words=f"{asked['op']}{said}, asked by {by}",
        op=asked["op"],
        by=by,
    )


# --- streams


async def _events(link: Link, request: protocol.Request, lines: protocol.Lines) -> None:
    assert isinstance(request, protocol.Events)
    host = link.control.host
    feed = host if request.vm is None else find(host, request.vm)
    with feed.events(capacity=EVENTS_WAITING) as changes:
        if not await link.answer(protocol.encode(protocol.Answer(id=request.id))):
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, link, nursery.cancel_scope)
            nursery.start_soon(_at_closing, link.control, changes.close)
            told = 0
            async for change in changes:
                lost, told = changes.dropped - told, changes.dropped
                if not await link.send(protocol.encode(_line_of(change, lost)) + b"\n"):
                    break
            nursery.cancel_scope.cancel()


def _line_of(change: VmStateChange, lost: int) -> protocol.Change:
    return protocol.Change(
        time=seconds(change.time),
        vm=change.vm,
        before=change.before.value,
        after=change.after.value,
        cause=change.event.value,
        by=change.by,
        words=change.words,
        lost=lost,
    )


async def _until_gone(link: Link, scope: trio.CancelScope) -> None:
    """Pass over what the peer says to a stream that does not listen; its end is the stream's."""
    while await link.receive():
        pass
    scope.cancel()


async def _trace(link: Link, request: protocol.Request, lines: protocol.Lines) -> None:
    from partitions.logs import filtered
    from partitions.recording.recorder import Recorder
    from partitions.trace.filters import FilterError, parse_filter

    assert isinstance(request, protocol.Trace)
    host = link.control.host
    try:
        wanted = parse_filter(request.filter, vms=host) if request.filter else None
    except FilterError as error:
        raise Denied("bad_line", f"filter: {error}") from None
    bell = _Bell()
    recorder = Recorder(host.trace, started=host.started, limit=TRACE_WAITING, ready=bell.ring)
    if not await link.answer(protocol.encode(protocol.Answer(id=request.id))):
        return
    remove = recorder.detach
    if wanted is None:
        recorder.attach()
    else:
        remove = host.trace.add_sink(filtered(recorder.event, host.trace, wanted))

    def finish() -> None:
        nonlocal remove
        remove()
        remove = recorder.detach
        recorder.finish()

    try:
        await _pour(link, recorder, bell, finish)
    finally:
        remove()


class _Bell:
    """Rung by a recording that has something, for whoever sends it."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """There is something."""
        self._event.set()

    async def wait(self, buffer: BlockBuffer) -> None:
        """Until there is."""
        self._event = trio.Event()
        if not buffer.waiting:
            await self._event.wait()


async def _pour(link: Link, buffer: BlockBuffer, bell: _Bell, finish: Callable[[], None]) -> None:
    """Send what a recording gets, until the peer goes, or the host ends; then what `finish` puts in, too."""

    def close() -> None:
        finish()
        bell.ring()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_gone, link, nursery.cancel_scope)
        nursery.start_soon(_at_closing, link.control, close)
        there = True
        while there:
            if piece := buffer.take():
                there = await link.send(piece)
            elif link.control.closing.is_set():
                break
            else:
                await bell.wait(buffer)
        nursery.cancel_scope.cancel()


async def _capture(link: Link, request: protocol.Request, lines: protocol.Lines) -> None:
    from partitions.recording.ethernet import EthernetCapture
    from partitions.root.captures import check_ports, watched

    assert isinstance(request, protocol.Capture)
    host = link.control.host
    try:
        check_ports(host, request.ports)
    except NicError as error:
        raise Denied("unknown_path", str(error)) from None
    bell = _Bell()
    capture = EthernetCapture(host.hypervisor.clock, started=host.started, limit=TRACE_WAITING, ready=bell.ring)
    with watched(host, capture, request.ports):
        if await link.answer(protocol.encode(protocol.Answer(id=request.id))):
            await _pour(link, capture, bell, capture.finish)


async def _samples(link: Link, request: protocol.Request, lines: protocol.Lines) -> None:
    from partitions.resources.sampler import Sampler

    assert isinstance(request, protocol.Samples)
    if is_virtual(None):
        words = "time jumps on the virtual clock, and is over before somebody looks: take `partita run --samples FILE`"
        raise Denied("refused", words)
    control = link.control
    with Sampler(control.host, look=False) as sampler:
        await sampler.begin()
        if not await link.answer(protocol.encode(protocol.Answer(id=request.id))):
            return
        heading = sampler.heading(topology=control.name, window=round(request.window * 1e9))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, link, nursery.cancel_scope)
            nursery.start_soon(_at_closing, control, nursery.cancel_scope.cancel)
            there = await link.send(protocol.encode(heading) + b"\n")
            while there:
                await trio.sleep(request.window)
                there = await link.send(protocol.encode(await sampler.sample_in_turns()) + b"\n")
            nursery.cancel_scope.cancel()


async def _inspect(link: Link, request: protocol.Request, lines: protocol.Lines) -> None:
    from partitions.inspect import InspectError, host_tree, write_out

    assert isinstance(request, protocol.Inspect)
    said = False

    async def send(text: str) -> None:
        nonlocal said
        there = said or await link.answer(protocol.encode(protocol.Answer(id=request.id)))
        said = True
        if not there or not await link.send(text.encode("utf-8", "backslashreplace")):
            raise _PeerGone

    try:
        root = host_tree(link.control.host)
        await write_out(root, request.path, depth=request.depth, form=request.form, send=send)
    except InspectError as error:
        raise Denied("unknown_path", str(error)) from None
    except _PeerGone:
        pass


class _PeerGone(Exception):
    """Nobody reads the rest."""


async def _at_closing(control: ControlSocket, end: Callable[[], None]) -> None:
    """A stream has what it has, and no more comes."""
    await control.closing.wait()
    end()


async def _console(link: Link, request: protocol.Request, lines: protocol.Lines) -> None:
    assert isinstance(request, protocol.ConsoleOf)
    vm = find(link.control.host, request.vm)
    console = vm.console

    async def until_off() -> None:
        async for change in changes:
            if change.after in (VmState.OFF, VmState.SAVED):
                break
        reader.end()

    async def type_in() -> None:
        typed = lines.take()
        while typed or (typed := await link.receive()):
            # What the guest does not take holds up the reading, and so the peer.
            taken = console.send(typed)
            typed = typed[taken:]
            await trio.sleep(0 if taken else RETRY_SECONDS)
        nursery.cancel_scope.cancel()

    with console.listen() as reader, vm.events() as changes:
        tail = b"\n".join(console.data.split(b"\n")[-request.tail - 1 :]) if request.tail else b""
        there = await link.answer(protocol.encode(protocol.Answer(id=request.id))) and await link.send(tail)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_off)
            nursery.start_soon(type_in)
            nursery.start_soon(_at_closing, link.control, changes.close)
            while there and (data := await reader.receive()):
                there = await link.send(data)
            nursery.cancel_scope.cancel()


async def _connect(link: Link, request: protocol.Request, lines: protocol.Lines) -> None:
    from partitions.root.sockets import join

    assert isinstance(request, protocol.ConnectTo)
    vm = find(link.control.host, request.vm)
    try:
        inside = await vm.connect(request.port)
    except SocketRefused as error:
        raise Denied("refused", str(error)) from None
    except ValueError as error:
        raise Denied("bad_line", f"port: {error}") from None
    async with inside:
        if await link.answer(protocol.encode(protocol.Answer(id=request.id))):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_at_closing, link.control, nursery.cancel_scope.cancel)
                await join(link.stream, inside, lines.take())
                nursery.cancel_scope.cancel()


STREAMS: Final[dict[type, Callable[[Link, Any, protocol.Lines], Awaitable[None]]]] = {
    protocol.Events: _events,
    protocol.Trace: _trace,
    protocol.Capture: _capture,
    protocol.Samples: _samples,
    protocol.Inspect: _inspect,
    protocol.ConsoleOf: _console,
    protocol.ConnectTo: _connect,
}
