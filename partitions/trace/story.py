"""One request through every layer and back: what each hop took, and what it waited for meanwhile. Root side.

Pure: feed a `Storyteller` every event, in order, then take `story`. It keeps the last events, so that when a request is
over it can say what else happened between its hops; on the virtual clock too, where no time passes between them, since
the order of events is what counts.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import attrs
import msgspec

from hypervisor.trace import TO_CHILD, Layer, TraceEvent
from partitions.logs import printable, vm_name
from partitions.trace.requests import Hop, Outcome, Request, RequestTracker

CHOICES: Final = ("slowest", "first", "last")
WINDOW: Final = 50_000
"""Events kept: a request that is open for longer cannot tell all that it waited for."""
MAX_NAMES: Final = 20_000
"""Requests whose names are kept, to suggest one for a name that there is not."""
_US: Final = 10
"""100 ns units in a microsecond."""
_NAME = re.compile(r"(?P<vm>[^/]+)/(?P<channel>\d+)/(?P<id>(?:host:)?(?:0x[0-9a-fA-F]+|\d+))(?:\.(?P<number>\d+))?")
_CONNECTION = re.compile(r"\bconnection_id=(0x[0-9a-f]+)")
_DEPTH: Final = {"guest": 0, "hypervisor": 1, "root": 2, "bus": 3, "device": 4}

Likes = Callable[[TraceEvent, str], bool]


class Step(msgspec.Struct, frozen=True):
    """One hop. Times in microseconds."""

    at_us: float
    """Since the request's start."""
    took_us: float
    """Until the next hop."""
    share: float
    """Of the whole, 0 to 1."""
    depth: int
    """Guest 0, hypervisor 1, root 2, bus 3, device 4."""
    who: str
    words: str
    event: str
    waited_for: str = ""
    """What the request waited for until the next hop."""
    meanwhile: list[str] = []
    """What else happened until the next hop."""
    data: str = ""
    """The packet in hexadecimal, where that was asked for."""
    direction: str = ""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """One request, by stable names. Times in microseconds."""

    name: str
    device: str
    words: str
    result: str
    outcome: str
    size: int
    started_s: float
    """Seconds since the host was opened."""
    total_us: float
    steps: list[Step]
    summary: str
    """Where most of the time went, as a sentence."""


@attrs.frozen
class Choice:
    """Which request a person asked for."""

    text: str
    which: str = ""
    """`slowest`, `first`, `last`, or empty for one by name."""
    name: str = ""
    likes: Likes | None = None

    def better(self, request: Request, than: Request | None) -> bool:
        """Whether this one is rather meant."""
        if than is None:
            return True
        match self.which:
            case "slowest":
                return request.duration > than.duration
            case "first":
                return request.started < than.started
            case "last":
                return request.started >= than.started
            case _:
                return False


class UnknownRequest(ValueError):
    """There is no such request; the text names the nearest."""


def read_choice(text: str, parse: Callable[[str], Likes]) -> Choice | None:
    """`slowest`, `first`, `last`, each with `:FILTER` or without, or a request's name; None for another thing's.

    Raises what `parse` raises for a filter.
    """
    which, colon, condition = text.partition(":")
    if which in CHOICES:
        return Choice(text, which, likes=parse(condition) if colon else None)
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    prefix, _, number = found["id"].rpartition(":")
    transaction = f"{prefix}:" if prefix else ""
    transaction += f"{int(number, 16 if number.lower().startswith('0x') else 10):#x}"
    again = f".{int(found['number'])}" if found["number"] and int(found["number"]) > 1 else ""
    return Choice(text, name=f"{found['vm']}/{int(found['channel'])}/{transaction}{again}")


