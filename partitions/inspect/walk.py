"""A walk through a tree in small pieces, so that whoever walks can stop between any two. Root side."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final, TypeAlias

from hypervisor.inspect import Branch, Claim, Fault, Gone, Hex, Histogram, Leaf, Node, Setting
from partitions.inspect.path import made


class Mark(enum.Enum):
    """What is no value."""

    OPEN = "open"
    """A branch; its children follow, one level deeper."""
    CLOSE = "close"
    """The end of a branch. The outermost one has neither mark."""
    FOLDED = "folded"
    """A branch whose children lie below the depth that was asked for. It was not made."""


Shown: TypeAlias = "Leaf | Mark"
Run: TypeAlias = "tuple[int, list[tuple[str, Shown]], str, Mark | None]"
"""Level; values and folded branches there; then the name of a branch that opens, or the end of the one that is open."""
Step: TypeAlias = "tuple[int, str, Shown]"
"""Level, name, and what is there."""

ALONE: Final = -1
"""The level of a value that is all there is."""
LONGEST_RUN: Final = 64
_VALUES = frozenset({int, float, str, bool, type(None), Hex, Claim, Histogram, Setting, Fault})


def runs(node: Branch | Leaf, depth: int | None = None) -> Iterator[Run]:
    """All that is from `node` down, `depth` levels of it.

    A value is one run at level `ALONE`, and so is a branch of which no level is wanted. Others may run between two
    runs, and change everything.
    """
    if not isinstance(node, Branch) or depth == 0:
        yield ALONE, [("", Mark.FOLDED if isinstance(node, Branch) else node)], "", None
        return
    stack = [node.walk()]
    while stack:
        level = len(stack) - 1
        values: list[tuple[str, Shown]] = []
        name = ""
        child: Node
        below: Branch | None = None
        try:
            for name, child in stack[-1]:
                if type(child) in _VALUES:
                    values.append((name, child))  # type: ignore[arg-type]  # the test says so
                elif level + 1 == depth and (callable(child) or isinstance(child, Branch)):
                    values.append((name, Mark.FOLDED))
                else:
                    if callable(child):
                        try:
                            child = made(child)
                        except Gone:
                            continue
                    if isinstance(child, Branch):
                        below = child
                        break
                    values.append((name, child))
                if len(values) >= LONGEST_RUN:
                    yield level, values, "", None
                    values = []
        except Exception as error:  # a collection that does not even give its members
            values.append(("?", Fault(f"{type(error).__name__}: {error}")))
        if below is not None:
            yield level, values, name, Mark.OPEN
            stack.append(below.walk())
        else:
            stack.pop()
            if stack:
                yield level, values, "", Mark.CLOSE
            elif values:
                yield level, values, "", None


def walk(node: Branch | Leaf, depth: int | None = None) -> Iterator[Step]:
    """The same step by step; a branch's end is on its own level."""
    for level, values, name, mark in runs(node, depth):
        for each, value in values:
            yield level, each, value
        if mark is Mark.OPEN:
            yield level, name, mark
        elif mark is Mark.CLOSE:
            yield level - 1, "", mark
