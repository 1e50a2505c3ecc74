"""What a VM has had since its first start, and the difference of two such readings: one window. Root side.

The same structs as in a sample, read otherwise: counters count from the beginning, everything else is as it is now.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from partitions.resources.sample import Cpu, Disk, Memory, Network

_COUNTS: Final[dict[type, tuple[str, ...]]] = {
    Cpu: ("elapsed", "run", "ready", "capped", "halted", "dispatches", "waited"),
    Disk: ("requests", "normalized", "bytes", "elapsed", "waited", "busy"),
    Network: ("sent_bits", "received_bits", "sent", "received", "dropped", "elapsed"),
}
T = TypeVar("T", Cpu, Disk, Network)
_replace: Final = msgspec.structs.replace


class Vp(NamedTuple):
    """What one virtual processor had and wanted."""

    run: int
    stolen: int
    """Nanoseconds that it was ready or capped."""
    wants: bool
    """Whether it has work that is not done."""


class Totals(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One VM."""

    vps: tuple[Vp, ...] = ()

    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    disk: Disk | None = None
    network: Network | None = None


NOTHING: Final = Totals()


def since(before: Totals, after: Totals) -> Totals:
    """What came between two readings."""
    earlier = before.vps if len(before.vps) == len(after.vps) else (Vp(0, 0, False),) * len(after.vps)
    return Totals(
        vps=tuple(
            [Vp(vp.run - was.run, vp.stolen - was.stolen, vp.wants) for vp, was in zip(after.vps, earlier, strict=True)]
        ),
        cpu=_minus(after.cpu, before.cpu),
        memory=after.memory,
        disk=_minus_maybe(after.disk, before.disk),
        network=_minus_maybe(after.network, before.network),
    )


def together(first: Totals, second: Totals) -> Totals:
    """An earlier run and the one after it; levels are the second's."""
    return Totals(
        vps=second.vps,
        cpu=_plus(first.cpu, second.cpu),
        memory=second.memory,
        disk=_plus_maybe(first.disk, second.disk),
        network=_plus_maybe(first.network, second.network),
    )


def add_counts(parts: list[T], **levels: Any) -> T:
    """The counters of several added up; levels as they are given. There must be one at least."""
    kind = type(parts[0])
    sums = {name: sum([getattr(part, name) for part in parts]) for name in _COUNTS[kind]}
    if kind is Disk:
        sums["latency"] = merged([getattr(part, "latency") for part in parts])  # noqa: B009  # one type out of three has it
    return kind(**(sums | levels))


def merged(histograms: list[list[tuple[int, int]]], sign: int = 1) -> list[tuple[int, int]]:
    """Histograms by their bounds added up, or the others taken from the first."""
    counts: dict[int, int] = {}
    for place, histogram in enumerate(histograms):
        for bound, count in histogram:
            counts[bound] = counts.get(bound, 0) + (count if place == 0 else sign * count)
    return [(bound, counts[bound]) for bound in sorted(counts) if counts[bound]]


def _minus(after: T, before: T) -> T:
    changed: dict[str, Any] = {name: getattr(after, name) - getattr(before, name) for name in _COUNTS[type(after)]}
    if isinstance(after, Disk):
        changed["latency"] = merged([after.latency, getattr(before, "latency", [])], -1)
    return _replace(after, **changed)


def _plus(first: T, second: T) -> T:
    changed: dict[str, Any] = {name: getattr(first, name) + getattr(second, name) for name in _COUNTS[type(second)]}
    if isinstance(second, Disk):
        changed["latency"] = merged([getattr(first, "latency", []), second.latency])
    return _replace(second, **changed)


def _minus_maybe(after: T | None, before: T | None) -> T | None:
    return after if after is None or before is None else _minus(after, before)


def _plus_maybe(first: T | None, second: T | None) -> T | None:
    if second is None:
        return first
    return second if first is None else _plus(first, second)
