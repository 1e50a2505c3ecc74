"""Virtual processors as Trio tasks: model guests, cooperative and deterministic. Hypervisor.

A guest is a coroutine function over its `Machine`s. All its tasks live below the nursery of `TaskBackend.run`, so
cancelling that is cutting its power. Guests share the thread with the root: this backend models, it does not contain.
What it can do against a guest that will not end is done: shields go with the power, and who is still there is named.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import trio

from hypervisor.backend import watchdog
from hypervisor.backend.shields import drop_shields
from hypervisor.clock import NS_PER_TICK, seconds
from hypervisor.inspect import Branch
from hypervisor.machine import Intercepted, Machine, VpStopped
from hypervisor.msr import Msr
from hypervisor.reference_time import tsc_from_clock
from hypervisor.trace import Layer

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

T = TypeVar("T")
GuestEntry = Callable[[Sequence[Machine]], Awaitable[None]]
"""What the guest runs, given one machine for each of its processors."""

UNWIND_SECONDS = 5.0
"""How long the tasks of a guest without power may take to end before the guest is named."""
_PROMPT_STEPS, _FIRST_PAUSE, _LAST_PAUSE = 50, 0.001, 0.05
"""Turns of Trio's loop in which nearly every guest has ended, then seconds between looks at one that has not."""


