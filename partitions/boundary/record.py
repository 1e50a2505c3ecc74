"""A record of all that crosses one VM's boundary, line by line in the boundary driver's format. Root side.

What the guest does are commands, as a speaker of the driver would write them; what the root answers and does are
answers and events. `turn` says when: the time, and which batch of tasks at that time (`partitions.boundary.turns`). The
guest's tasks run last in a batch, so what is between two turns is the root's.

    {"op":"turn","seconds":0.25,"turn":7}
    {"event":"interrupt","vp":0,"vector":243}                    raised since the guest last ran
    {"event":"wrote","gpa":20480,"data":"01000000..."}            the root's stores since then, overlay pages included
    {"event":"halted","vp":0,"vector":243}                       the guest came out of HLT
    {"op":"write","gpa":20480,"data":"00"}                        the guest's stores before what follows
    {"op":"hypercall","control":65629,"input":8193,"output":0,"vp":0}
    {"id":null,"ok":true,"rax":0,"status":"SUCCESS","reps":0}

A replay makes such lines again with a guest that does what the record says, and compares each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio

from hypervisor.backend.task import GuestEntry, TaskVp
from hypervisor.machine import Intercepted, Machine, ProcessorFault
from hypervisor.pages import PAGE_SHIFT
from hypervisor.trace import Layer, TraceEvent
from partitions.boundary import protocol
from partitions.boundary.driver import fault_name, returned
from partitions.boundary.pages import GuestPages
from partitions.boundary.turns import Turns

T = TypeVar("T")
VERSION = 1
_PAGE_SPACE = 1 << 51
"""Pages past all that 63 bits of an address can name."""
MOST_RAISED = 1024
"""Interrupts that wait for the guest's next turn to be told; a guest that has a timer and never halts gets no turn."""


class BoundaryLog:
    """Makes the lines of one VM, from its guest's tasks; `write` gets each."""

    def __init__(self, turns: Turns, write: Callable[[bytes], None]) -> None:
        self.turns = turns
        self._write = write
        self._pages: GuestPages | None = None
        self._machines: Sequence[TaskVp] = ()
        self._opened = (-1, -1)
        """The turn that the last line belongs to."""
        self._looked = (-1, -1)
        """The turn at whose beginning the root's stores were last looked for."""
        self._raised: list[protocol.Interrupted] = []

    @property
    def live(self) -> bool:
        """Whether the guest has power."""
        return self._pages is not None and not self._machines[0].gone

    def interrupted(self, event: TraceEvent) -> None:
        """A sink for the interrupts of this VM's processors."""
        if event.layer is Layer.INTERRUPT and self._machines and event.partition == self._machines[0].vp.partition.id:
            self._raised.append(protocol.Interrupted(vp=event.fields["vp"], vector=event.fields["vector"]))
            if len(self._raised) == MOST_RAISED:
                self._tell_raised()

    def over(self, line: object) -> None:
        """The guest has ended by itself; what its processors' executor does now is not its doing."""
        if self.live:
            self.end()
            self.say(line)
            self._pages = None

    def gone(self) -> None:
        """The guest's last task has ended. How long that takes is nobody's doing, and yet all else waits for it."""
        self.say({"event": "gone"})

    # --- by the guest's tasks

    def boot(self, machines: Sequence[TaskVp]) -> None:
        """Power on; the task that calls it is the guest's first."""
        self._machines = machines
        self._pages = GuestPages(machines[0].memory)
        self._raised.clear()
        self.turns.first_of_the_last(trio.lowlevel.current_task())
        self.say({"event": "boot"})
        self.root()

    def begin(self) -> None:
        """The guest is about to run: what the root has stored since it last did."""
        now = self.turns.now
        if self.live and now != self._looked:
            self._looked = now
            assert self._pages is not None
            stores = list(self._pages.changes())
            if stores:
                self._open(now)
                self._tell_stores("event", "wrote", stores)

    def end(self) -> None:
        """The guest has run, or is about to make a trap: its stores."""
        if self.live:
            assert self._pages is not None
            self._tell_stores("op", "write", list(self._pages.changes()))

    def root(self) -> None:
        """The root has run within the guest's turn, as in a trap: interrupts and stores."""
        assert self._pages is not None
        self._tell_raised()
        self._tell_stores("event", "wrote", list(self._pages.changes()))

    def say(self, line: object) -> None:
        """One line, behind its turn's."""
        self._open(self.turns.now)
        self._write(protocol.encode(line))

    def _open(self, now: tuple[int, int]) -> None:
        if now != self._opened:
            self._opened = self._looked = now
            self._write(protocol.encode({"op": "turn", "seconds": self.turns.seconds, "turn": self.turns.turn}))
            self._tell_raised()

    def _tell_raised(self) -> None:
        raised, self._raised = self._raised, []
        for event in raised:
            self._write(protocol.encode(event))

    def _tell_stores(self, key: str, word: str, stores: Sequence[tuple[int, bytes]]) -> None:
        for gpa, data in stores:
            self.say({key: word, "gpa": gpa, "data": data.hex()})


