"""What has changed for one client and was not sent: a few rectangles. Root side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from vsp_vsc.video.framebuffer import Rect

MAX_RECTS: Final = 32
"""Past so many, one around them all serves better."""


class Region:
    """Rectangles that are to be sent."""

    def __init__(self) -> None:
        self.rects: list[Rect] = []

    def __bool__(self) -> bool:
        return bool(self.rects)

    def add(self, rects: Iterable[Rect]) -> None:
        """More of the screen has changed."""
        for rect in rects:
            if rect.width > 0 and rect.height > 0 and not any(known.covers(rect) for known in self.rects):
                self.rects = [known for known in self.rects if not rect.covers(known)]
                self.rects.append(rect)
        if len(self.rects) > MAX_RECTS:
            whole = self.rects[0]
            for other in self.rects[1:]:
                whole = whole.around(other)
            self.rects = [whole]

    def meets(self, area: Rect) -> bool:
        """Whether any of it is inside."""
        return any(common(rect, area) is not None for rect in self.rects)

    def take(self, area: Rect) -> list[Rect]:
        """What is inside of an area; the rest stays."""
        inside, rest = [], []
        for rect in self.rects:
            shared = common(rect, area)
            if shared is None:
                rest.append(rect)
            else:
                inside.append(shared)
                rest += minus(rect, shared)
        self.rects = []
        self.add(rest)
        return inside


def common(one: Rect, other: Rect) -> Rect | None:
    """What both have."""
    x, y = max(one.x, other.x), max(one.y, other.y)
    right, bottom = min(one.right, other.right), min(one.bottom, other.bottom)
    return Rect(x, y, right - x, bottom - y) if x < right and y < bottom else None


def minus(rect: Rect, hole: Rect) -> list[Rect]:
    """What is left of a rectangle around a hole that lies inside of it: up to four."""
    left = [
        Rect(rect.x, rect.y, rect.width, hole.y - rect.y),
        Rect(rect.x, hole.bottom, rect.width, rect.bottom - hole.bottom),
        Rect(rect.x, hole.y, hole.x - rect.x, hole.height),
        Rect(hole.right, hole.y, rect.right - hole.right, hole.height),
    ]
    return [one for one in left if one.width > 0 and one.height > 0]
