"""What holds for groups and partitions: the settings of each, and who may have which. Hypervisor.

The scheduler of virtual processors goes by them; that they are followed is its business.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from hypervisor.properties import Property
from hypervisor.scheduler.settings import (
    DEFAULT_PERIOD,
    LAST_GROUP,
    ROOT_GROUP,
    UNCONTROLLED,
    WHOLE,
    GroupSettings,
    PartitionSettings,
)
from hypervisor.trace import Layer

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition


class Controls:
    """One hypervisor's. A partition's are its properties, but for two that Hyper-V has not got."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self.groups: dict[int, GroupSettings] = {}
        self._extras: dict[int, tuple[int, bool]] = {}
        """Period and class of the partitions that differ in them from others, by partition ID."""

    # --- groups

    def set_group(self, group_id: int, wanted: GroupSettings) -> GroupSettings | None:
        """Make or change one; returns what held before. Raises `ValueError`, with nothing changed."""
        if not ROOT_GROUP < group_id <= LAST_GROUP:
            raise ValueError(f"group {group_id}: IDs go from 1 to {LAST_GROUP}")
        above = wanted.parent
        while above != ROOT_GROUP:
            if above == group_id or above not in self.groups:
                raise ValueError(f"group {group_id} cannot be in group {wanted.parent}")
            above = self.groups[above].parent
        before = self.groups.get(group_id)
        self.groups[group_id] = wanted
        return before

    def remove_group(self, group_id: int) -> None:
        """Take one away. Raises `ValueError` while something is in it, `KeyError` where there is none."""
        if self.members(group_id) or any(group.parent == group_id for group in self.groups.values()):
            raise ValueError(f"group {group_id} is not empty")
        del self.groups[group_id]

    def members(self, group_id: int) -> list[Partition]:
        """Partitions that are in a group by their property; not those in groups inside it."""
        partitions = self._hypervisor.partitions.values()
        return [partition for partition in partitions if partition.properties[Property.CPU_GROUP_ID] == group_id]

    def has_processors(self, group_id: int) -> bool:
        """Whether there is a logical processor for who is in a group, or in the machine (0): others may have all."""
        while group_id != ROOT_GROUP:
            group = self.groups[group_id]
            if group.processors is not None:
                return True
            group_id = group.parent
        taken = {lp for group in self.groups.values() for lp in group.processors or ()}
        return len(taken) < self._hypervisor.logical_processors

    # --- partitions

    def set_partition(self, partition: Partition, wanted: PartitionSettings) -> None:
        """All of them at once. Raises `HvError` as HvSetPartitionProperty would, with nothing changed."""
        properties = {
            Property.CPU_GROUP_ID: wanted.group,
            Property.CPU_CAP: wanted.cap,
            Property.CPU_RESERVE: wanted.reserve,
            Property.CPU_WEIGHT: wanted.shares,
        }
        partition.check_cpu(properties)
        partition.properties.update(properties)
        if wanted.period == DEFAULT_PERIOD and not wanted.batch:
            self._extras.pop(partition.id, None)
        else:
            self._extras[partition.id] = wanted.period, wanted.batch

    def void_reserve(self, partition: Partition) -> None:
        """Nothing is guaranteed to one with too many processors, as in Hyper-V: they can never all run at once."""
        lps = self._hypervisor.logical_processors
        if partition.properties[Property.CPU_RESERVE] and len(partition.vps) > lps:
            partition.properties[Property.CPU_RESERVE] = 0
            words = f"{len(partition.vps)} virtual processors on {lps} logical ones: their reserve is set to zero"
            self._hypervisor.trace.warn(Layer.STATE, "cpu_reserve_void", partition.id, words)

    def of(self, partition: Partition) -> PartitionSettings:
        """What holds for a partition now."""
        told = partition.properties
        period, batch = self._extras.get(partition.id, (DEFAULT_PERIOD, False))
        return PartitionSettings(
            *(told[Property.CPU_GROUP_ID], told[Property.CPU_WEIGHT], told[Property.CPU_CAP]),
            *(told[Property.CPU_RESERVE], period, batch),
        )

    def forget(self, partition: Partition) -> None:
        """It has been deleted."""
        self._extras.pop(partition.id, None)

    def frees(self, partition: Partition, working: Collection[Partition]) -> bool:
        """Whether its processors have logical ones for sure, or nobody has asked for anything else.

        `working`: whose each virtual processor is that has ever worked.
        """
        settings = self.of(partition)
        if settings.cap < WHOLE or settings.batch:
            return False
        above = settings.group
        while above != ROOT_GROUP:
            group = self.groups[above]
            if group.cap is not None or group.processors is not None:
                return False
            above = group.parent
        controlled = bool(self.groups) or any(self.of(one) != UNCONTROLLED for one in working)
        return not controlled or len(working) <= self._hypervisor.logical_processors
