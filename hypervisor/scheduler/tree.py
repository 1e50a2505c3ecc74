"""One resource as a tree: host, pools, and those that use it, each with reservation, limit and shares. Hypervisor.

Amounts are whole numbers of whatever the resource is counted in. A tree knows no clock and decides nothing: who gets
how much is `divvy`, who may start is `admission`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import attrs

from hypervisor.scheduler.settings import DEFAULT_SHARES


class ResourceError(Exception):
    """A tree that cannot be: where, which figure, and why in words."""

    def __init__(self, path: str, key: str, reason: str) -> None:
        super().__init__(f"{path}.{key}: {reason}" if key else f"{path}: {reason}")
        self.path = path
        self.key = key
        self.reason = reason


@attrs.define(eq=False)
class Node:
    """A pool, or something that uses the resource. `Node.host` makes a root, `add` all others."""

    name: str
    """With its kind, such as "pool/prod" or "vm/web"; unique among its siblings."""
    id: int
    """Orders what would be equal; given in the order of making, and never again."""
    inner: bool = False
    """A pool, whose demand is what its children want; without children it wants nothing."""
    reservation: int = 0
    limit: int | None = None
    shares: int = DEFAULT_SHARES
    demand: int | None = None
    """What it would use if it were alone; None if there is no bound. Not looked at in inner nodes."""
    batch: bool = False
    """Gets only what all others leave, whatever has been said for it."""
    dedicated: int = 0
    """So much is set aside for a pool, used or not, and it has nothing else; 0 for one that shares with its siblings.

    Its reservation, which is what those in it can reserve, is no more than that, and less where its limit is.
    """
    expandable: bool = True
    """What it has not reserved for its children, it may take of its parent's."""
    active: bool = True
    """Switched on: only then it counts. An inner node always is."""
    parent: Node | None = None
    children: dict[str, Node] = attrs.Factory(dict)
    used: int = 0
    """Reserved by what is in it and switched on; of something that is not inner, its own reservation while it is on."""
    _ids: Iterator[int] = attrs.field(factory=itertools.count, repr=False)

    def __repr__(self) -> str:
        return f"<Node {self.path}>"

    @classmethod
    def host(cls, capacity: int | None, name: str = "host") -> Node:
        """A root. What it has is its reservation; with None, there is no bound on what can be reserved."""
        ids = itertools.count()
        root = cls(name, next(ids), inner=True, reservation=capacity or 0, expandable=capacity is None)
        root._ids = ids
        return root

    @property
    def path(self) -> str:
        """From below the root, such as "pool/prod/vm/web"; the root's is its name."""
        way = [node.name for node in self.upwards() if node.parent is not None]
        return "/".join(reversed(way)) or self.name

    @property
    def claim(self) -> int:
        """What it takes of its parent's: all that it has reserved or of its own, or more where that is used in it."""
        return max(self.reservation, self.used, self.dedicated) if self.inner else self.used

    def upwards(self) -> Iterator[Node]:
        """Itself, its parent, and so on to the root."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent

    def walk(self) -> Iterator[Node]:
        """Itself and everything in it, parents first, siblings in the order of their coming."""
        yield self
        for child in self.children.values():
            yield from child.walk()

    # --- changes. They keep `used` right and say nothing of whether it can be granted: that is `admission`

    def add(
        self,
        name: str,
        *,
        inner: bool = False,
        reservation: int = 0,
        limit: int | None = None,
        shares: int = DEFAULT_SHARES,
        demand: int | None = None,
        expandable: bool = True,
        active: bool = False,
        dedicated: int = 0,
    ) -> Node:
        """A new child; `active` is for what is not inner. Raises `ResourceError`."""
        if not self.inner:
            raise ResourceError(self.path, "", f"is no pool: {name} cannot be in it")
        if name in self.children:
            raise ResourceError(self.path, "", f"{name} is in it already")
        check_figures(f"{self.path}/{name}" if self.parent else name, reservation, limit, shares)
        child = Node(name, next(self._ids), inner, demand=demand, expandable=expandable, active=inner)
        child._ids = self._ids
        child.reservation, child.limit, child.shares, child.dedicated = reservation, limit, shares, dedicated
        child.parent = self
        self.children[name] = child
        self.take(child.claim)
        if active and not inner:
            child.switch(on=True)
        return child

    def remove(self) -> None:
        """Take it out, with what it has reserved. Raises `ResourceError` while something is in it."""
        if self.parent is None:
            raise ResourceError(self.path, "", "the root cannot be removed")
        if self.children:
            raise ResourceError(self.path, "", f"still has {', '.join(self.children)} in it: move them first")
        self.parent.take(-self.claim)
        del self.parent.children[self.name]
        self.parent = None

    def check_move(self, parent: Node) -> None:
        """Whether it can be put there, whatever is reserved. Raises `ResourceError`."""
        if parent is self.parent:
            return
        if self.parent is None:
            raise ResourceError(self.path, "parent", "the root cannot be moved")
        if self in parent.upwards():
            raise ResourceError(self.path, "parent", f"would be in itself: {parent.path} is in it")
        if not parent.inner:
            raise ResourceError(self.path, "parent", f"{parent.path} is no pool")
        if self.name in parent.children:
            raise ResourceError(self.path, "parent", f"{self.name} is in {parent.path} already")

    def move(self, parent: Node) -> None:
        """Put it, with everything in it, into another pool. Raises `ResourceError`."""
        self.check_move(parent)
        if parent is self.parent:
            return
        assert self.parent is not None, "a root is not moved"
        self.parent.take(-self.claim)
        del self.parent.children[self.name]
        self.parent = parent
        parent.children[self.name] = self
        parent.take(self.claim)

    def change(
        self, *, reservation: int, limit: int | None, shares: int, expandable: bool | None = None, dedicated: int = 0
    ) -> None:
        """Other figures. Raises `ResourceError`."""
        check_figures(self.path, reservation, limit, shares)
        before = self.claim
        self.reservation, self.limit, self.shares, self.dedicated = reservation, limit, shares, dedicated
        if expandable is not None:
            self.expandable = expandable
        if not self.inner and self.active:
            self.used = reservation
        if self.parent is not None:
            self.parent.take(self.claim - before)

    def switch(self, *, on: bool) -> None:
        """Switch something on or off that is not inner: what it has reserved counts, or no longer."""
        assert not self.inner, "pools are always on"
        self.active = on
        more = (self.reservation if on else 0) - self.used
        self.used += more
        if self.parent is not None:
            self.parent.take(more)

    def take(self, more: int) -> None:
        """So much more is reserved in this pool, which may make its own claim grow, and so on upwards."""
        node: Node | None = self
        while node is not None and more:
            before = node.claim
            node.used += more
            more = node.claim - before
            node = node.parent


def check_figures(path: str, reservation: int, limit: int | None, shares: int) -> None:
    """Whether they can be. Raises `ResourceError`."""
    for key, figure in (("reserve", reservation), ("limit", limit), ("weight", shares)):
        whole = isinstance(figure, int) and not isinstance(figure, bool)
        if not whole and not (key == "limit" and figure is None):
            raise ResourceError(path, key, f"must be a whole number, is {figure!r}")
    if reservation < 0:
        raise ResourceError(path, "reserve", f"must not be negative, is {reservation}")
    if limit is not None and limit < 0:
        raise ResourceError(path, "limit", f"must not be negative, is {limit}")
    if limit is not None and reservation > limit:
        raise ResourceError(path, "reserve", f"must not be above its limit of {limit}, is {reservation}")
    if shares < 1:
        raise ResourceError(path, "weight", f"must be at least 1, is {shares}")
