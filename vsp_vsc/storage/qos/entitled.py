"""What each disk and pool is entitled to, by the same division as every other resource. Root side."""

from __future__ import annotations

from collections.abc import Mapping

from hypervisor.scheduler import divvy, tree
from vsp_vsc.storage.qos.mclock import Node


def entitled(root: Node, delivered: Mapping[Node, int]) -> dict[Node, divvy.Due]:
    """What each node is due.

    Who has requests waiting wants all that there is; who has none wants what it gets. `delivered` has that, and names
    the disks. Where the host has no capacity only limits bound anything.
    """
    bound = root.limit if root.limit is not None else _sum_of_limits(root, delivered)
    top = tree.Node.host(bound)
    there = {root: top}
    _copy(root, top, there, delivered)
    divided = divvy.entitlements(top, bound)
    found = {}
    for node, copy in there.items():
        found[node] = divvy.due(*divided[copy], bounded=root.limit is not None or _limited(node))
    return found


def _copy(node: Node, made: tree.Node, there: dict[Node, tree.Node], delivered: Mapping[Node, int]) -> None:
    for child in node.children.values():
        leaf = child in delivered
        reserve = child.reserve if child.limit is None else min(child.reserve, child.limit)
        there[child] = copy = made.add(
            child.name,
            inner=not leaf,
            reservation=reserve,
            limit=child.limit,
            shares=max(child.weight, 1),
            demand=None if child.waiting else delivered.get(child),
            active=leaf,
        )
        _copy(child, copy, there, delivered)


def _limited(node: Node) -> bool:
    while node.parent is not None:
        if node.limit is not None:
            return True
        node = node.parent
    return False


def _sum_of_limits(node: Node, delivered: Mapping[Node, int]) -> int:
    """More than all that are limited can have together, and what the others have."""
    own = node.limit or delivered.get(node, 0)
    return own + sum(_sum_of_limits(child, delivered) for child in node.children.values())
