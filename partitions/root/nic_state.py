"""What people hear about switches and network adapters: how they are, and why something cannot be done. Root side.

Apart from the switch itself, because a host without any has no need of it.
"""

from __future__ import annotations

import msgspec


class SwitchError(Exception):
    """A switch that this host cannot have as the topology says. The message says why, and what to do about it."""


class NicError(Exception):
    """An adapter that cannot be added, removed or plugged in. The message says why, and what to do about it."""


class NicState(msgspec.Struct, frozen=True):
    """A network adapter: of a VM that runs, or as the settings of one that is off have it."""

    number: int
    port: str
    """What its port is called: `web/0`."""
    name: str
    switch: str
    """Empty if it is plugged into none."""
    mac: str
    vlan: int
    mtu: int
    link: str
    """`up` or `down`; of a VM that is off, as it will be."""
