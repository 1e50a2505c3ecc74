"""Ethernet addresses: as people write them, and which are for nobody to send from. Root side."""

from __future__ import annotations

import re
from typing import Final

from vsp_vsc.network.port import ADDRESS_BYTES

BROADCAST: Final = b"\xff" * ADDRESS_BYTES
NO_ADDRESS: Final = bytes(ADDRESS_BYTES)
MICROSOFT: Final = bytes.fromhex("00155d")
"""The prefix of Hyper-V's own addresses."""
RESERVED: Final = bytes.fromhex("0180c20000")
"""Five bytes; with a sixth below 16 such a frame ends at the next bridge (IEEE 802.1D, table 7-10)."""
_WRITTEN = re.compile(r"[0-9A-Fa-f]{2}([-:])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}|[0-9A-Fa-f]{12}")


def parse_mac(written: str) -> bytes:
    """Six bytes of `00-15-5D-01-02-03`, of the same with colons, or without either. Raises `ValueError`."""
    if _WRITTEN.fullmatch(written) is None:
        raise ValueError(f'must be an address such as "00-15-5D-01-02-03", is "{written}"')
    return bytes.fromhex(re.sub("[-:]", "", written))


def mac_words(address: bytes) -> str:
    """As Hyper-V writes it: `00-15-5D-01-02-03`."""
    return address.hex("-").upper()


def is_group(address: bytes) -> bool:
    """Multicast or broadcast."""
    return bool(address[0] & 1)


def is_reserved(address: bytes) -> bool:
    """For the neighbour on the wire only: spanning tree, pause frames and the like."""
    return address[:5] == RESERVED and address[5] < 16
