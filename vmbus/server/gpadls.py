"""The GPADLs of a connection as the host tracks them, within limits that no guest can pass. Root side."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import attrs

from hypervisor.inspect import Branch, Hex
from hypervisor.pages import PAGE_SHIFT
from hypervisor.wire import BadValue, TooMany, WireError
from vmbus.gpadl import GpadlAssembly, GpadlRange
from vmbus.protocol.messages import GpadlHeader

MAX_GPADLS = 4096
"""Per connection: two for each channel that there can be."""

MAX_GPADL_WORDS = 1 << 18
"""Per connection, promised ones included: about a gibibyte of named pages, 10 MB of the host's memory at most."""


class OverLimit(TooMany):
    """A GPADL that would be good if there were fewer."""


class GpadlState(enum.Enum):
    """Where a GPADL is on its way."""

    IN_PROGRESS = "in progress"
    """The header is here, body messages are missing."""
    OFFERED = "offered"
    """Complete; the service has not said whether the pages are good."""
    OFFERED_TEARING_DOWN = "offered, tearing down"
    """Released by the guest before the service answered."""
    ACCEPTED = "accepted"
    TEARING_DOWN = "tearing down"
    """The guest wants it back, or is gone; a view may still be there."""


GpadlKey = tuple[int, int]
"""GPADL ID and channel ID: guests may use one ID on two channels."""


def gpadl_name(key: GpadlKey) -> str:
    """For people, such as `0xe1e10@5`."""
    return f"{key[0]:#x}@{key[1]}"


def gpadl_key(name: str) -> GpadlKey:
    """The way back. ValueError for a name that is none."""
    gpadl, _, channel = name.partition("@")
    return int(gpadl, 16), int(channel)


@attrs.define(eq=False)
class ServerGpadl:
    """One GPADL."""

    gpadl_id: int
    channel_id: int
    words: int
    """What it counts against `MAX_GPADL_WORDS`."""
    assembly: GpadlAssembly | None
    """Until it is complete."""
    state: GpadlState = GpadlState.IN_PROGRESS
    ranges: tuple[GpadlRange, ...] = ()
    silent: bool = False
    """The guest is not there any longer to hear of the teardown."""
    mapped: bool = True
    """False for one that was made on a withdrawn channel: nobody will look at its pages."""

    @property
    def key(self) -> GpadlKey:
        """Its place in the table."""
        return self.gpadl_id, self.channel_id

    def inspect(self) -> Branch:
        """What it names."""
        ranges = self.ranges
        return Branch(
            {
                "channel": self.channel_id,
                "state": self.state.value,
                "pages": sum(len(part.gpns) for part in ranges),
                "bytes": sum(part.byte_count for part in ranges),
                "ranges": len(ranges),
                "first_gpa": Hex(ranges[0].gpns[0] << PAGE_SHIFT) if ranges and ranges[0].gpns else None,
                "words": self.words,
                "mapped": self.mapped,
            }
        )


class GpadlRecords:
    """All GPADLs of a connection."""

    __slots__ = ("_by_channel", "_in_progress", "_records", "_words")

    def __init__(self) -> None:
        self._records: dict[GpadlKey, ServerGpadl] = {}
        self._by_channel: dict[int, dict[int, ServerGpadl]] = {}
        self._in_progress: dict[int, ServerGpadl] = {}
        self._words = 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[ServerGpadl]:
        return iter(list(self._records.values()))

    @property
    def by_key(self) -> Mapping[GpadlKey, ServerGpadl]:
        """All of them; for looking at only."""
        return MappingProxyType(self._records)

    @property
    def words(self) -> int:
        """Words that all of them hold or were promised."""
        return self._words

    def begin(self, header: GpadlHeader, tail: bytes) -> ServerGpadl:
        """Take a header. Raises a `WireError`, and then nothing is kept; what was there under the key stays."""
        key = header.gpadl_id, header.channel_id
        if key in self._records:
            raise BadValue(f"GPADL {header.gpadl_id:#x} of channel {header.channel_id} exists")
        assembly = GpadlAssembly(header)
        words = assembly.expected_words
        if len(self._records) >= MAX_GPADLS:
            raise OverLimit(f"{MAX_GPADLS} GPADLs are the limit of a connection")
        if self._words + words > MAX_GPADL_WORDS:
            raise OverLimit(f"{MAX_GPADL_WORDS} GPADL words are the limit of a connection")
        record = ServerGpadl(header.gpadl_id, header.channel_id, words, assembly)
        if assembly.add(tail):
            self._finish(record, assembly)
        elif header.gpadl_id in self._in_progress:
            # Bodies name no channel, so two unfinished ones could not be told apart.
            raise BadValue(f"GPADL {header.gpadl_id:#x} is unfinished on another channel")
        else:
            self._in_progress[record.gpadl_id] = record
        self._records[key] = record
        self._by_channel.setdefault(record.channel_id, {})[record.gpadl_id] = record
        self._words += words
        return record

    def go_on(self, gpadl_id: int, tail: bytes) -> tuple[ServerGpadl | None, WireError | None]:
        """Take a body: the record, None for an unknown ID; and why it was refused and dropped, at its end only."""
        record = self._in_progress.get(gpadl_id)
        if record is None:
            return None, None
        assert record.assembly is not None, "an unfinished record has an assembly"
        if record.assembly.add(tail):
            try:
                self._finish(record, record.assembly)
            except WireError as error:
                self.remove(record)
                return record, error
            del self._in_progress[gpadl_id]
        return record, None

    def get(self, gpadl_id: int, channel_id: int) -> ServerGpadl | None:
        """The GPADL that a message names."""
        return self._records.get((gpadl_id, channel_id))

    def of_channel(self, channel_id: int) -> list[ServerGpadl]:
        """All of one channel, oldest first."""
        return list(self._by_channel.get(channel_id, {}).values())

    def any_of_channel(self, channel_id: int) -> bool:
        """Whether the channel has any; asked after each that goes, so it must not cost a look at all of them."""
        return channel_id in self._by_channel

    def remove(self, record: ServerGpadl) -> None:
        """Forget it; its ID may be used again."""
        del self._records[record.key]
        siblings = self._by_channel[record.channel_id]
        del siblings[record.gpadl_id]
        if not siblings:
            del self._by_channel[record.channel_id]
        self._words -= record.words
        if self._in_progress.get(record.gpadl_id) is record:
            del self._in_progress[record.gpadl_id]

    @staticmethod
    def _finish(record: ServerGpadl, assembly: GpadlAssembly) -> None:
        record.ranges = assembly.ranges()
        record.assembly = None
        record.state = GpadlState.OFFERED
