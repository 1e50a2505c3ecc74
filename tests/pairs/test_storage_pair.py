"""The real VSP against the real VSC, over a real channel in plain memory."""

from __future__ import annotations

from tests.doubles.storage import serving
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.target import ScsiTarget
from vsp_vsc.storage.vsc import open_storage

PATTERN = bytes(index * 7 & 0xFF for index in range(1 << 20))


async def test_a_guest_finds_its_disks_and_reads_what_it_wrote() -> None:
    """The whole way, once."""
    disks = {0: ScsiTarget(MemoryBackend(PATTERN)), 3: ScsiTarget(MemoryBackend(4096, read_only=True, identity="ro"))}
    async with serving(disks) as pair, open_storage(pair.guest_end, pair.platform) as storage:
        assert [(disk.lun, disk.blocks, disk.block_size, disk.read_only) for disk in storage.disks] == [
            (0, 2048, 512, False),
            (3, 8, 512, True),
        ]
        disk = storage.disks[0]
        assert disk.model == "PARTITA VIRTUAL DISK"

        assert await disk.read(8, 8) == PATTERN[4096:8192]
        await disk.write(0, b"partita!" * 64)
        assert await disk.read(0) == b"partita!" * 64
