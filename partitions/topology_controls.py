"""The tables of resource control in a topology: reserve, limit and weight, for VMs, disks and pools. Root side.

Everywhere the default means "no control": nothing reserved, no limit, the weight that all others have.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from partitions.topology_units import Rate, Size

if TYPE_CHECKING:
    from partitions.topology_schema import VmTable

DEFAULT_WEIGHT: Final = 100
DEFAULT_PERIOD_MS: Final = 10
DEFAULT_MEMORY_WEIGHT: Final = 5000
DEFAULT_BUFFER: Final = 20
"""Percent."""
MOST_IOPS: Final = 1_000_000_000
MOST_PROCESSORS: Final = 512
"""Logical processors of a host."""

Weight = Annotated[
    int, Meta(ge=1, le=10000, description="What it gets beside its siblings where they contend, 1 to 10000.")
]
PeriodMs = Annotated[
    int, Meta(ge=1, le=1000, description="Milliseconds in which the limit is counted: short ones make short pauses.")
]
Name = Annotated[
    str,
    Meta(
        description="1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit; unique among its kind.",
        extra_json_schema={"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"},
    ),
]


def amount(description: str, default: object) -> Meta:
    """The description of a size or a rate, with its default as it would be written."""
    return Meta(description=description, extra_json_schema={"default": default})


class CpuClass(enum.StrEnum):
    """How a VM stands to the others' processor time."""

    NORMAL = "normal"
    BATCH = "batch"
    """Only what no normal VM can use."""


class CpuTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Processor controls of a VM, in percent of one logical processor for each virtual one."""

    reserve: Annotated[
        float, Meta(ge=0, le=100, description="Guaranteed while the guest wants it; checked when the VM starts.")
    ] = 0.0
    limit: Annotated[
        float, Meta(gt=0, le=100, description="Never more, also where the host is idle; 100 is no limit.")
    ] = 100.0
    weight: Weight = DEFAULT_WEIGHT
    pool: Annotated[str, Meta(description="The [[pool]] for its processors alone, in place of the VM's `pool`.")] = ""
    period_ms: PeriodMs = DEFAULT_PERIOD_MS
    class_: Annotated[
        CpuClass, Meta(description='"batch" gets only what no "normal" VM can use, whatever its weight.')
    ] = msgspec.field(default=CpuClass.NORMAL, name="class")


class MemoryInUse(enum.StrEnum):
    """What the host takes for used of a VM's memory."""

    COMMITTED = "committed"
    """All that its guest has committed."""
    SAMPLED = "sampled"
    """What its guest touches, by a sample of its pages."""


class DynamicMemoryTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Memory that comes and goes with the guest's demand; the VM's `memory` is what it starts with."""

    minimum: Annotated[
        Size | None, Meta(description="Never less, and reserved; a multiple of 2 MiB. By default the VM's `memory`.")
    ] = None
    maximum: Annotated[
        Size | None, Meta(description="Never more; a multiple of 2 MiB. By default the VM's `memory`.")
    ] = None
    buffer: Annotated[int, Meta(ge=0, le=2000, description="Percent of its demand that it gets on top.")] = (
        DEFAULT_BUFFER
    )
    weight: Weight = DEFAULT_MEMORY_WEIGHT


class IopsTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Disk controls, in normalized I/O operations a second: one for each 8 KiB that is begun."""

    reserve: Annotated[int, Meta(ge=0, le=MOST_IOPS, description="Guaranteed while there are requests.")] = 0
    limit: Annotated[int, Meta(ge=0, le=MOST_IOPS, description="Never more; 0 is no limit.")] = 0
    weight: Weight = DEFAULT_WEIGHT


class PoolCpuTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Processor controls of a pool, in percent of one logical processor: 250 is two and a half."""

    reserve: Annotated[float, Meta(ge=0, le=100 * MOST_PROCESSORS, description="Guaranteed to all in it together.")] = (
        0.0
    )
    limit: Annotated[
        float, Meta(ge=0, le=100 * MOST_PROCESSORS, description="Never more for all in it together; 0 is no limit.")
    ] = 0.0
    weight: Weight = DEFAULT_WEIGHT
    period_ms: PeriodMs = DEFAULT_PERIOD_MS


class PoolMemoryTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Memory controls of a pool."""

    reserve: Annotated[Size, amount("Guaranteed to all in it together.", 0)] = msgspec.field(
        default_factory=lambda: Size(0)
    )
    limit: Annotated[Size, amount("Never more for all in it together; 0 is no limit.", 0)] = msgspec.field(
        default_factory=lambda: Size(0)
    )
    weight: Weight = DEFAULT_MEMORY_WEIGHT


class PoolNetworkTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Network controls of a pool, in bits a second."""

    reserve: Annotated[Rate, amount("Guaranteed to all in it together.", 0)] = msgspec.field(
        default_factory=lambda: Rate(0)
    )
    limit: Annotated[Rate, amount("Never more for all in it together; 0 is no limit.", 0)] = msgspec.field(
        default_factory=lambda: Rate(0)
    )
    weight: Weight = DEFAULT_WEIGHT


class PoolTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A resource pool: VMs, and pools, that share controls."""

    name: Name
    parent: Annotated[str, Meta(description="The pool that it is in; the host by default.")] = ""
    expandable: Annotated[
        bool, Meta(description="What it cannot reserve for those in it, it may take of its parent's.")
    ] = True
    processors: Annotated[
        str,
        Meta(
            description='Logical processors that its VMs may use, such as "0-3"; for pools without parent. Default all.'
        ),
    ] = ""
    cpu: PoolCpuTable | None = None
    memory: PoolMemoryTable | None = None
    disk: IopsTable | None = None
    network: PoolNetworkTable | None = None


def has_controls(vms: Iterable[VmTable], pools: Iterable[PoolTable]) -> bool:
    """Whether anybody asked for resource control; where not, nothing of it is loaded."""
    return any(True for _ in pools) or any(vm_has_controls(vm) for vm in vms)


def vm_has_controls(vm: VmTable) -> bool:
    """The same for one VM's table."""
    return (
        vm.cpu is not None
        or bool(vm.pool)
        or vm.dynamic_memory is not None
        or any(disk.iops is not None for disk in vm.disk)
        or any(getattr(nic, "bandwidth", None) is not None for nic in vm.nic)
    )


def memory_range(vm: VmTable) -> tuple[int, int]:
    """The least and the most memory of a VM, in bytes: the same twice unless it is dynamic."""
    dynamic = vm.dynamic_memory
    if dynamic is None:
        return vm.memory, vm.memory
    least = vm.memory if dynamic.minimum is None else dynamic.minimum
    most = vm.memory if dynamic.maximum is None else dynamic.maximum
    return least, most
