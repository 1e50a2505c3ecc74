"""Words and limits of the switch that a topology has, too; whoever reads one does not load a switch. Root side."""

from __future__ import annotations

import enum
from typing import Final

MAX_VLAN: Final = 4094
"""4095 is reserved, 0 is a tag without a VLAN."""
DEFAULT_STORM_LIMIT: Final = 10_000
DEFAULT_QUEUE: Final = 1000
"""Frames that wait, as Linux's `txqueuelen` and tc-netem's `limit` have it."""


class SwitchKind(enum.StrEnum):
    """Whom a switch joins."""

    PRIVATE = "private"
    """VMs with each other."""
    INTERNAL = "internal"
    """VMs and the host."""
    EXTERNAL = "external"
    """VMs and a network outside."""


class Mirroring(enum.StrEnum):
    """Hyper-V's PortMirroring."""

    NONE = "none"
    SOURCE = "source"
    """What it sends and gets goes to the destinations of its switch, too."""
    DESTINATION = "destination"


class Action(enum.StrEnum):
    """What becomes of a frame."""

    ALLOW = "allow"
    DENY = "deny"
    METER = "meter"


class Direction(enum.StrEnum):
    """As the VM sees it."""

    IN = "in"
    OUT = "out"
    BOTH = "both"


class LinkDirection(enum.StrEnum):
    """Which way of a cable is bad, as the VM sees it."""

    BOTH = "both"
    OUT = "out"
    IN = "in"
