"""`partita top` on a terminal: the whole of it, redrawn at each window and each key. Root side.

The state is pure: keys and samples in, lines out. Around it one task reads keys and one reads samples.
"""

from __future__ import annotations

import enum
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import trio

from partitions.cli.terminal import RawMode
from partitions.cli.top import may_color
from partitions.resources.files import decode_sample
from partitions.resources.render import Look, above, below, help_lines, rows
from partitions.resources.view import View, by_use

if TYPE_CHECKING:
    from partitions.remote import Stream
    from partitions.resources.sample import Heading, Sample

_ENTER, _LEAVE = "\033[?1049h\033[?25l", "\033[?25h\033[?1049l"
_HOME, _END_OF_LINE, _BELOW = "\033[H", "\033[K", "\033[J"
_REVERSE, _PLAIN = "\033[7m", "\033[0m"
ESCAPE_SECONDS: Final = 0.05
"""How long the rest of an arrow key's bytes may take."""
LEAST_ROWS: Final = 4
"""Of the table that stay, whatever there is to say of them."""
KEYS: Final = ("q quit", "? help", "c cpu", "m memory", "d disk", "n network", "s sort", "space hold", "l long names")
FILE_KEYS: Final = ("q quit", "left/right: windows", "? help", *KEYS[2:-2], KEYS[-1])


class Key(enum.Enum):
    """Keys that are no letters."""

    UP = enum.auto()
    DOWN = enum.auto()
    LEFT = enum.auto()
    RIGHT = enum.auto()
    PAGE_UP = enum.auto()
    PAGE_DOWN = enum.auto()
    HOME = enum.auto()
    END = enum.auto()


_FINAL_LETTERS: Final = {
    "A": Key.UP,
    "B": Key.DOWN,
    "C": Key.RIGHT,
    "D": Key.LEFT,
    "H": Key.HOME,
    "F": Key.END,
}
_SEQUENCES: Final = {
    **{f"\033{start}{letter}".encode(): key for letter, key in _FINAL_LETTERS.items() for start in "[O"},
    b"\033[5~": Key.PAGE_UP,
    b"\033[6~": Key.PAGE_DOWN,
    b"\033[1~": Key.HOME,
    b"\033[4~": Key.END,
}
_QUIT: Final = ("q", "Q", "\x03", "\x04", "\x1b")
_VIEWS: Final = {"c": View.CPU, "m": View.MEMORY, "d": View.DISK, "n": View.NETWORK}


def keys_of(typed: bytes) -> list[Key | str]:
    """What was pressed; sequences that nobody knows are passed over."""
    found: list[Key | str] = []
    place = 0
    while place < len(typed):
        for sequence, key in _SEQUENCES.items():
            if typed.startswith(sequence, place):
                found.append(key)
                place += len(sequence)
                break
        else:
            if typed[place : place + 2] in (b"\033[", b"\033O"):
                place += 2
                while place < len(typed) and not 0x40 <= typed[place] <= 0x7E:
                    place += 1
            else:
                found.append(chr(typed[place]))
            place += 1
    return found


@attrs.define
class Chosen:
    """What a person has chosen to see."""

    view: str = View.CPU
    long: bool = False
    held: bool = False
    """Hold still."""
    top: int = 0
    """The first row shown."""
    over: bool = False
    """Quit."""
    step: int = 0
    """Windows to go on, in a file."""
    sorted: bool = False
    """Who uses most comes first, among those of one pool."""
    help: bool = False

    def press(self, key: Key | str, page: int) -> None:
        """One key; letters of either case. The page of help goes with any."""
        if self.help and key not in _QUIT:
            self.help = False
            return
        match key:
            case Key.UP | "k":
                self.top -= 1
            case Key.DOWN | "j":
                self.top += 1
            case Key.PAGE_UP:
                self.top -= page
            case Key.PAGE_DOWN:
                self.top += page
            case Key.HOME:
                self.top = 0
            case Key.END:
                self.top = sys.maxsize
            case Key.LEFT:
                self.step -= 1
            case Key.RIGHT:
                self.step += 1
            case " ":
                self.held = not self.held
            case "?":
                self.help = True
            case str() if key in _QUIT:
                self.over = True
            case str():
                self._letter(key.lower())
        self.top = max(0, self.top)

    def _letter(self, letter: str) -> None:
        if letter == "h":
            self.help = True
        elif letter == "l":
            self.long, self.top = not self.long, 0
        elif letter == "s":
            self.sorted, self.top = not self.sorted, 0
        elif letter in _VIEWS:
            self.view, self.top = _VIEWS[letter], 0

    def lines(
        self,
        sample: Sample | None,
        heading: Heading,
        width: int,
        height: int,
        *,
        keys: Sequence[str],
        where: str = "",
        color: bool,
    ) -> list[str]:
        """What the terminal shows; rows that have no room can be scrolled to."""
        if sample is None:
            words = f"{heading.topology.rpartition('/')[2]}: waiting for the first window"[:width]
            return [words, *[""] * (height - 2), _foot("", keys, width, color=color)]
        look = Look(view=View(self.view), width=width, long=self.long, color=color)
        if self.help:
            page = help_lines(look)[: height - 1]
            return [*page, *[""] * (height - 1 - len(page)), _foot("", ["any key goes back"], width, color=color)]
        if self.sorted:
            sample = by_use(sample, look.view)
        head, body = above(sample, heading, look)[: max(1, height - 4)], rows(sample, look)
        fixed = [] if self.long else [body.pop(0)]
        room = max(1, height - len(head) - len(fixed) - 2)
        said = below(sample, look)[: max(0, room - LEAST_ROWS)]
        room -= len(said)
        self.top = max(0, min(self.top, len(body) - room))
        shown = body[self.top : self.top + room]
        more = "" if len(shown) == len(body) else f"rows {self.top + 1}-{self.top + len(shown)} of {len(body)}  "
        lines = [*head, "", *fixed, *shown]
        # What is said stands at the bottom, where nothing moves when it comes and goes.
        lines += [*[""] * (height - 1 - len(said) - len(lines)), *said]
        begin = f"{'HELD  ' if self.held else ''}{where}{more}"
        return [*lines[: height - 1], _foot(begin, keys, width, color=color)]


