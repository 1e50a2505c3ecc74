"""Looking and changing without keeping others from running; what the API and the control socket call. Root side.

On the real clock a walk lets go before a millisecond is over. On the virtual clock it counts, because how long its
steps take must not decide what comes next.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeAlias

import trio

from hypervisor.inspect import Branch, Node, Setting
from partitions.inspect.path import InspectError, find
from partitions.inspect.render import Values, json_pieces, tree_lines, words
from partitions.inspect.walk import runs
from partitions.surroundings import is_virtual

TURN: Final = 0.0007
"""Seconds for which a walk keeps the loop. Trio shuffles its rounds, so two of its turns may follow each other."""
TURN_RUNS: Final = 50
"""The same on the virtual clock: a branch with some values is one run."""

Form: TypeAlias = Literal["tree", "json"]


class _Turn:
    """One turn of a walk after the other."""

    def __init__(self) -> None:
        self._counted = is_virtual(None)
        self._runs = 0
        self._end = time.perf_counter() + TURN

    def over(self) -> bool:
        """Whether it is time to let go; asked after each run."""
        if self._counted:
            self._runs += 1
            return self._runs % TURN_RUNS == 0
        return time.perf_counter() >= self._end

    def begin(self) -> None:
        """Others have run."""
        if not self._counted:
            self._end = time.perf_counter() + TURN


async def look(root: Node, path: str, *, depth: int | None = None) -> Any:
    """The value at `path`, or the branch as dictionaries, `depth` levels of it. Raises `InspectError`."""
    values, turn = Values(), _Turn()
    for run in runs(find(root, path), depth):
        values.take(run)
        if turn.over():
            await trio.lowlevel.checkpoint()
            turn.begin()
    await trio.lowlevel.checkpoint()
    return values.result


async def write_out(
    root: Node, path: str, *, depth: int | None, form: Form, send: Callable[[str], Awaitable[object]]
) -> None:
    """The same as text, handed to `send` in pieces as it is made. Raises `InspectError` before the first.

    A line end comes last, an empty line after a tree's lines: a text without it has been cut off.
    """
    found, turn = runs(find(root, path), depth), _Turn()
    made: list[str] = []
    for piece in tree_lines(found) if form == "tree" else json_pieces(found):
        made.append(piece)
        if turn.over():
            await send("".join(made))
            await trio.lowlevel.checkpoint()
            made.clear()
            turn.begin()
    await send("".join(made) + "\n")
    await trio.lowlevel.checkpoint()


def update(root: Node, path: str, text: str) -> str:
    """Change a setting; its value then, in words. Raises `InspectError`, also for a value that it does not take."""
    found = find(root, path)
    if not isinstance(found, Setting):
        what = "a branch" if isinstance(found, Branch) else "a value that cannot be set"
        raise InspectError(f'"{path}" is {what}')
    try:
        found.set(text)
    except ValueError as error:
        raise InspectError(f"{path}: {error}") from None
    now = find(root, path)
    return words(now.value) if isinstance(now, Setting) else text
