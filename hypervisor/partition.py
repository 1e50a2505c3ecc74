"""The hypervisor's record of a partition: state, rights, properties, memory pool, and what it owns. Hypervisor."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import attrs
import msgspec

from hypervisor.blocks import MemoryBlock
from hypervisor.clock import seconds
from hypervisor.cpuid import DEFAULT_FEATURES, CpuidFeatures
from hypervisor.inspect import Branch, Claim, Hex, Many, by_hex, counters
from hypervisor.memory import GuestMemory
from hypervisor.overlay import OverlayMap
from hypervisor.privileges import CHILD_PRIVILEGES, ROOT_PRIVILEGES, Privilege, privilege_names
from hypervisor.properties import CPU_CONTROLS, PROPERTY_RULES, WHOLE_PROCESSOR, Property, default_properties
from hypervisor.reference_time import ReferenceTime
from hypervisor.registers import PartitionRegisters
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.backend.base import InterceptSink
    from hypervisor.crash import CrashReport
    from hypervisor.debug_port import DebugPort
    from hypervisor.hypercall.saving import RestoreUnderWay, SaveUnderWay
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.interception import Interception
    from hypervisor.synic.ports import Connection, Port
    from hypervisor.vp import VirtualProcessor

ROOT_ID = 1
"""The root partition; IDs of children count up from here and are never used again."""

GRANTABLE_PRIVILEGES = ROOT_PRIVILEGES & ~int(Privilege.CPU_MANAGEMENT)
"""Power states of processors are the root's alone."""


class PartitionState(enum.Enum):
    """Life of a partition (TLFS 2.0a, 5.2.5)."""

    UNINITIALIZED = "uninitialized"
    ACTIVE = "active"
    FINALIZING = "finalizing"
    FINALIZED = "finalized"
    DELETED = "deleted"
    """Not a state that a hypercall can see: the ID is gone. Kept for those who still hold the record."""


class PartitionOperation(enum.Enum):
    """What moves a partition from state to state."""

    INITIALIZE = "initialize"
    BEGIN_FINALIZE = "begin finalize"
    END_FINALIZE = "end finalize"
    DELETE = "delete"


TRANSITIONS: dict[tuple[PartitionState, PartitionOperation], PartitionState] = {
    (PartitionState.UNINITIALIZED, PartitionOperation.INITIALIZE): PartitionState.ACTIVE,
    (PartitionState.UNINITIALIZED, PartitionOperation.DELETE): PartitionState.DELETED,
    (PartitionState.ACTIVE, PartitionOperation.BEGIN_FINALIZE): PartitionState.FINALIZING,
    (PartitionState.FINALIZING, PartitionOperation.BEGIN_FINALIZE): PartitionState.FINALIZING,
    (PartitionState.FINALIZING, PartitionOperation.END_FINALIZE): PartitionState.FINALIZED,
    (PartitionState.FINALIZED, PartitionOperation.DELETE): PartitionState.DELETED,
}
"""Every legal move; all others are INVALID_PARTITION_STATE. Finalizing is irreversible."""


class PageCost:
    """What objects cost their partition's pool, in pages. The amounts are ours; the specification names none."""

    PARTITION = 2
    """HvCreatePartition, from the caller's pool until the partition is deleted."""
    INITIALIZE = 6
    """HvInitializePartition, from the partition's own pool."""
    VP = 8
    """A virtual processor: register file, SynIC pages, intercept and timer buffers."""
    MESSAGE_PORT = 1
    """Sixteen message buffers of 256 bytes."""
    EVENT_PORT = 1
    CONNECTION = 1
    CPUID_INTERCEPT = 1
    """A leaf that the parent answers; other intercepts are bits in pages that the partition has anyway."""
    GPA_REGION = 1
    """A page table for each 2 MiB of GPA space that was ever mapped in; kept until the partition is finalized."""

    REGION_SHIFT = 9
    """2 MiB in pages."""