class Storyteller:
    """Takes every event and keeps the story of the request that was asked for."""

    def __init__(self, choice: Choice, names: Mapping[int, str] | None = None, *, with_bytes: bool = False) -> None:
        self._with_bytes = with_bytes
        self.story: Story | None = None
        self._choice = choice
        self._names = {} if names is None else names
        self._tracker = RequestTracker(names)
        self._window: deque[TraceEvent] = deque(maxlen=WINDOW)
        self._best: Request | None = None
        self._seen: list[str] = []
        self._count = 0

    @property
    def done(self) -> bool:
        """Whether nothing that may come can change the story."""
        return self.story is not None and not self._choice.which

    def feed(self, event: TraceEvent) -> None:
        """One more thing happened."""
        # The request's last hop may be the event before: its story is told when that one is in the window.
        over = self._tracker.feed(event)
        for request in over:
            self._consider(request)
        self._window.append(event)

    def finish(self) -> Story:
        """There is no more. Raises `UnknownRequest`."""
        for request in [*self._tracker.finish(), *self._tracker.open]:
            self._consider(request)
        if self.story is None:
            raise UnknownRequest(self._unknown())
        return self.story

    def _consider(self, request: Request) -> None:
        self._count += 1
        name = request.name
        if len(self._seen) < MAX_NAMES:
            self._seen.append(name)
        choice = self._choice
        if choice.name and name != choice.name:
            return
        if choice.which in ("slowest", "first") and request.outcome is not Outcome.ANSWERED:
            return  # its time has no end
        if choice.likes is not None and not any(choice.likes(hop.event, request.vm) for hop in request.hops):
            return
        if choice.better(request, self._best):
            self._best = request
            self.story = tell(request, self._window, self._names, with_bytes=self._with_bytes)

    def _unknown(self) -> str:
        if not self._count:
            return (
                f'no request "{self._choice.text}": there is no request in this trace. It takes the layer packet, '
                "and for all hops synic, interrupt, hypercall and device too"
            )
        if self._choice.which:
            return f'no request "{self._choice.text}": none of the {self._count} requests fits; --requests lists them'
        return f'no request "{self._choice.text}"; {nearest(self._choice.name, self._seen)}'


def nearest(name: str, names: Sequence[str]) -> str:
    """The names that are most like one that there is not."""
    near = difflib.get_close_matches(name, dict.fromkeys(names), n=3, cutoff=0.5)
    return (
        f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(names[:3])} and others; see --requests"
    )


# One request's story


def tell(
    request: Request, window: Iterable[TraceEvent], names: Mapping[int, str], *, with_bytes: bool = False
) -> Story:
    """Its steps, with what else happened between them, as far as `window` goes back."""
    events = list(window)
    places = _find(request.hops, events)
    total = request.duration
    steps: list[Step] = []
    for index, hop in enumerate(request.hops):
        later = request.hops[index + 1 :]
        end = later[0].time if later else hop.time
        depth, who = _where(hop, request)
        waited, meanwhile = "", []
        if later:
            between = _between(places, index, events)
            meanwhile = _meanwhile(between, request, names)
            waited = _waited_for(hop, later[0], request, bool(between) and _others_first(between, request))
        steps.append(
            Step(
                at_us=(hop.time - request.started) / _US,
                took_us=(end - hop.time) / _US,
                share=(end - hop.time) / total if total else 0.0,
                depth=depth,
                who=printable(who),
                words=printable(_words(hop, request, events, places[index])),
                event=hop.event.event,
                waited_for=printable(waited),
                meanwhile=[printable(one) for one in meanwhile],
                data=hop.event.data.hex() if with_bytes else "",
                direction=hop.event.direction,
            )
        )
    return Story(
        name=printable(request.name),
        device=printable(request.device),
        words=printable(request.words),
        result=printable(request.result),
        outcome=request.outcome.value,
        size=request.size,
        started_s=request.started / (1_000_000 * _US),
        total_us=total / _US,
        steps=steps,
        summary=_summary(request, steps),
    )


def _find(hops: Sequence[Hop], events: Sequence[TraceEvent]) -> list[int | None]:
    """Where in the trace each hop's event stands, from the end, which is where a request that is just over is."""
    wanted = {id(hop.event): index for index, hop in enumerate(hops)}
    found: list[int | None] = [None] * len(hops)
    left = len(hops)
    for place in range(len(events) - 1, -1, -1):
        index = wanted.get(id(events[place]))
        if index is not None:
            found[index] = place
            left -= 1
            if not left:
                break
    return found


def _between(places: Sequence[int | None], index: int, events: Sequence[TraceEvent]) -> Sequence[TraceEvent]:
    """What happened between a hop and the next. A hypercall stands in a trace where it returned, behind its effects."""
    here, there = places[index], places[index + 1]
    if here is None or there is None or there <= here:
        return ()
    return events[here + 1 : there]


