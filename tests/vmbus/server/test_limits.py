"""What a guest may take is bounded, counted, and told in docs/limits.md as it is in the code."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from hypervisor.memory import GuestMemory
from tests.doubles.vmbus_guest import scsi
from tests.vmbus.server.test_service import GPADL, Bench, EchoDevice, bench, memory
from vmbus.gpadl import encode_gpadl, page_range
from vmbus.protocol import messages as m
from vmbus.server import limits
from vmbus.server.limits import INBOX_MESSAGES, LIMITS, BusUse, limits_table

__all__ = ["memory"]
DOCUMENT = Path(__file__).parents[3] / "docs" / "limits.md"
FAILURE = 0x8000FFFF


@pytest.fixture
async def bus(memory: GuestMemory) -> AsyncIterator[Bench]:
    async with bench(memory, EchoDevice(scsi())) as made:
        await made.connect()
        yield made


def test_the_document_has_the_table() -> None:
    """Generated from the rows, so that no number in it is old."""
    assert limits_table() in DOCUMENT.read_text()


def test_each_row_names_a_constant_and_a_count() -> None:
    fields = {field.name for field in msgspec.structs.fields(BusUse)}
    for row in LIMITS:
        assert getattr(limits, row.name) == row.value
        assert row.counter in fields | {"-"}


async def test_use_is_what_the_guest_has(bus: Bench) -> None:
    """Taken at one moment; given back, it is gone from it."""
    assert bus.server.use() == BusUse(channels=1)
    await bus.gpadl_and_open()
    assert bus.server.use() == BusUse(channels=1, gpadls=1, gpadl_words=9)
    await bus.say(m.CloseChannel(channel_id=1))
    await bus.say(m.GpadlTeardown(channel_id=1, gpadl_id=GPADL))
    assert bus.server.use() == BusUse(channels=1)


async def test_gpadls_past_the_limit_are_refused_and_counted_apart(bus: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPADL that is bad in itself is a mistake, not a limit."""
    monkeypatch.setattr("vmbus.server.gpadls.MAX_GPADLS", 2)
    bad = m.GpadlHeader(channel_id=1, gpadl_id=9, byte_length=8, range_count=1).encode() + (4096).to_bytes(8, "little")
    assert await bus.say(bad) == [m.GpadlCreated(channel_id=1, gpadl_id=9, status=FAILURE)]
    for gpadl_id in (1, 2, 3, 4):
        (data,) = encode_gpadl(1, gpadl_id, [page_range(range(0x10, 0x12))])
        status = 0 if gpadl_id < 3 else FAILURE
        assert await bus.say(data) == [m.GpadlCreated(channel_id=1, gpadl_id=gpadl_id, status=status)]
    assert (bus.server.use().gpadls, bus.server.use().gpadls_over_limit) == (2, 2)
    assert bus.server.counters["refused_gpadl"] == 1


async def test_words_past_the_limit_are_refused_and_come_back(bus: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promised words count from the header on."""
    monkeypatch.setattr("vmbus.server.gpadls.MAX_GPADL_WORDS", 40)
    first, *_ = encode_gpadl(1, 1, [page_range(range(35))])
    assert await bus.say(first) == []
    (second,) = encode_gpadl(1, 2, [page_range(range(8))])
    assert await bus.say(second) == [m.GpadlCreated(channel_id=1, gpadl_id=2, status=FAILURE)]
    assert bus.server.use() == BusUse(channels=1, gpadls=1, gpadl_words=36, gpadls_over_limit=1)


async def test_messages_past_the_limit_are_dropped_and_counted(bus: Bench) -> None:
    """What waits and what was dropped can be seen."""
    for _ in range(INBOX_MESSAGES + 5):
        bus.ports.message_handlers[1](b"")
    use = bus.server.use()
    assert (use.messages_waiting, use.messages_dropped) == (INBOX_MESSAGES, 5)


async def test_messages_that_the_guest_does_not_take_are_seen(bus: Bench) -> None:
    bus.ports.room = 0
    bus.server.offer(EchoDevice(scsi(2)))
    assert bus.server.use().messages_unsent == 1
    bus.ports.room = 10
