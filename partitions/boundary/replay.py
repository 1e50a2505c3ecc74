"""A guest that does what a record says, and compares all that comes back with what came back then. Root side.

It runs in the place of the recorded guest, in the same topology, with the same seed, on the virtual clock. As the
guest's tasks come last in every batch (`partitions.boundary.turns`), the rest of the host runs as it did, and where a
single byte or interrupt is another, that is told: with the line of the record, what it says and what came instead.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, assert_never

import msgspec
import trio

from hypervisor.backend.task import GuestEntry, TaskVp
from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.machine import Intercepted, Machine, ProcessorFault
from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT
from partitions import ports
from partitions.boundary import protocol
from partitions.boundary.record import VERSION, BoundaryLog, RecordedMachine
from partitions.boundary.turns import Turns


class RecordError(Exception):
    """A file that cannot be replayed; the text names the line and the remedy."""


class Parted(Exception):
    """The root did something else than in the record."""


class Header(msgspec.Struct, forbid_unknown_fields=True, tag_field="event", tag="recording"):
    """The first line: what was recorded, and what a replay has to be run with."""

    vm: str
    memory: int
    processors: int
    seed: int
    version: int = VERSION


class Event(msgspec.Struct, forbid_unknown_fields=True):
    """A line that is no command: what the root did, and what guests do that has no command."""

    event: str
    vp: int = 0
    vector: int = 0
    gpa: int = 0
    ticks: int = 0
    value: int = 0
    data: str = ""
    text: str = ""


Done = protocol.AnyCommand | Event

_GONE = protocol.encode({"event": "gone"})
ROOTS = frozenset({"interrupt", "wrote", "boot", "gone"})
"""Events that a replay only compares."""
GUESTS = frozenset({"halted", "tsc", "idle", "worked", "touched", "finished", "ended", "raised"})
"""What guests do that has no command."""


class Record:
    """A whole record in memory, checked."""

    def __init__(self, header: Header, lines: list[bytes]) -> None:
        self.header = header
        self.lines = lines
        """All but the first."""
        self._booted = False
        self.boots: list[list[Done]] = [[]]
        """For each boot what the guest and the root did."""
        for at, line in enumerate(lines):
            self._take(at, line)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises `RecordError`."""
        try:
            lines = path.read_bytes().splitlines()
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}") from None
        try:
            header = msgspec.json.decode(lines[0] if lines else b"", type=Header)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise RecordError(f"{path} is no record of a boundary; `partita run --record` makes one") from None
        if header.version != VERSION:
            raise RecordError(f"{path} has format {header.version}, this version of Partita reads {VERSION}")
        try:
            return cls(header, lines[1:])
        except RecordError as error:
            raise RecordError(f"{path}, {error}") from None

    def _take(self, at: int, line: bytes) -> None:
        try:
            if line.startswith(b'{"op":'):
                done: Done = protocol.decode(line)
            elif line.startswith(b'{"event":'):
                done = msgspec.json.decode(line, type=Event)
                bytes.fromhex(done.data)
            else:
                return  # an answer
            self._check(done)
        except (protocol.BadLine, msgspec.MsgspecError, ValueError) as error:
            last = " (cut short? what is before it can be replayed without it)" if at == len(self.lines) - 1 else ""
            raise RecordError(f"line {at + 2}: {error}{last}") from None
        if isinstance(done, Event) and done.event == "boot" and self._booted:
            # The turn of a boot comes before its line.
            before = self.boots[-1]
            self.boots.append([before.pop()] if isinstance(before[-1], protocol.Turn) else [])
        self._booted = self._booted or isinstance(done, Event)
        self.boots[-1].append(done)

    def _check(self, done: Done) -> None:
        """Raise `ValueError` for what no guest of this VM can have done: a replay would end in the middle."""
        match done:
            case Event(event=event, vp=vp, ticks=ticks):
                if event not in ROOTS | GUESTS:
                    raise ValueError(f'"{event}" is no event of a record')
                if ticks < 0:
                    raise ValueError(f"{ticks} ticks of work")
            case protocol.Turn():
                return
            case protocol.Write(gpa=gpa, data=data):
                if gpa + len(data) > self.header.memory:
                    raise ValueError("a store outside memory")
                return
            case protocol.Read() | protocol.Settle() | protocol.Advance() | protocol.Reset() | protocol.Start():
                raise ValueError(f'a record has no "{done.__struct_config__.tag}"')
            case protocol.Quit():
                raise ValueError('a record has no "quit"')
            case protocol.Ask() | protocol.SendFrame() | protocol.Listen() | protocol.Connect():
                raise ValueError(f'a record has no "{done.__struct_config__.tag}"')
            case protocol.Send() | protocol.End() | protocol.HangUp():
                raise ValueError(f'a record has no "{done.__struct_config__.tag}"')
            case _:
                vp = done.vp
        if not 0 <= vp < self.header.processors:
            raise ValueError(f"there is no processor {vp}")


