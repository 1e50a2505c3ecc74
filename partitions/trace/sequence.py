"""Who said what to whom: a window of a trace as the lanes and arrows of a sequence diagram. Root side.

Feed a `Sequence` every event in order, then take its `Diagram`; `partitions.trace.sequence_mermaid` and
`partitions.trace.sequence_svg` draw it. What repeats is folded: a batch of 32 requests is one arrow with a count, and a
pattern of several arrows that comes again and again is a frame around one copy of it.

A hypercall is told when it returns, which is after all that it brought about. Of the two that signal and post, the
arrow stands where the call was made.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.ports import COM1_TRANSMIT
from partitions.recording.event_codec import STARTED
from partitions.trace.channel_names import ChannelNames, interface_name

_ROOT_PARTITION: Final = 1
MOST_ROWS: Final = 300
"""Arrows and frames that a person can follow, after folding; who wants more can say so."""
MOST_STEPS: Final = 50_000
"""Arrows before folding: beyond that no window was chosen at all, and memory should not pay for it."""
_LONGEST_PATTERN: Final = 16
"""Arrows in a pattern: a whole request is some twelve."""
_LEAST_TIMES: Final = 3
"""Two of a kind are not worth a fold."""
_LOOK_BACK: Final = 24
"""How many arrows a hypercall may have brought about, interrupt handlers in the root included."""
_CONSOLE_TEXT: Final = 40
_NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d+")
_GUIDS = re.compile(r" interface=(\S+) instance=\S+")
_NOUGHT = re.compile(r" (?:reserved|flag_number)=0x0(?= |$)")
_CONNECTION = re.compile(r"\bconnection_id=0x([0-9a-f]{1,8})\b")


class Place(enum.IntEnum):
    """What a lane stands for, from left to right."""

    GUEST = 0
    HYPERVISOR = 1
    ROOT = 2
    VSP = 3


class Lane(msgspec.Struct, frozen=True, order=True):
    """One vertical line."""

    place: Place
    name: str = ""
    """The VM's, or the device's of a VSP."""

    @property
    def title(self) -> str:
        """What stands above it."""
        match self.place:
            case Place.GUEST:
                return self.name
            case Place.HYPERVISOR:
                return "hypervisor"
            case Place.ROOT:
                return "root"
            case Place.VSP:
                return f"{self.name} VSP" if self.name else "VSP"


HYPERVISOR: Final = Lane(Place.HYPERVISOR)
ROOT: Final = Lane(Place.ROOT)
TIMES: Final = "\N{MULTIPLICATION SIGN}"


class Style(enum.Enum):
    """How a step is drawn."""

    CALL = "call"
    ANSWER = "answer"
    """Dashed: what goes back to the child."""
    NOTE = "note"
    """Not an arrow: a change of state, over its lane."""
    WARNING = "warning"
    """A note about somebody's mistake."""


class Step(msgspec.Struct):
    """One arrow, from a lane to another or to itself, or a note over one; `count` of them that look alike."""

    time: int
    """Of the first, in 100 ns units."""
    source: Lane
    target: Lane
    layer: Layer
    style: Style
    text: str
    shape: tuple[Any, ...]
    """Steps of one shape may be folded."""
    count: int = 1
    cause: tuple[str, int] | None = None
    """Of a signal or a message: which guest's connection it went through ("" for the root's)."""
    printed: str = ""
    """Console output."""
    said: str = ""
    """What the first of them said alone, and the last; `text` shows both."""
    last: str = ""


class Fold(msgspec.Struct):
    """A pattern that came `count` times in a row; texts show the first and the last."""

    time: int
    count: int
    items: list[Step | Fold]


Item = Step | Fold


class Diagram(msgspec.Struct):
    """What is to be drawn."""

    lanes: list[Lane]
    items: list[Item]
    started: int
    ended: int
    """When the last event came, in 100 ns units."""
    steps: int
    """Arrows and notes before folding."""

    @property
    def rows(self) -> int:
        """Arrows, notes and frames after folding."""
        return sum(1 for _ in walk(self.items))


class SequenceTooLong(ValueError):
    """More than a diagram can hold; the text says what to do."""


