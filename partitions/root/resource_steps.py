"""Changes of a host's trees that are made together: all of them, or each is taken back, the last one first. Root side.

with Steps() as steps:
    steps.rearrange("cpu", "cpu.reserve", node, figures, parent)
    steps.devices("disk", node, wanted, on=True)
for kind, node in steps.changed: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType

import attrs

from hypervisor.scheduler import admission
from hypervisor.scheduler.admission import Refused
from hypervisor.scheduler.tree import Node, ResourceError
from partitions.topology_figures import RESERVES, WORDS, Figures, Kind


class Steps:
    """One change. A `ResourceError` within its block leaves the trees as they were."""

    def __init__(self) -> None:
        self.changed: list[tuple[Kind, Node]] = []
        """What is other than before, where the block has ended well."""
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Steps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if value is not None:
            for step in reversed(self._undo):
                step()

    def rearrange(
        self, kind: Kind, key: str, node: Node, figures: Figures, parent: Node, *, grows: bool | None = None
    ) -> None:
        """Other figures, another place. Raises `ResourceError` at `key`."""
        home = node.parent
        assert home is not None, "the host does not change"
        before = (node.reservation, node.limit, node.shares, node.demand, node.expandable, node.dedicated)
        after = (
            *(figures.reservation, figures.limit, figures.shares),
            node.demand if figures.demand is None else figures.demand,
            node.expandable if grows is None else grows,
            figures.dedicated,
        )
        if before == after and home is parent:
            return
        answer = admission.rearrange(
            node,
            reservation=figures.reservation,
            limit=figures.limit,
            shares=figures.shares,
            expandable=grows,
            dedicated=figures.dedicated,
            parent=parent,
        )
        if isinstance(answer, Refused):
            raise ResourceError(node.path, key, lacking(kind, answer))
        node.demand = after[3]

        def back() -> None:
            node.move(home)
            node.change(
                reservation=before[0], limit=before[1], shares=before[2], expandable=before[4], dedicated=before[5]
            )
            node.demand = before[3]

        self._undo.append(back)
        self.changed.append((kind, node))

    def devices(self, kind: Kind, node: Node, wanted: Mapping[str, Figures], shares: int, *, on: bool) -> None:
        """Have the tree follow a VM's disks or adapters, whose node has `shares`. Raises `ResourceError`."""
        for name in [name for name in node.children if name not in wanted]:
            gone = node.children[name]
            self._undo.append(partial(_put_back, node, gone, gone.active))
            if gone.active:
                gone.switch(on=False)
            gone.remove()
            self.changed.append((kind, gone))
        for name, figures in wanted.items():
            child = node.children.get(name)
            if child is not None:
                self.rearrange(kind, RESERVES[kind], child, figures, node)
            else:
                self._add_device(kind, node, name, figures, on=on)
        if node.shares != shares:
            self._undo.append(partial(node.change, reservation=0, limit=None, shares=node.shares))
            node.change(reservation=0, limit=None, shares=shares)

    def _add_device(self, kind: Kind, node: Node, name: str, figures: Figures, *, on: bool) -> None:
        child = node.add(
            name, reservation=figures.reservation, limit=figures.limit, shares=figures.shares, demand=figures.demand
        )
        self._undo.append(partial(_take_out, child))
        if on:
            answer = admission.commit(child)
            if isinstance(answer, Refused):
                raise ResourceError(child.path, RESERVES[kind], lacking(kind, answer))
        self.changed.append((kind, child))


def lacking(kind: Kind, refused: Refused) -> str:
    """Why, with the way that was asked."""
    asked = tuple(step for step in refused.steps if not step.name.startswith("vm/"))  # which has nothing of its own
    return f"cannot be granted: {attrs.evolve(refused, steps=asked).words(WORDS[kind])}"


def _put_back(parent: Node, node: Node, was_on: bool) -> None:
    node.parent = parent
    parent.children[node.name] = node
    if was_on:
        node.switch(on=True)


def _take_out(node: Node) -> None:
    if node.active:
        node.switch(on=False)
    node.remove()
