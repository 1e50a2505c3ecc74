"""Lines of text on a screen, which scroll: a console of letters for a guest program. Child side."""

from __future__ import annotations

from vsp_vsc.video import font
from vsp_vsc.video.canvas import BLACK, WHITE, Canvas

TAB = 8


class Terminal:
    """A rectangle of a canvas with rows and columns of letters, and a cursor where the next one goes."""

    def __init__(
        self,
        canvas: Canvas,
        x: int = 0,
        y: int = 0,
        columns: int | None = None,
        rows: int | None = None,
        *,
        colour: int = WHITE,
        background: int = BLACK,
    ) -> None:
        """At a pixel of the canvas; as many columns and rows as fit from there, by default."""
        self.columns = columns if columns is not None else max(1, (canvas.width - x) // font.WIDTH)
        self.rows = rows if rows is not None else max(1, (canvas.height - y) // font.HEIGHT)
        self.colour = colour
        self.background = background
        self.column = self.row = 0
        self._canvas = canvas
        self._x = x
        self._y = y
        self.clear()

    def clear(self) -> None:
        """Nothing is written any more, and the cursor is at the top left."""
        width, height = self.columns * font.WIDTH, self.rows * font.HEIGHT
        self._canvas.fill(self._x, self._y, width, height, self.background)
        self.column = self.row = 0
        self._cursor(shown=True)

    def write(self, text: str, colour: int | None = None) -> None:
        """At the cursor. Line ends, tabs, carriage returns and backspaces do what they say; long lines go on below."""
        self._cursor(shown=False)
        ink = self.colour if colour is None else colour
        held = ""
        for letter in text:
            if letter.isprintable() and self.column + len(held) < self.columns:
                held += letter
                continue
            self._put(held, ink)
            held = ""
            if letter == "\n":
                self._next_line()
            elif letter == "\r":
                self.column = 0
            elif letter == "\b":
                self.column = max(0, self.column - 1)
            elif letter == "\t":
                held = " " * min(TAB - self.column % TAB, self.columns - self.column)
            elif letter.isprintable():
                self._next_line()
                held = letter
        self._put(held, ink)
        self._cursor(shown=True)

    def print(self, *values: object, sep: str = " ", end: str = "\n", colour: int | None = None) -> None:
        """As Python's `print`."""
        self.write(sep.join(map(str, values)) + end, colour)

    def _put(self, text: str, colour: int) -> None:
        x, y = self._x + self.column * font.WIDTH, self._y + self.row * font.HEIGHT
        self._canvas.text(x, y, text, colour, self.background)
        self.column += len(text)

    def _next_line(self) -> None:
        self.column = 0
        if self.row + 1 < self.rows:
            self.row += 1
        else:
            width, height = self.columns * font.WIDTH, self.rows * font.HEIGHT
            self._canvas.scroll(self._x, self._y, width, height, font.HEIGHT, self.background)

    def _cursor(self, *, shown: bool) -> None:
        """A line below the letter that comes next; in the last column there is none."""
        if self.column < self.columns:
            x = self._x + self.column * font.WIDTH
            y = self._y + (self.row + 1) * font.HEIGHT - 2
            self._canvas.fill(x, y, font.WIDTH, 2, self.colour if shown else self.background)
