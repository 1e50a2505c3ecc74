"""Saving a VM, and putting a saved one into a new partition. Root side.

    save:     suspend processors -> wait until devices have answered -> bus, partition, chipset, memory, in one go
    restore:  partition, devices offered -> memory -> bus -> hypervisor's state -> processors run

What is taken is taken without letting anybody else run, so it is the state of one moment. While processors stand still
the host answers what it took off the rings; that is the only thing that is waited for.

Everything in a `SavedVm` may come from a file that somebody made up: the guest's own bytes meet the same checks as when
the guest said them, and whatever else cannot be is `CannotRestore` before the guest runs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from hypervisor.backend.base import Backend, SavableBackend
from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.saved_state.stream import StateResult
from partitions.root.chipset.chipset import Chipset
from partitions.root.chipset.cmos import CmosClock
from partitions.root.chipset.com1 import Com1
from partitions.root.chipset.power import ExitCode, PowerControl
from partitions.root.console import Console
from partitions.root.devices import CountedDevice
from partitions.root.saving_file import RUN_PAGES
from partitions.root.saving_records import (
    DeviceFacts,
    Facts,
    MemoryRun,
    SavedChipset,
    SavedVm,
    difference,
)
from partitions.root.vid import VmPartition
from partitions.root.winhv import WinHv
from vmbus.server.saved import CannotRestore, CannotSave
from vmbus.server.service import VmbusServer

if TYPE_CHECKING:
    from vsp_vsc.storage.vsp import StorageVsp

__all__ = ["CannotRestore", "CannotSave", "Machine", "SavedVm", "capture", "quiesce", "restore"]

QUIESCE_SECONDS: Final = 10.0
"""How long devices may take to answer what is under way."""
_PROMPT_TURNS: Final = 64
"""Turns of Trio's loop before time is looked at: on a clock that stands still, nothing is waited for but work."""
_PAUSE: Final = 0.001
_ZERO_PAGE: Final = bytes(PAGE_SIZE)
_MOST_CONSOLE: Final = 1 << 20


class Machine(msgspec.Struct, frozen=True):
    """The parts of a running VM that have state."""

    name: str
    winhv: WinHv
    built: VmPartition
    server: VmbusServer
    console: Console
    com1: Com1
    cmos: CmosClock
    power: PowerControl
    exit_code: ExitCode
    chipset: Chipset


def refusal(backend: Backend | None) -> str:
    """Why guests of this backend cannot be saved; empty if they can."""
    return backend.cannot_save if isinstance(backend, SavableBackend) else "its backend has no way to save a guest"


async def quiesce(server: VmbusServer) -> None:
    """Until nothing that the guest asked for is unanswered; its processors stand still. Raises `CannotSave`."""
    for _ in range(_PROMPT_TURNS):
        await trio.lowlevel.checkpoint()
        if not _unrest(server):
            return
    deadline = trio.current_time() + QUIESCE_SECONDS
    while busy := _unrest(server):
        if trio.current_time() >= deadline:
            raise CannotSave(f"{busy}, for {QUIESCE_SECONDS:g} s already")
        await trio.sleep(_PAUSE)


def _unrest(server: VmbusServer) -> str:
    """What it is still busy with. Sockets have an end outside, which cannot be kept: they are cut, as Hyper-V does."""
    server.sockets.end_all("its VM is being saved")
    return server.unrest()


def capture(machine: Machine) -> SavedVm:
    """The state of this moment. Raises `CannotSave`."""
    built = machine.built
    return SavedVm(
        facts=facts(machine),
        bus=machine.server.save(),
        partition=machine.winhv.save_partition_state(built.id),
        chipset=SavedChipset(
            com1=machine.com1.save(),
            cmos_index=machine.cmos.index,
            power_button=machine.power.button,
            exit_code=machine.exit_code.value,
            console=machine.console.data,
        ),
        memory=tuple(memory_runs(built.partition.memory)),
    )