class Sequence:
    """Takes events in order. `wanted` events are drawn, of the others only the names of channels are kept."""

    def __init__(self) -> None:
        self._channels = ChannelNames()
        self._names: dict[int, str] = {}
        self._steps: list[Step] = []
        self._ended = 0

    def feed(self, event: TraceEvent, vm: str, *, wanted: bool = True) -> None:
        """One more thing happened, to this VM. Raises `SequenceTooLong`."""
        self._channels.learn(event, vm)
        if vm.startswith("#"):
            vm = self._names.get(event.partition, vm)
        elif event.partition:
            self._names[event.partition] = vm
        if not wanted or event.event == STARTED:
            return
        step = self._step(event, vm)
        if step is None:
            return
        if len(self._steps) >= MOST_STEPS:
            raise SequenceTooLong(f"more than {MOST_STEPS:,} events: {_REMEDY}")
        self._ended = event.time
        call = _CONNECTION.search(event.words) if event.layer is Layer.HYPERCALL else None
        self._steps.insert(len(self._steps) if call is None else self._place(step, int(call[1], 16)), step)

    def _place(self, call: Step, connection: int) -> int:
        """Where the arrow of a hypercall belongs: before what it brought about, if that is not long ago."""
        cause = (call.source.name, connection)
        for index in range(len(self._steps) - 1, max(len(self._steps) - _LOOK_BACK, 0) - 1, -1):
            effect = self._steps[index]
            if effect.cause == cause:
                effect.cause = None
                call.time = effect.time
                return index
        return len(self._steps)

    def diagram(self, *, most_rows: int = MOST_ROWS) -> Diagram:
        """What has been fed until now. Raises `SequenceTooLong`."""
        known = {f"#{partition}": Lane(Place.GUEST, name) for partition, name in self._names.items()}
        steps = [_renamed(step, known) for step in self._steps]
        lanes = sorted({lane for step in steps for lane in (step.source, step.target)})
        items = fold(fold(steps))
        started = min((step.time for step in steps), default=0)
        made = Diagram(lanes, items, started, self._ended, len(steps))
        if made.rows > most_rows:
            raise SequenceTooLong(
                f"{made.rows:,} arrows are left after folding, and {most_rows} can be read: {_REMEDY}"
            )
        return made

    # --- from events to steps

    def _step(self, event: TraceEvent, vm: str) -> Step | None:
        source, target = self._ends(event, vm)
        if event.level >= Level.WARNING:
            style = Style.WARNING
        elif event.layer is Layer.STATE:
            style = Style.NOTE
        elif event.direction == TO_CHILD and event.layer not in (Layer.SYNIC, Layer.INTERRUPT):
            style = Style.ANSWER
        else:
            style = Style.CALL
        text = _text(event).replace(" -> ", " → ")
        printed = ""
        if event.event == "port_out" and event.fields.get("port") == COM1_TRANSMIT:
            printed = chr(_int(event, "value") & 0xFF)
        shape = (source, target, event.layer, event.event, style, _NUMBER.sub("#", text) if not printed else "console")
        cause = None
        if event.layer is Layer.SYNIC and "connection" in event.fields:
            cause = (vm if event.direction == TO_ROOT else "", _int(event, "connection"))
        return Step(event.time, source, target, event.layer, style, text, shape, 1, cause, printed, text, text)

    def _ends(self, event: TraceEvent, vm: str) -> tuple[Lane, Lane]:
        """From where to where; twice the same for what stays in one place."""
        guest = ROOT if event.partition == _ROOT_PARTITION or not vm else Lane(Place.GUEST, vm)
        if event.level >= Level.WARNING:
            return guest, guest
        match event.layer:
            case Layer.HYPERCALL:
                caller = _int(event, "caller", event.partition)
                if caller == _ROOT_PARTITION:
                    return ROOT, HYPERVISOR
                return Lane(Place.GUEST, self._names.get(caller, vm)), HYPERVISOR
            case Layer.MSR:
                return guest, HYPERVISOR
            case Layer.SYNIC:
                return HYPERVISOR, guest if event.direction == TO_CHILD else ROOT
            case Layer.INTERRUPT:
                return HYPERVISOR, guest
            case Layer.PORT | Layer.CONTROL:
                return (guest, ROOT) if event.direction == TO_ROOT else (ROOT, guest)
            case Layer.PACKET:
                device = Lane(Place.VSP, self._channels.device(vm, event.channel) or f"channel {event.channel}")
                return (guest, device) if event.direction == TO_ROOT else (device, guest)
            case Layer.DEVICE:
                name = self._channels.device(vm, event.channel) or str(event.fields.get("component", ""))
                device = Lane(Place.VSP, name or ("" if event.channel is None else f"channel {event.channel}"))
                return device, device
            case Layer.STATE:
                return guest, guest
            case Layer.SCHEDULER:
                return HYPERVISOR, guest


_REMEDY: Final = "choose fewer by --filter, such as 'vm=web,layer=control|packet' or 'time=1.2..1.3'"


def _text(event: TraceEvent) -> str:
    """What stands at the arrow."""
    fields, words = event.fields, event.words
    match event.layer:
        case Layer.HYPERCALL:
            return _NOUGHT.sub("", words.removesuffix(" -> SUCCESS"))
        case Layer.MSR if event.event in ("read_msr", "write_msr"):
            return f"{event.event[:-4]} {words} {_int(event, 'value'):#x}"
        case Layer.CONTROL if event.event == "offer_channel":
            return _GUIDS.sub(lambda found: f" {interface_name(found[1]) or found[1]}", words)
        case Layer.PORT if event.event in ("port_in", "port_out"):
            way = "IN" if event.event == "port_in" else "OUT"
            return f"{way} {_int(event, 'port'):#x} {_int(event, 'value'):#x}"
        case Layer.SYNIC if event.event == "signal_event":
            return f"event flag {fields.get('flag')}, SINT{fields.get('sint')}"
        case Layer.SYNIC if event.event == "post_message":
            return f"message of {event.size} bytes, SINT{fields.get('sint')}"
        case Layer.INTERRUPT if event.event == "interrupt":
            return f"interrupt {_int(event, 'vector'):#x}, VP {fields.get('vp')}"
        case Layer.STATE:
            about = event.event.replace("_", " ")
            number = "" if event.channel is None else f" {event.channel}"
            return f"{about}{number}: {words}" if words else about
        case _:
            return words or event.event.replace("_", " ")