class Comparison:
    """What becomes of a replay: lines come in, one by one, and have to be the record's."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.same = 0
        """Lines that were as recorded."""
        self.parted = ""
        """Where the two parted, for people; empty as long as they have not."""

    def take(self, line: bytes) -> None:
        """Compare; what comes after the first difference is not looked at."""
        if self.parted:
            return
        lines = self.record.lines
        if self.same == len(lines):
            # The end of a guest ends a whole record. One that was cut says nothing about what came after.
            if lines and lines[-1] == _GONE:
                self.part("the end of the record", line.decode("utf-8", "replace"))
        elif lines[self.same] == line:
            self.same += 1
        else:
            self.part(lines[self.same].decode("utf-8", "replace"), line.decode("utf-8", "replace"))

    def part(self, then: str, now: str) -> None:
        """They have."""
        self.parted = self.parted or f"line {self.same + 2}:\n  then {_short(then)}\n  now  {_short(now)}"

    @property
    def complete(self) -> bool:
        """Whether every line came, and as it was."""
        return not self.parted and self.same == len(self.record.lines)

    def verdict(self) -> str:
        """For people."""
        if self.parted:
            return f"parted at {self.parted}"
        if self.complete:
            whole = self.record.lines[-1:] == [_GONE]
            return f"{self.same} lines, all as recorded" + ("" if whole else ", and there the record breaks off")
        return f"ended after {self.same} of {len(self.record.lines)} lines, all as recorded so far"


def _short(line: str) -> str:
    return line if len(line) <= 300 else f"{line[:280]}... ({len(line)} characters)"


class Replay:
    """The guests of one replay, a boot after the other."""

    def __init__(self, record: Record, turns: Turns) -> None:
        self.comparison = Comparison(record)
        self.log = BoundaryLog(turns, self.comparison.take)
        self.turns = turns
        self._boots = iter(record.boots)

    @property
    def entry(self) -> GuestEntry:
        """What the VM's processors run."""

        async def boot(machines: Sequence[Machine]) -> None:
            processors = [machine for machine in machines if isinstance(machine, TaskVp)]
            self.log.boot(processors)
            done = next(self._boots, None)
            if done is None:
                self.comparison.part("the VM's last boot", "it boots once more")
            todo, end = _split(done or [])
            try:
                await _Player(self, processors).play(todo, end)
            except Parted:
                # What the guest did next was for another answer than it gets. A crash would be told before the parting.
                processors[0].port_out(ports.POWER, 2, ports.POWER_OFF)
                await trio.sleep_forever()
            finally:
                # A guest without power takes some turns to unwind, and the next boot waits for it.
                while end is not None and self.turns.now < end and self.turns.now[0] == end[0]:
                    await trio.lowlevel.cancel_shielded_checkpoint()

        return boot


def _split(done: Sequence[Done]) -> tuple[Sequence[Done], tuple[int, int] | None]:
    """What a boot did, and the moment at which the last of the guest's tasks had ended, where the record has it."""
    if not done or not isinstance(done[-1], Event) or done[-1].event != "gone":
        return done, None
    for at in range(len(done) - 1, -1, -1):
        turn = done[at]
        if isinstance(turn, protocol.Turn):
            moment = round(turn.seconds * TICKS_PER_SECOND), int(turn.turn)
            return (done[:at] if at == len(done) - 2 else done[:-1]), moment
    return done[:-1], None


