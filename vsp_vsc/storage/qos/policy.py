"""The three controls of a disk, a VM's disks or a pool, and what people may write for them. Root side."""

from __future__ import annotations

from typing import Final

import msgspec

from vsp_vsc.storage.qos.mclock import MAX_RATE

MAX_WEIGHT: Final = 10_000
DEFAULT_WEIGHT: Final = 100


class IopsPolicy(msgspec.Struct, frozen=True):
    """In normalized I/Os a second. Conflicts go limit, reserve, weight."""

    reserve: int = 0
    """Guaranteed while there are requests, as far as pools and host have it."""
    limit: int = 0
    """Never more, also on an idle host; 0 is none."""
    weight: int = DEFAULT_WEIGHT
    """What it gets beside its siblings where they contend."""

    @property
    def any(self) -> bool:
        """Whether anything is controlled by it."""
        return self != NONE

    def with_figure(self, key: str, figure: int) -> IopsPolicy:
        """With another one. ValueError for figures that cannot be together."""
        changed: IopsPolicy = msgspec.structs.replace(self, **{key: figure})
        changed.check()
        return changed

    def check(self) -> None:
        """ValueError for figures that cannot be."""
        if not 0 <= self.reserve <= MAX_RATE or not 0 <= self.limit <= MAX_RATE or not 1 <= self.weight <= MAX_WEIGHT:
            raise ValueError(f"reserve {self.reserve}, limit {self.limit}, weight {self.weight}")
        if self.limit and self.reserve > self.limit:
            raise ValueError(f"the reserve must not be above the limit of {self.limit}, is {self.reserve}")


def figure_of(key: str, text: str) -> int:
    """A reserve, limit or weight as a person has written it. ValueError, whose words say what would be taken."""
    least, most = {"reserve": (0, MAX_RATE), "limit": (0, MAX_RATE), "weight": (1, MAX_WEIGHT)}[key]
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ValueError(f"a {key} is a whole number from {least} to {most}, not {text!r}")
    return int(text)


NONE: Final = IopsPolicy()
"""No control."""
HELP: Final = {
    "reserve": f"normalized I/Os a second that are guaranteed, 0 to {MAX_RATE}",
    "limit": f"normalized I/Os a second at most, 0 for no limit, to {MAX_RATE}",
    "weight": f"what it gets beside its siblings where they contend, 1 to {MAX_WEIGHT}",
}
