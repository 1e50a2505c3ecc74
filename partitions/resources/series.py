"""Samples as curves: for each node a list a figure, window by window, ready to be drawn. Root side.

Pure, and without a plotting library. Where there are more windows than a picture has pixels, neighbours are put
together: counters are added up, so nothing is lost but detail.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import attrs

from partitions.resources.sample import Heading, Node, Sample
from partitions.resources.totals import merged

MOST_POINTS: Final = 500
NOTHING: Final = float("nan")
MIB: Final = 1 << 20
_FIGURES: Final = (
    *("run", "ready", "capped", "halted", "entitled", "demand", "limit", "reserve"),
    *("assigned", "ballooned", "memory_demand", "target", "minimum", "maximum", "free"),
    *("iops", "iops_entitled", "iops_limit", "iops_reserve"),
    *("sent", "received", "dropped", "net_limit", "net_reserve"),
)


@attrs.define
class Curves:
    """One node. Percent of a logical processor, MiB, normalized operations and Mbit a second; NaN is unknown."""

    path: str
    kind: str
    depth: int
    pool: str = ""
    """The pool that it is in; empty for the host."""
    vps: int = 0
    longest_wait: int = 0
    """Nanoseconds of the longest wait for a processor since its start."""
    values: dict[str, list[float]] = attrs.Factory(dict)
    latency: list[tuple[int, int]] = attrs.Factory(list)

    @property
    def name(self) -> str:
        """Without what it is."""
        return self.path.rpartition("/")[2]

    def has(self, figure: str) -> bool:
        """Whether there is anything but nothing."""
        return any(value == value and value for value in self.values[figure])  # NaN is not itself


@attrs.define
class Series:
    """All of a file."""

    heading: Heading
    edges: list[float] = attrs.Factory(lambda: [0.0])
    """Where windows begin and end, in seconds: one more than there are windows."""
    nodes: dict[str, Curves] = attrs.Factory(dict)
    """In the order of the tree, as it was first."""
    lps: list[list[float]] = attrs.Factory(list)
    """Of each logical processor percent of the window in which it was busy."""
    batch: list[list[float]] = attrs.Factory(list)
    """Of these the batch class's."""
    states: list[str] = attrs.Factory(list)
    """Of the host's memory."""

    @property
    def windows(self) -> int:
        """How many there are."""
        return len(self.edges) - 1

    def of(self, kind: str) -> list[Curves]:
        """All pools, or all VMs."""
        return [node for node in self.nodes.values() if node.kind == kind]


def read(heading: Heading, samples: Iterable[Sample], most: int = MOST_POINTS) -> Series:
    """All windows, at most so many points of them."""
    kept = list(samples)
    together = max(1, -(-len(kept) // most))
    series = Series(heading)
    if kept:
        series.edges = [max(0.0, round(kept[0].time - kept[0].window / 1e9, 9))]
    for place in range(0, len(kept), together):
        _add(series, kept[place : place + together])
    return series


def _add(series: Series, samples: Sequence[Sample]) -> None:
    """One point out of some windows."""
    number = series.windows
    series.edges.append(samples[-1].time)
    length = sum(sample.window for sample in samples)
    rows: dict[str, list[tuple[Node, int]]] = {}
    pools: dict[str, str] = {}
    for sample in samples:
        way: list[str] = []
        for node in sample.nodes:
            del way[node.depth :]
            pools[node.path] = way[-1] if len(way) > 1 else ""
            if node.kind != "vm":
                way.append(node.name)
            rows.setdefault(node.path, []).append((node, sample.window))
    for path, parts in rows.items():
        last = parts[-1][0]
        curves = series.nodes.get(path)
        if curves is None:
            curves = series.nodes[path] = Curves(path, last.kind, last.depth)
            curves.values = {figure: [NOTHING] * number for figure in _FIGURES}
        curves.pool = pools[path]
        curves.vps = max(curves.vps, last.cpu.vps)
        curves.longest_wait = max(curves.longest_wait, *(node.cpu.longest_wait for node, _ in parts))
        for figure, value in _point(parts, length).items():
            curves.values[figure].append(value)
        curves.latency = merged([curves.latency, *(node.disk.latency for node, _ in parts if node.disk is not None)])
        if path == "host":
            series.states.append(last.memory.state or "")
    for curves in series.nodes.values():
        for values in curves.values.values():
            if len(values) == number:
                values.append(NOTHING)
    for index in range(len(samples[-1].lps)):
        while len(series.lps) <= index:
            series.lps.append([0.0] * number)
            series.batch.append([0.0] * number)
        run = sum(sample.lps[index].run for sample in samples if index < len(sample.lps))
        batch = sum(sample.lps[index].batch for sample in samples if index < len(sample.lps))
        series.lps[index].append(100 * run / max(1, length))
        series.batch[index].append(100 * batch / max(1, length))
    for values in (*series.lps, *series.batch):
        if len(values) == number:
            values.append(0.0)


def _point(parts: Sequence[tuple[Node, int]], length: int) -> dict[str, float]:
    last = parts[-1][0]
    length = max(1, length)

    def share(name: str) -> float:
        return 100.0 * int(sum(getattr(node.cpu, name) for node, _ in parts)) / length

    def mean(values: Sequence[float | None]) -> float:
        """Weighed by the windows, over those that know it."""
        known = [(value, window) for value, (_, window) in zip(values, parts, strict=True) if value is not None]
        weight = sum(window for _, window in known)
        return sum(value * window for value, window in known) / weight if weight else NOTHING

    found = {name: share(name) for name in ("run", "ready", "capped", "halted")}
    found |= {name: mean([getattr(node.cpu, name) for node, _ in parts]) for name in ("entitled", "demand")}
    found |= {"limit": _known(last.cpu.limit), "reserve": _known(last.cpu.reserve)}
    memory = last.memory
    for name in ("assigned", "ballooned", "target", "minimum", "maximum", "free"):
        found[name] = _known(getattr(memory, name), MIB)
    found["memory_demand"] = _known(memory.demand, MIB)
    disks = [node.disk for node, _ in parts if node.disk is not None]
    if disks:
        disk = disks[-1]
        found["iops"] = sum(one.normalized for one in disks) * 1e9 / length
        found["iops_entitled"] = mean([None if node.disk is None else node.disk.entitled for node, _ in parts])
        found |= {"iops_limit": _known(disk.limit), "iops_reserve": _known(disk.reserve)}
    networks = [node.network for node, _ in parts if node.network is not None]
    if networks:
        network = networks[-1]
        found["sent"] = sum(one.sent_bits for one in networks) * 1e3 / length
        found["received"] = sum(one.received_bits for one in networks) * 1e3 / length
        found["dropped"] = float(sum(one.dropped for one in networks))
        found |= {"net_limit": _known(network.limit, 1e6), "net_reserve": _known(network.reserve, 1e6)}
    return found


def _known(value: float | None, unit: float = 1) -> float:
    return NOTHING if value is None else value / unit
