"""JSON lines of `--trace` back into events, as far as they say what happened. Root side.

They hold no bytes and no partition IDs. IDs are learned where a line names one, and made up otherwise, above those that
a host hands out; so a VM's events belong together, which is all that readers need.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.trace import Layer, Level, TraceEvent
from partitions.logs import JSON_KEYS, ROOT_NAME, ROOT_PARTITION
from partitions.recording.buffer import Dropped
from partitions.recording.reader import RecordingError

_MADE_UP: Final = 1 << 40
_LEVELS: Final = {level.name.lower(): level for level in Level}
_PARTITION = re.compile(r"\bpartition_id=0x([0-9a-f]{1,8})\b")
_REMEDY: Final = 'such lines are what "partita run --trace FILE" writes'


class JsonLinesReader:
    """As `RecordingReader`: feed it pieces of any size; each call gives the events of the lines that are whole now."""

    def __init__(self, *, name: str = "the trace") -> None:
        self.names: dict[int, str] = {}
        self.dropped = Dropped()
        self.started: int | None = None
        self.truncated_at: int | None = None
        self._name = name
        self._ids = {"": 0, ROOT_NAME: ROOT_PARTITION}
        self._line = 0
        self._offset = 0
        self._rest = b""
        self._decode = msgspec.json.Decoder(dict[str, Any]).decode
        self._failure: RecordingError | None = None

    def feed(self, data: bytes) -> list[TraceEvent]:
        """The events of whole lines. Damage is raised by the call after the last good one."""
        if self._failure is not None:
            raise self._failure
        *lines, self._rest = (self._rest + data).split(b"\n")
        events: list[TraceEvent] = []
        for line in lines:
            self._line += 1
            try:
                if line.strip():
                    events.append(self._event(line))
            except (msgspec.DecodeError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
                place = f"{self._name}, line {self._line}"
                self._failure = RecordingError(place, f"is no trace event: {_reason(error)}", _REMEDY)
                if not events:
                    raise self._failure from None
                break
            self._offset += len(line) + 1
        return events

    def finish(self) -> None:
        """There is no more. Raises what `feed` had no occasion to."""
        if self._failure is not None:
            raise self._failure
        if self._rest.strip():
            self.truncated_at = self._offset

    def _event(self, line: bytes) -> TraceEvent:
        said = self._decode(line)
        vm, words = str(said.get("vm", "")), str(said.get("words", ""))
        layer, channel, size = Layer(said["layer"]), said.get("channel"), said.get("size")
        fields = {key.removesuffix("_") if key[:-1] in JSON_KEYS else key: said[key] for key in said if _further(key)}
        return TraceEvent(
            round(float(said["time"]) * TICKS_PER_SECOND),
            layer,
            str(said["event"]),
            self._partition(vm, layer, words, fields),
            _LEVELS[said.get("level", "debug")],
            str(said.get("direction", "")),
            channel if isinstance(channel, int) else None,
            size if isinstance(size, int) else None,
            words,
            fields,
            vm,
        )

    def _partition(self, vm: str, layer: Layer, words: str, fields: dict[str, Any]) -> int:
        known = self._ids.get(vm)
        if known is not None and (known < _MADE_UP or layer is not Layer.HYPERCALL):
            return known
        if vm.startswith("#") and vm[1:].isdecimal():
            return int(vm[1:])
        caller = fields.get("caller")
        if layer is Layer.HYPERCALL and (found := _PARTITION.search(words)):
            number = int(found[1], 16)
        elif layer is Layer.HYPERCALL and isinstance(caller, int) and caller != ROOT_PARTITION:
            number = caller
        else:
            number = known or _MADE_UP + len(self._ids)
        self._ids[vm] = number
        self.names[number] = vm
        return number


def _further(key: str) -> bool:
    return key not in JSON_KEYS


def _reason(error: Exception) -> str:
    return f'"{error.args[0]}" is missing' if isinstance(error, KeyError) else str(error)
