"""A sequence diagram as one SVG picture that needs nothing else: no script, no font, no address. Root side.

It follows the reader's choice of light or dark. Text is measured by rule of thumb, since nobody can know the reader's
font: where a label is longer than its place it is cut, and the whole of it is the label's tooltip.
"""

from __future__ import annotations

from typing import Final
from xml.sax.saxutils import escape

from hypervisor.clock import seconds
from hypervisor.trace import Layer
from partitions.logs import printable
from partitions.trace.sequence import TIMES, Diagram, Fold, Item, Lane, Place, Step, Style, walk
from partitions.trace.sequence_mermaid import shortened

_LETTER: Final = 6.8
"""Width of an average letter at 12 px, in px; a little more than most fonts take."""
_TIMES: Final = 92
"""The column of times."""
_LEAST_GAP, _MOST_GAP = 132, 400
_ROW, _LOOP_ROW, _FRAME_HEAD, _FRAME_TAIL = 30, 34, 26, 10
_HEAD: Final = 64
_SELF: Final = 26
"""How far an arrow to its own lane goes out."""
_NAMES_EVERY: Final = 25
"""Rows after which the lanes' names are said again."""
_LONGEST_LABEL: Final = 96

STYLE: Final = """
  svg { --paper: #ffffff; --ink: #1f2328; --faint: #656d76; --line: #d0d7de; --box: #f6f8fa; --frame: #afb8c1;
    --hypercall: #8250df; --synic: #bc4c00; --control: #0969da; --packet: #1a7f37; --device: #0c7a86;
    --warn: #cf222e; }
  @media (prefers-color-scheme: dark) {
    svg { --paper: #0d1117; --ink: #e6edf3; --faint: #8d96a0; --line: #30363d; --box: #161b22; --frame: #484f58;
      --hypercall: #bc8cff; --synic: #f0883e; --control: #58a6ff; --packet: #3fb950; --device: #39c5cf;
      --warn: #ff7b72; } }
  text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Helvetica, Arial, sans-serif;
    fill: var(--ink); }
  .paper { fill: var(--paper); }
  .label { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
  .time { fill: var(--faint); text-anchor: end; font-variant-numeric: tabular-nums; font-size: 11px; }
  .middle { text-anchor: middle; }
  .lane { stroke: var(--line); stroke-width: 1; }
  .head rect { fill: var(--box); stroke: var(--frame); }
  .head text { font-weight: 600; text-anchor: middle; }
  .again { fill: var(--faint); text-anchor: middle; font-size: 11px; }
  .frame { fill: none; stroke: var(--frame); stroke-dasharray: 5 3; }
  .times { font-weight: 600; }
  .note rect { fill: var(--box); stroke: var(--line); }
  .note text { text-anchor: middle; }
  .arrow path { fill: none; stroke-width: 1.4; }
  .answer path.shaft { stroke-dasharray: 5 3; }
  .hypercall { --own: var(--hypercall); } .synic { --own: var(--synic); } .control { --own: var(--control); }
  .packet { --own: var(--packet); } .device { --own: var(--device); } .state { --own: var(--faint); }
  .warn { --own: var(--warn); } .warn rect { stroke: var(--warn); }
  .arrow path { stroke: var(--own); } .arrow path.tip { fill: var(--own); stroke: none; }
"""
_CLASSES: Final = {
    Layer.HYPERCALL: "hypercall",
    Layer.MSR: "hypercall",
    Layer.PORT: "hypercall",
    Layer.SYNIC: "synic",
    Layer.INTERRUPT: "synic",
    Layer.CONTROL: "control",
    Layer.PACKET: "packet",
    Layer.DEVICE: "device",
    Layer.STATE: "state",
    Layer.SCHEDULER: "state",
}


def svg(diagram: Diagram, *, title: str = "") -> str:
    """The picture, with its last line ended."""
    return _Drawing(diagram, title).draw()


def _label(step: Step) -> str:
    times = f" {TIMES} {step.count}" if step.count > 1 else ""
    return shortened(printable(step.text), _LONGEST_LABEL) + times


def _width(text: str) -> float:
    return len(text) * _LETTER