class TaskVp:
    """`Machine` and `VpRunner` in one. Traps are calls; in `halt`, `sleep_until` and `work` the guest lets go."""

    __slots__ = ("_hypervisor", "_idle", "_parked", "_resumed", "gone", "vp")

    def __init__(self, hypervisor: Hypervisor, vp: VirtualProcessor) -> None:
        self._hypervisor = hypervisor
        self.vp = vp
        self._parked: trio.lowlevel.Task | None = None
        """The task in `halt`, while it sleeps."""
        self._idle: trio.Event | None = None
        """While software idles: set by the next interrupt."""
        self._resumed: trio.Event | None = trio.Event() if vp.suspended else None
        """While the processor is suspended: set when it is no more."""
        self.gone = False
        """Power is off: every further trap stops the software that makes it."""
        vp.runner = self

    def detach(self) -> None:
        """The backend executes this processor no more; software that still runs is stopped at its next trap."""
        self.gone = True
        if self.vp.runner is self:
            self.vp.runner = None

    def inspect(self) -> Branch:
        """What it is at."""
        return Branch(
            {
                "kind": "task",
                "halted": self._parked is not None,
                "suspended": self._resumed is not None,
                "power": not self.gone,
            }
        )

    # --- VpRunner

    def interrupt(self, vector: int) -> None:
        """Remember the vector, and schedule the task in `halt`; it runs when the caller lets go."""
        vp = self.vp
        vp.pending.add(vector)
        if vp.vp_assist:
            vp.assist_eoi(last=False)
        if self._idle is not None:
            self._idle.set()
            self._idle = None
        if self._resumed is None:
            self._kick()

    def suspended(self, suspended: bool) -> None:
        """Interrupts are withheld and awaits do not return until the processor may run again."""
        if suspended:
            if self._resumed is None:
                self._resumed = trio.Event()
        elif self._resumed is not None:
            self._resumed.set()
            self._resumed = None
            if self.vp.pending:
                self._kick()

    def _kick(self) -> None:
        task = self._parked
        if task is not None:
            self._parked = None
            trio.lowlevel.reschedule(task)

    async def runnable(self) -> None:
        """Until the processor is not suspended."""
        while self._resumed is not None:
            await self._resumed.wait()

    # --- Machine: traps

    @property
    def vp_index(self) -> int:
        """This processor's index."""
        return self.vp.index

    @property
    def memory(self) -> memoryview:
        """The extent at GPA 0."""
        return self.vp.partition.memory.flat_from_zero()

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX."""
        self._trap()
        return self._hypervisor.cpuid(self.vp, leaf, subleaf)

    def read_msr(self, msr: int) -> int:
        """RDMSR; raises `GeneralProtection`."""
        self._trap()
        return self._hypervisor.read_msr(self.vp, msr)

    def write_msr(self, msr: int, value: int) -> None:
        """WRMSR; raises `GeneralProtection`."""
        self._trap()
        self._hypervisor.write_msr(self.vp, msr, value)

    def read_tsc(self) -> int:
        """RDTSC."""
        return tsc_from_clock(self._hypervisor.clock_of(self.vp))

    def hypercall(self, control: int, input_gpa: int = 0, output_gpa: int = 0) -> int:
        """The call through the hypercall page; raises `InvalidOpcode`."""
        self._trap()
        return self._hypervisor.hypercall(self.vp, control, input_gpa, output_gpa)

    def port_in(self, port: int, size: int) -> int:
        """IN; an intercept that the parent answers."""
        self._trap()
        return self._hypervisor.port_in(self.vp, port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT; an intercept that the parent answers."""
        self._trap()
        self._hypervisor.port_out(self.vp, port, size, value)

    def _trap(self) -> None:
        if self.gone or self.vp.intercept_suspend:
            raise VpStopped("this processor is stopped")

    # --- Machine: where the guest lets go

    async def execute(self, access: Callable[[], T]) -> T:
        """One access to its end, waiting for the parent's answer where it is intercepted."""
        while True:
            await self.runnable()
            if self.gone:
                raise VpStopped("this processor is stopped")
            try:
                return access()
            except Intercepted as stopped:
                access = stopped.finish

    async def halt(self) -> int:
        """The highest pending vector, once there is one and the processor may run. One task a processor halts it."""
        pending = self.vp.pending
        if pending and self._resumed is None:
            await trio.lowlevel.checkpoint_if_cancelled()
        while not pending or self._resumed is not None:
            if self.gone:
                raise VpStopped("this processor is stopped")
            if self._parked is not None:
                raise RuntimeError("two tasks halt one processor")
            self._parked = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort_halt)
        vector = max(pending)
        pending.discard(vector)
        if self.vp.vp_assist:
            self.vp.assist_eoi(last=not pending)
        return vector

    async def idle(self) -> None:
        """RDMSR of HV_X64_MSR_GUEST_IDLE: until an interrupt comes, or at once if one is pending; it is not taken."""
        self.read_msr(Msr.GUEST_IDLE)
        if self.vp.pending:
            await trio.lowlevel.checkpoint()
        else:
            if self._idle is None:
                self._idle = trio.Event()
            await self._idle.wait()
        await self.runnable()

    def _abort_halt(self, _: object) -> trio.lowlevel.Abort:
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def sleep_until(self, reference_time: int) -> None:
        """Not before the partition's reference time has come; that stands while all its processors are suspended."""
        time, lateness = self.vp.partition.reference_time, self._hypervisor.scheduler.lateness
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            await self.runnable()
            left = reference_time - time.now()
            if left <= 0:
                break
            await trio.sleep(seconds(left))
            lateness.woken((time.now() - reference_time) * NS_PER_TICK)
        if lateness.turns:  # who has slept goes on from now, whenever its work was done before
            self.vp.partition.clock_read = self._hypervisor.clock()

    async def work(self, duration: int) -> None:
        """Keep the processor busy for `duration` of 100 ns, which takes as long as its share of the host makes it take.

        Other work of the same processor waits its turn.
        """
        await self._hypervisor.scheduler.run(self.vp, duration)
        await self.runnable()

    def touched(self, gpn: int, count: int) -> None:
        """These pages have been accessed; who keeps an account of that hears of it."""
        self._trap()
        partition = self.vp.partition
        partition.counters["touches"] += 1
        if partition.on_touch is not None:
            partition.on_touch(gpn, count)


