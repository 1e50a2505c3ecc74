"""The processor scheduler on the hypervisor's clock: whose work is done when, and who is told. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor

NS_PER_TICK = 100
"""The hypervisor's clock counts 100 ns, the scheduler nanoseconds."""
DEFAULT_SHARES = 100
WHOLE = 0x10000
"""One logical processor: caps and reserves are in 1/65536 of one."""
DEFAULT_PERIOD = 10_000_000
"""Nanoseconds after which a cap's budget is filled up again."""
ROOT_GROUP = 0
"""The machine itself; groups have IDs from 1 on."""


class Gate(Protocol):
    """What lets a thread execute a virtual processor, for those that the host's own kernel runs (KVM's vCPUs).

    Both are called in the Trio thread and return at once.
    """

    def may_run(self, allowed: bool) -> None:
        """Whether the thread may be inside the guest from now on. Denied, it is kicked out; it may leave a bit later.

        Its overrun is seen in `cpu_time` and charged. A gate that nobody has told anything lets through.
        """

    def cpu_time(self) -> int:
        """Nanoseconds of the host's processors that the thread has used inside the guest. Never falls."""


@attrs.frozen
class GroupSettings:
    """A pool's processors, which is a CPU group where it is one level deep."""

    name: str
    parent: int = ROOT_GROUP
    shares: int = DEFAULT_SHARES
    cap: int | None = None
    """In 1/65536 of a logical processor for all that is in it together; more than one processor is fine."""
    reserve: int = 0
    period: int = DEFAULT_PERIOD
    processors: tuple[int, ...] | None = None
    """The logical processors that it may use; only of a group below the machine itself."""


@attrs.frozen
class PartitionSettings:
    """A partition's, the figures for each of its virtual processors."""

    group: int = ROOT_GROUP
    shares: int = DEFAULT_SHARES
    cap: int = WHOLE
    reserve: int = 0
    period: int = DEFAULT_PERIOD
    batch: bool = False
    """Gets only what no other wants."""


class CpuScheduler:
    """One hypervisor's. Groups and partitions may change at any time, with those that run in them."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self.groups: dict[int, GroupSettings] = {}
        self.partitions: dict[int, PartitionSettings] = {}
        """Those that differ from the default, by partition ID."""
        self.gates: dict[VirtualProcessor, Gate] = {}

    # --- who shares what

    def set_group(
        self,
        group_id: int,
        parent_id: int = ROOT_GROUP,
        name: str = "",
        shares: int = DEFAULT_SHARES,
        cap: int | None = None,
        reserve: int = 0,
        period: int = DEFAULT_PERIOD,
        processors: tuple[int, ...] | None = None,
    ) -> None:
        """Make a group, or change or move one; `group_id` counts from 1, `parent_id` 0 is the machine."""
        self.groups[group_id] = GroupSettings(name, parent_id, shares, cap, reserve, period, processors)

    def remove_group(self, group_id: int) -> None:
        """Take away a group that is empty."""
        del self.groups[group_id]

    def set_partition(
        self,
        partition_id: int,
        group_id: int = ROOT_GROUP,
        *,
        shares: int = DEFAULT_SHARES,
        cap: int = WHOLE,
        reserve: int = 0,
        period: int = DEFAULT_PERIOD,
        batch: bool = False,
    ) -> None:
        """All of a partition's settings at once, before it runs or while it does; its properties say the same after.

        Each of its processors is a sibling of what else is in the group, as Hyper-V has it: weights, caps and
        reserves are per virtual processor.
        """
        self.partitions[partition_id] = PartitionSettings(group_id, shares, cap, reserve, period, batch)

    # --- processors that threads execute

    def attach_runner(self, vp: VirtualProcessor, gate: Gate) -> None:
        """A thread executes `vp` from now on. While nothing is controlled the gate is not touched."""
        self.gates[vp] = gate

    def detach_runner(self, vp: VirtualProcessor) -> None:
        """The thread has ended; its gate is not called again."""
        self.gates.pop(vp, None)