class _Drawing:
    def __init__(self, diagram: Diagram, title: str) -> None:
        self._diagram = diagram
        self._title = title or "Sequence diagram"
        self._shapes: list[str] = []
        self._y = float(_HEAD)
        self._since_names = 0
        self._last_time = ""
        self._place_lanes()

    def _place_lanes(self) -> None:
        """As far apart as their labels need, within reason."""
        lanes = self._diagram.lanes or [Lane(Place.ROOT)]
        index = {lane: number for number, lane in enumerate(lanes)}
        gaps = [float(_LEAST_GAP)] * len(lanes)  # the last one is to the right of the last lane
        gaps[-1] = 24 + _width(lanes[-1].title) / 2
        for number, lane in enumerate(lanes[:-1]):
            least = (_width(lane.title) + _width(lanes[number + 1].title)) / 2 + 48
            gaps[number] = max(gaps[number], least)
        spans: list[tuple[int, int, float]] = []
        left = 12 + max(44.0, _width(lanes[0].title) / 2 + 14)
        for step in _steps(self._diagram.items):
            width, first, second = _width(_label(step)), index[step.source], index[step.target]
            if step.style in (Style.NOTE, Style.WARNING):
                half = width / 2 + 12
                left = max(left, half + 4) if first == 0 else left
                spans.append((first, first + 1, half + (8 if first + 1 == len(lanes) else 40)))
                if first:
                    spans.append((first - 1, first, half + 40))
            elif first == second:
                spans.append((first, first + 1, width + _SELF + 20))
            else:
                spans.append((min(first, second), max(first, second), width + 28))
        for low, high, needed in sorted(spans, key=lambda span: span[1] - span[0]):
            lacking = needed - sum(gaps[low:high])
            if lacking > 0:
                for number in range(low, high):
                    gaps[number] = min(gaps[number] + lacking / (high - low), _MOST_GAP * 1.6)
        self._x: dict[Lane, float] = {}
        x = _TIMES + left
        for lane, gap in zip(lanes, gaps, strict=True):
            self._x[lane] = x
            x += gap
        self._wide = x + 12

    def draw(self) -> str:
        self._write(self._diagram.items, 0)
        if not self._diagram.items:
            self._row(_ROW)
            self._shapes.append(text_at(self._wide / 2, self._y - 8, "nothing was said here", "middle"))
        high = self._y + (56 if self._diagram.rows > _NAMES_EVERY else 16)
        lanes = [
            f'<line class="lane" x1="{x:.0f}" y1="44" x2="{x:.0f}" y2="{self._y + 12:.0f}"/>' for x in self._x.values()
        ]
        heads = [self._head(lane, x, 14) for lane, x in self._x.items()]
        if self._diagram.rows > _NAMES_EVERY:
            heads += [self._head(lane, x, self._y + 12) for lane, x in self._x.items()]
        said = (
            f"{seconds(self._diagram.started):.6f} s to {seconds(self._diagram.ended):.6f} s after the host's start, "
            f"{self._diagram.steps} steps"
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self._wide:.0f} {high:.0f}" '
                f'width="{self._wide:.0f}" height="{high:.0f}" role="img">',
                f"<title>{xml(self._title)}</title>",
                f"<desc>{xml(said)}</desc>",
                f"<style>{STYLE}</style>",
                f'<rect class="paper" width="{self._wide:.0f}" height="{high:.0f}"/>',
                *lanes,
                *heads,
                *self._shapes,
                "</svg>",
                "",
            ]
        )

    def _head(self, lane: Lane, x: float, y: float) -> str:
        wide = max(_width(lane.title) + 28, 72)
        return (
            f'<g class="head"><rect x="{x - wide / 2:.0f}" y="{y:.0f}" width="{wide:.0f}" height="30" rx="6"/>'
            f'<text x="{x:.0f}" y="{y + 20:.0f}">{xml(lane.title)}</text></g>'
        )

    def _row(self, height: float) -> None:
        self._y += height

    def _write(self, items: list[Item], depth: int) -> None:
        for item in items:
            if isinstance(item, Fold):
                self._frame(item, depth)
            else:
                self._again()
                self._step(item)

    def _again(self) -> None:
        """The lanes' names once more, so that nobody has to scroll up."""
        self._since_names += 1
        if self._since_names <= _NAMES_EVERY:
            return
        self._since_names = 1
        self._row(22)
        self._shapes += [text_at(x, self._y - 4, lane.title, "again label") for lane, x in self._x.items()]

    def _frame(self, item: Fold, depth: int) -> None:
        self._row(8)
        top = self._y
        self._row(_FRAME_HEAD)
        self._write(item.items, depth + 1)
        self._row(_FRAME_TAIL)
        # Around the lanes that take part, with room for what stands beside them.
        left, right = _TIMES + 6 + 6 * depth, self._wide - 8 - 6 * depth
        self._shapes.append(
            f'<rect class="frame" x="{left:.0f}" y="{top:.0f}" width="{right - left:.0f}" '
            f'height="{self._y - top:.0f}" rx="6"/>'
        )
        self._shapes.append(text_at(left + 10, top + 16, f"{item.count} times", "times label"))
        self._row(4)

    def _step(self, step: Step) -> None:
        if step.style in (Style.NOTE, Style.WARNING):
            self._note(step)
        elif step.source == step.target:
            self._loop(step)
        else:
            self._arrow(step)

    def _time(self, step: Step, y: float) -> None:
        shown = f"{seconds(step.time):.6f}"
        if shown != self._last_time:
            self._last_time = shown
            self._shapes.append(text_at(_TIMES - 10, y, shown, "time"))

    def _group(self, step: Step, kind: str) -> str:
        own = "warn" if step.style is Style.WARNING else _CLASSES[step.layer]
        answer = " answer" if step.style is Style.ANSWER else ""
        return f'<g class="{kind} {own}{answer}"><title>{xml(printable(step.text))}</title>'

    def _arrow(self, step: Step) -> None:
        self._row(_ROW)
        y, start, end = self._y, self._x[step.source], self._x[step.target]
        self._time(step, y + 4)
        way = 1 if end > start else -1
        room = abs(end - start) - 16
        text = shortened(_label(step), max(int(room / _LETTER), 8))
        self._shapes.append(
            f"{self._group(step, 'arrow')}"
            f'<path class="shaft" d="M{start:.0f} {y:.0f}H{end - 7 * way:.0f}"/>'
            f'<path class="tip" d="M{end:.0f} {y:.0f}l{-9 * way} -4.5v9z"/>'
            f"{text_at((start + end) / 2, y - 6, text, 'middle label')}</g>"
        )

    def _loop(self, step: Step) -> None:
        self._row(_LOOP_ROW)
        x, y = self._x[step.source], self._y - 16
        self._time(step, y + 4)
        room = self._room_right(step.source) - _SELF - 12
        text = shortened(_label(step), max(int(room / _LETTER), 8))
        self._shapes.append(
            f"{self._group(step, 'arrow')}"
            f'<path class="shaft" d="M{x:.0f} {y:.0f}h{_SELF - 8}q8 0 8 8v2q0 8 -8 8h-{_SELF - 15}"/>'
            f'<path class="tip" d="M{x:.0f} {y + 18:.0f}l9 -4.5v9z"/>'
            f"{text_at(x + _SELF + 6, y + 13, text, 'label')}</g>"
        )

    def _room_right(self, lane: Lane) -> float:
        beyond = [x for x in self._x.values() if x > self._x[lane]]
        return min(beyond, default=self._wide - 8) - self._x[lane]

    def _note(self, step: Step) -> None:
        self._row(_ROW)
        x, y = self._x[step.source], self._y - 8
        self._time(step, y + 4)
        room = 2 * min(x - _TIMES - 4, self._wide - 8 - x)
        text = shortened(_label(step), max(int((room - 16) / _LETTER), 12))
        wide = _width(text) + 16
        self._shapes.append(
            f"{self._group(step, 'note')}"
            f'<rect x="{x - wide / 2:.0f}" y="{y - 12:.0f}" width="{wide:.0f}" height="24" rx="4"/>'
            f"{text_at(x, y + 4, text, '')}</g>"
        )


def _steps(items: list[Item]) -> list[Step]:
    return [item for item in walk(items) if isinstance(item, Step)]


def text_at(x: float, y: float, text: str, classes: str) -> str:
    """One text element."""
    named = f' class="{classes}"' if classes else ""
    return f'<text{named} x="{x:.0f}" y="{y:.0f}">{xml(text)}</text>'


def xml(text: str) -> str:
    """Text that is well-formed in XML: what cannot be in it at all is spelled out."""
    return escape(printable(text), {'"': "&quot;"})
