"""Events on their way to browsers: in order, once encoded, never waited for, and what is missing is told."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
import trio

from hypervisor.trace import Layer, TraceEvent
from partitions.watch import hub as hub_module
from partitions.watch.hub import Hub, Queue
from partitions.watch.rows import COLUMNS
from partitions.watch.scene import RESET, Scene
from tests.partitions.watch.conftest import Run


def new_hub(share: float = 1) -> Hub:
    return Hub({}, title="host", instance="1", share=share)


def packet(number: int) -> TraceEvent:
    fields = {"transaction_id": number, "device": "storage"}
    return TraceEvent(number, Layer.PACKET, "packet_sent", 2, channel=1, vm="web", fields=fields)


def state(words: str, number: int = 0) -> TraceEvent:
    return TraceEvent(number, Layer.STATE, "vm_state", 2, words=words, vm="web")


class Reader:
    """What a browser makes of what it is sent."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.scene = Scene()
        self.dropped = 0
        self.kinds: list[str] = []
        self.requests: list[dict[str, Any]] = []

    def read(self, data: bytes) -> None:
        kind, content = data.decode().removesuffix("\n\n").split("\n")
        name = kind.removeprefix("event: ")
        self.kinds.append(name)
        said = json.loads(content.removeprefix("data: "))
        self.dropped += said.get("dropped", 0)
        self.scene.apply(map(tuple, said.get("before", ())))
        for row in said.get("rows", ()):
            self.rows.append(dict(zip(COLUMNS, row, strict=False)))
            self.scene.apply(map(tuple, self.rows[-1].get("changes") or ()))
        self.requests += said.get("requests", ())

    async def read_all(self, queue: Queue) -> None:
        while data := await queue.next():
            self.read(data)


async def told(hub: Hub, *readers: Queue) -> list[Reader]:
    """End the hub and read everything."""
    found = [Reader() for _ in readers]
    async with trio.open_nursery() as nursery:
        hub.end()
        nursery.start_soon(hub.run)
        for reader, queue in zip(found, readers, strict=True):
            nursery.start_soon(reader.read_all, queue)
    return found


async def test_every_event_in_order(disk_run: Run) -> None:
    """Two browsers get the same, in order, without gaps; requests come when they are over."""
    events, names = disk_run
    hub = Hub(names, title="host", instance="1")
    with hub.listen() as one, hub.listen() as other:
        for event in events:
            hub.sink(event)
        first, second = await told(hub, one, other)
    assert [row["seq"] for row in first.rows] == list(range(len(events)))
    assert [row["event"] for row in first.rows] == [event.event for event in events]
    assert first.rows == second.rows
    assert first.kinds[0] == "hello"
    assert first.kinds[-1] == "end"
    assert [r["words"] for r in first.requests if "READ(10)" in r["words"]] == [
        f"SCSI READ(10) lba={n} blocks=1" for n in range(4)
    ]


async def test_who_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser that comes later gets what is kept, and the picture as it was before that."""
    monkeypatch.setattr(hub_module, "BACKLOG", 100)
    hub = new_hub()
    hub.know("web", "off")
    hub.know("db", "paused")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        hub.sink(state("off -> running"))
        for number in range(1000):
            hub.sink(packet(number))
        await trio.testing.wait_all_tasks_blocked()
        with hub.listen() as queue:
            hub.sink(state("running -> paused"))
            hub.end()
            reader = Reader()
            await reader.read_all(queue)
    assert 70 < len(reader.rows) <= 101
    assert reader.rows[-1]["words"] == "running -> paused"
    assert reader.rows[0]["time"] > 890
    assert ("vm", "db", "paused") in reader.scene.snapshot()
    assert ("vm", "web", "paused") in reader.scene.snapshot()
    assert ("channel", "web", 1, "storage", "open") in reader.scene.snapshot()
    assert reader.dropped == 0


async def test_a_slow_browser_misses_what_it_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its queue is bounded; it learns how much it missed and how the picture is then; nobody else notices."""
    monkeypatch.setattr(hub_module, "MAX_QUEUED", 64)
    hub = new_hub()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        with hub.listen() as slow, hub.listen() as quick:
            swift = Reader()
            nursery.start_soon(swift.read_all, quick)
            hub.sink(state("off -> running"))
            for number in range(500):
                hub.sink(packet(number))
                if number % 20 == 0:
                    await trio.testing.wait_all_tasks_blocked()
            hub.sink(state("running -> off"))
            await trio.testing.wait_all_tasks_blocked()
            assert slow.dropped > 400
            reader = Reader()
            with trio.fail_after(20):
                while "gap" not in reader.kinds:
                    hub.sink(state("off -> running", 1000))
                    reader.read(await slow.next())
                    await trio.testing.wait_all_tasks_blocked()
                hub.end()
                await reader.read_all(slow)
    assert swift.dropped == 0
    assert reader.dropped == slow.dropped
    assert len(reader.rows) + reader.dropped == len(swift.rows)
    assert sorted(map(str, reader.scene.snapshot())) == sorted(map(str, swift.scene.snapshot()))


