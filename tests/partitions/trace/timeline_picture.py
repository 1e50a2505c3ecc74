"""Part of a timeline as SVG, after the records of the file alone: about what Perfetto shows, for the documentation."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import Any

import attrs

from partitions.trace.sequence_svg import STYLE, text_at, xml
from tests.doubles.trace_events_checker import Record, by_time, nanoseconds

LEFT, ROW, HEAD = 236, 22, 26
COLOURS = {
    **dict.fromkeys(("hypercall", "msr", "port"), "hypercall"),
    **dict.fromkeys(("synic", "interrupt"), "synic"),
    **{name: name for name in ("control", "packet", "device", "state")},
    "request": "control",
}
OWN_STYLE = """
  .slice rect { fill: var(--own); fill-opacity: 0.22; stroke: var(--own); }
  .slice path { fill: var(--own); }
  .slice text { font-size: 11px; }
  .process { font-weight: 600; }
  .name { text-anchor: end; font-size: 11px; }
  .flow { fill: none; stroke: var(--ink); stroke-opacity: 0.55; }
  .tip { fill: var(--ink); fill-opacity: 0.75; }
  .band { fill: var(--box); }
  .requests { --own: var(--control); }
"""


@attrs.define
class Slice:
    start: int
    end: int
    name: str
    kind: str
    depth: int = 0


def slices_of(records: list[Record]) -> dict[tuple[int, int, str], list[Slice]]:
    """Slices by process, thread and lane ("" for the thread's own), nested ones with their depth."""
    found: dict[tuple[int, int, str], list[Slice]] = defaultdict(list)
    stacks: dict[tuple[int, int, str], list[Slice]] = defaultdict(list)
    for record in by_time(records):
        key = record["pid"], record["tid"], record["id2"]["local"] if record["ph"] in "be" else ""
        at = nanoseconds(record["ts"])
        match record["ph"]:
            case "X":
                depth = sum(1 for one in found[key] if one.start < at < one.end)
                found[key].append(Slice(at, at + nanoseconds(record["dur"]), record["name"], record["cat"], depth))
            case "B" | "b":
                one = Slice(at, at, record["name"], record["cat"], len(stacks[key]))
                stacks[key].append(one)
                found[key].append(one)
            case "E" | "e":
                stacks[key].pop().end = at
            case _:
                pass
    return found


def draw(records: list[Record], since: int, until: int, flows: int, title: str) -> str:
    """All tracks with something between two times, in ns, and the first arrows there."""
    meta: dict[tuple[str, int], Any] = {}
    for record in records:
        if record["ph"] == "M":
            own = record["pid"] if record["name"].startswith("process") else record["tid"]
            meta[record["name"], own] = next(iter(record["args"].values()))
    tracks = {
        key: shown
        for key, every in slices_of(records).items()
        if (shown := [one for one in every if one.start <= until and one.end >= since and one.kind != "state"])
    }

    def place(key: tuple[int, int, str]) -> tuple[int, int, str]:
        return meta["process_sort_index", key[0]], meta["thread_sort_index", key[1]], key[2]

    scale = 17.0
    shapes: list[str] = []
    rows: dict[int, float] = {}
    y, process, named = 34.0, 0, ""

    def x(at: int) -> float:
        return LEFT + (min(max(at, since - 1), until + 1) - since + 1) * scale

    wide = x(until + 1) + 24
    for key in sorted(tracks, key=place):
        pid, tid, lane = key
        if pid != process:
            process = pid
            y += HEAD
            shapes.append(f'<rect class="band" x="8" y="{y - 17:.0f}" width="{wide - 16:.0f}" height="22" rx="4"/>')
            shapes.append(text_at(16, y - 2, meta["process_name", pid], "process"))
            y += 10
        name = f"{meta['thread_name', tid]}, requests" if lane else meta["thread_name", tid]
        if not lane:
            rows[tid] = y + ROW / 2
        if name != named:
            named = name
            shapes.append(text_at(LEFT - 12, y + 15, name, "name"))
        deepest = max(one.depth for one in tracks[key])
        for one in tracks[key]:
            shapes.append(_slice(one, x(one.start), x(one.end), y + 18 * one.depth * (lane != "")))
        y += ROW + (18 * deepest if lane else 0)
    shapes += _arrows(records, since, until, flows, rows, x)
    high = y + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" width="{wide:.0f}" '
            f'height="{high:.0f}" role="img">',
            f"<title>{xml(title)}</title>",
            f"<style>{STYLE}{OWN_STYLE}</style>",
            f'<rect class="paper" width="{wide:.0f}" height="{high:.0f}"/>',
            text_at(16, 24, title, "process"),
            *shapes,
            "</svg>",
            "",
        ]
    )


def _slice(one: Slice, start: float, end: float, y: float) -> str:
    kind = COLOURS.get(one.kind, "state")
    title = f"<title>{xml(one.name)}</title>"
    if one.end == one.start:
        return f'<g class="slice {kind}">{title}<path d="M{start:.0f} {y + 3:.0f}l6 7 -6 7 -6 -7z"/></g>'
    wide = max(end - start, 3)
    most = int((wide - 8) / 6.4)
    label = one.name if len(one.name) <= most else one.name[: most - 1] + "…" if most > 6 else ""
    text = text_at(start + 5, y + 14, label, "") if label else ""
    return (
        f'<g class="slice {kind}">{title}<rect x="{start:.0f}" y="{y + 1:.0f}" width="{wide:.0f}" height="17" rx="2"/>'
        f"{text}</g>"
    )


def _arrows(records: list[Record], since: int, until: int, most: int, rows: dict[int, float], x: Any) -> list[str]:
    by_flow: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record["ph"] in "stf" and since <= nanoseconds(record["ts"]) <= until:
            by_flow[record["id"]].append(record)
    shapes = []
    for flow in list(by_flow.values())[:most]:
        for one, two in pairwise(flow):
            x1, y1 = x(nanoseconds(one["ts"])), rows[one["tid"]] - 1
            x2, y2 = x(nanoseconds(two["ts"])), rows[two["tid"]] - 1
            bend = max((x2 - x1) / 2, 12)
            shapes.append(
                f'<path class="flow" d="M{x1:.0f} {y1:.0f}C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} '
                f'{x2 - 5:.0f} {y2:.0f}"/><path class="tip" d="M{x2:.0f} {y2:.0f}l-7 -3.5v7z"/>'
            )
    return shapes
