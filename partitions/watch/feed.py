"""Trace events as they come, made into rows, changes of the picture and finished requests. Root side.

Pure: what a page is told live and what is written into one come from here.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from hypervisor.trace import Layer, TraceEvent
from partitions.logs import vm_name
from partitions.recording.event_codec import DROPPED, STARTED
from partitions.trace.requests import Request, RequestTracker
from partitions.watch.rows import Change, Row, row_of, text
from partitions.watch.scene import Scene

REMEMBERED: Final = 20_000
"""Events whose place is known, for requests that end later."""
_U32: Final = struct.Struct("<I")
_VERSION_AT: Final = 8
"""Where a contact names its version, and its answer says whether it is granted."""

Told = dict[str, Any]
"""A request as a page reads it."""


class Feed:
    """Numbers events from 0. `names` says which VM a partition is; it may grow meanwhile."""

    def __init__(self, names: Mapping[int, str]) -> None:
        self.names = names
        self.scene = Scene()
        self.versions: dict[str, int] = {}
        """The version of the bus that each VM has been granted: without it some bytes mean nothing."""
        self.dropped = 0
        """Events that the recording behind this says it lacks."""
        self._seq = 0
        self._tracker = RequestTracker(names)
        self._asked: dict[str, int] = {}
        self._pending: list[Change] = []
        """Changes of events that have no row, for the next one that has."""
        self._places: dict[int, int] = {}
        """The number of each remembered event by its `id`, which the deque keeps from being used again."""
        self._remembered: deque[TraceEvent] = deque()

    def add(self, event: TraceEvent, *, wanted: bool = True) -> tuple[Row | None, list[Told]]:
        """The next event, and the requests that are over with it. One that is not wanted only has its effects."""
        vm = vm_name(self.names, event)
        match event.layer:
            case Layer.CONTROL:
                self._contact(event, vm)
            case Layer.STATE:
                self._recorded(event)
            case _:
                pass
        changes = self.scene.feed(event, vm)
        row = None
        if wanted:
            changes, self._pending = [*self._pending, *changes], []
            row = row_of(self._seq, event, vm, changes)
            self._remember(event)
        else:
            self._pending += changes
        return row, self._told(self._tracker.feed(event))

    def finish(self) -> list[Told]:
        """There are no more events: the requests that are left."""
        return self._told([*self._tracker.finish(), *self._tracker.open])

    def _remember(self, event: TraceEvent) -> None:
        if len(self._remembered) >= REMEMBERED:
            del self._places[id(self._remembered.popleft())]
        self._remembered.append(event)
        self._places[id(event)] = self._seq
        self._seq += 1

    def _contact(self, event: TraceEvent, vm: str) -> None:
        if event.event == "initiate_contact" and len(event.data) >= _VERSION_AT + 4:
            (self._asked[vm],) = _U32.unpack_from(event.data, _VERSION_AT)
        elif event.event == "version_response" and event.data[_VERSION_AT : _VERSION_AT + 1] > b"\0":
            self.versions[vm] = self._asked.get(vm, 0)

    def _recorded(self, event: TraceEvent) -> None:
        """What a recorder says of its recording."""
        if event.event == DROPPED:
            counts = (event.fields.get("packets"), event.fields.get("events"))
            self.dropped += sum(count for count in counts if isinstance(count, int))
        elif event.event == STARTED:
            names, versions = event.fields.get("names"), event.fields.get("versions")
            if isinstance(names, dict) and isinstance(versions, dict):
                for partition, version in versions.items():
                    if isinstance(version, int):
                        self.versions[str(names.get(partition))] = version

    def _told(self, requests: list[Request]) -> list[Told]:
        told = (self._request(request) for request in requests)
        return [request for request in told if request["hops"]]

    def _request(self, request: Request) -> Told:
        """A request by the numbers of its events, in the order in which they came."""
        places = [(place, hop) for hop in request.hops if (place := self._places.get(id(hop.event))) is not None]
        places.sort(key=lambda pair: pair[0])
        return {
            "name": text(request.name),
            "vm": text(request.vm),
            "channel": request.channel,
            "by_host": request.by_host,
            "words": text(request.words),
            "result": text(request.result),
            "outcome": request.outcome.value,
            "started": request.started,
            "ended": request.ended,
            "hops": [(place, hop.place) for place, hop in places],
            "crossings": [place for place, hop in places if hop.event.layer is Layer.PACKET],
        }
