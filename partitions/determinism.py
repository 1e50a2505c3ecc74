"""The one place that makes a run repeatable: Trio's task order, Trio's clock and the host's random numbers. Root side.

Trio shuffles tasks on purpose. For Hypothesis it carries a private hook: with `_ALLOW_DETERMINISTIC_SCHEDULING` set,
each batch of tasks is first sorted by age and then shuffled by the module's own generator `_r`. Seeding that generator
gives one order per seed. The hook is private, so nothing else in the project may touch it, and `check_hook` says
clearly when a version of Trio has dropped it.

What is repeatable under the same seed: on the virtual clock, everything, to the last byte of a trace. On the real clock
only the order of tasks that become ready together; what the machine's own timing decides stays free.
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, TypeVarTuple

import trio
import trio._core._run as _trio_run

ClockKind = Literal["real", "virtual"]
Args = TypeVarTuple("Args")
Result = TypeVar("Result")
_hook: Any = _trio_run  # what is read and set below is private: no stub knows it


class NotRepeatable(RuntimeError):
    """This version of Trio lacks the hook that a repeatable run needs."""


def check_hook() -> None:
    """Raise `NotRepeatable` unless this Trio's run loop sorts its batches and shuffles them by a known generator."""
    loop = getattr(_hook, "unrolled_run", None)
    read_by_loop = getattr(getattr(loop, "__code__", None), "co_names", ())
    if not isinstance(getattr(_hook, "_r", None), random.Random) or not {
        "_ALLOW_DETERMINISTIC_SCHEDULING",
        "_r",
    } <= set(read_by_loop):
        raise NotRepeatable(
            f"Trio {trio.__version__} has no hook for a repeatable task order. "
            "Install the version that constraints.txt names, or run with --clock real and without --seed."
        )


@contextmanager
def seeded_scheduler(order: random.Random) -> Iterator[None]:
    """Have `order` shuffle the tasks of a `trio.run` inside this block; afterwards Trio is as it was."""
    check_hook()
    allowed, generator = _hook._ALLOW_DETERMINISTIC_SCHEDULING, _hook._r
    _hook._ALLOW_DETERMINISTIC_SCHEDULING = True
    _hook._r = order
    try:
        yield
    finally:
        _hook._ALLOW_DETERMINISTIC_SCHEDULING = allowed
        _hook._r = generator


def host_random(seed: int | None, purpose: str) -> random.Random:
    """A generator for one purpose of the host; purposes do not disturb one another. Without a seed it is random."""
    return random.Random() if seed is None else random.Random(f"partita {seed} {purpose}")


def run(
    async_fn: Callable[[*Args], Awaitable[Result]],
    *args: *Args,
    clock: ClockKind = "real",
    seed: int | None = None,
    autojump: bool = True,
    order: random.Random | None = None,
) -> Result:
    """`trio.run` on the real or the virtual clock, with a task order given by `seed`.

    The virtual clock stands still while anything can run and jumps when nothing can, or with `autojump` off, only when
    told to (`MockClock.jump`); its seed is 0 unless told.
    On the real clock without a seed this is `trio.run` and nothing more. Raises `NotRepeatable` where a seed is
    needed and this Trio cannot be seeded. `order` is asked in the place of a generator with that seed.
    """
    if clock == "virtual":
        # Imported only here: it brings pytest along where that is installed, 9 MiB that a real run has no use for.
        from trio.testing import MockClock

        with seeded_scheduler(order or random.Random(0 if seed is None else seed)):
            return trio.run(async_fn, *args, clock=MockClock(autojump_threshold=0 if autojump else math.inf))
    if seed is None:
        return trio.run(async_fn, *args)
    with seeded_scheduler(order or random.Random(seed)):
        return trio.run(async_fn, *args)
