"""Clients that always want more, on a clock that stands where it is put: a moment of trouble is a line of a test."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vsp_vsc.storage.qos.mclock import MClock, Node, Request

SECOND = 1_000_000_000


def keep_busy(clock: MClock, nodes: Sequence[Node], now: int = 0, *, cost: int = 1, depth: int = 4) -> None:
    """So many requests wait at each from now on; `run` keeps it so."""
    for node in nodes:
        for _ in range(depth):
            clock.add(node, cost, None, now)


def run(
    clock: MClock,
    until: int,
    *,
    goes: Callable[[Request, int], object] | None = None,
    again: Callable[[Request], bool] = lambda _: True,
) -> list[tuple[int, Request]]:
    """Let all go that may before `until`, each followed by another; when each went."""
    gone: list[tuple[int, Request]] = []
    while (moment := clock.next_time()) is not None and moment < until:
        request = clock.pull(moment)
        if request is None:
            continue
        gone.append((moment, request))
        if goes is not None:
            goes(request, moment)
        if again(request):
            clock.add(request.leaf, request.cost, None, moment)
    assert clock.pull(until - 1) is None
    return gone


def served(nodes: Sequence[Node]) -> list[int]:
    """Normalized I/Os of each so far."""
    return [node.served for node in nodes]


def gained(before: Sequence[int], nodes: Sequence[Node]) -> list[int]:
    """Since then."""
    return [node.served - old for node, old in zip(nodes, before, strict=True)]
