"""From a path to what it names, or to words that help. Root side."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Final

from hypervisor.inspect import Branch, Fault, Gone, Leaf, Node

MOST_COMPARED: Final = 200
"""Names that are looked at for one like the wrong one: it takes time, and the loop waits."""
MOST_NAMED: Final = 12
MOST_PARTS: Final = 64
"""Of one name that has slashes in it, as a file's path. A path of ten thousand would be tried for seconds."""


class InspectError(LookupError):
    """A path or a value that is none; the words say which, and what there is."""


def made(node: Callable[[], Branch]) -> Branch | Fault:
    """What a function makes. Raises `Gone`; whatever else it raises is our mistake, and is shown."""
    try:
        return node()
    except Gone:
        raise
    except Exception as error:  # a look inside must not end what is looked at
        return Fault(f"{type(error).__name__}: {error}")


def find(root: Node, path: str) -> Branch | Leaf:
    """What is at `path`, such as `vm/web/vmbus`; the empty path is the root. Raises `InspectError`."""
    node: Branch | Leaf = opened(root, "")
    rest = [part for part in path.split("/") if part]
    taken: list[str] = []
    while rest:
        place = "/".join(taken) or "the root"
        if not isinstance(node, Branch):
            raise InspectError(f'{place} is a value: there is no "{"/".join(rest)}" below it')
        count, child = _child(node, rest, place)
        taken += rest[:count]
        del rest[:count]
        node = opened(child, "/".join(taken))
    return node


def opened(node: Node, place: str) -> Branch | Leaf:
    """A node that has been made. Raises `InspectError` where it is gone, or cannot be made."""
    if not callable(node):
        return node
    try:
        return made(node)
    except Gone:
        raise InspectError(f"{place} is there no more") from None


def _child(branch: Branch, rest: list[str], place: str) -> tuple[int, Node]:
    """The child that the next parts of a path name, and how many they are: some names have slashes in them."""
    for count in range(1, min(len(rest), MOST_PARTS) + 1):
        try:
            return count, branch.child("/".join(rest[:count]))
        except Gone:
            continue
        except Exception as error:
            return count, Fault(f"{type(error).__name__}: {error}")
    raise InspectError(f'there is no "{rest[0]}" in {place}; {_hint(rest[0], branch.names())}')


def _hint(wrong: str, names: list[str]) -> str:
    """The nearest name, or some of those that there are."""
    near = difflib.get_close_matches(wrong, _alike(wrong, names), n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    if not names:
        return "it is empty"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"there are {', '.join(names[:MOST_NAMED])}{more}"


def _alike(wrong: str, names: list[str]) -> list[str]:
    if len(names) <= MOST_COMPARED:
        return names
    return [name for name in names if name[:2] == wrong[:2]][:MOST_COMPARED]
