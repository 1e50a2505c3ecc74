"""Where root and child meet: how the root gets guest software without knowing any. Both sides.

The root hands a backend a `GuestEntry`; this module makes one from a line in a topology. It is the only module that may
import both sides, and it stays this small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hypervisor.backend.task import GuestEntry
from hypervisor.machine import Machine
from partitions.child import kernel
from partitions.child.guest import Guest
from partitions.child.program import Program, built_in_programs, check_program, find_program

if TYPE_CHECKING:
    from partitions.topology_schema import Topology, VmTable

__all__ = ["GuestEntry", "built_in_programs", "check_program", "find_program", "guest_entry"]


def guest_entry(vm: VmTable, topology: Topology) -> tuple[GuestEntry, GuestEntry | None]:
    """What a VM's processors run: the kernel, then the VM's program in a module of its own for each boot.

    Two ways in: a boot, and going on after the VM was saved, which only a program with a `resume` has. The file is read
    and compiled here, once, so a mistake in it is known before anything starts: OSError, SyntaxError or ValueError,
    which `check_program` puts into words. What the module's top level raises is a crash of the guest.
    """
    program = Program.read(find_program(vm.program, topology.folder))
    name, args = vm.name, vm.args

    async def start(machines: Sequence[Machine], entry: str, *, resumed: bool) -> None:
        async def main(guest: Guest) -> object:
            return await program.load(name, entry, print=guest.console.print)(guest)

        await kernel.boot(machines, main, name=name, args=args, program=program.path, resumed=resumed)

    async def boot(machines: Sequence[Machine]) -> None:
        await start(machines, "main", resumed=False)

    async def resume(machines: Sequence[Machine]) -> None:
        await start(machines, "resume", resumed=True)

    return boot, resume if program.resumable else None
