"""What a living object shows of itself: a tree by names, made only where somebody walks it. Both sides.

An object answers `inspect()` with a `Branch` of its values as they are now. A child is a value, a branch, or a function
that makes a branch when the walk comes there, so a path costs what lies on it and nobody pays who does not look.
`partitions.inspect` walks. It may let others run between any two children, so a function asks for what it needs when
it is called, and raises `Gone` where that is there no more.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from operator import methodcaller
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Hex(int):
    """A number that people read in hexadecimal: addresses, masks."""

    __slots__ = ()


class Claim(msgspec.Struct, frozen=True):
    """A value that is in a guest's hands, which may change it at any time to anything."""

    value: int | str
    fault: str = ""
    """Why it cannot be, where that is so."""


class Histogram(msgspec.Struct, frozen=True):
    """How often values of each magnitude occurred."""

    unit: str
    counts: tuple[int, ...]
    """Number 0 counts zeros; number n those from 2**(n-1) up to, not including, 2**n."""

    @property
    def total(self) -> int:
        """All that were counted."""
        return sum(self.counts)


class Setting(msgspec.Struct, frozen=True):
    """A value that can be changed."""

    value: int | str | bool | None
    set: Callable[[str], None]
    """Takes what a person has written; raises `ValueError`, whose words say what would be taken."""
    help: str
    """What it is and what it takes, in a line."""


class Fault(msgspec.Struct, frozen=True):
    """In the place of a child that could not be made, which is a mistake of ours."""

    words: str


class Gone(LookupError):
    """What was to be shown is there no more. The walk leaves it out and goes on."""


Leaf: TypeAlias = "int | float | str | bool | Claim | Histogram | Setting | Fault | None"
Node: TypeAlias = "Leaf | Branch | Callable[[], Branch]"


class Branch:
    """Children by name, in the order in which they are shown. A name may have slashes in it."""

    __slots__ = ("children",)

    def __init__(self, children: Mapping[str, Any]) -> None:
        """`children` are `Node`s, which mypy cannot infer for the values of a dictionary of functions."""
        self.children: Mapping[str, Node] = children

    def walk(self) -> Iterator[tuple[str, Node]]:
        """All children. Others may run, and change everything, between two steps."""
        return iter(self.children.items())

    def names(self) -> list[str]:
        """As they are now."""
        return list(self.children)

    def child(self, name: str) -> Node:
        """Raises `Gone` for one that is not there."""
        try:
            return self.children[name]
        except KeyError:
            raise Gone(name) from None


class Many(Branch, Generic[K, T]):
    """The members of a collection that lives and may be large: each is looked up and shown when the walk is there."""

    __slots__ = ("_key", "_live", "_name", "_show")

    def __init__(
        self,
        live: Mapping[K, T],
        key: Callable[[str], K],
        *,
        name: Callable[[K], str] = str,
        show: Callable[[T], Branch] = methodcaller("inspect"),
    ) -> None:
        """`key` makes of a name what the collection has a member under (`int`, `str`); `name` is the way back."""
        self._live: Mapping[K, T] = live
        self._key: Callable[[str], K] = key
        self._name: Callable[[K], str] = name
        self._show: Callable[[T], Branch] = show

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Those that are there now, and are still there when it is their turn."""
        live, name, show = self._live, self._name, self._show
        for key in list(live):
            member = live.get(key)
            if member is not None:
                yield name(key), partial(show, member)

    def names(self) -> list[str]:
        """As they are now."""
        return [self._name(key) for key in self._live]

    def child(self, name: str) -> Node:
        """Raises `Gone` for one that is not there."""
        try:
            key = self._key(name)
        except ValueError:
            raise Gone(name) from None
        member = self._live.get(key)
        if member is None or self._name(key) != name:
            raise Gone(name)
        return self._show(member)


class Log2Counts:
    """Counts values by their magnitude, for a `Histogram`: one addition each."""

    __slots__ = ("_counts",)

    BUCKETS = 40
    """All from 2**38 on are counted together."""

    def __init__(self) -> None:
        self._counts = [0] * self.BUCKETS

    def add(self, value: int) -> None:
        """One more; negative counts as zero, for clocks that were set back."""
        self._counts[min(value.bit_length(), self.BUCKETS - 1) if value > 0 else 0] += 1

    def histogram(self, unit: str) -> Histogram:
        """As it stands, without the empty magnitudes at its end."""
        counts = self._counts
        length = max((number for number, count in enumerate(counts, 1) if count), default=0)
        return Histogram(unit, tuple(counts[:length]))


def shown(thing: object) -> Branch:
    """What an object shows of itself; of one that shows nothing, its kind."""
    look = getattr(thing, "inspect", None)
    if look is None:
        return Branch({"kind": type(thing).__name__})
    branch: Branch = look()
    return branch


def by_hex(live: Mapping[int, T]) -> Many[int, T]:
    """`Many` with numbers that people know by their hexadecimal digits."""
    return Many(live, _from_hex, name=hex)


def _from_hex(name: str) -> int:
    return int(name, 16)


def data(value: object) -> Node:
    """Plain data as a tree: structs and dictionaries by their names, sequences by number, all else in words."""
    match value:
        case None | bool() | float():
            return value
        case int():
            return int(value)
        case str():
            return str(value)
        case msgspec.Struct():
            return Branch({name: data(getattr(value, name)) for name in value.__struct_fields__})
        case Mapping():
            return Branch({str(name): data(member) for name, member in value.items()})
        case list() | tuple():
            return Branch({str(number): data(member) for number, member in enumerate(value)})
        case _:
            return str(value)


def counters(counted: Mapping[str, int]) -> Branch:
    """A collection of counts by what they count, in alphabetical order."""
    return Branch(dict(sorted(counted.items())))
