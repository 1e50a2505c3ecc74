"""Pictures of a run: matplotlib figures out of curves, one function a picture. Root side.

Colours are Okabe and Ito's, which people tell apart whatever they see of red and green; VMs have a line style besides.
What there is no data for is no picture: such a function gives None.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import cycle, islice, pairwise
from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from partitions.resources.alarms import LATENCY_MS, shortened
from partitions.resources.series import MIB, Curves, Series
from partitions.resources.slices import pauses_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from partitions.resources.slices import Slice

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#BBBBBB"
PALETTE: Final = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, "#8C6D00", "#555555")
STYLES: Final = ("-", "--", "-.", ":")
WIDTH: Final = 9.0
"""Inches."""
PANEL: Final = 1.55
MOST_PANELS: Final = 12
"""VMs or pools in one picture; those with the most to show."""
MOST_LPS: Final = 64
MOST_ROWS: Final = 200
"""VMs in a picture of shades."""
MOST_LETTERS: Final = 24
"""Of a name beside a row."""
MOST_APART: Final = 20
"""How many times the least may go into the greatest of panels with one scale."""
STATES: Final = (("soft", 0.04, PURPLE), ("hard", 0.02, RED), ("low", 0.01, BLACK))
"""Of the host's memory: where a state begins, as a part of all memory that is free (ESX Server's thresholds)."""


def colors(nodes: Sequence[Curves]) -> dict[str, str]:
    """One for each, the same in every picture."""
    return dict(zip([node.path for node in nodes], islice(cycle(PALETTE), len(nodes)), strict=True))


def styles(nodes: Sequence[Curves]) -> dict[str, str]:
    """Lines that differ without their colours: another style for each, and another order from the ninth on."""
    return {node.path: STYLES[(number + number // len(PALETTE)) % len(STYLES)] for number, node in enumerate(nodes)}


def _figure(panels: int, height: float = PANEL, title: str = "") -> tuple[Figure, list[Axes]]:
    made = Figure(figsize=(WIDTH, max(2.6, 0.9 + panels * height)), layout="constrained")
    axes = made.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    made.suptitle(title, fontsize=11, x=0.01, ha="left")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
        one.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        one.set_axisbelow(True)
        one.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    axes[-1].set_xlabel("seconds", fontsize=9)
    return made, list(axes)


def _steps(values: Sequence[float]) -> list[float]:
    """For a line that is level over each window: the last value once more at the end."""
    return [*values, values[-1]] if values else []


def _line(axes: Axes, series: Series, values: Sequence[float], **look: Any) -> None:
    axes.step(series.edges, _steps(values), where="post", **look)


def _legend(axes: Axes, made: Figure, *, columns: int = 5) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        made.legend(
            handles, labels, loc="outside lower center", ncols=min(columns, len(handles)), fontsize=8, frameon=False
        )


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=9, loc="left", pad=3)


def _most(nodes: Sequence[Curves], weight: Callable[[Curves], float]) -> tuple[list[Curves], str]:
    """Those that fit a picture, in the tree's order, and what to say of the others."""
    if len(nodes) <= MOST_PANELS:
        return list(nodes), ""
    kept = sorted(nodes, key=lambda node: (node.kind == "pool", weight(node)), reverse=True)[:MOST_PANELS]
    return [node for node in nodes if node in kept], f" (the {MOST_PANELS} of {len(nodes)} with the most to show)"


def _place(node: Curves) -> str:
    """Its name, and the pool that it is in: weights and limits of that are what it lives by."""
    name = f"pool {node.name}" if node.kind == "pool" else node.name
    return f"{name}, in {node.pool}" if node.pool else name


def _sum(node: Curves, *figures: str) -> float:
    return sum(value for figure in figures for value in node.values[figure] if value == value)


# --- processors


