"""The picture of a host that runs, in a real browser."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import partitions
from hypervisor.trace import Layer, Level, TraceEvent
from partitions.cli.watching import claim, watched
from partitions.host import Host
from partitions.watch import hub as hub_module
from partitions.watch.hub import Hub
from partitions.watch.server import listen_on, open_server
from tests.doubles.browser import Browser, Page

MEDIA = {"prefers-reduced-motion": "reduce"}
PROGRAM = """\
async def main(guest):
    disk = await guest.disk(0)
    for block in range(3):
        await disk.read(block, 1)
    await guest.sleep(3600)
"""


@asynccontextmanager
async def shown_host(folder: Path) -> AsyncIterator[tuple[Host, str]]:
    """A host with one VM, which is off, and the address of its picture."""
    (folder / "web.py").write_text(PROGRAM)
    (folder / "topology.toml").write_text(
        '[[vm]]\nname = "web"\nprogram = "web.py"\nmemory = "8MiB"\n[[vm.disk]]\npath = "a.img"\nsize = "1MiB"\n'
    )
    said: list[str] = []
    async with partitions.open_host(folder) as host, watched(host, "a <host>", claim(0), said.append):
        yield host, said[0].removeprefix("watch: ")


async def in_thread(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The browser is driven by calls that wait."""
    return await trio.to_thread.run_sync(functools.partial(work, *arguments, **options))


@asynccontextmanager
async def opened(browser: Browser, address: str) -> AsyncIterator[Page]:
    manager = browser.page(address, media=MEDIA)
    page = await in_thread(manager.__enter__)
    try:
        yield page
        assert await in_thread(page.complaints) == []
    finally:
        await in_thread(manager.__exit__, None, None, None)


async def test_a_host_while_it_runs(browser: Browser, tmp_path: Path) -> None:
    """VMs that are off are there at once; then everything that happens, its bytes and words, and states as they are."""
    async with shown_host(tmp_path) as (host, address), opened(browser, address) as page:
        await in_thread(page.wait, "document.body.dataset.mode === 'live'")
        await in_thread(page.wait, "document.querySelector('.vm[data-vm=web]')")
        assert await in_thread(page.run, "document.querySelector('.vm[data-vm=web]').dataset.state") == "off"
        await host["web"].start()
        reads = "recording.requests.filter((request) => request.words.startsWith('SCSI READ(10)')).length"
        await in_thread(page.wait, f"{reads} >= 3")
        await in_thread(page.wait, "following && current() === visible.at(-1)")  # events come while it is asked
        assert await in_thread(page.run, "document.querySelector('.vm[data-vm=web]').dataset.state") == "running"
        await host["web"].pause()
        await in_thread(page.wait, "document.querySelector('.vm[data-vm=web]').dataset.state === 'paused'")
        await host["web"].resume()
        await in_thread(page.wait, "document.querySelector('.vm[data-vm=web]').dataset.state === 'running'")
        # A step by hand ends the following, and the fields of a packet are asked for when they are looked at.
        await in_thread(page.press, "r", shift=True)
        assert await in_thread(page.run, "following") is False
        await in_thread(page.run, "goToSeq(recording.requests[0].crossings[0])")
        await in_thread(page.wait, "document.querySelector('#detail .field')")
        assert "packet" in await in_thread(page.text, "#detail .fields")
        place = await in_thread(page.run, "document.body.dataset.place")
        events = await in_thread(page.run, "recording.rows.length")
        await host["web"].turn_off()
        await in_thread(page.wait, f"recording.rows.length > {events}")
        assert await in_thread(page.run, "document.body.dataset.place") == place
        await in_thread(page.click, "#live")
        await in_thread(page.wait, "document.querySelector('.vm[data-vm=web]').dataset.state === 'off'")