def _foot(begin: str, keys: Sequence[str], width: int, *, color: bool) -> str:
    """The last line: as many keys as there is room for, none of them cut."""
    foot = begin
    for key in keys:
        if len(foot) + len(key) <= width:
            foot += f"{key}  "
    foot = foot.rstrip()[:width]
    return f"{_REVERSE}{foot:<{width}}{_PLAIN}" if color else foot


class Screen:
    """The terminal as it is while `top` runs."""

    def __init__(self) -> None:
        self.color = may_color()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keys one by one, and a screen of its own; afterwards everything as it was."""
        raw = RawMode(sys.stdin.fileno())
        raw.enter()
        self._write(_ENTER)
        try:
            yield
        finally:
            self._write(_LEAVE)
            raw.leave()

    def draw(self, lines: Sequence[str]) -> None:
        """All of it, over what was there."""
        self._write(_HOME + "\r\n".join(f"{line}{_END_OF_LINE}" for line in lines) + _BELOW)

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


@attrs.define
class _Watch:
    """One person at one terminal."""

    heading: Heading
    chosen: Chosen
    keys: Sequence[str]
    screen: Screen = attrs.Factory(Screen)
    sample: Sample | None = None
    where: str = ""
    """In a file."""

    def draw(self) -> int:
        """How many lines there are."""
        size = shutil.get_terminal_size()
        width, height = max(1, size.columns), max(2, size.lines)
        keys, color = self.keys, self.screen.color
        lines = self.chosen.lines(self.sample, self.heading, width, height, keys=keys, where=self.where, color=color)
        self.screen.draw(lines)
        return height

    async def typing(self) -> None:
        """Until the person quits, or the terminal has gone."""
        while not self.chosen.over:
            height = self.draw()
            await trio.lowlevel.wait_readable(sys.stdin.fileno())
            typed = os.read(sys.stdin.fileno(), 64)
            if typed == b"\033":
                # The escape key, or the first byte of another one's.
                with trio.move_on_after(ESCAPE_SECONDS):
                    await trio.lowlevel.wait_readable(sys.stdin.fileno())
                    typed += os.read(sys.stdin.fileno(), 64)
            if not typed:
                return
            for key in keys_of(typed):
                self.chosen.press(key, max(1, height - 6))
            self.pressed()

    def pressed(self) -> None:
        """After keys."""


async def watch(heading: Heading, stream: Stream, chosen: Chosen) -> None:
    """A host that runs, until it ends or the person quits."""
    at = _Watch(heading, chosen, KEYS)

    async def samples() -> None:
        async for line in stream.lines():
            if not chosen.held:
                at.sample = decode_sample(line)
                at.draw()
        nursery.cancel_scope.cancel()

    async def sizes() -> None:
        with trio.open_signal_receiver(signal.SIGWINCH) as changes:
            async for _ in changes:
                at.draw()

    async def typing() -> None:
        await at.typing()
        nursery.cancel_scope.cancel()

    with at.screen.opened():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(samples)
            nursery.start_soon(sizes)
            nursery.start_soon(typing)
    if not chosen.over:
        print("the host has ended")


@attrs.define
class _Browse(_Watch):
    """A file's windows, one at a time."""

    samples: Sequence[Sample] = ()
    place: int = 0

    def pressed(self) -> None:
        """To another window."""
        self.place = max(0, min(self.place + self.chosen.step, len(self.samples) - 1))
        self.chosen.step = 0
        self.sample = self.samples[self.place]
        self.where = f"window {self.place + 1} of {len(self.samples)}  "


async def browse(heading: Heading, samples: Sequence[Sample], chosen: Chosen) -> None:
    """A file of samples, from its last window."""
    if not samples:
        print("no window is in it")
        return
    at = _Browse(heading, chosen, FILE_KEYS, samples=samples, place=len(samples) - 1)
    at.pressed()
    with at.screen.opened():
        await at.typing()
