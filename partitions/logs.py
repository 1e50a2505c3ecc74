"""Sinks for trace events, on structlog: lines for people, and JSON lines for scripts. Root side.

A sink is a function that takes a `TraceEvent`; `Trace.add_sink` attaches it. Nothing here is attached unless somebody
asks to see something, so a silent run costs one attribute test a trace point, and does not even import structlog, which
brings asyncio and logging along.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from typing import IO, TYPE_CHECKING, Any, TextIO

import msgspec

from hypervisor.clock import seconds
from hypervisor.trace import Layer, Level, Sink, Trace, TraceEvent

if TYPE_CHECKING:
    from partitions.trace.filters import Predicate

ROOT_PARTITION = 1
ROOT_NAME = "root"
JSON_KEYS = ("time", "vm", "layer", "event", "level", "direction", "channel", "size", "words")
"""Stable names, in this order; an event's further fields follow. Absent keys have no meaning for that event."""

EventDict = MutableMapping[str, Any]
Processor = Callable[[object, str, EventDict], EventDict | str | bytes]
"""As structlog has them."""


def vm_name(names: Mapping[int, str], event: TraceEvent) -> str:
    """What people call whom an event is about: the VM's name, `root`, `#7` for a partition without one, or nothing."""
    if event.vm:
        return event.vm
    partition = event.partition
    if partition in names:
        return names[partition]
    return ROOT_NAME if partition == ROOT_PARTITION else f"#{partition}" if partition else ""


def printable(text: str) -> str:
    """Text that a guest had a hand in, with control characters spelled out: it cannot drive the person's terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


LONGEST_NAME = 64
"""Characters of a name that begins every line. VMs here have shorter ones; a file may hold any."""


def short_name(text: str) -> str:
    """A name out of a file, `printable` and cut: it cannot drive the terminal, nor make a small file a gigabyte."""
    return printable(text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 3]}...")


# Lines for people

_DIM, _BOLD, _RESET = "\033[2m", "\033[1m", "\033[0m"
_LEVEL_COLOURS = {Level.WARNING: "\033[33m", Level.ERROR: "\033[31m"}
_VM_COLOURS = ("\033[36m", "\033[32m", "\033[35m", "\033[34m", "\033[96m", "\033[92m", "\033[95m", "\033[94m")


def wants_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream gets colours: a terminal that understands them, unless NO_COLOR is set to anything."""
    return stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"


class HumanRenderer:
    """A structlog processor: one aligned line an event. Columns grow with what they have seen and never shrink."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._vm_width = 4
        self._vms: dict[str, str] = {}

    def __call__(self, logger: object, method: str, event: EventDict) -> str:
        """`   1.234567  web   control    >root   open_channel            ch 5  120 B  words`."""
        vm, words = short_name(event["vm"]), event.get("words", "")
        self._vm_width = max(self._vm_width, len(vm))
        parts = [
            f"{event['layer']:<9}",
            f"{event.get('direction', ''):<6}",
            f"{event['event']:<22}",
        ]
        if "channel" in event:
            parts.append(f"ch {event['channel']}")
        if "size" in event:
            parts.append(f"{event['size']} B")
        # Where there are no colours the level is a word, after the columns so that they stay aligned.
        mark = "" if self._colour or event["level"] < Level.WARNING else f"{Level(event['level']).name.lower()}: "
        if words or mark:
            parts.append(mark + words)
        said = _SAID_IN_WORDS.get(event["layer"], ())
        parts.extend(
            f"{key}={_value(key, value)}"
            for key, value in event.items()
            if key not in said and _tells(key, value, words)
        )
        # In one go, names of events and fields too: a trace may be somebody else's file.
        moment, name, rest = f"{event['time']:11.6f}", f"{vm:<{self._vm_width}}", printable("  ".join(parts).rstrip())
        if not self._colour:
            return f"{moment}  {name}  {rest}"
        tint = self._vms.setdefault(vm, _VM_COLOURS[len(self._vms) % len(_VM_COLOURS)])
        strong = _LEVEL_COLOURS.get(event["level"], "")
        return f"{_DIM}{moment}{_RESET}  {tint}{name}{_RESET}  {strong}{rest}{_RESET if strong else ''}"


_COLUMNS = frozenset(JSON_KEYS)
_HEX = frozenset({"address", "connection", "control", "gpa", "msr", "port", "value", "vector"})
"""Fields that people know by their hexadecimal numbers."""
_SAID_IN_WORDS = {"packet": ("type", "flags")}


def _tells(key: str, value: object, words: str) -> bool:
    """Whether a field says more than the columns and the words."""
    return key not in _COLUMNS and value != "" and not (isinstance(value, str) and f" {value} " in f" {words} ")


def _value(key: str, value: object) -> str:
    return f"{value:#x}" if key in _HEX and isinstance(value, int) else _plain(value)


def _plain(value: object) -> str:
    if type(value) in (bytes, bytearray, memoryview):  # a Guid is bytes too, and has better words
        return bytes(value).hex()  # type: ignore[call-overload,no-any-return]
    return printable(str(value))


# Lines for scripts


def _simple(value: object) -> object:
    """What msgspec does not know: a number that is a little more than a number stays one, all else becomes text."""
    return int(value) if isinstance(value, int) else _plain(value)


class JsonRenderer:
    """A structlog processor: one JSON object, its keys in the order of `JSON_KEYS`."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder(enc_hook=_simple).encode

    def __call__(self, logger: object, method: str, event: EventDict) -> bytes:
        """The line without its end."""
        event["level"] = _LEVEL_NAMES[event["level"]]
        try:
            return self._encode(event)
        except (UnicodeEncodeError, ValueError, OverflowError):
            # Lone surrogates in guest text, integers past 64 bits: say it as text rather than lose the event.
            return self._encode({str(key): _safe(value) for key, value in event.items()})


