"""What people hear about a VM's disks: how they are, and why something cannot be done with them. Root side.

Apart from the disks themselves, because a VM without any has no need of the storage stack.
"""

from __future__ import annotations

import msgspec

from partitions.root.exits import CannotStart
from partitions.topology_schema import DiskType


class DeviceError(CannotStart):
    """A device that this host cannot give to the VM: an image in use or missing, a VSP that does not load."""


class DiskError(Exception):
    """A disk that cannot be added, removed or changed. The message says why, and what to do about it."""


class DiskState(msgspec.Struct, frozen=True):
    """A disk or DVD drive: of a VM that runs, or as the settings of one that is off have it."""

    lun: int
    path: str
    """Of its image; empty for a DVD drive without a disc."""
    size: int
    """Bytes."""
    block_size: int
    read_only: bool
    type: DiskType
