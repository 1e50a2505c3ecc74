"""Controls of memory that are changed while VMs run: the balancer looks at once, and not at its next second."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from hypervisor.trace import TraceEvent
from partitions.child.guest import Guest
from partitions.host import Host
from partitions.root.memory_desk import WINDOW_SECONDS
from partitions.topology_controls import PoolMemoryTable, PoolTable
from partitions.topology_schema import Size
from tests.partitions.test_memory import MIB, dynamic, fixed, forever, open_guests, state

Change = Callable[[Host], object]


def put(path: str, key: str, value: object) -> Change:
    """By the tree of resources."""
    return lambda host: host.resources.set(path, key, value)


def tax(written: str) -> Change:
    """The host's own."""
    return lambda host: host.update("host/memory/balancer/idle_tax", written)


async def _main(guest: Guest) -> None:
    await guest.memory.use(300 * MIB)
    await forever(guest)


@asynccontextmanager
async def _short_host(*pools: PoolTable, **keys: Any) -> AsyncIterator[tuple[Host, list[str]]]:
    """Two VMs that wish for 1000 MiB each, of 1600, at rest; and what their host asks them from now on."""
    asked: list[str] = []
    tables = []
    for name in "ab":
        table = dynamic(name, 560, 700, 1000, buffer=100)
        table.pool = name if pools else ""
        tables.append(table)

    def hear(event: TraceEvent) -> None:
        if event.event == "dynamic-memory_asked":
            asked.append(event.words)

    vms = [(table, _main) for table in tables]
    async with open_guests(*vms, (fixed("c", 64), forever), memory=1664, pools=pools) as host:
        await host["c"].start()
        for name in "ab":  # b starts with what a gives back
            await host[name].start()
            await trio.sleep(15)
        host.trace.add_sink(hear)
        yield host, asked


POOLS = [PoolTable(name=name, memory=PoolMemoryTable()) for name in "ab"]
OF_VMS = [
    *(put("vm/a", "memory.weight", 1000), put("vm/a", "memory.minimum", "700MiB"), put("vm/a", "memory.weight", 9000)),
    *(put("vm/b", "memory.buffer", 10), put("vm/b", "memory.buffer", 100), put("vm/a", "memory.weight", 1000)),
    *(put("vm/b", "memory.maximum", "720MiB"), put("vm/b", "memory.maximum", "1000MiB")),
    *(put("vm/a", "memory.minimum", "560MiB"), put("vm/a", "memory.weight", 4000), tax("3/4"), tax("none")),
]
OF_POOLS = [
    *(put("pool/a", "memory.limit", Size(700 * MIB)), put("pool/a", "memory.limit", 0)),
    *(put("pool/b", "memory.weight", 10_000), put("pool/a", "memory.reserve", "900MiB")),
    *(put("pool/a", "memory.reserve", 0), put("vm/a", "pool", "b")),
]


@pytest.mark.parametrize(("pools", "changes"), [((), OF_VMS), (POOLS, OF_POOLS)])
async def test_a_control_takes_effect_within_a_window(
    pools: list[PoolTable], changes: list[Change], autojump_clock: trio.abc.Clock
) -> None:
    """However long its next second is away, within an accounting window all have their new targets, the same as later,
    it is to be seen, and the first guest has been asked for something.
    """
    async with _short_host(*pools) as (host, asked):
        for number, change in enumerate(changes):
            before = {name: state(host[name]).target for name in "ab"}
            await trio.sleep_until(trio.current_time() // 1 + 1.6)
            asked.clear()
            change(host)
            await trio.sleep(WINDOW_SECONDS)
            now = {name: state(host[name]).target for name in "ab"}
            assert now != before, number
            assert [await host.inspect(f"vm/{name}/memory/target") for name in "ab"] == list(now.values())
            assert asked, number
            await trio.sleep(12)
            assert {name: state(host[name]).target for name in "ab"} == now
            assert all(abs(state(host[name]).assigned - (now[name] or 0)) <= 34 * MIB for name in "ab")


async def test_a_size_takes_effect_within_a_window(autojump_clock: trio.abc.Clock) -> None:
    """So does the size of a VM whose memory is fixed, and the end of one that was fixed for a while."""
    async with _short_host() as (host, asked):
        await trio.sleep_until(trio.current_time() // 1 + 1.6)
        host.resources.set("vm/c", "memory", "54MiB")
        await trio.sleep(WINDOW_SECONDS)
        assert asked[0] == "dynamic-memory: balloon: 10 MiB wanted"
        assert state(host["c"]).assigned == 54 * MIB
        await host["a"].set_memory("700MiB")
        await trio.sleep_until(trio.current_time() // 1 + 1.6)
        asked.clear()
        await host["a"].set_memory()
        await trio.sleep(WINDOW_SECONDS)
        assert asked
        assert state(host["a"]).target == 804 * MIB


async def test_a_state_of_the_host_is_answered_within_a_window(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    """The host comes to be short in the middle of a second: those with too much are asked at once, in larger pieces,
    and no more often than once a window however often its state changes.
    """
    rounds: list[tuple[float, str]] = []

    def hear(event: TraceEvent) -> None:
        if event.event == "memory_balanced":
            rounds.append((trio.current_time(), event.words))

    vms = (dynamic("a", 64, 900, 900), forever), (fixed("b", 120), forever), (fixed("c", 8), forever)
    async with open_guests(*vms, memory=1000) as host:
        host.trace.add_sink(hear)
        await host["a"].start()
        await host["c"].start()
        await trio.sleep_until(2.6)
        assert [(at, words.partition(":")[0]) for at, words in rounds] == [
            (1.5, "balloon 32 MiB"),
            (2.5, "balloon 32 MiB"),
        ]
        await host["b"].start()
        await trio.sleep(WINDOW_SECONDS)
        assert rounds[2] == (2.6, "balloon 256 MiB: has 836, target 261 MiB; host soft")
        looks = 0
        look = host.vid.desk.balance

        def counted() -> None:
            nonlocal looks
            looks += 1
            look()

        monkeypatch.setattr(host.vid.desk, "balance", counted)
        await trio.sleep(20)
        looks = 0
        for number in range(100):
            host.vid.given_back((1 if number % 2 else -1) * 600 * MIB)
            await trio.sleep(0.01)
        assert 9 <= looks <= 12