class RecordedMachine:
    """A `Machine` that tells the log what its software does with it."""

    def __init__(self, log: BoundaryLog, inner: TaskVp) -> None:
        self._log = log
        self._inner = inner

    @property
    def vp_index(self) -> int:
        """This processor's index."""
        return self._inner.vp_index

    @property
    def memory(self) -> memoryview:
        """The extent at GPA 0."""
        return self._inner.memory

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX."""
        line = {"op": "cpuid", "leaf": leaf, "subleaf": subleaf}
        return self._trap(line, lambda: self._inner.cpuid(leaf, subleaf), _registers)

    def read_msr(self, msr: int) -> int:
        """RDMSR."""
        return self._trap({"op": "rdmsr", "msr": msr}, lambda: self._inner.read_msr(msr), _value)

    def write_msr(self, msr: int, value: int) -> None:
        """WRMSR."""
        self._trap({"op": "wrmsr", "msr": msr, "value": value}, lambda: self._inner.write_msr(msr, value), _done)

    def hypercall(self, control: int, input_gpa: int = 0, output_gpa: int = 0) -> int:
        """The call through the hypercall page."""
        line = {"op": "hypercall", "control": control, "input": input_gpa, "output": output_gpa}
        return self._trap(line, lambda: self._inner.hypercall(control, input_gpa, output_gpa), _returned)

    def port_in(self, port: int, size: int) -> int:
        """IN."""
        return self._trap({"op": "in", "port": port, "size": size}, lambda: self._inner.port_in(port, size), _value)

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT."""
        line = {"op": "out", "port": port, "size": size, "value": value}
        self._trap(line, lambda: self._inner.port_out(port, size, value), _done)

    def _trap(self, line: dict[str, Any], access: Callable[[], T], answer: Callable[[T], object]) -> T:
        if not self._log.live:
            return access()
        self._log.end()
        self._log.say({**line, "vp": self.vp_index})
        return self._told(access, answer)

    def _told(self, access: Callable[[], T], answer: Callable[[T], object]) -> T:
        log = self._log
        try:
            value = access()
        except Intercepted as stopped:
            log.root()
            log.say(_refused(stopped))
            finish = stopped.finish
            raise Intercepted(str(stopped), lambda: self._finished(finish)) from None
        except ProcessorFault as fault:
            log.root()
            log.say(_refused(fault))
            raise
        log.root()
        log.say(answer(value))
        return value

    def _finished(self, finish: Callable[[], T]) -> T:
        """The parent has answered what it intercepted."""
        if not self._log.live:
            return finish()
        self._log.end()
        self._log.say({"event": "finished", "vp": self.vp_index})
        return self._told(finish, _value)

    # --- what has no command

    def read_tsc(self) -> int:
        """RDTSC."""
        value = self._inner.read_tsc()
        if self._log.live:
            self._log.end()
            self._log.say({"event": "tsc", "vp": self.vp_index, "value": value})
        return value

    async def execute(self, access: Callable[[], T]) -> T:
        """`access` makes its trap here."""
        return await self._inner.execute(access)

    async def halt(self) -> int:
        """The vector that ended it."""
        self._log.end()
        vector = await self._inner.halt()
        if self._log.live:
            self._log.say({"event": "halted", "vp": self.vp_index, "vector": vector})
            self._log.root()  # the assist page says whether an EOI is wanted
        return vector

    async def idle(self) -> None:
        """Its register, as far as others can tell."""
        if self._log.live:
            self._log.end()
            self._log.say({"event": "idle", "vp": self.vp_index})
        await self._inner.idle()

    async def sleep_until(self, reference_time: int) -> None:
        """Nobody notices but the guest."""
        await self._inner.sleep_until(reference_time)

    async def work(self, duration: int) -> None:
        """Its processor is charged for it."""
        if self._log.live:
            self._log.end()
            self._log.say({"event": "worked", "vp": self.vp_index, "ticks": duration})
        await self._inner.work(duration)

    def touched(self, gpn: int, count: int) -> None:
        """Its host may give it memory by that; pages that no partition can have mean nothing to it, nor to a record."""
        first = min(max(gpn, 0), _PAGE_SPACE)
        count = min(max(gpn + count, first), _PAGE_SPACE) - first
        if self._log.live:
            self._log.end()
            self._log.say({"event": "touched", "vp": self.vp_index, "gpa": first << PAGE_SHIFT, "value": count})
        self._inner.touched(first, count)


class Watch(trio.abc.Instrument):
    """Tells a log where the guest's steps begin and end."""

    def __init__(self, log: BoundaryLog, *, steps: bool) -> None:
        """Without `steps`, as in a replay: its guest also waits for its turns, and says itself where it runs."""
        self._log = log
        self._steps = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's."""
        if self._steps and self._log.turns.is_last(task):
            self._log.begin()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Trio's."""
        if self._steps and self._log.turns.is_last(task):
            self._log.end()

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """Trio's."""
        if self._log.turns.forget(task):
            self._log.gone()


def recorded(entry: GuestEntry, log: BoundaryLog) -> GuestEntry:
    """The same guest, with a record of it."""

    async def boot(machines: Sequence[Machine]) -> None:
        processors = [machine for machine in machines if isinstance(machine, TaskVp)]
        log.boot(processors)
        await ended(log, entry([RecordedMachine(log, inner) for inner in processors]))

    return boot


async def ended(log: BoundaryLog, guest: Awaitable[None]) -> None:
    """Run a guest and say how it ended, if it does so by itself."""
    try:
        await guest
    except Exception as fault:
        log.over({"event": "raised", "text": f"{type(fault).__name__}: {fault}"})
        raise
    log.over({"event": "ended"})


def _value(value: object) -> object:
    return {"id": None, "ok": True, "value": value}


def _done(_: object) -> object:
    return protocol.Done(id=None)


def _returned(rax: int) -> object:
    return returned(None, rax)


def _registers(values: tuple[int, int, int, int]) -> object:
    eax, ebx, ecx, edx = values
    return protocol.Registers(id=None, eax=eax, ebx=ebx, ecx=ecx, edx=edx)


def _refused(fault: ProcessorFault) -> object:
    return protocol.Refused(id=None, error="fault", message=str(fault), fault=fault_name(fault))
