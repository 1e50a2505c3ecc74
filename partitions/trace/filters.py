"""The filter language of traces: `vm=web,layer=packet|control,time=1.2..1.5`. Root side.

One language wherever events are chosen: of a run, a recording or a running host. What a filter asks of the head of an
event alone, `Filter.wanted` can tell a reader of recordings, which then need not make events that nobody wants.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.trace import SCHEDULER_EVENTS, TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.logs import ROOT_NAME

if TYPE_CHECKING:
    from partitions.recording.reader import Wanted

Predicate = Callable[[TraceEvent, str], bool]
"""Takes the event and the VM's name."""

T = TypeVar("T")

FILTER_KEYS = ("vm", "layer", "event", "channel", "device", "direction", "level", "time", "text")
EXAMPLE: Final = "vm=web,layer=packet|control"
_DIRECTIONS = {"root": TO_ROOT, TO_ROOT: TO_ROOT, "child": TO_CHILD, TO_CHILD: TO_CHILD}
_LEVELS = {level.name.lower(): level for level in Level}
_RANGE = re.compile(r"(?P<since>[0-9.]*?)(?P<dots>\.\.)(?P<until>[0-9.]*)")
_FOREVER: Final = 1 << 62
_LATEST: Final = Decimal(_FOREVER // TICKS_PER_SECOND)


class FilterError(ValueError):
    """A filter that cannot be read; the text says why, for people, and the attributes say it for programs."""

    def __init__(self, message: str, *, part: str = "", nearest: str = "", known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.part = part
        """The word that is wrong."""
        self.nearest = nearest
        """What was probably meant; empty where nothing is near."""
        self.known = list(known)

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {"error": str(self), "part": self.part, "nearest": self.nearest, "known": self.known}


@attrs.frozen
class Span:
    """A stretch of the host's time in 100 ns units, both ends included."""

    since: int
    until: int


@attrs.define(eq=False)
class Filter:
    """All keys that were given have to match, each with one of its values. Takes an event and its VM's name."""

    text: str
    vms: frozenset[str] | None = None
    layers: frozenset[Layer] | None = None
    events: re.Pattern[str] | None = None
    event_names: tuple[str, ...] = ()
    """What `events` asks for by whole names, without `*`."""
    channels: frozenset[int] | None = None
    devices: frozenset[str] | None = None
    directions: frozenset[str] | None = None
    level: Level | None = None
    spans: tuple[Span, ...] | None = None
    words: tuple[tuple[str, ...], ...] = ()
    """Of each group one has to be there."""
    _tests: list[Predicate] = attrs.field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._tests = list(self._predicates())

    def __call__(self, event: TraceEvent, vm: str) -> bool:
        """Whether it matches. A filter by device has to be shown every event: offers say which channel is whose."""
        return all(test(event, vm) for test in self._tests)

    @property
    def wants_scheduler(self) -> bool:
        """Whether it names the scheduler's layer or events of it, which only those get that do."""
        if self.layers is not None:
            return Layer.SCHEDULER in self.layers
        return not SCHEDULER_EVENTS.isdisjoint(self.event_names)

    def wanted(self) -> Wanted:
        """What a reader of recordings may leave out for it; the filter still has to look at the rest."""
        from partitions.recording.reader import Wanted

        if self.devices is not None:
            # Messages and packets of before tell which channel is whose.
            return Wanted(until=self._until)
        return Wanted(
            layers=self.layers,
            vms=self.vms,
            channels=self.channels,
            directions=self.directions,
            since=None if self.spans is None else min(span.since for span in self.spans),
            until=self._until,
        )

    @property
    def _until(self) -> int | None:
        return None if self.spans is None else max(span.until for span in self.spans)

    def _predicates(self) -> Iterator[Predicate]:
        """The cheapest first; the one that has to see everything before all."""
        if self.devices is not None:
            yield _of_device(self.devices)
        if (spans := self.spans) is not None:
            yield lambda event, vm: any(span.since <= event.time <= span.until for span in spans)
        if (layers := self.layers) is not None:
            yield lambda event, vm: event.layer in layers
        if (vms := self.vms) is not None:
            yield lambda event, vm: vm in vms
        if (channels := self.channels) is not None:
            yield lambda event, vm: event.channel in channels
        if (directions := self.directions) is not None:
            yield lambda event, vm: event.direction in directions
        if self.level is not None:
            yield at_least(self.level)
        if (events := self.events) is not None:
            yield lambda event, vm: events.fullmatch(event.event) is not None
        if groups := self.words:
            yield lambda event, vm: all(any(word in event.words for word in group) for group in groups)


def at_least(level: Level) -> Predicate:
    """Everything of this level and above."""
    return lambda event, vm: event.level >= level


def _of_device(devices: frozenset[str]) -> Predicate:
    from partitions.trace.channel_names import ChannelNames

    names = ChannelNames()

    def test(event: TraceEvent, vm: str) -> bool:
        names.learn(event, vm)
        said = event.fields.get("device") or names.device(vm, event.channel)
        return str(said) in devices

    return test


def parse_filter(text: str, *, vms: Iterable[str] | None = None) -> Filter:
    """`vm=web,layer=packet|control`: all keys must match, each with one of its values. Raises `FilterError`.

    vm, layer, event (`*` stands for any letters), channel (a number), device (storage, shutdown, ...), direction (root,
    child), level (this one and above), time (seconds: 1.2..1.5, 1.2.., ..1.5, or 1.2 for all moments printed so), text
    (part of the words). A value in double quotes may hold commas and bars.
    With `vms`, a name outside it is refused, since it would silently match nothing.
    """
    found = Filter(text)
    known_vms = None if vms is None else [*vms, ROOT_NAME]
    for part in filter(None, map(str.strip, _split(text, ","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise FilterError(f'"{part}" is not key=value; an example: {EXAMPLE}', part=part, known=FILTER_KEYS)
        if key not in FILTER_KEYS:
            raise _unknown("filter key", key, FILTER_KEYS)
        values = [_unquoted(piece.strip()) for piece in _split(value, "|")]
        found = attrs.evolve(found, **_narrowed(found, key, values, known_vms))
    if not found._tests:
        raise FilterError(f"the filter is empty; an example: {EXAMPLE}", known=FILTER_KEYS)
    return found


def _split(text: str, separator: str) -> list[str]:
    """Parts between separators that no double quotes hold; a lone quote is a letter as any other."""
    return re.findall(rf'(?:"[^"]*"|[^{re.escape(separator)}])+', text) or [""]


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value


def _narrowed(found: Filter, key: str, values: list[str], vms: list[str] | None) -> dict[str, Any]:
    """What one key=value changes. A key that stands twice has to match twice."""
    match key:
        case "vm":
            names = frozenset(_known("VM", value, vms) if vms is not None else value for value in values)
            return {"vms": _both(found.vms, names)}
        case "layer":
            layers = frozenset(Layer(_known("layer", value, [layer.value for layer in Layer])) for value in values)
            return {"layers": _both(found.layers, layers)}
        case "event":
            pattern = "|".join(re.escape(value).replace(r"\*", ".*") for value in values)
            before = "" if found.events is None else f"(?={found.events.pattern}$)"
            whole = tuple(value for value in values if "*" not in value)
            return {"events": re.compile(f"{before}(?:{pattern})"), "event_names": (*found.event_names, *whole)}
        case "channel":
            return {"channels": _both(found.channels, frozenset(map(_channel, values)))}
        case "device":
            return {"devices": _both(found.devices, frozenset(map(_device, values)))}
        case "direction":
            ways = frozenset(_DIRECTIONS[_known("direction", value, list(_DIRECTIONS))] for value in values)
            return {"directions": _both(found.directions, ways)}
        case "level":
            least = min(_LEVELS[_known("level", value.lower(), list(_LEVELS))] for value in values)
            return {"level": least if found.level is None else max(found.level, least)}
        case "time":
            return {"spans": _overlap(found.spans, tuple(map(_span, values)))}
        case _:
            assert key == "text", key
            return {"words": (*found.words, tuple(values))}


def _both(before: frozenset[T] | None, now: frozenset[T]) -> frozenset[T]:
    return now if before is None else before & now


def _overlap(before: tuple[Span, ...] | None, now: tuple[Span, ...]) -> tuple[Span, ...]:
    if before is None:
        return now
    return tuple(Span(max(a.since, b.since), min(a.until, b.until)) for a in before for b in now)


def _channel(value: str) -> int:
    if not value.isdecimal():
        raise FilterError(f'channel must be a number, not "{value}"', part=value)
    return int(value)


def _device(value: str) -> str:
    """A device's short name. A name that we do not know may be somebody's own, unless it looks like a slip."""
    from partitions.recording.link import CODES

    name = value.lower().replace(" ", "-").replace("_", "-")
    if name in CODES:
        return name
    if near := difflib.get_close_matches(name, CODES, n=1, cutoff=0.75):
        raise FilterError(
            f'unknown device "{value}"; did you mean "{near[0]}"?', part=value, nearest=near[0], known=list(CODES)
        )
    return value


def _span(value: str) -> Span:
    """`1.2..1.5`, open at either end, or `1.2`: every moment that begins so."""
    found = _RANGE.fullmatch(value)
    if found is not None and (found["since"] or found["until"]):
        since = _ticks(found["since"], value) if found["since"] else 0
        until = _ticks(found["until"], value) if found["until"] else _FOREVER
        if since > until:
            raise FilterError(f"time={value} ends before it begins", part=value)
        return Span(since, until)
    since = _ticks(value, value)
    digits = len(value.partition(".")[2])
    return Span(since, since + max(TICKS_PER_SECOND // 10**digits, 1) - 1)


def _ticks(number: str, value: str) -> int:
    try:
        seconds = Decimal(number)
    except InvalidOperation:
        seconds = Decimal(-1)
    if not 0 <= seconds <= _LATEST:
        raise FilterError(f'time must be seconds, such as 1.2..1.5, 1.2.. or ..1.5, not "{value}"', part=value)
    return int(seconds * TICKS_PER_SECOND)


def _known(kind: str, value: str, known: list[str]) -> str:
    if value not in known:
        raise _unknown(kind, value, known)
    return value


def _unknown(kind: str, value: str, known: Iterable[str]) -> FilterError:
    listed = list(known)
    near = difflib.get_close_matches(value, listed, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(listed)}"
    return FilterError(f'unknown {kind} "{value}"; {hint}', part=value, nearest=near[0] if near else "", known=listed)