def _others_first(between: Iterable[TraceEvent], request: Request) -> bool:
    """Whether the same device was busy with other requests of this channel."""
    return any(
        event.partition == request.partition and event.channel == request.channel and event.layer is Layer.DEVICE
        for event in between
    )


def _meanwhile(between: Iterable[TraceEvent], request: Request, names: Mapping[int, str]) -> list[str]:
    """What else happened, by whom, most first."""
    own: dict[str, None] = {}
    requests: dict[tuple[str, int], set[object]] = {}
    rest: Counter[str] = Counter()
    for event in between:
        vm = event.vm or vm_name(names, event)
        if event.layer in (Layer.PACKET, Layer.DEVICE) and event.channel is not None:
            number = event.fields.get("transaction_id", event.fields.get("transaction"))
            if event.partition == request.partition and event.channel == request.channel:
                # Packets that crossed together say nothing of what the channel's device was busy with.
                worked_on = event.layer is Layer.DEVICE and number != request.transaction_id
                if isinstance(number, int) and worked_on:
                    own[f"{number:#x}"] = None
            elif isinstance(number, int):
                requests.setdefault((vm, event.channel), set()).add(number)
        elif not _is_signal(event):
            rest[f"{event.layer.value} {vm}"] += 1
    told = []
    if own:
        listed = ", ".join(list(own)[:4]) + (" and others" if len(own) > 4 else "")
        told.append(f"{_count(len(own), 'other request')} of this channel ({listed})")
    most = sorted(requests.items(), key=lambda item: (-len(item[1]), item[0]))
    told += [f"{_count(len(numbers), 'request')} of {vm}/{channel}" for (vm, channel), numbers in most[:3]]
    for what, number in sorted(rest.items(), key=lambda item: (-item[1], item[0]))[:3]:
        layer, _, vm = what.partition(" ")
        told.append(f"{_count(number, f'{layer} event')}{f' of {vm}' if vm else ''}")
    return told


def _is_signal(event: TraceEvent) -> bool:
    """Part of a signal, which says no more than the packets that it is for."""
    if event.layer is Layer.HYPERCALL:
        return event.fields.get("call") == "HvSignalEvent"
    return event.layer is Layer.INTERRUPT or event.event == "signal_event"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _where(hop: Hop, request: Request) -> tuple[int, str]:
    match hop.event.layer:
        case Layer.PACKET:
            return _DEPTH["bus"], "VMBus"
        case Layer.DEVICE:
            return _DEPTH["device"], f"{request.device or 'device'} VSP"
        case _:
            who = request.vm if hop.place == "guest" else hop.place
            return _DEPTH[hop.place], who


def _words(hop: Hop, request: Request, events: Sequence[TraceEvent], place: int | None) -> str:
    event, fields = hop.event, hop.event.fields
    match event.layer:
        case Layer.HYPERCALL:
            found = _CONNECTION.search(event.words)
            return f"calls {fields.get('call', 'the hypervisor')}" + (f", connection {found[1]}" if found else "")
        case Layer.SYNIC:
            whose = "the root" if event.direction == ">root" else request.vm
            called = any(
                other.event.layer is Layer.HYPERCALL and other.time == hop.time and other.place != "hypervisor"
                for other in request.hops
            )
            how = "" if called else " (no hypercall: a doorbell or a monitor page)"
            return f"sets event flag {fields.get('flag', '?')} of {whose}, SINT {fields.get('sint', '?')}{how}"
        case Layer.INTERRUPT:
            vector = fields.get("vector")
            number = f"{vector:#x}" if isinstance(vector, int) else "?"
            return f"VP {fields.get('vp', '?')} is interrupted, vector {number}"
        case Layer.PACKET:
            verb = "takes from the ring" if event.event == "packet_received" else "puts into the ring"
            return f"{verb}: {event.words}{_batch(events, place)}"
        case _:
            size = f", {event.size} B" if event.size else ""
            return f"{event.words or event.event}{size}"


