"""What the processor scheduler is told of groups and partitions. Hypervisor."""

from __future__ import annotations

from typing import Protocol

import attrs

from hypervisor.properties import WHOLE_PROCESSOR

DEFAULT_SHARES = 100
WHOLE = WHOLE_PROCESSOR
"""One logical processor: caps and reserves are in 1/65536 of one."""
DEFAULT_PERIOD = 10_000_000
"""Nanoseconds after which a cap's budget is filled up again."""
ROOT_GROUP = 0
"""The machine itself; groups have IDs from 1 on."""
LAST_GROUP = 0xFFFF
"""Virtual processors are siblings of groups, and their numbers begin behind."""


class Gate(Protocol):
    """What lets a thread execute a virtual processor, for those that the host's own kernel runs (KVM's vCPUs).

    All are called in the Trio thread and return at once.
    """

    def may_run(self, allowed: bool) -> None:
        """Whether the thread may be inside the guest from now on. Denied, it is kicked out; it may leave a bit later.

        Its overrun is seen in `cpu_time` and charged. A gate that nobody has told anything lets through.
        """

    def cpu_time(self) -> int:
        """Nanoseconds of the host's processors that the thread has used inside the guest. Never falls."""

    def halted(self) -> bool:
        """Whether the guest has nothing to do: its thread is inside and asleep, or has not begun yet."""


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


UNCONTROLLED = PartitionSettings()


@attrs.frozen
class CpuTimes:
    """How a virtual processor, or all of a group, spent its time, in nanoseconds. The first four sum up to its life."""

    run: int = 0
    """On a logical processor."""
    ready: int = 0
    """With work and budget, while others had the logical processors (esxtop's %RDY)."""
    capped: int = 0
    """With work and without budget (%MLMTD)."""
    halted: int = 0
    """Without work, or suspended (%WAIT)."""
    dispatches: int = 0
    """How often it was given a logical processor."""
    waited: int = 0
    """From when it was ready to when it was dispatched, all waits together."""
    longest_wait: int = 0
    """The longest of them: what a period of a second does to a guest, and an average hides."""

    @property
    def life(self) -> int:
        """All of it."""
        return self.run + self.ready + self.capped + self.halted

    @property
    def stolen(self) -> int:
        """What a guest had work for and did not get; it cannot tell why."""
        return self.ready + self.capped

    @property
    def wait_per_dispatch(self) -> int:
        """Hyper-V's "CPU Wait Time Per Dispatch"."""
        return self.waited // self.dispatches if self.dispatches else 0
