"""A virtual processor as the software on it sees it. Both sides.

This is the whole boundary: memory bytes, hypercalls, synthetic registers, interrupts and intercepts. Model guests get a
`Machine` from the `task` and `process` backends; the root's own software gets one too. A real kernel under KVM gets the
processor itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class ProcessorFault(Exception):
    """An exception that the processor raises in the software that caused it."""


class GeneralProtection(ProcessorFault):
    """#GP: a register that is not there, not permitted or not given that value."""


class InvalidOpcode(ProcessorFault):
    """#UD: a hypercall where none is legal."""


class VpStopped(ProcessorFault):
    """The hypervisor suspended this VP on an intercept, or its partition is gone; the software does not go on."""


class Intercepted(VpStopped):
    """The parent has this access to answer, and has not done so yet; `Machine.execute` waits for it."""

    def __init__(self, words: str, finish: Callable[[], Any]) -> None:
        super().__init__(words)
        self.finish = finish
        """To be called when the processor may run again: what the access gives, or the fault that it raises."""


class Machine(Protocol):
    """One virtual processor. What is not a coroutine is a trap: synchronous and atomic."""

    @property
    def vp_index(self) -> int:
        """This processor's index; software reads it from HV_X64_MSR_VP_INDEX too."""

    @property
    def memory(self) -> memoryview:
        """Guest physical memory from GPA 0, the extent that holds it; writable, format `B`."""

    def cpuid(self, leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX."""

    def read_msr(self, msr: int) -> int:
        """RDMSR; raises `GeneralProtection`."""

    def write_msr(self, msr: int, value: int) -> None:
        """WRMSR; raises `GeneralProtection`."""

    def read_tsc(self) -> int:
        """RDTSC, at HV_X64_MSR_TSC_FREQUENCY ticks a second."""

    def hypercall(self, control: int, input_gpa: int = 0, output_gpa: int = 0) -> int:
        """The call through the hypercall page: RCX, RDX, R8 in, RAX out; rep calls run to their end.

        Raises `InvalidOpcode`, and `VpStopped` where the call ended in an intercept.
        """

    def port_in(self, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes; an intercept."""

    def port_out(self, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes; an intercept."""

    async def execute(self, access: Callable[[], T]) -> T:
        """One access to its end, for software whose parent may intercept it: `await m.execute(lambda: m.read_msr(1))`.

        An access that is made without it raises `VpStopped` where the parent does not answer in its interrupt.
        """

    async def halt(self) -> int:
        """HLT: until an interrupt is pending; returns its vector and takes it. At once if one is pending already."""

    async def idle(self) -> None:
        """RDMSR of HV_X64_MSR_GUEST_IDLE: until an interrupt is pending, which is not taken, IF set or not.

        Raises `GeneralProtection`. `read_msr` of it cannot wait, and comes out of idle at once.
        """

    async def sleep_until(self, reference_time: int) -> None:
        """Intercept for model guests: not before the partition's reference time (100 ns) has reached this."""

    async def work(self, duration: int) -> None:
        """Intercept for model guests: keep the virtual processor busy for so much CPU time (100 ns)."""

    def touched(self, gpn: int, count: int) -> None:
        """Intercept for model guests: these pages have been accessed, as a processor's accessed bits would tell."""
