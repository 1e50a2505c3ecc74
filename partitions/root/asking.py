"""Who asked for what happens now: a person at a terminal, a peer of the control socket, a policy. Root side.

A request passes through several calls until it changes a state; the words go along in the task's context, so that none
of the calls need know of them. What a worker does by itself is nobody's wish, and its events carry no such words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_ASKER: Final[ContextVar[str]] = ContextVar("asker", default="")


def asker() -> str:
    """Who asks, in a few words; empty for the program that opened the host."""
    return _ASKER.get()


@contextmanager
def asked_by(who: str) -> Iterator[None]:
    """What is asked for in this block, and in the tasks that it starts, is asked for by `who`."""
    token = _ASKER.set(who)
    try:
        yield
    finally:
        _ASKER.reset(token)