def pool_pages(*, memory_pages: int, vps: int, ports: int = 0, connections: int = 0) -> int:
    """How many pages to deposit for a partition of this size, so that no create runs out."""
    regions = -(-memory_pages >> PageCost.REGION_SHIFT) + 1
    return (
        PageCost.INITIALIZE
        + regions * PageCost.GPA_REGION
        + vps * PageCost.VP
        + ports * max(PageCost.MESSAGE_PORT, PageCost.EVENT_PORT)
        + connections * PageCost.CONNECTION
    )


class DepositedRun(msgspec.Struct, frozen=True):
    """Adjacent pages in a pool: where they were in the depositor's GPA space, and the memory behind them."""

    gpn: int
    count: int
    block: MemoryBlock
    block_page: int


@attrs.define(eq=False)
class MemoryPool:
    """Pages that the hypervisor holds for one partition. Charges are accounts, not addresses: pages have no content."""

    granted: int = 0
    """Pages that came with the machine (the root's only); they cannot be withdrawn."""
    deposits: list[DepositedRun] = attrs.field(factory=list)
    deposited: int = 0
    in_use: int = 0

    @property
    def available(self) -> int:
        """Pages that no object uses."""
        return self.granted + self.deposited - self.in_use

    @property
    def withdrawable(self) -> int:
        """Pages that can leave the pool now."""
        return max(0, min(self.deposited, self.available))

    def deposit(self, run: DepositedRun) -> None:
        """Take pages in."""
        self.deposits.append(run)
        self.deposited += run.count
        run.block.deposited += run.count

    def inspect(self) -> Branch:
        """Accounts, in pages."""
        return Branch({"deposited": self.deposited, "in_use": self.in_use, "available": self.available})

    def withdraw(self, limit: int) -> DepositedRun | None:
        """Give at most `limit` adjacent pages out, the newest first; None when none is free."""
        count = min(limit, self.withdrawable)
        if count == 0:
            return None
        run = self.deposits.pop()
        count = min(count, run.count)
        kept = run.count - count
        if kept:
            self.deposits.append(msgspec.structs.replace(run, count=kept))
        self.deposited -= count
        run.block.deposited -= count
        return DepositedRun(run.gpn + kept, count, run.block, run.block_page + kept)


class Doorbells(Protocol):
    """A backend's shortcut for signaled events; told of the partition's connections as they come and go."""

    def attach(self, connection: Connection) -> None:
        """A connection has been made."""

    def detach(self, connection: Connection) -> None:
        """The connection is gone."""