async def test_two_browsers_and_one_that_comes_again(browser: Browser, tmp_path: Path) -> None:
    """Both see the same; a page that is loaded again gets what was kept, each event once."""
    async with shown_host(tmp_path) as (host, address), opened(browser, address) as one:
        await in_thread(one.wait, "document.body.dataset.mode === 'live'")
        await host["web"].start()
        await in_thread(one.wait, "recording.requests.length > 5")
        await host["web"].turn_off()
        await in_thread(one.wait, "document.querySelector('.vm[data-vm=web]').dataset.state === 'off'")
        sequence = "JSON.stringify(recording.rows.map((row) => row.seq))"
        seen = json.loads(await in_thread(one.run, sequence))
        assert seen == list(range(len(seen)))
        async with opened(browser, address) as other:
            await in_thread(other.wait, f"recording.rows.length === {len(seen)}")
            assert json.loads(await in_thread(other.run, sequence)) == seen
            # The connection breaks; the browser makes another one, and no event is there twice.
            await in_thread(other.run, "openLive()")
            await in_thread(other.run, "new Promise((done) => setTimeout(done, 200))")
            assert json.loads(await in_thread(other.run, sequence)) == seen


async def test_what_is_dropped_is_told(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many events are missing stands on the page, and the picture behind the gap is right all the same."""
    monkeypatch.setattr(hub_module, "MAX_WAITING", 100)
    hub = Hub({}, title="host", instance="1")
    hub.know("web", "off")
    async with open_server(hub, listen_on()) as address, opened(browser, address) as page:
        await in_thread(page.wait, "document.body.dataset.mode === 'live'")
        fields = {"device": "storage", "transaction_id": 1, "type": 6, "flags": 0}
        for number in range(300):
            hub.sink(TraceEvent(number, Layer.PACKET, "packet_sent", 2, channel=4, vm="db", fields=fields))
        hub.sink(TraceEvent(400, Layer.STATE, "vm_state", 2, Level.INFO, words="off -> running", vm="web"))
        hub.sink(TraceEvent(401, Layer.STATE, "vm_state", 3, Level.INFO, words="running -> paused", vm="db"))
        await in_thread(page.wait, "recording.rows.length === 102")
        await in_thread(page.wait, "document.body.dataset.dropped === '200'")
        assert "200 dropped" in await in_thread(page.text, "#status")
        states = (
            "Object.fromEntries([...document.querySelectorAll('.vm')].map((vm) => [vm.dataset.vm, vm.dataset.state]))"
        )
        assert await in_thread(page.run, states) == {"web": "running", "db": "paused"}
        await in_thread(page.press, "Home")
        await in_thread(page.press, "End")
        assert await in_thread(page.run, states) == {"web": "running", "db": "paused"}
        assert await in_thread(page.run, "document.querySelectorAll('.channel').length") == 1


async def test_a_browser_that_was_too_slow(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """States that it has missed are in its picture as soon as it hears anything again."""
    monkeypatch.setattr(hub_module, "MAX_QUEUED", 8)
    hub = Hub({}, title="host", instance="1")
    hub.know("web", "running")
    hub.know("db", "running")
    async with open_server(hub, listen_on()) as address, opened(browser, address) as page:
        await in_thread(page.wait, "document.body.dataset.mode === 'live'")
        for number in range(16):  # more at once than its queue takes
            words = "running -> paused" if number % 2 else "paused -> running"
            hub.sink(TraceEvent(number, Layer.STATE, "vm_state", 2, Level.INFO, words=words, vm="web"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        hub.sink(TraceEvent(99, Layer.STATE, "vm_state", 3, Level.INFO, words="running -> off", vm="db"))
        await in_thread(page.wait, "document.body.dataset.dropped === '16'")
        await in_thread(page.wait, "recording.rows.length === 1")
        states = "[...document.querySelectorAll('.vm')].map((vm) => vm.dataset.state)"
        await in_thread(page.wait, f"String({states}) === 'paused,off'")


async def test_the_end_of_the_host(browser: Browser, tmp_path: Path) -> None:
    """The page says that the host has ended and keeps all it has, to be played and looked at."""
    async with trio.open_nursery() as nursery:
        over = trio.Event()
        addresses: list[str] = []

        async def run() -> None:
            async with shown_host(tmp_path) as (host, address):
                addresses.append(address)
                nursery.start_soon(look, address)
                await over.wait()
                await host["web"].start()

        async def look(address: str) -> None:
            async with opened(browser, address) as page:
                await in_thread(page.wait, "document.body.dataset.mode === 'live'")
                over.set()
                await in_thread(page.wait, "document.body.dataset.mode === 'ended'")
                assert "the host has ended" in await in_thread(page.text, "#status")
                await in_thread(page.press, "Home")
                await in_thread(page.press, "s")
                assert await in_thread(page.run, "current().layer") == "state"

        nursery.start_soon(run)
