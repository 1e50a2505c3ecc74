"""VID: memory and virtual processors of a VM's partition, made in one go and taken apart in the right order. Root side.

    create -> deposit -> initialize -> privileges -> virtual processors -> map memory
    finalize -> withdraw every page -> delete -> release the memory

Deposits follow what the hypervisor says it needs: an estimate first, and whenever a call answers INSUFFICIENT_MEMORY,
more pages and the call again, as every root partition does it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

from hypervisor.hypervisor import Hypervisor
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.partition import Partition, PartitionState, pool_pages
from hypervisor.privileges import Privilege
from hypervisor.properties import Property
from hypervisor.status import HvError, HvStatus
from partitions.root.exits import CannotStart
from partitions.root.intercepts import Intercepts
from partitions.root.winhv import HypercallFailed, WinHv
from partitions.topology_schema import size_words

if TYPE_CHECKING:
    from hypervisor.scheduler.tree import Node
    from partitions.root.host_resources import HostResources
    from partitions.root.memory_desk import MemoryDesk

T = TypeVar("T")

VM_PRIVILEGES: Final = int(
    Privilege.ACCESS_VP_RUNTIME_MSR
    | Privilege.ACCESS_PARTITION_REFERENCE_COUNTER
    | Privilege.ACCESS_SYNIC_MSRS
    | Privilege.ACCESS_APIC_MSRS
    | Privilege.ACCESS_HYPERCALL_MSRS
    | Privilege.ACCESS_VP_INDEX
    | Privilege.ACCESS_RESET_MSR
    | Privilege.ACCESS_PARTITION_REFERENCE_TSC
    | Privilege.ACCESS_FREQUENCY_MSRS
    | Privilege.ACCESS_TSC_INVARIANT
    | Privilege.POST_MESSAGES
    | Privilege.SIGNAL_EVENTS
)
"""What every VM may do; the worker adds what its backend can do and its topology asks for."""

EXPLICIT_SUSPEND: Final = 0x0000_0000
"""HvRegisterExplicitSuspend."""
_CHANNELS_AT_FIRST: Final = 8
_DEPOSIT_MORE: Final = 64
_POOL_BLOCK_PAGES: Final = 1024


class OutOfHostMemory(CannotStart):
    """The host has not so much memory left, by its topology's account."""


class PagePool:
    """Root pages to deposit. Blocks are sparse and kept: a page that came back is the next to go out."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        self._hypervisor = hypervisor
        self._free: list[tuple[int, int]] = []
        """Runs (first page, count), last in first out."""
        self._blocks: list[int] = []

    @property
    def free_pages(self) -> int:
        """Pages that no pool holds."""
        return sum(count for _, count in self._free)

    def take(self, count: int) -> list[tuple[int, int]]:
        """`count` pages as runs. Raises `OutOfHostMemory`."""
        taken: list[tuple[int, int]] = []
        while count:
            if not self._free:
                try:
                    gpn, _block = self._hypervisor.add_root_block(_POOL_BLOCK_PAGES * PAGE_SIZE, "deposits")
                except HvError as error:
                    self.give_back(taken)
                    raise OutOfHostMemory("no memory is left for the hypervisor's own structures") from error
                self._blocks.append(gpn)
                self._free.append((gpn, _POOL_BLOCK_PAGES))
            first, length = self._free.pop()
            part = min(length, count)
            if part < length:
                self._free.append((first + part, length - part))
            taken.append((first, part))
            count -= part
        return taken

    def give_back(self, runs: list[tuple[int, int]]) -> None:
        """Pages are free again."""
        self._free.extend(runs)

    def close(self) -> None:
        """Release the blocks; every page has to be back."""
        self._free.clear()
        for gpn in self._blocks:
            self._hypervisor.remove_root_block(gpn)
        self._blocks.clear()


class VmPartition:
    """A VM's partition, ready to run once its processors are resumed. `close` destroys it."""

    def __init__(self, vid: Vid, partition: Partition, processors: int, first_page: int) -> None:
        self._vid = vid
        self._winhv = vid.winhv
        self.partition = partition
        self.id = partition.id
        self.processors = processors
        self.first_page = first_page
        """Where the root sees its first page."""
        self._intercepts: Intercepts | None = None

    @property
    def intercepts(self) -> Intercepts:
        """Accesses of the VM's software that somebody here wants to answer."""
        if self._intercepts is None:
            self._intercepts = Intercepts(self._winhv, self.id)
            self._winhv.intercepts[self.id] = self._intercepts.take
        return self._intercepts

    def suspend(self) -> None:
        """Stop every processor; the partition's time stops with the last one."""
        self._set_suspended(1)

    def resume(self) -> None:
        """Let every processor run."""
        self._set_suspended(0)

    def unmap(self, gpn: int, count: int) -> None:
        """Take pages out of it."""
        self._winhv.unmap_gpa_pages(self.id, gpn, count)

    def _set_suspended(self, value: int) -> None:
        for index in range(self.processors):
            try:
                self._winhv.set_vp_register(self.id, index, EXPLICIT_SUSPEND, value)
            except HypercallFailed as error:
                if error.status is not HvStatus.INVALID_VP_INDEX:
                    raise  # one that somebody has deleted needs no telling


