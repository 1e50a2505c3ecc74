"""A person's wish about a running VM's memory: other bounds, or a size, which is waited for. Root side.

The guest has to do it. Where it does not, whoever asked is told how far it came and why it stops there, and the VM goes
on with what it has.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

from hypervisor.pages import PAGE_SHIFT
from partitions.root.memory_state import CannotResize, MemoryState
from partitions.topology_schema import size_words
from vsp_vsc.memory.balance import Change
from vsp_vsc.memory.protocol import BALLOON_UNIT

if TYPE_CHECKING:
    from partitions.root.vm_memory import VmMemory


async def change_memory(
    memory: VmMemory,
    *,
    size: int | None,
    minimum: int | None,
    maximum: int | None,
    buffer: int | None,
    weight: int | None,
    patience: float,
) -> MemoryState:
    """Bounds first, then the size; without a size, the balancer decides. Raises `CannotResize`.

    A size that is not had leaves the VM's settings at what it has.
    """
    from hypervisor.scheduler.tree import ResourceError

    bounds = {"minimum": minimum, "maximum": maximum, "buffer": buffer, "weight": weight}
    values: dict[str, object] = {f"dynamic_memory.{key}": value for key, value in bounds.items() if value is not None}
    if size is not None and not memory.dynamic:
        values["memory"] = size
    if values and memory.settle is not None:
        try:
            memory.settle(values)
        except ResourceError as error:
            raise CannotResize(str(error)) from None
    if size is None:
        memory.release()
        await trio.lowlevel.checkpoint()
        return memory.state()
    try:
        await _resize(memory, size, patience)
    except CannotResize:
        if memory.settle is not None and not memory.dynamic:  # its settings say what it has
            with contextlib.suppress(ResourceError):  # why it has not the size asked for is what the caller is told
                memory.settle({"memory": memory.assigned << PAGE_SHIFT})
        raise
    return memory.state()


async def _resize(memory: VmMemory, size: int, patience: float) -> None:
    """Bring it to `size` bytes; raises `CannotResize` where that cannot be had, with what was had kept.

    A VM with dynamic memory stays there until `release`. `patience` is what one answer of the guest's may take, in
    seconds, and the time in which it must have a driver.
    """
    name, device = f'VM "{memory.name}"', memory.device
    if size <= 0 or size % (BALLOON_UNIT << PAGE_SHIFT):
        raise CannotResize(f"{name}: memory: must be a multiple of 2 MiB and not 0, is {size_words(size)}")
    pages = size >> PAGE_SHIFT
    if memory.dynamic and not memory.minimum <= pages <= memory.maximum:
        words = f"from {size_words(memory.minimum << PAGE_SHIFT)} to {size_words(memory.maximum << PAGE_SHIFT)}"
        raise CannotResize(f"{name}: memory must be {words}, is {size_words(size)}")
    if memory.dynamic and (pool := memory.pool) is not None and pool.limit is not None and size > pool.limit:
        words = f"{size_words(size)} are more than the limit of {pool.name}, {size_words(pool.limit)}"
        raise CannotResize(f"{name}: memory: {words}; raise that, or ask for less")
    memory.pin(pages)
    with trio.move_on_after(patience):
        while not device.ready:
            await device.changed()
    if not device.ready:
        raise CannotResize(
            f"{name}: its guest has no driver for dynamic memory ({device.state}); Linux has one in hv_balloon"
        )
    while memory.pinned == pages and (why := await _step(memory, pages, patience)) != "done":
        if why:
            raise CannotResize(f"{name} has {size_words(memory.assigned << PAGE_SHIFT)} now: {why}")
    await trio.lowlevel.checkpoint()


async def _step(memory: VmMemory, pages: int, patience: float) -> str:
    """One question nearer; "done" at the end, or why it cannot go on."""
    device = memory.device
    if not device.ready:
        return f"its driver has gone ({device.state})"
    more = pages - memory.assigned << PAGE_SHIFT
    if more > memory.host_free and memory.make_room is not None:
        await memory.make_room(more)
    if device.idle:
        if memory.assigned == pages:
            return "done"
        change = memory.by_hand(pages)
        if change.change is Change.NOTHING or not change.pages:
            return memory.why_not(pages)
        why = memory.apply(change)
        if why:
            return why
    left = patience - memory.waited
    if left <= 0:
        return "its guest does not answer"
    with trio.move_on_after(left):
        await device.changed()
    return ""