def _int(event: TraceEvent, name: str, otherwise: int = 0) -> int:
    value = event.fields.get(name)
    return value if isinstance(value, int) else otherwise


def _renamed(step: Step, known: Mapping[str, Lane]) -> Step:
    """A partition is there before it has its VM's name, and may have got it since."""
    source, target = (known.get(lane.name, lane) for lane in (step.source, step.target))
    if source is step.source and target is step.target:
        return step
    return msgspec.structs.replace(step, source=source, target=target, shape=(source, target, *step.shape[2:]))


# --- folding


def fold(items: Iterable[Item]) -> list[Item]:
    """One level of it: runs of a shape become one step, runs of a pattern a frame. Twice finds patterns of patterns."""
    given = list(items)
    numbers: dict[Any, int] = {}
    keys = [numbers.setdefault(_shape(item), len(numbers)) for item in given]
    made: list[Item] = []
    at = 0
    while at < len(given):
        period, times = _best(keys, at)
        late = _first_ask(given[at : at + period])
        if late and times > _LEAST_TIMES:
            # A frame is read more easily where it begins with what the guest does; there are turns enough for that.
            made += given[at : at + late]
            at += late
            continue
        if times == 1:
            made.append(given[at])
            at += 1
            continue
        turns = [given[at + turn * period : at + (turn + 1) * period] for turn in range(times)]
        merged = [_merge(alike) for alike in zip(*turns, strict=True)]
        if period > 1:
            made.append(Fold(given[at].time, times, merged))
        else:
            merged[0].count *= times
            made.append(merged[0])
        at += period * times
    return made


def _best(keys: list[int], at: int) -> tuple[int, int]:
    """The pattern that begins here and saves most rows: how long it is, and how often it comes."""
    best, saves = (1, 1), 0
    for period in range(1, min(_LONGEST_PATTERN, (len(keys) - at) // 2) + 1):
        pattern, times = keys[at : at + period], 1
        while keys[at + times * period : at + (times + 1) * period] == pattern:
            times += 1
        saved = (times - 1) * period - (period > 1)
        if times >= _LEAST_TIMES and saved > saves:
            best, saves = (period, times), saved
    return best


def _first_ask(pattern: list[Item]) -> int:
    """Where in a pattern something first goes the guest's way to the root; 0 where nothing does."""
    return next((index for index, item in enumerate(pattern) if _asks(item)), 0)


def _asks(item: Item) -> bool:
    if isinstance(item, Fold):
        return _asks(item.items[0])
    onward = item.target.place > item.source.place
    return onward and item.layer in (Layer.HYPERCALL, Layer.SYNIC, Layer.CONTROL, Layer.PACKET, Layer.PORT)


def _shape(item: Item) -> tuple[Any, ...]:
    if isinstance(item, Step):
        return (item.count, *item.shape)
    return ("fold", item.count, *map(_shape, item.items))


def _merge(alike: tuple[Item, ...]) -> Item:
    """Several of one shape, one in each turn, as they stand for all turns."""
    first = alike[0]
    if isinstance(first, Fold):
        columns = zip(*(item.items for item in alike if isinstance(item, Fold)), strict=True)
        return Fold(first.time, first.count, [_merge(column) for column in columns])
    steps = [item for item in alike if isinstance(item, Step)]
    printed = "".join(step.printed for step in steps)
    last = steps[-1].last
    text = f"COM1 {_quoted(printed)}" if printed else first.text if first.said == last else _span(first.said, last)
    return msgspec.structs.replace(first, text=text, printed=printed, last=last)


def _span(first: str, last: str) -> str:
    """`SCSI READ(10) lba=0…248 blocks=8`: two texts of one shape, the numbers that differ as first and last."""
    before, after = _NUMBER.findall(first), _NUMBER.findall(last)
    if first == last or len(before) != len(after):
        return first
    pairs = iter(zip(before, after, strict=True))

    def both(_: re.Match[str]) -> str:
        old, new = next(pairs)
        return old if old == new else f"{old}…{new}"

    return _NUMBER.sub(both, first)


def _quoted(text: str) -> str:
    from partitions.logs import printable

    shown = text if len(text) <= _CONSOLE_TEXT else text[: _CONSOLE_TEXT - 1] + "…"
    return '"' + printable(shown.replace("\r\n", "\n").replace("\n", "⏎")) + '"'


def walk(items: Iterable[Item]) -> Iterator[Item]:
    """Every step and frame, in the order in which they are drawn."""
    for item in items:
        yield item
        if isinstance(item, Fold):
            yield from walk(item.items)