_LEVEL_NAMES = {level: level.name.lower() for level in Level}


def _safe(value: object) -> object:
    if isinstance(value, bool | float | None):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 64 else str(value)
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


class _Unflushed:
    """A file whose flush is ours: structlog's BytesLogger flushes each line, which would be a system call an event."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write

    def flush(self) -> None:
        """Nothing: the file's own buffer decides, and closing it."""


# Sinks


def human_sink(stream: TextIO, trace: Trace, *, colour: bool | None = None) -> Sink:
    """Aligned lines on a text stream; colours by default only where the stream is a terminal that wants them."""
    renderer = HumanRenderer(colour=wants_colour(stream) if colour is None else colour)
    import structlog

    return _sink(structlog.PrintLogger(stream), trace, unpack_for_people, renderer)


def json_sink(file: IO[bytes], trace: Trace, *, flush: bool = False) -> Sink:
    """JSON lines on a binary file. Without `flush` the file's buffer is written when full and at close."""
    import structlog

    logger = structlog.BytesLogger(file if flush else _Unflushed(file))  # type: ignore[arg-type]  # write and flush do
    return _sink(logger, trace, unpack_event, JsonRenderer())


def _sink(logger: object, trace: Trace, *processors: Processor) -> Sink:
    import structlog

    names = trace.names
    # The base class, which has no methods for levels: what is wanted was asked before, and lazy proxies cost a lot.
    write = structlog.BoundLoggerBase(logger, list(processors), {})._proxy_to_logger

    def sink(event: TraceEvent) -> None:
        write("msg", trace_event=event, vm=vm_name(names, event))

    return sink


def unpack_event(logger: object, method: str, pairs: EventDict) -> EventDict:
    """The first structlog processor: a `TraceEvent` and its VM's name become pairs under the stable names, in order."""
    event: TraceEvent = pairs["trace_event"]
    made: EventDict = {
        "time": seconds(event.time),
        "vm": pairs["vm"],
        "layer": event.layer.value,
        "event": event.event,
        "level": event.level,
    }
    if event.direction:
        made["direction"] = event.direction
    if event.channel is not None:
        made["channel"] = event.channel
    if event.size is not None:
        made["size"] = event.size
    if event.words:
        made["words"] = event.words
    for key, value in event.fields.items():
        # A field that has one of our names keeps its value under a name of its own.
        made[f"{key}_" if key in _COLUMNS else key] = _plain(value) if isinstance(value, bytes) else value
    return made


LONGEST_PAYLOAD_WORDS = 160
"""Characters of what a device makes of a packet; a guest's texts may be in it."""


def unpack_for_people(logger: object, method: str, pairs: EventDict) -> EventDict:
    """`unpack_event`, and behind a ring packet's words those of the device it is for, where it is one we know."""
    made = unpack_event(logger, method, pairs)
    event: TraceEvent = pairs["trace_event"]
    if event.layer is Layer.PACKET and event.data:
        from partitions.decode.packet import payload_words

        said = payload_words(event.data, str(event.fields.get("device", "")), event.direction)
        if len(said) > LONGEST_PAYLOAD_WORDS:
            said = f"{said[: LONGEST_PAYLOAD_WORDS - 3]}..."
        if said:
            made["words"] = f"{event.words}: {said}"
    return made


class _Selected:
    """A sink behind a predicate."""

    def __init__(self, sink: Sink, names: Mapping[int, str], predicate: Predicate) -> None:
        self._sink, self._names, self._predicate = sink, names, predicate
        self.wants_scheduler: bool = getattr(predicate, "wants_scheduler", False)

    def __call__(self, event: TraceEvent) -> None:
        if self._predicate(event, vm_name(self._names, event)):
            self._sink(event)


def filtered(sink: Sink, trace: Trace, predicate: Predicate) -> Sink:
    """A sink that passes on only what the predicate likes."""
    return _Selected(sink, trace.names, predicate)