async def test_events_faster_than_they_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What may wait for the encoder is bounded too: packets are lost before states are, and the count is told."""
    monkeypatch.setattr(hub_module, "MAX_WAITING", 50)
    hub = new_hub()
    with hub.listen() as queue:
        for number in range(200):
            hub.sink(packet(number))
        hub.sink(state("off -> running"))
        (reader,) = await told(hub, queue)
    assert hub.lost == 150
    assert reader.dropped == 150
    assert [row["event"] for row in reader.rows[-2:]] == ["packet_sent", "vm_state"]
    assert len(reader.rows) == 51


async def test_its_share_of_the_hosts_time(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is much to tell, three quarters of the time are the guests'; at the end nobody waits for anything."""
    hub = new_hub(hub_module.SHARE)
    monkeypatch.setattr(hub, "_hand_on", lambda events: autojump_clock.jump(0.001))
    for number in range(hub_module.PART * 10):
        hub.sink(packet(number))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        await trio.sleep(1)
        assert not hub._waiting
        busy = 10 * 0.001
        assert trio.current_time() - began >= busy / hub_module.SHARE
        for number in range(hub_module.PART * 10):
            hub.sink(packet(number))
        hub.end()
        before = trio.current_time()
    assert trio.current_time() - before == pytest.approx(busy)


async def test_the_end_is_told_to_those_who_come_after_it() -> None:
    """A page that is opened, or reloaded, when the host has ended, shows all that was kept."""
    hub = new_hub()
    hub.sink(state("off -> running"))
    hub.end()
    await hub.run()
    with hub.listen() as queue:
        reader = Reader()
        await reader.read_all(queue)
    assert len(reader.rows) == 1
    assert reader.kinds == ["hello", "events", "end"]


async def test_waiting_for_the_last_words(autojump_clock: trio.testing.MockClock) -> None:
    """`wait_told` waits for browsers that still read, and for none that has gone."""
    hub = new_hub()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hub.run)
        with hub.listen():
            hub.end()
            with trio.move_on_after(1) as waiting:
                await hub.wait_told()
            assert waiting.cancelled_caught
        await hub.wait_told()


def test_fields_on_demand(disk_run: Run) -> None:
    """The fields of any bytes that a page has; questions that are none have no answer, whatever they hold."""
    events, names = disk_run
    hub = Hub(names, title="host", instance="1")
    read = next(event for event in events if event.event == "packet_received" and event.data)
    question = {
        "layer": "packet",
        "data": base64.b64encode(read.data).decode(),
        "device": "storage",
        "direction": ">root",
    }
    answer = hub.decode(json.dumps(question).encode())
    assert answer is not None
    assert json.loads(answer)["shapes"][0][0] == "packet"
    for wrong in (
        b"",
        b"[]",
        b"\xff",
        b'{"layer": "none", "data": ""}',
        b'{"layer": "packet", "data": "!"}',
        b'{"layer": "packet", "data": "AA", "more": 1}',
        b'{"layer": "state", "data": "AAAA"}',
    ):
        assert hub.decode(wrong) is None


def test_a_part_takes_no_time_worth_the_name(disk_run: Run) -> None:
    """What is encoded between two turns of everybody else takes less than the 2 ms that a loop may be held."""
    events, names = disk_run
    hub = Hub(names, title="host", instance="1")
    took = []
    for start in range(0, len(events), hub_module.PART):
        before = time.perf_counter()
        hub._hand_on(events[start : start + hub_module.PART])
        took.append(time.perf_counter() - before)
    assert sorted(took)[len(took) // 2] < 0.002


async def test_nothing_is_encoded_twice() -> None:
    """Browsers share the bytes: a hundred of them cost hardly more than one."""
    hub = new_hub()
    with hub.listen() as one, hub.listen() as other:
        for number in range(10):
            hub.sink(packet(number))
        hub.end()
        await hub.run()
        await one.next()
        await other.next()
        assert await one.next() is await other.next()
    assert hub._base.snapshot() == [RESET]
