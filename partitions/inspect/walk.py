"""A walk through a tree, one step a child, so that whoever walks can stop between any two. Root side."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import TypeAlias

from hypervisor.inspect import Branch, Claim, Fault, Gone, Hex, Histogram, Leaf, Node, Setting
from partitions.inspect.path import made


class Mark(enum.Enum):
    """A step that is no value."""

    OPEN = "open"
    """A branch; its children follow, one level deeper."""
    CLOSE = "close"
    """The end of a branch. The outermost one has neither mark."""
    FOLDED = "folded"
    """A branch whose children lie below the depth that was asked for. It was not made."""


Step: TypeAlias = "tuple[int, str, Leaf | Mark]"
"""Level, name, and what is there."""

ALONE = -1
"""The level of a value that is all there is."""
_VALUES = frozenset({int, float, str, bool, type(None), Hex, Claim, Histogram, Setting, Fault})


def walk(node: Branch | Leaf, depth: int | None = None) -> Iterator[Step]:
    """All steps from `node` down, `depth` levels of them.

    A value is one step at level `ALONE`, and so is a branch of which no level is wanted.
    """
    if not isinstance(node, Branch) or depth == 0:
        yield ALONE, "", Mark.FOLDED if isinstance(node, Branch) else node
        return
    stack = [node.walk()]
    while stack:
        level = len(stack) - 1
        child: Node
        below: Branch | None = None
        try:
            for name, child in stack[-1]:
                if type(child) in _VALUES:
                    yield level, name, child  # type: ignore[misc]  # the test says so
                    continue
                if level + 1 == depth and (callable(child) or isinstance(child, Branch)):
                    yield level, name, Mark.FOLDED
                    continue
                if callable(child):
                    try:
                        child = made(child)
                    except Gone:
                        continue
                if isinstance(child, Branch):
                    yield level, name, Mark.OPEN
                    below = child
                    break
                yield level, name, child
        except Exception as error:  # a collection that does not even give its members
            yield level, "?", Fault(f"{type(error).__name__}: {error}")
        if below is not None:
            stack.append(below.walk())
        else:
            stack.pop()
            if stack:
                yield len(stack) - 1, "", Mark.CLOSE