def _batch(events: Sequence[TraceEvent], place: int | None) -> str:
    """Which of how many packets that crossed at once."""
    if place is None:
        return ""
    event = events[place]

    def alike(other: TraceEvent) -> bool:
        same = other.layer is Layer.PACKET and other.event == event.event and other.time == event.time
        return same and (other.partition, other.channel) == (event.partition, event.channel)

    before = after = 0
    while place - before > 0 and alike(events[place - before - 1]):
        before += 1
    while place + after + 1 < len(events) and alike(events[place + after + 1]):
        after += 1
    return f", number {before + 1} of {before + 1 + after} at once" if before + after else ""


def _waited_for(hop: Hop, following: Hop, request: Request, others_first: bool) -> str:
    """What had to come before the next hop; nothing within one hypercall, and where the root signals what it sent."""
    here, there = hop.event.layer, following.event.layer
    signals = there in (Layer.HYPERCALL, Layer.SYNIC) and here in (Layer.PACKET, Layer.INTERRUPT)
    if signals and following.place != "root" and following.event.direction != TO_CHILD:
        return "the guest"
    match there:
        case Layer.PACKET if following.event.event == "packet_received":
            return (
                "the guest" if request.by_host and here is not Layer.INTERRUPT else "the root's task for this channel"
            )
        case Layer.PACKET:
            return "the rest of its batch" if others_first else "the VSP"
        case Layer.DEVICE if here is Layer.DEVICE:
            return "the disk" if request.device in ("storage", "ide") else "the device"
        case Layer.DEVICE:
            return "its turn in the batch" if others_first else "the VSP"
        case _:
            return ""


def _summary(request: Request, steps: Sequence[Step]) -> str:
    if not request.duration:
        return "No time passed on this clock; the order of the hops is what it shows."
    most = max(steps, key=lambda step: step.took_us)
    waited = f"waiting for {most.waited_for}" if most.waited_for else f"while {most.who} {most.words}"
    sentence = f"Most of the time, {_time(most.took_us)} ({most.share:.0%}), went by {waited}"
    if most.meanwhile:
        sentence += f"; meanwhile: {', '.join(most.meanwhile)}"
    return sentence + "."


def _time(us: float) -> str:
    return f"{us:.1f} us" if us < 10_000 else f"{us / 1000:.1f} ms" if us < 10_000_000 else f"{us / 1e6:.1f} s"


def lines(story: Story, *, colour: bool = False) -> list[str]:
    """The story for people: a tree whose branches go down through the layers and come back."""
    dim, bold, strong, reset = ("\033[2m", "\033[1m", "\033[33m", "\033[0m") if colour else ("", "", "", "")
    what = " -> ".join(part for part in (story.words, story.result) if part)
    outcome = "" if story.outcome == Outcome.ANSWERED.value else f", {story.outcome}"
    size = f", {story.size} B" if story.size else ""
    shown = [
        f"{bold}{story.name}{reset}  {what}",
        f"{story.device or 'device'}{size}, {_time(story.total_us)} from {story.started_s:.6f} s on{outcome}",
        "",
        f"{'at':>10}  {'took':>10}  share",
    ]
    slowest = max((step.took_us for step in story.steps), default=0.0)
    for step in story.steps:
        indent = "  " * step.depth
        worst = strong if step.took_us == slowest > 0 else ""
        times = f"{_time(step.at_us):>10}  {worst}{_time(step.took_us):>10}  {step.share:>4.0%}{reset if worst else ''}"
        shown.append(f"{times}  {indent}{bold}{step.who}{reset}: {step.words}")
        reasons = [f"waits for {step.waited_for}"] if step.waited_for else []
        if step.meanwhile:
            reasons.append(f"meanwhile: {', '.join(step.meanwhile)}")
        if reasons:
            shown.append(f"{'':>28}  {indent}  {dim}{'; '.join(reasons)}{reset}")
        shown += [f"{'':>28}  {indent}  {line}" for line in _decoded(step, story.device, colour=colour)]
    return [*shown, "", story.summary]


def _decoded(step: Step, device: str, *, colour: bool) -> list[str]:
    """What the bytes of a packet say, where they are there."""
    if not step.data:
        return []
    from partitions.decode.packet import decode_ring_packet
    from partitions.decode.text import render

    data = bytes.fromhex(step.data)
    return render(decode_ring_packet(data, device, step.direction), data, colour=colour)
