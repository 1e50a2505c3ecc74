"""The screen of one running VM: its device, and memory for guests that have none of their own for it. Root side.

A VM without a screen loads none of this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from hypervisor.pages import PAGE_SHIFT, Access
from hypervisor.status import HvError
from hypervisor.trace import Trace
from partitions.root.chipset import acpi
from partitions.root.exits import CannotStart
from partitions.root.png import png_parts
from partitions.root.vid import Vid, VmPartition
from partitions.root.winhv import HypercallFailed
from partitions.topology_schema import Backend, VmTable
from vsp_vsc.video.framebuffer import Framebuffer
from vsp_vsc.video.protocol import VRAM_BYTES
from vsp_vsc.video.vsp import VideoVsp

if TYPE_CHECKING:
    from hypervisor.partition import Partition

_PAGES: Final = VRAM_BYTES >> PAGE_SHIFT


class Screen:
    """What a VM with `[vm.screen]` has of it in one run."""

    def __init__(self, settings: VmTable, built: VmPartition, vid: Vid, trace: Trace) -> None:
        assert settings.screen is not None, "the caller has looked"
        # A model guest's memory is its RAM: what came to be elsewhere it could not see.
        self._memory = VideoMemory(vid, built.partition) if settings.backend is Backend.KVM else None
        size = settings.screen.width, settings.screen.height
        self.device = VideoVsp(*size, trace, built.id, window=self._memory)

    @property
    def framebuffer(self) -> Framebuffer:
        """What the guest shows."""
        return self.device.framebuffer

    def close(self) -> None:
        """The bus serves nobody any more."""
        if self._memory is not None:
            self._memory.unmap()


class VideoMemory:
    """`VRAM_BYTES` of the host's memory in the window that the VM's firmware leaves for devices. A `VramWindow`."""

    def __init__(self, vid: Vid, partition: Partition) -> None:
        self._vid = vid
        self._partition = partition
        self._source: int | None = None
        """Where the root has it."""
        self._target: int | None = None
        """Where the guest has it, in pages."""

    def contains(self, gpa: int, length: int) -> bool:
        """Whether all of it is in the window."""
        return gpa >= acpi.MMIO_BASE and gpa + length <= acpi.MMIO_BASE + acpi.MMIO_LENGTH

    def map(self, gpa: int) -> None:
        """Have it there. Raises MemoryError."""
        target, hv, partition_id = gpa >> PAGE_SHIFT, self._vid.winhv, self._partition.id
        if target == self._target:
            return
        source = self._source
        try:
            if source is None:
                source, _block = self._vid.hypervisor.add_root_block(VRAM_BYTES, "video memory", huge_pages=True)
                self._source = source
            self._take_away()
            self._target = target
            rights = Access.READ_WRITE
            self._vid.paying(partition_id, lambda: hv.map_gpa_pages(partition_id, target, source, _PAGES, rights))
        except (HvError, HypercallFailed, CannotStart) as error:
            self.unmap()
            raise MemoryError(f"the host has no {VRAM_BYTES >> 20} MiB for it: {error}") from None

    def unmap(self) -> None:
        """Give it back."""
        self._take_away()
        if self._source is not None:
            source, self._source = self._source, None
            self._vid.hypervisor.remove_root_block(source)

    def _take_away(self) -> None:
        if self._target is not None:
            target, self._target = self._target, None
            self._vid.winhv.unmap_gpa_pages(self._partition.id, target, _PAGES)


async def take_png(framebuffer: Framebuffer) -> bytes:
    """What it shows now, as a PNG file."""
    width, height = framebuffer.width, framebuffer.height
    pixels = framebuffer.pixels(0, 0, width, height)  # all at once: half of this picture and half of the next is none
    parts = []
    for part in png_parts(width, height, pixels):
        parts.append(part)
        await trio.lowlevel.checkpoint()
    return b"".join(parts)
