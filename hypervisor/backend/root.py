"""The root partition's processors: its software is this process, so an interrupt is a call. Hypervisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import trio

from hypervisor.clock import seconds
from hypervisor.inspect import Branch
from hypervisor.msr import Msr

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor

T = TypeVar("T")


class RootVp:
    """`Machine` and `VpRunner` in one. Interrupts run the handler at once, one after the other, never inside it."""

    __slots__ = ("_arrived", "_handler", "_handling", "_hypervisor", "_vp")

    def __init__(self, hypervisor: Hypervisor, vp: VirtualProcessor) -> None:
        self._hypervisor = hypervisor
        self._vp = vp
        self._handler: Callable[[int], None] | None = None
        self._handling = False
        self._arrived: trio.Event | None = None
        vp.runner = self

    def inspect(self) -> Branch:
        """What it is at."""
        return Branch({"kind": "root", "has_handler": self._handler is not None, "in_handler": self._handling})

    # --- VpRunner

    def interrupt(self, vector: int) -> None:
        """Run the handler, or note the vector for when it is done, or there is one."""
        self._vp.pending.add(vector)
        if self._handler is not None and not self._handling:
            self._dispatch(self._handler)
        elif self._arrived is not None:
            self._arrived.set()

    def suspended(self, suspended: bool) -> None:
        """The root is never suspended."""

    def set_interrupt_handler(self, handler: Callable[[int], None] | None) -> None:
        """`handler(vector)` from now on; what is pending is delivered before this returns."""
        self._handler = handler
        if handler is not None and not self._handling:
            self._dispatch(handler)

    def _dispatch(self, handler: Callable[[int], None]) -> None:
        pending = self._vp.pending
        self._handling = True
        try:
            while pending:
                vector = max(pending)  # higher vectors have priority
                pending.discard(vector)
                handler(vector)
        finally:
            self._handling = False

    # --- Machine

    @property
    def vp_index(self) -> int:
        """This processor's index."""
        return self._vp.index

    @property
    def memory(self) -> memoryview:
        """The root's extent at GPA 0; its other memory is reached through blocks."""
        return self._vp.partition.memory.flat_from_zero()

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX."""
        return self._hypervisor.cpuid(self._vp, leaf, subleaf)

    def read_msr(self, msr: int) -> int:
        """RDMSR; raises `GeneralProtection`."""
        return self._hypervisor.read_msr(self._vp, msr)

    def write_msr(self, msr: int, value: int) -> None:
        """WRMSR; raises `GeneralProtection`."""
        self._hypervisor.write_msr(self._vp, msr, value)

    def read_tsc(self) -> int:
        """RDTSC."""
        return self._hypervisor.read_tsc()

    def hypercall(self, control: int, input_gpa: int = 0, output_gpa: int = 0) -> int:
        """The root's hypercalls, by the same door as a child's."""
        return self._hypervisor.hypercall(self._vp, control, input_gpa, output_gpa)

    def port_in(self, port: int, size: int) -> int:
        """No device of the root is modelled: all ones."""
        return self._hypervisor.port_in(self._vp, port, size)

    def port_out(self, port: int, size: int, value: int) -> None:
        """No device of the root is modelled: lost."""
        self._hypervisor.port_out(self._vp, port, size, value)

    async def execute(self, access: Callable[[], T]) -> T:
        """The root has no parent that could intercept anything."""
        return access()

    async def halt(self) -> int:
        """Until an interrupt is pending; for root software without a handler."""
        while not self._vp.pending:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        vector = max(self._vp.pending)
        self._vp.pending.discard(vector)
        return vector

    async def idle(self) -> None:
        """Until an interrupt is pending; for root software without a handler."""
        self.read_msr(Msr.GUEST_IDLE)
        while not self._vp.pending:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()

    async def sleep_until(self, reference_time: int) -> None:
        """Until the root's reference time has come."""
        time = self._vp.partition.reference_time
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            left = reference_time - time.now()
            if left <= 0:
                return
            await trio.sleep(seconds(left))

    async def work(self, duration: int) -> None:
        """Root software is real; its time passes by itself."""
        await self.sleep_until(self._vp.partition.reference_time.now() + duration)
        self._vp.runtime += duration

    def touched(self, gpn: int, count: int) -> None:
        """Nobody balances the root's memory."""