def restore(machine: Machine, saved: SavedVm) -> None:
    """Into a partition whose processors never ran. Raises `CannotRestore`; the partition is of no use then."""
    other = difference(saved.facts, facts(machine))
    if other:
        raise CannotRestore(f"this is not the VM that was saved; {other}")
    memory = machine.built.partition.memory
    for run in saved.memory:
        memory.write(run.gpn << PAGE_SHIFT, run.data)
    try:
        machine.server.restore(saved.bus)
    except CannotRestore as error:
        raise CannotRestore(f"its bus: {error}") from error
    result = machine.winhv.restore_partition_state(machine.built.id, saved.partition)
    if result != StateResult.COMPLETE:
        raise CannotRestore(f"the hypervisor does not take its state: {StateResult(result).name}")
    _restore_chipset(machine, saved.chipset)


def _restore_chipset(machine: Machine, saved: SavedChipset) -> None:
    try:
        machine.com1.load(saved.com1)
    except ValueError as error:
        raise CannotRestore(f"its serial port: {error}") from None
    if not 0 <= saved.cmos_index < 128 or len(saved.console) > _MOST_CONSOLE:
        raise CannotRestore("its boot devices")
    machine.cmos.index = saved.cmos_index
    machine.power.button = saved.power_button
    machine.exit_code.value = saved.exit_code
    if not machine.console.total_bytes:  # else it has said all this in front of the same people
        machine.console.recall(saved.console)


def facts(machine: Machine) -> Facts:
    """What has to be the same there and here."""
    # A VM without disks starts without the storage stack; here it must be known.
    from vsp_vsc.storage.vsp import StorageVsp

    partition = machine.built.partition
    devices = []
    for channel in machine.server.offered:
        if channel.offer.subchannel_index:
            continue
        offer, device = channel.offer, channel.device
        inner = device.device if isinstance(device, CountedDevice) else device
        disks = sorted(_disks(inner)) if isinstance(inner, StorageVsp) else []
        devices.append(DeviceFacts(str(offer.interface), str(offer.instance), disks))
    return Facts(
        vm=machine.name,
        memory=partition.memory.end,
        processors=machine.built.processors,
        privileges=partition.privileges,
        devices=devices,
    )


def _disks(controller: StorageVsp) -> Iterator[tuple[int, int]]:
    for lun, unit in controller.disks.items():
        backend = getattr(unit, "backend", None)
        yield lun, 0 if backend is None else backend.size_bytes


def memory_runs(memory: GuestMemory) -> Iterator[MemoryRun]:
    """Pages that are not zero, by address, in runs of at most `RUN_PAGES`."""
    for gpn, block, first, count, _ in memory.extents():
        start = end = -1
        for page in _touched(block, first, count):
            if bytes(block.view[page << PAGE_SHIFT : (page + 1) << PAGE_SHIFT]) == _ZERO_PAGE:
                continue
            if page != end or end - start == RUN_PAGES:
                if end > start:
                    yield MemoryRun(gpn + start - first, bytes(block.view[start << PAGE_SHIFT : end << PAGE_SHIFT]))
                start = page
            end = page + 1
        if end > start:
            yield MemoryRun(gpn + start - first, bytes(block.view[start << PAGE_SHIFT : end << PAGE_SHIFT]))


def _touched(block: MemoryBlock, first: int, count: int) -> Iterator[int]:
    """Pages that the system keeps at all; memory that nobody wrote is not even looked at."""
    assert block.fd is not None, "a mapped block is open"
    at, end = first << PAGE_SHIFT, (first + count) << PAGE_SHIFT
    while at < end:
        try:
            at = os.lseek(block.fd, at, os.SEEK_DATA)
            hole = os.lseek(block.fd, at, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but holes from here on
            hole = end
        yield from range(at >> PAGE_SHIFT, min(hole, end) + PAGE_SIZE - 1 >> PAGE_SHIFT)
        at = hole
