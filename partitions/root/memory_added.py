"""Memory that was added to a running VM: where it lies, what of it the guest took, and when to offer more. Root side.

It lies above what the VM was built with, at multiples of what its driver asks for, 128 MiB for Linux, and past the
windows of devices below 4 GiB. It is the guest's until it is reset or off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from hypervisor.clock import ticks
from hypervisor.pages import PAGE_SHIFT
from partitions.root.exits import CannotStart
from partitions.root.winhv import HypercallFailed
from partitions.topology_schema import Backend, VmTable
from vsp_vsc.memory.protocol import CHUNK, Pages

if TYPE_CHECKING:
    from partitions.root.vid import Vid, VmPartition
    from vsp_vsc.memory.vsp import MemoryVsp

RETRY_SECONDS: Final = 10.0
"""Before a guest is asked again that gave less than was wanted, or could not take more for now."""
LOW_LIMIT: Final = 0xC000_0000 >> PAGE_SHIFT
HIGH_START: Final = 0x1_0000_0000 >> PAGE_SHIFT
"""Between these two are the windows of devices."""


@attrs.define
class _Block:
    """Memory that was added in one piece."""

    run: Pages
    source: int
    """Where the root sees it."""
    unused: int = 0
    """Pages behind it that the guest did not take."""


class AddedMemory:
    """One VM's, in one run."""

    def __init__(self, settings: VmTable, built: VmPartition, vid: Vid, device: MemoryVsp) -> None:
        self._name, self._huge = settings.name, settings.backend is Backend.KVM
        self._built = built
        self._vid = vid
        self._clock = vid.hypervisor.clock
        self._device = device
        self._startup = settings.memory >> PAGE_SHIFT
        self._blocks: list[_Block] = []
        self.refused = False
        """Its guest has said that it takes no more, ever."""
        self._rest_until = 0

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._blocks)

    @property
    def room(self) -> int:
        """Pages that can be offered now."""
        session = self._device.session
        if self.refused or session is None or not session.ready or not session.capabilities.hot_add:
            return 0
        return 0 if self._clock() < self._rest_until else self._place()[1]

    def _place(self) -> tuple[int, int]:
        """Where the next memory goes, and how much fits up to the end of its chunk."""
        session = self._device.session
        assert session is not None, "its device is ready"
        alignment = max(session.capabilities.alignment, 1)
        last = self._blocks[-1].run if self._blocks else None
        first = -(-self._startup // alignment) * alignment if last is None else last.end
        if first < HIGH_START and first + alignment > LOW_LIMIT:
            first = HIGH_START
        chunk = max(alignment, CHUNK)
        return first, chunk - first % chunk

    def offer(self, pages: int) -> str:
        """Map memory and offer it; why not, or empty."""
        first, room = self._place()
        run = Pages(first, min(pages, room))
        try:
            source = self._vid.add_memory(
                self._built, run.first, run.count << PAGE_SHIFT, f"{self._name} added", huge_pages=self._huge
            )
        except (CannotStart, HypercallFailed) as error:
            self.rest()
            return str(error)
        self._blocks.append(_Block(run, source))
        self._device.hot_add(run)
        return ""

    def give_up(self, taken: int) -> None:
        """Of the last block, only the first `taken` pages are the guest's."""
        block = self._blocks.pop()
        if not taken:
            self._remove(block)
            return
        run = block.run
        block.run, block.unused = Pages(run.first, taken), run.count - taken
        self._built.unmap(run.first + taken, block.unused)
        self._vid.given_back(block.unused << PAGE_SHIFT)
        self._blocks.append(block)

    def rest(self) -> None:
        """It cannot be done now: not again before some time has gone by."""
        self._rest_until = self._clock() + ticks(RETRY_SECONDS)

    def try_again(self) -> None:
        """Somebody wants more now."""
        self._rest_until = 0

    def begin_anew(self) -> None:
        """The guest knows nothing of what was, neither of its memory nor of what it has said."""
        self.remove_all()
        self.refused = False
        self._rest_until = 0

    def remove_all(self) -> None:
        """The guest is reset or off."""
        for block in self._blocks:
            self._remove(block)
        self._blocks.clear()

    def _remove(self, block: _Block) -> None:
        self._vid.given_back(-block.unused << PAGE_SHIFT)
        size = block.run.count + block.unused << PAGE_SHIFT
        self._vid.remove_memory(self._built, block.run.first, size, block.source)