@attrs.define(eq=False)
class Partition:
    """One partition. Fields are plain on purpose: the hypervisor's parts read them, hypercalls and MSRs change them."""

    hypervisor: Hypervisor = attrs.field(repr=False)
    id: int
    parent_id: int
    memory: GuestMemory = attrs.field(repr=False)
    label: str = ""
    """The name that people gave it; traces print it."""
    depth: int = 1
    """1 for the root, 2 for its children."""
    state: PartitionState = PartitionState.UNINITIALIZED
    privileges: int = CHILD_PRIVILEGES
    properties: dict[Property, int] = attrs.field(factory=default_properties, repr=False)
    pool: MemoryPool = attrs.field(factory=MemoryPool, repr=False)
    mapped_regions: set[int] = attrs.field(factory=set, repr=False)
    """Indexes of 2 MiB regions that have a page table charged to the pool."""
    children: dict[int, None] = attrs.field(factory=dict, repr=False)
    """IDs in the order of creation."""

    vps: dict[int, VirtualProcessor] = attrs.field(factory=dict, repr=False)
    ports: dict[int, Port] = attrs.field(factory=dict, repr=False)
    connections: dict[int, Connection] = attrs.field(factory=dict, repr=False)
    counters: Counter[str] = attrs.field(factory=Counter, repr=False)
    """Hypercalls, messages, signals, interrupts and the like since the partition was made."""

    guest_os_id: int = 0
    hypercall_msr: int = 0
    """HV_X64_MSR_HYPERCALL as the guest reads it; bit 0 set is what makes hypercalls legal."""
    cpuid_features: CpuidFeatures = attrs.field(default=DEFAULT_FEATURES, repr=False)
    """What the backend lets the partition see."""
    registers: PartitionRegisters = attrs.field(factory=PartitionRegisters, repr=False)
    """Behind the other partition-wide MSRs."""
    reference_time: ReferenceTime = attrs.field(repr=False)
    overlays: OverlayMap = attrs.field(repr=False)
    crash: CrashReport | None = None

    intercepts: InterceptSink | None = attrs.field(default=None, repr=False)
    """The parent's handler of port I/O; without one, reads give ones and writes are lost."""
    interception: Interception | None = attrs.field(default=None, repr=False)
    """What the parent has asked to see and answer itself by HvInstallIntercept; None while it is nothing."""
    external_interrupt: int | None = None
    """The vector of an ExtInt that was asserted and not cleared."""
    debug_port: DebugPort | None = attrs.field(default=None, repr=False)
    """The line to a debugger, once it was used."""
    on_crash: Callable[[CrashReport], None] | None = attrs.field(default=None, repr=False)
    on_reset: Callable[[], None] | None = attrs.field(default=None, repr=False)
    on_touch: Callable[[int, int], None] | None = attrs.field(default=None, repr=False)
    """Told of pages that the software says it has accessed, as a first page and a count; for a parent that asks."""
    doorbells: Doorbells | None = attrs.field(default=None, repr=False)
    """Set by a backend whose guests signal without a trap."""
    suspended: bool = False
    """By its property: none of its processors runs."""
    clock_read: int = 0
    """The hypervisor's clock as its software has read it last: it must not go back."""
    state_elsewhere: bool = False
    """Set by a backend that keeps processor state which the hypervisor cannot save."""
    state_under_way: SaveUnderWay | RestoreUnderWay | None = attrs.field(default=None, repr=False)
    """A save or restore of the partition's state, between two of its calls."""
    teardown: Iterator[object] | None = attrs.field(default=None, repr=False)
    """What is left of finalizing, between trips."""

    @reference_time.default
    def _reference_time(self) -> ReferenceTime:
        return ReferenceTime(self.hypervisor.clock)

    @overlays.default
    def _overlays(self) -> OverlayMap:
        return OverlayMap(self.memory)

    @property
    def parent(self) -> Partition | None:
        """The partition that made this one; None for the root."""
        return self.hypervisor.partitions.get(self.parent_id)

    def inspect(self) -> Branch:
        """Everything that the hypervisor keeps of it."""
        return Branch(
            {
                "name": self.label,
                "state": self.state.value,
                "parent": self.parent_id,
                "guest_os_id": Hex(self.guest_os_id),
                "hypercall_msr": Hex(self.hypercall_msr),
                "reference_time": seconds(self.reference_time.now()),
                "reference_time_runs": self.reference_time.running,
                "reference_tsc": Hex(self.registers.reference_tsc),
                "crash": None if self.crash is None else Claim(self.crash.text),
                "privileges": lambda: Branch({"mask": Hex(self.privileges), "names": privilege_names(self.privileges)}),
                "properties": lambda: Branch({code.name.lower(): self.properties[code] for code in self.properties}),
                "pool": self.pool.inspect,
                "memory": self.memory.inspect,
                "overlays": self.overlays.inspect,
                "ports": by_hex(self.ports),
                "connections": by_hex(self.connections),
                "counters": lambda: counters(self.counters),
                "vps": Many(self.vps, int),
            }
        )

    def advance(self, operation: PartitionOperation) -> None:
        """Move to the state that `operation` leads to. Raises INVALID_PARTITION_STATE."""
        following = TRANSITIONS.get((self.state, operation))
        if following is None:
            raise HvError(HvStatus.INVALID_PARTITION_STATE)
        self.state = following

    def charge(self, pages: int) -> None:
        """Use pages of the pool for an object. Raises INSUFFICIENT_MEMORY and then changes nothing."""
        if pages > self.pool.available:
            raise HvError(HvStatus.INSUFFICIENT_MEMORY)
        self.pool.in_use += pages

    def discharge(self, pages: int) -> None:
        """Give the pages of a destroyed object back to the pool."""
        assert 0 <= pages <= self.pool.in_use, "more discharged than was charged"
        self.pool.in_use -= pages

    def charge_mapping(self, gpn: int, count: int) -> int:
        """Pay for the page tables of a range. Returns how many pages from its start on are paid for."""
        first, last = gpn >> PageCost.REGION_SHIFT, (gpn + count - 1) >> PageCost.REGION_SHIFT
        for region in range(first, last + 1):
            if region not in self.mapped_regions:
                if self.pool.available < PageCost.GPA_REGION:
                    return max(0, (region << PageCost.REGION_SHIFT) - gpn)
                self.charge(PageCost.GPA_REGION)
                self.mapped_regions.add(region)
        return count

    def get_property(self, code: int) -> int:
        """Raises UNKNOWN_PROPERTY."""
        match code:
            case Property.PRIVILEGE_FLAGS:
                return self.privileges
            case Property.GUEST_OS_ID:
                return self.guest_os_id
            case _:
                return self.properties[_known(code)]

    def set_property(self, code: int, value: int) -> None:
        """Raises UNKNOWN_PROPERTY, INVALID_PARAMETER (read-only), PROPERTY_VALUE_OUT_OF_RANGE or OBJECT_IN_USE.

        Those of processors as `check_cpu` says; a change holds from the next slice on.
        """
        known = _known(code)
        rule = PROPERTY_RULES[known]
        if rule.read_only:
            raise HvError(HvStatus.INVALID_PARAMETER)
        if rule.clamped:
            value = min(max(value, rule.low), rule.high)
        if not rule.low <= value <= rule.high:
            raise HvError(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
        others = [other for other in self.hypervisor.partitions.values() if other is not self]
        if rule.unique and value and any(other.properties[known] == value for other in others):
            raise HvError(HvStatus.OBJECT_IN_USE)
        if not self._sensible(known, value):
            raise HvError(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
        if known in CPU_CONTROLS:
            self.check_cpu({known: value})
        if known is Property.PRIVILEGE_FLAGS:
            self.privileges = value
            return
        before, self.properties[known] = self.properties[known], value
        if value != before:
            if known in CPU_CONTROLS:
                self.hypervisor.scheduler.partition_changed(self)
            elif known is Property.SUSPEND:
                self._suspend(bool(value))

    def _suspend(self, suspended: bool) -> None:
        self.suspended = suspended
        for vp in self.vps.values():
            vp.partition_suspended(suspended)

    def check_cpu(self, wanted: Mapping[Property, int]) -> None:
        """Whether its processors can be controlled so, with what else it has.

        Raises PROPERTY_VALUE_OUT_OF_RANGE: a figure out of range, a reserve above the cap, or more reserved than there
        are logical processors; INVALID_CPU_GROUP_ID.
        """
        told = {code: wanted.get(code, self.properties[code]) for code in CPU_CONTROLS}
        reserve, group = told[Property.CPU_RESERVE], told[Property.CPU_GROUP_ID]
        for code, value in told.items():
            if not PROPERTY_RULES[code].low <= value <= PROPERTY_RULES[code].high:
                raise HvError(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
        if reserve > told[Property.CPU_CAP]:
            raise HvError(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
        if reserve and Property.CPU_RESERVE in wanted:
            in_all = self.hypervisor.reserved_processors(self) + reserve * len(self.vps)
            if in_all > self.hypervisor.logical_processors * WHOLE_PROCESSOR:
                raise HvError(HvStatus.PROPERTY_VALUE_OUT_OF_RANGE)
        scheduler = self.hypervisor.scheduler
        if group and group not in scheduler.groups:
            raise HvError(HvStatus.INVALID_CPU_GROUP_ID)
        if Property.CPU_GROUP_ID in wanted and not scheduler.has_processors(group):
            raise HvError(HvStatus.INVALID_CPU_GROUP_ID)

    def _sensible(self, code: Property, value: int) -> bool:
        """The rules that need more than the value itself."""
        match code:
            case Property.PRIVILEGE_FLAGS:
                # The root's mask is fixed, and nobody gives away what it has not got.
                parent = self.parent
                return parent is not None and value & ~(parent.privileges & GRANTABLE_PRIVILEGES) == 0
            case _:
                return True


def _known(code: int) -> Property:
    try:
        return Property(code)
    except ValueError:
        raise HvError(HvStatus.UNKNOWN_PROPERTY) from None
