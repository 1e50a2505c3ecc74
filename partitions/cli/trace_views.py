"""What `partita trace` makes of events: lines, a story, a table. Root side.

A view takes events in order, each with its VM's name, and is told when there are no more for now and for good. It
raises `Enough` once nothing that may come can change what it shows.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import msgspec

from hypervisor.trace import Layer, TraceEvent
from partitions.cli.common import FAILED, Refusal, print_json
from partitions.logs import HumanRenderer, JsonRenderer, unpack_event, unpack_for_people, wants_colour

if TYPE_CHECKING:
    from partitions.decode.field import Field
    from partitions.recording.reader import Wanted
    from partitions.trace.filters import Filter
    from partitions.trace.life_story import LifeTeller
    from partitions.trace.request_table import RequestTable
    from partitions.trace.story import Storyteller


class Enough(Exception):
    """The rest of the events need not be read."""


class View(Protocol):
    """Takes events and shows what they come to."""

    fitted: bool
    """Whether its filter has let anything through; true of those that refuse to show nothing."""

    def wanted(self) -> Wanted | None:
        """What a reader may leave out; None where it may leave out nothing."""

    def feed(self, event: TraceEvent, vm: str) -> None:
        """One more thing happened. Raises `Enough`."""

    def settle(self) -> None:
        """There is no more for now: show what can be shown."""

    def finish(self) -> None:
        """There is no more. Raises `Refusal` where what was asked for is not there."""


class Lines:
    """A line an event, for people or for scripts, and below it what its bytes say."""

    def __init__(
        self,
        out: TextIO,
        *,
        json: bool,
        wanted: Filter | None = None,
        bytes_shown: int = 0,
        limit: int | None = None,
        tail: int | None = None,
    ) -> None:
        """`bytes_shown`: 0 none, 1 decoded, 2 the bytes by themselves too. `tail` holds for what is there at first."""
        self.shown = 0
        self.fitted = False
        self._out = out
        self._json = json
        self._colour = not json and wants_colour(out)
        self._human = HumanRenderer(colour=self._colour)
        self._script = JsonRenderer()
        self._filter = wanted
        self._bytes_shown = bytes_shown
        self._limit = limit
        self._versions = BusVersions()
        self._last: deque[tuple[TraceEvent, str]] | None = None if tail is None else deque(maxlen=tail)

    def wanted(self) -> Wanted | None:
        """What heads of events decide."""
        if self._filter is None or self._bytes_shown:
            return None  # bytes of messages mean what the version says that came before
        return self._filter.wanted()

    def feed(self, event: TraceEvent, vm: str) -> None:
        """Show it, or keep it as one of the last."""
        if self._bytes_shown:
            self._versions.learn(event, vm)
        if self._filter is not None and not self._filter(event, vm):
            return
        self.fitted = True
        if self._last is None:
            self._show(event, vm)
        else:
            self._last.append((event, vm))

    def settle(self) -> None:
        """The last ones, and what waits in the stream's buffer."""
        last, self._last = self._last, None
        for event, vm in last or ():
            self._show(event, vm)
        self._out.flush()

    def finish(self) -> None:
        """As `settle`."""
        self.settle()

    def _show(self, event: TraceEvent, vm: str) -> None:
        if self._limit is not None and self.shown >= self._limit:
            raise Enough
        self.shown += 1
        unpack = unpack_event if self._json else unpack_for_people
        made = unpack(None, "", {"trace_event": event, "vm": vm})
        field = self._versions.decode(event, vm) if self._bytes_shown and event.data else None
        if self._json:
            if field is not None:
                from partitions.decode.text import plain

                made["data"] = event.data.hex()
                made["decoded"] = plain(field)
            self._out.write(self._script(None, "", made).decode() + "\n")
        else:
            self._out.write(self._human(None, "", made) + "\n")
            if field is not None:
                self._out.writelines(f"             {line}\n" for line in self._below(field, event.data))
        if self._limit == self.shown:
            raise Enough

    def _below(self, field: Field, data: bytes) -> Iterator[str]:
        from partitions.decode.hexdump import hexdump
        from partitions.decode.text import render

        if self._bytes_shown > 1:
            yield from hexdump(data)
        yield from render(field, data, colour=self._colour)