class Vid:
    """Makes and destroys partitions for the workers."""

    def __init__(self, hypervisor: Hypervisor, winhv: WinHv, *, vm_memory: int) -> None:
        """`vm_memory` is what all VMs together may have, in bytes; the host's own structures are not counted in it."""
        self.hypervisor = hypervisor
        self.winhv = winhv
        self.vm_memory = vm_memory
        self.vm_memory_used = 0
        self.pool = PagePool(hypervisor)
        self._desk: MemoryDesk | None = None
        self.resources: HostResources | None = None
        """Where resource control is, where there may be any."""
        self.chance: Callable[[str], Random] = Random
        """Random numbers for one purpose; the host's."""

    @property
    def desk(self) -> MemoryDesk:
        """Who balances the memory of VMs; made when it is first asked for."""
        if self._desk is None:
            from partitions.root.memory_desk import MemoryDesk

            self._desk = MemoryDesk(self)
        return self._desk

    @property
    def balances(self) -> bool:
        """Whether there is a desk."""
        return self._desk is not None

    def memory_changed(self, node: Node) -> None:
        """Resource control's: a VM's memory, or a pool's, has other settings."""
        self.desk.settled(node)

    async def make_room(self, size: int) -> None:
        """Before a VM starts: have those with dynamic memory give back what it needs, if there are any."""
        if self._desk is not None:
            await self._desk.make_room(size)

    @contextlib.contextmanager
    def open_partition(
        self,
        *,
        name: str,
        memory: int,
        processors: int,
        privileges: int = VM_PRIVILEGES,
        huge_pages: bool = False,
    ) -> Iterator[VmPartition]:
        """A partition with `memory` bytes from GPA 0 and `processors` suspended processors; destroyed at the end.

        Raises `OutOfHostMemory`, and `HypercallFailed` where the hypervisor refuses.
        """
        hv = self.winhv
        with contextlib.ExitStack() as teardown:
            source = self._take_memory(memory, name, huge_pages)
            teardown.callback(self._release_memory, source, memory)
            partition_id = self.paying(hv.root_id, hv.create_partition)
            self.hypervisor.trace.names[partition_id] = name
            teardown.callback(self._destroy, partition_id)
            pages = memory >> PAGE_SHIFT
            self.deposit(
                partition_id,
                pool_pages(
                    memory_pages=pages, vps=processors, ports=_CHANNELS_AT_FIRST, connections=_CHANNELS_AT_FIRST
                ),
            )
            hv.initialize_partition(partition_id)
            hv.set_partition_property(partition_id, Property.PRIVILEGE_FLAGS, privileges)
            for index in range(processors):
                self.paying(partition_id, partial(hv.create_vp, partition_id, index))
            self.paying(partition_id, lambda: hv.map_gpa_pages(partition_id, 0, source, pages, Access.ALL))
            partition = self.hypervisor.partitions[partition_id]
            partition.label = name
            yield VmPartition(self, partition, processors, source)

    def _take_memory(self, size: int, name: str, huge_pages: bool) -> int:
        left = self.vm_memory - self.vm_memory_used
        if size > left:
            raise OutOfHostMemory(f"{size_words(size)} of memory wanted, {size_words(left)} are left on this host")
        try:
            source, _block = self.hypervisor.add_root_block(size, name, huge_pages=huge_pages)
        except HvError as error:
            raise OutOfHostMemory(f"the system gives no {size_words(size)} of memory: {error.__cause__}") from error
        self._use(size)
        return source

    def _release_memory(self, source: int, size: int) -> None:
        self.hypervisor.remove_root_block(source)
        self._use(-size)

    def _use(self, size: int) -> None:
        self.vm_memory_used += size
        if self._desk is not None:
            self._desk.amount_changed()

    @property
    def vm_memory_free(self) -> int:
        """Bytes that no VM has. Below 0 where one that had given memory back has taken it again unasked."""
        return self.vm_memory - self.vm_memory_used

    def given_back(self, size: int) -> None:
        """A guest gave so many bytes, and their pages have been discarded; below 0, it has them again."""
        self.hypervisor.discarded_bytes += size
        self._use(-size)

    def add_memory(self, built: VmPartition, gpn: int, size: int, name: str, *, huge_pages: bool) -> int:
        """Map `size` bytes of fresh memory from `gpn` on; where the root sees it. Raises `OutOfHostMemory`."""
        source = self._take_memory(size, name, huge_pages)
        try:
            self.paying(
                built.id,
                lambda: self.winhv.map_gpa_pages(built.id, gpn, source, size >> PAGE_SHIFT, Access.ALL),
            )
        except BaseException:
            self.winhv.unmap_gpa_pages(built.id, gpn, size >> PAGE_SHIFT)
            self._release_memory(source, size)
            raise
        return source

    def remove_memory(self, built: VmPartition, gpn: int, size: int, source: int) -> None:
        """Unmap what `add_memory` has mapped, and give it back."""
        self.winhv.unmap_gpa_pages(built.id, gpn, size >> PAGE_SHIFT)
        self._release_memory(source, size)

    def paying(self, payer: int, call: Callable[[], T]) -> T:
        """Make a call; while it answers INSUFFICIENT_MEMORY, deposit pages for `payer` and make it again."""
        while True:
            try:
                return call()
            except HypercallFailed as error:
                if error.status is not HvStatus.INSUFFICIENT_MEMORY:
                    raise
            self.deposit(payer, _DEPOSIT_MORE)

    def deposit(self, partition_id: int, count: int) -> None:
        """Give the hypervisor `count` pages for its structures of that partition. Raises `OutOfHostMemory`."""
        for first, length in self.pool.take(count):
            self.winhv.deposit_memory(partition_id, first, length)

    def _destroy(self, partition_id: int) -> None:
        hv = self.winhv
        hv.intercepts.pop(partition_id, None)
        if self.hypervisor.partitions[partition_id].state is not PartitionState.UNINITIALIZED:
            hv.finalize_partition(partition_id)
        self.pool.give_back(hv.withdraw_memory(partition_id))
        hv.delete_partition(partition_id)

    def close(self) -> None:
        """Release what was deposited for the root itself; every partition has to be gone."""
        self.pool.give_back(self.winhv.withdraw_memory(self.winhv.root_id))
        self.pool.close()