def processors(series: Series) -> Figure | None:
    """How each VM spent its time, stacked: running, waiting for others, held back by a limit, idle."""
    vms = [node for node in series.of("vm") if _sum(node, "run", "ready", "capped", "halted") > 0]
    shown, rest = _most(vms, lambda node: _sum(node, "run", "ready", "capped"))
    if not any(_sum(node, "run", "ready", "capped") for node in shown):
        return None
    made, axes = _figure(len(shown), title=f"Time of each VM's processors{rest}")
    parts = (
        ("run", "run (%RUN)", BLUE, ""),
        ("capped", "held back by a limit (%MLMTD)", RED, "////"),
        ("ready", "waiting for a processor", ORANGE, "...."),
        ("halted", "nothing to do (%WAIT)", "#EEEEEE", ""),
    )
    for node, panel in zip(shown, axes, strict=True):
        below = [0.0] * series.windows
        for figure, label, color, hatch in parts:
            values = [0.0 if value != value else value for value in node.values[figure]]
            top = [low + value for low, value in zip(below, values, strict=True)]
            panel.fill_between(
                series.edges,
                _steps(below),
                _steps(top),
                step="post",
                label=label,
                facecolor=color,
                hatch=hatch,
                edgecolor="white" if hatch else "none",
                linewidth=0,
            )
            below = top
        many = "" if node.vps == 1 else f", {node.vps} virtual processors"
        waited = f", longest wait {node.longest_wait / 1e6:,.3g} ms" if node.longest_wait else ""
        _title(panel, f"{_place(node)}{many}{waited}")
        panel.set_ylim(0, 100 * max(1, node.vps))
        panel.set_ylabel("% of an LP", fontsize=8)
    axes[0].set_xlim(series.edges[0], series.edges[-1])
    _legend(axes[0], made)
    return made


