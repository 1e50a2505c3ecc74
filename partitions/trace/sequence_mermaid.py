"""A sequence diagram as Mermaid text, which GitHub and many editors draw. Root side.

Mermaid ends a statement at `;`, begins a comment at `%%`, an entity at `#`, takes `<` and `&` for HTML, the bare word
`end` for the end of a block, `$$` for a formula and `wrap:` for an order. So of what guests have said, letters, digits,
spaces and a few harmless signs stand as they are, and everything else is an entity code.
"""

from __future__ import annotations

import re
from typing import Final

from hypervisor.clock import seconds
from partitions.logs import printable
from partitions.trace.sequence import TIMES, Diagram, Fold, Item, SequenceTooLong, Style

MOST_CHARACTERS: Final = 50_000
"""Mermaid's own limit (`maxTextSize`), which GitHub keeps: beyond it there is an error in place of a diagram."""
MOST_IN_A_LINE: Final = 80
_RISKY = re.compile(r"(?<=wrap):|\b[eE](?=[nN][dD]\b)|[^A-Za-z0-9 ,.:()=/*+…→⏎_-]")
_ARROWS: Final = {Style.CALL: "->>", Style.ANSWER: "-->>"}


def mermaid(diagram: Diagram) -> str:
    """The text, with its last line ended. Raises `SequenceTooLong` for what Mermaid would refuse."""
    names = {lane: f"L{index}" for index, lane in enumerate(diagram.lanes)}
    lines = ["sequenceDiagram"]
    lines += [f"    participant {names[lane]} as {escape(lane.title)}" for lane in diagram.lanes]
    if diagram.items:
        ends = ",".join(dict.fromkeys((names[diagram.lanes[0]], names[diagram.lanes[-1]])))
        lines.append(f"    Note over {ends}: {seconds(diagram.started):.6f} s to {seconds(diagram.ended):.6f} s")

    def write(items: list[Item], indent: str) -> None:
        for item in items:
            if isinstance(item, Fold):
                lines.append(f"{indent}loop {item.count} times")
                write(item.items, indent + "    ")
                lines.append(f"{indent}end")
                continue
            times = f" {TIMES} {item.count}" if item.count > 1 else ""
            text = escape(shortened(item.text, MOST_IN_A_LINE)) + times
            if item.style in _ARROWS:
                lines.append(f"{indent}{names[item.source]}{_ARROWS[item.style]}{names[item.target]}: {text}")
            else:
                lines.append(f"{indent}Note over {names[item.source]}: {text}")

    write(diagram.items, "    ")
    made = "\n".join(lines) + "\n"
    if len(made) > MOST_CHARACTERS:
        raise SequenceTooLong(
            f"the text has {len(made):,} characters, and Mermaid draws {MOST_CHARACTERS:,}: choose fewer by --filter, "
            "or take --svg"
        )
    return made


def shortened(text: str, most: int) -> str:
    """The text, cut where it is too long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def escape(text: str) -> str:
    """Text that means nothing but itself in Mermaid."""
    return _RISKY.sub(lambda found: f"#{ord(found[0])};", printable(text)).strip() or "#32;"
