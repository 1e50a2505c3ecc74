"""Sets of virtual processors as hypercalls name them: a mask of the first 64, or banks of 64. Hypervisor."""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING

from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

BANK_BITS = 64


class SetFormat(enum.IntEnum):
    """HV_GENERIC_SET_FORMAT."""

    SPARSE_4K = 0
    """Bit n of the bank mask says that a bank follows with processors 64 n to 64 n + 63."""
    ALL = 1


def in_mask(partition: Partition, mask: int, first: int = 0) -> list[VirtualProcessor]:
    """The processors that there are of a mask; bits of others mean nobody."""
    vps = partition.vps
    found = []
    while mask:
        lowest = mask & -mask
        mask ^= lowest
        vp = vps.get(first + lowest.bit_length() - 1)
        if vp is not None:
            found.append(vp)
    return found


def in_set(partition: Partition, set_format: int, valid_banks: int, banks: bytes) -> list[VirtualProcessor]:
    """The processors of an HV_VP_SET; `banks` is the variable header.

    Raises INVALID_HYPERCALL_INPUT where the header is not as long as the bank mask says, INVALID_PARAMETER (format).
    """
    if valid_banks.bit_count() * 8 != len(banks):
        raise HvError(HvStatus.INVALID_HYPERCALL_INPUT)
    match set_format:
        case SetFormat.ALL:
            return list(partition.vps.values())
        case SetFormat.SPARSE_4K:
            numbers = (bank for bank in range(BANK_BITS) if valid_banks >> bank & 1)
            masks = struct.iter_unpack("<Q", banks)
            return [
                vp
                for number, (mask,) in zip(numbers, masks, strict=True)
                for vp in in_mask(partition, mask, number * BANK_BITS)
            ]
        case _:
            raise HvError(HvStatus.INVALID_PARAMETER)
