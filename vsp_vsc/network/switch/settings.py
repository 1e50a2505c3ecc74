"""How a port of the switch is set up. Root side."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import attrs

from vsp_vsc.network.port import DEFAULT_MTU
from vsp_vsc.network.switch.acl import AccessList
from vsp_vsc.network.switch.kinds import DEFAULT_STORM_LIMIT, MAX_VLAN, Mirroring

_RANGE = re.compile(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?")


@attrs.frozen
class PortSettings:
    """What a port may do. The defaults are Hyper-V's, but for the storm limit, which has none there."""

    mtu: int = DEFAULT_MTU
    vlan: int = 0
    """Of its untagged frames; 0 is the switch's network without VLANs. The native VLAN of a trunk."""
    trunk: frozenset[int] | None = None
    """VLANs whose frames come and go with a tag. None: an access port, where a tag is not allowed."""
    spoofing: bool = False
    """It may send from any address that is not another port's, and gets what nobody else is known to want."""
    dhcp_guard: bool = False
    router_guard: bool = False
    isolated: bool = False
    """It reaches no port that is isolated, too."""
    mirroring: Mirroring = Mirroring.NONE
    storm_limit: int = DEFAULT_STORM_LIMIT
    """Frames to more than one receiver that it may send in a second; 0 for no limit."""
    acl: AccessList = attrs.field(factory=lambda: AccessList(()), eq=False)


ALL_VLANS: Final = frozenset(range(1, MAX_VLAN + 1))


def parse_vlans(written: str) -> frozenset[int]:
    """VLAN IDs of `1-10, 20`. Raises `ValueError`."""
    found: set[int] = set()
    for part in written.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f'must be VLANs such as "1-10, 20", is "{written}"')
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= MAX_VLAN:
            raise ValueError(f"VLANs are 1 to {MAX_VLAN}, the lower first; {part.strip()} is not")
        found.update(range(first, last + 1))
    return frozenset(found)


def vlan_words(vlans: Iterable[int]) -> str:
    """As `parse_vlans` takes it."""
    words: list[str] = []
    first = last = -1
    for vlan in [*sorted(vlans), -1]:
        if vlan == last + 1 and first >= 0:
            last = vlan
            continue
        if first >= 0:
            words.append(f"{first}-{last}" if last > first else str(first))
        first = last = vlan
    return ", ".join(words)