def everybody(series: Series) -> Figure | None:
    """Where there are more VMs than panels: what each got and how long it waited, as shades."""
    vms = [node for node in series.of("vm") if _sum(node, "run", "ready", "capped") > 0]
    if len(vms) <= MOST_PANELS:
        return None
    rows = vms[:MOST_ROWS]
    rest = f" (the first {MOST_ROWS} of {len(vms)})" if len(vms) > MOST_ROWS else ""
    high = max(0.11 * len(rows), 2.0)
    made = Figure(figsize=(WIDTH, 1.4 + high), layout="constrained")
    parts = [("run", "got (%RUN)"), ("ready", "waited for others (%RDY - %MLMTD)")]
    if any(node.has("capped") for node in rows):
        parts.append(("capped", "held back by a limit (%MLMTD)"))
    panels = made.subplots(1, len(parts), sharex=True, sharey=True)
    for panel, (figure, label) in zip(panels, parts, strict=True):
        shades = [_while_on(node, figure) for node in rows]
        mesh = panel.pcolormesh(
            series.edges, [number - 0.5 for number in range(len(rows) + 1)], shades, cmap="cividis", vmin=0, vmax=100
        )
        _title(panel, label)
        panel.set_xlabel("seconds", fontsize=9)
        panel.tick_params(labelsize=8)
    step = 1 if len(rows) <= 60 else 5
    names = [f"{shortened(node.pool, 12)}/{shortened(node.name, MOST_LETTERS)}" for node in rows[::step]]
    panels[0].set_yticks(range(0, len(rows), step), [name.removeprefix("/") for name in names], fontsize=6)
    panels[0].invert_yaxis()
    bar = made.colorbar(mesh, ax=panels, pad=0.01)
    bar.set_label("% of each virtual processor", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    made.suptitle(f"Time of all VMs' processors{rest}", fontsize=11, x=0.01, ha="left")
    return made


def _while_on(node: Curves, figure: str) -> list[float]:
    """Percent of each of its processors; nothing where it was off."""
    spent = zip(*(node.values[part] for part in ("run", "ready", "capped", "halted")), strict=True)
    return [
        value / max(1, node.vps) if any(parts) else float("nan")
        for value, parts in zip(node.values[figure], spent, strict=True)
    ]


def entitlement(series: Series) -> Figure | None:
    """What each pool and VM was due, and what it got."""
    nodes = [node for node in series.nodes.values() if node.kind != "host" and node.has("entitled")]
    shown, rest = _most(nodes, lambda node: _sum(node, "run", "ready", "capped"))
    if not shown:
        return None
    made, axes = _figure(len(shown), title=f"Due and delivered{rest}")
    for node, panel in zip(shown, axes, strict=True):
        values = node.values
        panel.fill_between(
            series.edges, _steps(values["run"]), step="post", color=SKY, alpha=0.6, linewidth=0, label="delivered"
        )
        _line(panel, series, values["entitled"], color=BLACK, linewidth=1.3, label="entitled")
        if node.has("limit"):
            _line(panel, series, values["limit"], color=RED, linewidth=1.3, linestyle="--", label="limit")
        if node.has("reserve"):
            _line(panel, series, values["reserve"], color=GREEN, linewidth=1.3, linestyle="-.", label="reservation")
        _title(panel, _place(node))
        panel.set_ylim(0, _room([*values["run"], *values["entitled"], *values["limit"], *values["reserve"]], 10))
        panel.set_ylabel("% of an LP", fontsize=8)
    _same_scale(shown, axes)
    axes[0].set_xlim(series.edges[0], series.edges[-1])
    _legend_of_all(axes, made)
    return made


def _legend_of_all(axes: Sequence[Axes], made: Figure) -> None:
    """One for all panels, though not each has everything."""
    found: dict[str, Any] = {}
    for panel in axes:
        handles, labels = panel.get_legend_handles_labels()
        for handle, label in zip(handles, labels, strict=True):
            found.setdefault(label, handle)
    if found:
        made.legend(
            list(found.values()),
            list(found),
            loc="outside lower center",
            ncols=min(6, len(found)),
            fontsize=8,
            frameon=False,
        )


def _room(values: Sequence[float], least: float) -> float:
    return 1.08 * max([least, *(value for value in values if value == value)])


def _same_scale(nodes: Sequence[Curves], axes: Sequence[Axes]) -> None:
    """One for pools and one for VMs: what is as high is as much. Not where the small ones would be flat lines."""
    for kind in {node.kind for node in nodes}:
        panels = [panel for node, panel in zip(nodes, axes, strict=True) if node.kind == kind]
        tops = [panel.get_ylim()[1] for panel in panels]
        if max(tops) <= MOST_APART * min(tops):
            for panel in panels:
                panel.set_ylim(0, max(tops))


def logical_processors(series: Series) -> Figure | None:
    """How busy each logical processor was, as shades."""
    if not series.lps or not any(map(any, series.lps)):
        return None
    rows = series.lps[:MOST_LPS]
    rest = f" (the first {MOST_LPS} of {len(series.lps)})" if len(series.lps) > MOST_LPS else ""
    made = Figure(figsize=(WIDTH, 1.5 + 0.28 * len(rows)), layout="constrained")
    axes = made.subplots()
    mesh = axes.pcolormesh(
        series.edges, [number - 0.5 for number in range(len(rows) + 1)], rows, cmap="cividis", vmin=0, vmax=100
    )
    axes.set_yticks(range(len(rows)) if len(rows) <= 16 else range(0, len(rows), 4))
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_ylabel("logical processor", fontsize=9)
    axes.set_xlabel("seconds", fontsize=9)
    bar = made.colorbar(mesh, ax=axes, pad=0.01)
    bar.set_label("% busy", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    made.suptitle(f"Logical processors{rest}", fontsize=11, x=0.01, ha="left")
    return made


def schedule(slices: Sequence[Slice]) -> Figure | None:
    """Who was on which logical processor when: a Gantt chart of slices."""
    if not slices:
        return None
    lps = sorted({one.lp for one in slices})
    vms = sorted({one.vm for one in slices})
    palette = dict(zip(vms, islice(cycle(PALETTE), len(vms)), strict=True))
    hatches = {vm: ("", "////", "....", "xxxx")[number // len(PALETTE) % 4] for number, vm in enumerate(vms)}
    made = Figure(figsize=(WIDTH, 1.5 + 0.45 * len(lps)), layout="constrained")
    axes = made.subplots()
    for vm in vms:
        for lp in lps:
            bars = [(one.begin, one.end - one.begin) for one in slices if (one.vm, one.lp) == (vm, lp)]
            if bars:
                axes.broken_barh(
                    bars,
                    (lps.index(lp) - 0.4, 0.8),
                    facecolor=palette[vm],
                    edgecolor="white",
                    linewidth=0.3,
                    hatch=hatches[vm],
                )
    axes.set_yticks(range(len(lps)), [f"LP {lp}" for lp in lps])
    axes.invert_yaxis()
    begin, end = min(one.begin for one in slices), max(one.end for one in slices)
    axes.set_xlim(begin, end)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    in_ms = end - begin < 1
    if in_ms:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1000 * value:g}"))
    axes.set_xlabel("milliseconds" if in_ms else "seconds", fontsize=9)
    handles = [Patch(facecolor=palette[vm], hatch=hatches[vm], edgecolor="white", label=vm) for vm in vms]
    made.legend(handles=handles, loc="outside lower center", ncols=min(8, len(vms)), fontsize=8, frameon=False)
    made.suptitle("Who ran where", fontsize=11, x=0.01, ha="left")
    return made


def pauses(slices: Sequence[Slice]) -> Figure | None:
    """How often each VM stood still in the middle of its work, and for how long: what averages hide."""
    found = pauses_of(slices)
    vms = sorted({one.vm for one in found}, key=lambda vm: -max(one.length for one in found if one.vm == vm))
    shown = sorted(vms[:MOST_PANELS])
    if not shown:
        return None
    rest = f" (the {MOST_PANELS} of {len(vms)} with the longest)" if len(vms) > MOST_PANELS else ""
    made, axes = _figure(len(shown), title=f"Pauses in the middle of work{rest}")
    edges = _decades(min(one.length for one in found), max(one.length for one in found))
    for vm, panel in zip(shown, axes, strict=True):
        own = [one for one in found if one.vm == vm]
        below = [0] * (len(edges) - 1)
        for limited, label, color, hatch in (
            (True, "after its own or its pool's limit was used up", RED, "////"),
            (False, "after a slice: others had their turn, or used up their pool's limit", ORANGE, ""),
        ):
            counts = _counts([one.length for one in own if one.limited is limited], edges)
            panel.bar(
                edges[:-1],
                counts,
                width=[high - low for low, high in pairwise(edges)],
                bottom=below,
                align="edge",
                label=label,
                facecolor=color,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
            )
            below = [a + b for a, b in zip(below, counts, strict=True)]
        _title(panel, f"{vm}: {len(own):,} pauses, longest {1000 * max(one.length for one in own):,.3g} ms")
        panel.set_xscale("log")
        panel.set_ylim(0, 1.08 * max(below))
        panel.set_ylabel("pauses", fontsize=8)
    axes[-1].xaxis.set_major_locator(FixedLocator(edges[:: 1 + len(edges) // 12]))
    axes[-1].xaxis.set_minor_locator(NullLocator())
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1000 * value:,.3g}"))
    axes[-1].set_xlabel("milliseconds", fontsize=9)
    _legend_of_all(axes, made)
    return made


def _decades(least: float, most: float) -> list[float]:
    """Six steps in each power of ten, around what there is."""
    steps = [part * 10.0**power / 1e6 for power in range(-4, 13) for part in (1, 1.5, 2, 3, 5, 7)]
    first = max(number for number, step in enumerate(steps) if step <= least or number == 0)
    last = next((number for number, step in enumerate(steps) if step > most), len(steps) - 1)
    return steps[max(0, first - 1) : last + 2]


def _counts(lengths: Sequence[float], edges: Sequence[float]) -> list[int]:
    """How many are from each edge to the next."""
    counts = [0] * (len(edges) - 1)
    for length in lengths:
        counts[min(bisect_right(edges, length), len(counts)) - 1] += 1
    return counts


# --- memory


def memory(series: Series) -> Figure | None:
    """Who had the host's memory, stacked, what of it balloons held back, and where it becomes short."""
    host = series.nodes.get("host")
    vms = [node for node in series.of("vm") if node.has("assigned")]
    if host is None or not vms:
        return None
    controlled = [node for node in vms if node.has("ballooned") or node.has("target")]
    least = min((value for value in host.values["free"] if value == value), default=0.0)
    if not controlled and least > 0.5 * series.heading.memory / MIB:
        return None  # nobody's memory moves, and there is plenty
    shown, rest = _most(controlled, lambda node: _sum(node, "assigned"))
    made, axes = _figure(1 + len(shown), height=1.8, title=f"Memory{rest}")
    _memory_stack(axes[0], series, vms, host)
    for node, panel in zip(shown, axes[1:], strict=True):
        values = node.values
        panel.fill_between(
            series.edges, _steps(values["assigned"]), step="post", color=SKY, alpha=0.6, linewidth=0, label="assigned"
        )
        top = [a + b for a, b in zip(values["assigned"], values["ballooned"], strict=True)]
        panel.fill_between(
            series.edges,
            _steps(values["assigned"]),
            _steps(top),
            step="post",
            facecolor="#EEEEEE",
            hatch="////",
            edgecolor=GREY,
            linewidth=0,
            label="ballooned (MCTLSZ)",
        )
        _line(panel, series, values["memory_demand"], color=ORANGE, linewidth=1.4, label="demand")
        _line(panel, series, values["target"], color=BLACK, linewidth=1.1, linestyle="--", label="target")
        for figure in ("minimum", "maximum"):
            _line(panel, series, values[figure], color=GREEN, linewidth=0.9, linestyle=":", label="minimum, maximum")
        _title(panel, _place(node))
        panel.set_ylim(0, _room([*top, *values["maximum"]], 1))
        panel.set_ylabel("MiB", fontsize=8)
    axes[0].set_xlim(series.edges[0], series.edges[-1])
    if shown:
        _legend_of_all(axes[1:], made)
    return made


def _memory_stack(axes: Axes, series: Series, vms: Sequence[Curves], host: Curves) -> None:
    ordered = sorted(vms, key=lambda node: _sum(node, "assigned"), reverse=True)
    own, others = ordered[: len(PALETTE) - 1], ordered[len(PALETTE) - 1 :]
    stacks = [(node.name, node.values["assigned"]) for node in vms if node in own]
    if others:
        stacks.append(
            (
                f"{len(others)} others",
                [sum(values) for values in zip(*(_zeros(node.values["assigned"]) for node in others), strict=True)],
            )
        )
    below = [0.0] * series.windows
    for (name, values), color in zip(stacks, PALETTE, strict=False):
        top = [low + value for low, value in zip(below, _zeros(values), strict=True)]
        axes.fill_between(
            series.edges, _steps(below), _steps(top), step="post", color=color, alpha=0.75, linewidth=0, label=name
        )
        below = top
    capacity = series.heading.memory / MIB
    _title(axes, "host: who has it")
    axes.set_ylabel("MiB", fontsize=8)
    # Where hardly any of it is used, what is used is what matters.
    close = max(below) > 0.5 * capacity
    axes.set_ylim(0, capacity * 1.02 if close else _room(below, 1))
    if close:
        axes.axhline(capacity, color=BLACK, linewidth=0.8)
        for _, part, color in STATES:
            axes.axhline(capacity * (1 - part), color=color, linewidth=0.9, linestyle="--")
        axes.annotate(
            "free: soft below 4 %,\nhard 2 %, low 1 %",
            (1.0, capacity),
            xycoords=("axes fraction", "data"),
            fontsize=6.5,
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    _memory_states(axes, series)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.4))


def _memory_states(axes: Axes, series: Series) -> None:
    """A band below for each while in which the host was short of memory."""
    shades = {name: color for name, _, color in STATES}
    for index, state in enumerate(series.states):
        if state in shades:
            axes.axvspan(series.edges[index], series.edges[index + 1], ymax=0.04, color=shades[state], linewidth=0)
    for state, color in shades.items():
        if state in series.states:
            axes.fill_between([], [], color=color, label=f"host {state}")


def _zeros(values: Sequence[float]) -> list[float]:
    return [0.0 if value != value else value for value in values]


# --- disks and network


def iops(series: Series) -> Figure | None:
    """Normalized operations a second of each VM, with limit and reservation."""
    nodes = [node for node in series.nodes.values() if node.kind != "host" and node.has("iops")]
    shown, rest = _most(nodes, lambda node: _sum(node, "iops"))
    if not shown:
        return None
    made, axes = _figure(len(shown), title=f"Normalized I/O operations a second{rest}")
    for node, panel in zip(shown, axes, strict=True):
        values = node.values
        panel.fill_between(
            series.edges, _steps(values["iops"]), step="post", color=SKY, alpha=0.6, linewidth=0, label="delivered"
        )
        if node.has("iops_entitled"):
            _line(panel, series, values["iops_entitled"], color=BLACK, linewidth=1.2, label="entitled")
        if node.has("iops_limit"):
            _line(panel, series, values["iops_limit"], color=RED, linewidth=1.3, linestyle="--", label="limit")
        if node.has("iops_reserve"):
            _line(
                panel, series, values["iops_reserve"], color=GREEN, linewidth=1.3, linestyle="-.", label="reservation"
            )
        _title(panel, _place(node))
        panel.set_ylim(0, _room([*values["iops"], *values["iops_limit"], *values["iops_reserve"]], 1))
        panel.set_ylabel("IOPS", fontsize=8)
    _same_scale(shown, axes)
    axes[0].set_xlim(series.edges[0], series.edges[-1])
    _legend_of_all(axes, made)
    return made


def latency(series: Series) -> Figure | None:
    """How many of each VM's requests were at most how slow."""
    nodes = [node for node in series.of("vm") if node.latency]
    shown, rest = _most(nodes, lambda node: sum(count for _, count in node.latency))
    if not shown:
        return None
    made, (axes,) = _figure(1, height=3.4, title=f"Latency of requests{rest}")
    palette, lines = colors(shown), styles(shown)
    for node in shown:
        total, seen = sum(count for _, count in node.latency), 0
        first = node.latency[0][0]
        points = [(max(first / 2, 0.5) / 1000, 0.0)]
        for bound, count in node.latency:
            seen += count
            points.append((max(bound, 1) / 1000, 100 * seen / total))
        axes.plot(
            *zip(*points, strict=True),
            color=palette[node.path],
            linestyle=lines[node.path],
            linewidth=1.6,
            label=f"{node.name} ({total:,})",
            marker="o",
            markersize=2.5,
        )
    axes.set_xscale("log")
    bounds = sorted({bound / 1000 for node in shown for bound, _ in node.latency})
    axes.xaxis.set_major_locator(FixedLocator(bounds[:: 1 + len(bounds) // 12]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}" if value < 100 else f"{value:,.0f}"))
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    axes.set_ylim(0, 102)
    axes.set_yticks([0, 25, 50, 75, 100])
    left, right = min(_first_bound(node) for node in shown), 1.15 * bounds[-1]
    axes.set_xlim(left, right)
    if left < LATENCY_MS < right:
        axes.axvline(LATENCY_MS, color=GREY, linewidth=1, linestyle=":", zorder=0)
        axes.annotate(f"{LATENCY_MS:g} ms", (LATENCY_MS, 3), fontsize=7, color="#777777", ha="right", rotation=90)
    axes.set_xlabel("milliseconds from a request's arrival to its end, at most", fontsize=9)
    axes.set_ylabel("% of requests", fontsize=8)
    _legend(axes, made)
    return made


def _first_bound(node: Curves) -> float:
    """Milliseconds above which there is more than a stray request."""
    total, seen = sum(count for _, count in node.latency), 0
    before = node.latency[0][0] / 2
    for bound, count in node.latency:
        seen += count
        if seen > 0.005 * total:
            break
        before = bound
    return max(before, 0.5) / 1000


def network(series: Series) -> Figure | None:
    """Mbit/s of each VM, both ways, with its limit, and what was dropped."""
    nodes = [node for node in series.of("vm") if node.has("sent") or node.has("received")]
    shown, rest = _most(nodes, lambda node: _sum(node, "sent", "received"))
    if not shown:
        return None
    made, axes = _figure(len(shown), title=f"Network{rest}")
    for node, panel in zip(shown, axes, strict=True):
        values = node.values
        panel.fill_between(
            series.edges, _steps(values["sent"]), step="post", color=SKY, alpha=0.6, linewidth=0, label="sent"
        )
        _line(panel, series, values["received"], color=PURPLE, linewidth=1.3, label="received")
        if node.has("net_limit"):
            _line(panel, series, values["net_limit"], color=RED, linewidth=1.3, linestyle="--", label="limit")
        if node.has("net_reserve"):
            _line(panel, series, values["net_reserve"], color=GREEN, linewidth=1.3, linestyle="-.", label="reservation")
        dropped = _sum(node, "dropped")
        _title(panel, _place(node) + (f", {dropped:,.0f} frames dropped" if dropped else ""))
        panel.set_ylim(0, _room([*values["sent"], *values["received"]], 0.001))
        panel.set_ylabel("Mbit/s", fontsize=8)
    _same_scale(shown, axes)
    axes[0].set_xlim(series.edges[0], series.edges[-1])
    _legend_of_all(axes, made)
    return made


TRACE_PICTURES: Final[dict[str, Callable[[Sequence[Slice]], Figure | None]]] = {"schedule": schedule, "pauses": pauses}
"""Of a trace with the scheduler's layer."""
PICTURES: Final[dict[str, Callable[[Series], Figure | None]]] = {
    "cpu": processors,
    "all": everybody,
    "entitled": entitlement,
    "lps": logical_processors,
    "memory": memory,
    "iops": iops,
    "latency": latency,
    "network": network,
}
"""By the names that their files end in."""


def write(made: Figure, path: str, form: str) -> None:
    """To a file, the same bytes for the same picture. Raises `OSError`."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "partita", "svg.fonttype": "none", "font.family": "DejaVu Sans"}):
        made.savefig(path, format=form, dpi=130, metadata={"Date": None} if form == "svg" else {"Software": None})