class BusVersions:
    """Which version of the bus each VM has agreed on, without which the bytes of its messages are not clear."""

    def __init__(self) -> None:
        self._asked: dict[str, int] = {}
        self._agreed: dict[str, int] = {}

    def learn(self, event: TraceEvent, vm: str) -> None:
        """Contacts and their answers."""
        if event.event == "initiate_contact":
            version = event.words.partition("version=")[2].partition(" ")[0].split(".")
            if len(version) == 2 and all(part.isdecimal() for part in version):
                self._asked[vm] = int(version[0]) << 16 | int(version[1])
        elif event.event == "version_response" and "supported=1" in event.words and vm in self._asked:
            self._agreed[vm] = self._asked[vm]

    def decode(self, event: TraceEvent, vm: str) -> Field:
        """The tree of an event's bytes."""
        if event.layer is Layer.PACKET:
            from partitions.decode.packet import decode_ring_packet

            return decode_ring_packet(event.data, str(event.fields.get("device", "")), event.direction)
        from partitions.decode.message import decode_channel_message

        return decode_channel_message(event.data, event.direction, self._agreed.get(vm))


class RequestStory:
    """One request, hop by hop."""

    fitted = True

    def __init__(self, teller: Storyteller, *, json: bool) -> None:
        self._teller = teller
        self._json = json

    def wanted(self) -> Wanted | None:
        """All layers belong to it."""
        return None

    def feed(self, event: TraceEvent, vm: str) -> None:
        """One more."""
        self._teller.feed(_named(event, vm))
        if self._teller.done:
            raise Enough

    def settle(self) -> None:
        """It is told at the end."""

    def finish(self) -> None:
        """Tell it."""
        from partitions.trace.story import UnknownRequest, lines

        try:
            story = self._teller.finish()
        except UnknownRequest as error:
            raise Refusal(str(error), FAILED) from None
        _print(story, lines(story, colour=wants_colour(sys.stdout)), json=self._json)


class LifeStory:
    """A channel's life, or a VM's."""

    fitted = True

    def __init__(self, teller: LifeTeller, *, json: bool) -> None:
        self._teller = teller
        self._json = json

    def wanted(self) -> Wanted | None:
        """Other names are suggested where this one is not there."""
        return None

    def feed(self, event: TraceEvent, vm: str) -> None:
        """One more."""
        self._teller.feed(event, vm)

    def settle(self) -> None:
        """It is told at the end."""

    def finish(self) -> None:
        """Tell it."""
        from partitions.trace.life_story import UnknownLife, lines

        try:
            life = self._teller.finish()
        except UnknownLife as error:
            raise Refusal(str(error), FAILED) from None
        _print(life, lines(life, colour=wants_colour(sys.stdout)), json=self._json)


class Requests:
    """The table of requests."""

    fitted = True

    def __init__(self, table: RequestTable, *, json: bool) -> None:
        self._table = table
        self._json = json

    def wanted(self) -> Wanted | None:
        """Hops of a request lie in all layers."""
        return None

    def feed(self, event: TraceEvent, vm: str) -> None:
        """One more."""
        self._table.feed(_named(event, vm))

    def settle(self) -> None:
        """It is shown at the end."""

    def finish(self) -> None:
        """Show it."""
        from partitions.trace.request_table import lines

        table = self._table.finish()
        if not table.requests:
            raise Refusal("there is no such request in this trace; requests need at least the layer packet", FAILED)
        _print(table, lines(table), json=self._json)


def _named(event: TraceEvent, vm: str) -> TraceEvent:
    return event if event.vm == vm else msgspec.structs.replace(event, vm=vm)


def _print(document: Any, text: list[str], *, json: bool) -> None:
    if json:
        print_json(document)
    else:
        sys.stdout.write("".join(f"{line}\n" for line in text))