class TaskBackend:
    """Executes one partition's guest software in this thread."""

    def __init__(self, hypervisor: Hypervisor, entry: GuestEntry, resume: GuestEntry | None = None) -> None:
        """`resume` is run in place of `entry` where the partition's state is that of a guest that was saved."""
        self._hypervisor = hypervisor
        self._entry = entry
        self._resume = resume
        self.failure: BaseException | None = None
        """What the guest's software raised, for the worker to keep."""

    def inspect(self) -> Branch:
        """How far it keeps a guest's software away from everything else: it cannot."""
        return Branch({"kind": "task", "contained": False, "preempts": False, "cannot_save": self.cannot_save or None})

    @property
    def cannot_save(self) -> str:
        """Why the guest cannot be saved; empty if it can."""
        if self._resume is not None:
            return ""
        return "the frames of a Python program cannot be saved, and it has no `async def resume(guest)` to go on with"

    def set_line(self, line: int, high: bool) -> None:
        """Model guests have no interrupt controller besides the SynIC."""

    async def run(
        self,
        partition: Partition,
        *,
        restored: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the guest until it returns or is cancelled. Its exceptions become an unrecoverable exception of VP 0."""
        entry = self._entry
        if restored:
            assert self._resume is not None, "asked by `cannot_save` before"
            entry = self._resume
        machines = [TaskVp(self._hypervisor, partition.vps[index]) for index in sorted(partition.vps)]

        def power_off(_: object) -> trio.lowlevel.Abort:
            for machine in machines:
                machine.detach()
            return trio.lowlevel.Abort.SUCCEEDED

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._boot, partition, machines, nursery, entry)
            task_status.started()
            # Trio calls this within `cancel()`, before any task of the guest runs again. So what the guest does while
            # it is being unwound, in a `finally` say, reaches nobody: a machine without power does not tidy up.
            try:
                await trio.lowlevel.wait_task_rescheduled(power_off)
            finally:
                await self._unwind(partition, nursery)

    async def _unwind(self, partition: Partition, nursery: trio.Nursery) -> None:
        """Power is off: until the guest's last task has ended. One that swallows its cancellation is waited for."""
        limit = trio.current_time() + UNWIND_SECONDS
        turns, pause, named = 0, _FIRST_PAUSE, False
        with trio.CancelScope(shield=True) as ours:
            while nursery.child_tasks:
                drop_shields(nursery, keep=ours)
                if turns < _PROMPT_STEPS:
                    turns += 1
                    await trio.lowlevel.checkpoint()
                    continue
                await trio.sleep(pause)
                pause = min(2 * pause, _LAST_PAUSE)
                if not named and trio.current_time() >= limit:
                    named = True
                    words = "the guest's software does not end though its power is off; the host waits for it"
                    self._hypervisor.trace.warn(Layer.STATE, "guest_outlives_power", partition.id, words)

    async def _boot(
        self, partition: Partition, machines: Sequence[TaskVp], nursery: trio.Nursery, entry: GuestEntry
    ) -> None:
        """The guest's first task; all others are below it."""
        hypervisor = self._hypervisor
        with watchdog.watching(hypervisor.trace, partition.id):
            try:
                await machines[0].runnable()
                await entry(machines)
            except (KeyboardInterrupt, GeneratorExit):
                raise  # the user's, and the interpreter's
            except BaseException as raised:
                group = raised if isinstance(raised, BaseExceptionGroup) else BaseExceptionGroup("", [raised])
                # While there is power nobody cancels a guest but itself: a Cancelled that comes is one that it kept.
                gone = machines[0].gone
                ours = group.subgroup((KeyboardInterrupt, trio.Cancelled) if gone else KeyboardInterrupt)
                if ours is not None:
                    raise ours from None  # what a guest raises while its power is cut is of no interest
                if not gone:
                    await self._stopped(machines[0], raised, group)
        nursery.cancel_scope.cancel()

    async def _stopped(self, machine: TaskVp, raised: BaseException, group: BaseExceptionGroup[BaseException]) -> None:
        if group.split(VpStopped)[1] is None:
            # The parent has been told why. The processor stands still until the parent does something about it.
            await trio.sleep_forever()
        self.failure = raised
        text = "".join(traceback.format_exception(raised))
        self._hypervisor.unrecoverable_exception(machine.vp, text)