class _Player:
    """One boot."""

    def __init__(self, replay: Replay, processors: Sequence[TaskVp]) -> None:
        self._log = replay.log
        self._turns = replay.turns
        self._comparison = replay.comparison
        self._processors = processors
        self._machines = [RecordedMachine(replay.log, inner) for inner in processors]
        self._memory = processors[0].memory
        self._finish: dict[int, Any] = {}
        """Accesses that the parent has intercepted, by processor."""
        self._stored = -1
        """The highest address of the guest's stores that have not been told."""

    async def play(self, todo: Sequence[Done], end: tuple[int, int] | None) -> None:
        """All of it, then wait for the power to go, if that takes another turn. Raises `Parted`."""
        for what in todo:
            self._check()
            if not isinstance(what, protocol.Write):
                self._tell_stores()
            match what:
                case protocol.Turn(seconds=at, turn=turn):
                    await self._until(at, int(turn))
                case protocol.Write(gpa=gpa, data=data):
                    if gpa <= self._stored:
                        self._tell_stores()
                    self._memory[gpa : gpa + len(data)] = data
                    self._stored = gpa + len(data) - 1
                case Event():
                    if what.event not in ROOTS and await self._event(what):
                        return
                case protocol.Read() | protocol.Settle() | protocol.Advance() | protocol.Reset() | protocol.Start():
                    pass  # a record has none
                case protocol.Ask() | protocol.SendFrame() | protocol.Listen() | protocol.Connect():
                    pass  # nor of these
                case protocol.Send() | protocol.End() | protocol.HangUp():
                    pass
                case protocol.Quit():
                    break
                case _:
                    self._trap(what)
        self._tell_stores()
        self._check()
        if end is None or self._turns.now < end:
            await trio.sleep_forever()

    def _check(self) -> None:
        """Not where it is found: that is in the middle of a trap, or in Trio's scheduler."""
        if self._comparison.parted:
            raise Parted(self._comparison.parted)

    def _tell_stores(self) -> None:
        self._stored = -1
        self._log.end()

    async def _until(self, at: float, turn: int) -> None:
        """Let the turn come at which the guest ran."""
        time = round(at * TICKS_PER_SECOND)
        if time > self._turns.now[0]:
            await trio.sleep_until(at)
        while self._log.live and self._turns.now < (time, turn):
            await trio.lowlevel.checkpoint()
        self._log.begin()

    def _trap(
        self,
        what: protocol.Access,
    ) -> None:
        machine = self._machines[what.vp]
        try:
            match what:
                case protocol.Hypercall(control=control, input=input_gpa, output=output_gpa):
                    machine.hypercall(int(control), int(input_gpa), int(output_gpa))
                case protocol.ReadMsr(msr=msr):
                    machine.read_msr(int(msr))
                case protocol.WriteMsr(msr=msr, value=value):
                    machine.write_msr(int(msr), int(value))
                case protocol.Cpuid(leaf=leaf, subleaf=subleaf):
                    machine.cpuid(int(leaf), int(subleaf))
                case protocol.PortIn(port=port, size=size):
                    machine.port_in(int(port), int(size))
                case protocol.PortOut(port=port, size=size, value=value):
                    machine.port_out(int(port), int(size), int(value))
                case _:
                    assert_never(what)
        except Intercepted as stopped:
            self._finish[what.vp] = stopped.finish
        except ProcessorFault:
            pass  # the answer says so

    async def _event(self, what: Event) -> bool:
        """What a guest does that is no command; whether it was the guest's end."""
        machine, inner = self._machines[what.vp], self._processors[what.vp]
        match what.event:
            case "halted":
                if not inner.vp.pending:
                    return self._parts(what, "no interrupt is pending")
                await machine.halt()
            case "tsc":
                machine.read_tsc()
            case "idle":
                self._log.say({"event": "idle", "vp": what.vp})
                try:
                    inner.read_msr(Msr.GUEST_IDLE)
                except ProcessorFault:
                    pass  # it was refused then too, or the next line tells
            case "worked":
                self._log.say({"event": "worked", "vp": what.vp, "ticks": what.ticks})
                self._start(inner.work, what.ticks)
            case "touched":
                machine.touched(what.gpa >> PAGE_SHIFT, what.value)
            case "finished":
                finish = self._finish.pop(what.vp, None)
                if finish is None:
                    return self._parts(what, "the parent intercepted nothing")
                try:
                    finish()
                except ProcessorFault:
                    pass  # the answer says so
            case "ended":
                self._log.over({"event": "ended"})
                return True
            case "raised":
                self._log.over({"event": "raised", "text": what.text})
                raise RuntimeError(f"as recorded: {what.text}")
            case _:
                raise AssertionError(f"{what.event} has passed the check")
        return False

    def _start(self, work: Callable[[int], Awaitable[None]], ticks: int) -> None:
        """A task beside this one, not below it: a nursery of ours would take a turn to end."""
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        before = nursery.child_tasks
        nursery.start_soon(work, ticks)
        (task,) = nursery.child_tasks - before
        self._turns.last(task)

    def _parts(self, what: Event, words: str) -> bool:
        self._comparison.part(f"{what.event} on processor {what.vp}", words)
        return False
