"""The seam between the hypervisor and whatever executes virtual processors. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import trio

if TYPE_CHECKING:
    from hypervisor.partition import Partition


class VpRunner(Protocol):
    """One processor's execution, installed as `VirtualProcessor.runner`."""

    def interrupt(self, vector: int) -> None:
        """Make an edge interrupt pending and kick. Never blocks; never runs guest code in the caller's stack.

        The root's processor is the exception: its handler runs at once, and never inside itself.
        """

    def suspended(self, suspended: bool) -> None:
        """The processor may not execute any more, or may again."""


@runtime_checkable
class RegisterFile(VpRunner, Protocol):
    """A runner whose processor keeps registers of its own, by TLFS name (`processor_registers`)."""

    def get_register(self, name: int) -> int | None:
        """Its value; None where the runner does not keep that one, and the hypervisor's copy counts."""

    def set_register(self, name: int, value: int) -> bool:
        """Write it; False as above."""


class InterceptSink(Protocol):
    """The parent's side of intercepts, installed on `Partition.intercepts` by the root's worker. Synchronous."""

    def port_read(self, vp_index: int, port: int, size: int) -> int:
        """IN of 1, 2 or 4 bytes."""

    def port_write(self, vp_index: int, port: int, size: int, value: int) -> None:
        """OUT of 1, 2 or 4 bytes."""


class Backend(Protocol):
    """A way of executing partitions."""

    async def run(self, partition: Partition, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Execute all processors until cancelled, which is power off, or until the guest's software ends."""

    def set_line(self, line: int, high: bool) -> None:
        """Drive an input of the guest's interrupt controllers; nothing where it has none."""


@runtime_checkable
class SavableBackend(Backend, Protocol):
    """A backend that says whether its guests can be saved, and if so has them go on from a saved state."""

    @property
    def cannot_save(self) -> str:
        """Why this guest cannot; empty if it can."""

    async def run(
        self,
        partition: Partition,
        *,
        restored: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """With `restored` the partition's state is a saved guest's, which goes on."""
