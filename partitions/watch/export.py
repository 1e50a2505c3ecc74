"""A recording as one HTML file: which events go into it, and all that a page has to know of them. Root side."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from hypervisor.trace import TraceEvent
from partitions.logs import vm_name
from partitions.watch.feed import Feed, Told
from partitions.watch.page import file_page
from partitions.watch.rows import COLUMNS, MAX_DATA, Row
from partitions.watch.scene import Scene
from partitions.watch.trees import Shapes, Tree
from partitions.watch.units import decoded

LIMIT: Final = 20_000
"""Events in a page, unless somebody asks for more: a megabyte or two, and smooth in any browser."""
MAX_TREES: Final = 40_000
"""Messages and packets whose fields are in the page; beyond, there are the bytes and one line."""


class Exported(msgspec.Struct, kw_only=True):
    """A page, and what is in it."""

    page: bytes
    events: int
    left_out: int
    """Events that pass the filter and are not in it: before its window, or behind it."""


class _Kept(msgspec.Struct):
    row: Row
    event: TraceEvent
    version: int | None


class Exporter:
    """Takes events in order and keeps those that go into the page: the first `limit` that are wanted, or the last."""

    def __init__(
        self,
        names: Mapping[int, str],
        *,
        limit: int = LIMIT,
        last: bool = False,
        wanted: Callable[[TraceEvent, str], bool] | None = None,
    ) -> None:
        self._feed = Feed(names)
        self._limit = limit
        self._last = last
        self._wanted = wanted
        self._before = Scene()
        self._kept: deque[_Kept] = deque()
        self._requests: list[Told] = []
        self.left_out = 0

    def take(self, events: Iterable[TraceEvent]) -> None:
        """The next events."""
        for event in events:
            vm = vm_name(self._feed.names, event)
            wanted = self._wanted is None or self._wanted(event, vm)
            if not self._last and len(self._kept) >= self._limit:
                self.left_out += wanted
                continue
            row, over = self._feed.add(event, wanted=wanted)
            self._requests += over
            if row is not None:
                self._kept.append(_Kept(row, event, self._feed.versions.get(vm)))
            if len(self._kept) > self._limit:
                self._let_go()

    def _let_go(self) -> None:
        """What falls out in front still made the picture what it is."""
        changes = dict(zip(COLUMNS, self._kept.popleft().row, strict=False)).get("changes")
        self._before.apply(changes or ())
        self.left_out += 1
        if self.left_out % self._limit == 0:
            self._forget_requests()

    def _forget_requests(self) -> None:
        first = self._kept[0].row[0] if self._kept else 0
        self._requests = [request for request in self._requests if request["hops"][-1][0] >= first]

    def finish(self, title: str, notes: Iterable[str] = (), dropped: int = 0) -> Exported:
        """The page. `dropped` is how many events the recording says it lacks."""
        self._requests += self._feed.finish()
        self._forget_requests()
        shapes, trees = Shapes(), dict[int, Tree]()
        for kept in self._kept:
            event = kept.event
            if event.data and len(trees) < MAX_TREES:
                device = str(event.fields.get("device", ""))
                field = decoded(event.layer, event.data[:MAX_DATA], device, event.direction, kept.version)
                if field is not None:
                    trees[kept.row[0]] = shapes.add(field)
        told = [*notes]
        if self.left_out:
            which = "last" if self._last else "first"
            told.append(f"the {which} {len(self._kept):,} of {len(self._kept) + self.left_out:,} events")
        if len(trees) == MAX_TREES:
            told.append(f"fields of the first {MAX_TREES:,} messages and packets only")
        document = {
            "columns": COLUMNS,
            "before": self._before.snapshot(),
            "rows": [kept.row for kept in self._kept],
            "requests": self._requests,
            "shapes": shapes.shapes,
            "trees": trees,
            "dropped": max(dropped, self._feed.dropped),
            "notes": told,
        }
        page = file_page(title, msgspec.json.encode(document))
        return Exported(page=page, events=len(self._kept), left_out=self.left_out)
