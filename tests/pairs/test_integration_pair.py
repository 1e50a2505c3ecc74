"""Each component's real VSP against its real VSC, over a real channel in plain memory, on the virtual clock."""

from __future__ import annotations

import datetime
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.doubles.integration import NOW, Served, serving
from vsp_vsc.integration.component import Contact, NoAnswer, Unavailable
from vsp_vsc.integration.heartbeat.protocol import ApplicationState
from vsp_vsc.integration.heartbeat.vsc import open_heartbeat
from vsp_vsc.integration.heartbeat.vsp import HeartbeatState, HeartbeatVsp
from vsp_vsc.integration.kvp.protocol import Pool
from vsp_vsc.integration.kvp.vsc import open_kvp
from vsp_vsc.integration.kvp.vsp import KvpVsp
from vsp_vsc.integration.protocol import RESPONSE, VERSIONS, Component, Version, encode_message
from vsp_vsc.integration.responder import Responder, responding
from vsp_vsc.integration.shutdown.protocol import ShutdownFlags
from vsp_vsc.integration.shutdown.vsc import ShutdownDriver, open_shutdown
from vsp_vsc.integration.shutdown.vsp import ShutdownRefused, ShutdownVsp
from vsp_vsc.integration.time_sync.vsc import TimeSyncDriver, open_time_sync
from vsp_vsc.integration.time_sync.vsp import TimeSyncVsp


def platform(served: Served) -> Any:
    return served


async def ready(served: Served) -> None:
    """Until versions are agreed on, and everybody has had their say."""
    await trio.testing.wait_all_tasks_blocked()
    assert served.vsp.ready


# --- heartbeat


async def test_a_heart_beats_every_two_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """Each answered number counts; what the guest says of its programs comes along."""
    async with serving(HeartbeatVsp) as served, open_heartbeat(served.guest_end, platform(served)) as driver:
        driver.application = ApplicationState.HEALTHY
        await trio.sleep(9)
        assert driver.beats == 5
        beat = served.vsp.heartbeat
        assert (beat.state, beat.beats, beat.sequence, beat.missed) == (HeartbeatState.OK, 5, 9, 0)
        assert beat.application is ApplicationState.HEALTHY
        assert beat.state.operational_status == 2
    assert served.vsp.heartbeat.state is HeartbeatState.NO_CONTACT
    assert served.vsp.contact is Contact.NONE


async def test_lost_contact_shows_within_five_seconds_and_heals(autojump_clock: trio.testing.MockClock) -> None:
    """A guest that takes beats and says nothing is lost; its next answer brings it back, late ones do not count."""
    async with serving(HeartbeatVsp) as served:
        driver_scope = trio.CancelScope()

        async def beat(scope: trio.CancelScope, seconds: float) -> None:
            with scope:
                async with open_heartbeat(served.guest_end, platform(served)):
                    await trio.sleep(seconds)

        await beat(driver_scope, 5)
        assert served.vsp.heartbeat.state is HeartbeatState.OK
        await trio.sleep(4.5)
        assert served.vsp.heartbeat.state is HeartbeatState.LOST
        assert served.vsp.contact is Contact.MUTE
        # A driver that comes back does not negotiate again: the channel was never closed.
        while True:
            message = await served.hear()
            header = message.header
            await served.say(_plus_one(message.body, header))
            await trio.testing.wait_all_tasks_blocked()
            if served.vsp.heartbeat.state is HeartbeatState.OK:
                break
        assert served.vsp.stale >= 1
        assert served.vsp.heartbeat.missed >= 1


def _plus_one(body: bytes, header: Any) -> bytes:
    number = int.from_bytes(body[:8], "little") + 1
    return encode_message(
        header.component,
        number.to_bytes(8, "little") + body[8:],
        transaction_id=header.transaction_id,
        flags=RESPONSE,
    )


async def test_a_paused_guest_is_not_lost(autojump_clock: trio.testing.MockClock) -> None:
    """Its time stands still, and with it what it may take for an answer."""
    async with serving(HeartbeatVsp) as served:
        async with open_heartbeat(served.guest_end, platform(served)):
            await trio.sleep(5)
        served.clock.pause()
        await trio.sleep(100)
        assert served.vsp.heartbeat.state is HeartbeatState.OK
        served.clock.resume()
        await trio.sleep(5)
        assert served.vsp.heartbeat.state is HeartbeatState.LOST


# --- shutdown


async def test_a_guest_is_told_what_is_wanted() -> None:
    """Flags and text arrive, the guest's word comes back."""
    heard: list[tuple[ShutdownFlags, str]] = []
    async with serving(ShutdownVsp) as served, open_shutdown(served.guest_end, platform(served)) as driver:
        driver.on_request = lambda flags, text: not heard.append((flags, text))  # type: ignore[func-returns-value]
        await ready(served)
        assert served.vsp.version == "3.2"
        await served.vsp.request(text="Auf Wiedersehen, größte VM")
        await served.vsp.request(ShutdownFlags.RESTART | ShutdownFlags.FORCE)
        assert heard == [
            (ShutdownFlags.NONE, "Auf Wiedersehen, größte VM"),
            (ShutdownFlags.RESTART | ShutdownFlags.FORCE, ""),
        ]


async def test_a_guest_may_refuse() -> None:
    """The refusal has the guest's status; a driver whom nobody hears refuses, too."""
    async with serving(ShutdownVsp) as served, open_shutdown(served.guest_end, platform(served)) as driver:
        await ready(served)
        with pytest.raises(ShutdownRefused, match="fail"):
            await served.vsp.request()
        driver.on_request = lambda flags, text: False
        with pytest.raises(ShutdownRefused):
            await served.vsp.request()


async def test_without_a_driver_there_is_nobody_to_ask() -> None:
    """Before the guest has opened the channel, and before versions are agreed on."""
    async with serving(ShutdownVsp) as served:
        with pytest.raises(Unavailable, match="no contact"):
            await served.vsp.request()
        await served.hear()
        with pytest.raises(Unavailable, match="negotiating"):
            await served.vsp.request()


async def test_one_request_at_a_time_and_a_mute_guest(autojump_clock: trio.testing.MockClock) -> None:
    """A second request while the first is out is refused; after five seconds the first is given up."""
    async with serving(ShutdownVsp) as served:
        async with open_shutdown(served.guest_end, platform(served)):
            await ready(served)
        async with trio.open_nursery() as nursery:

            async def first() -> None:
                began = trio.current_time()
                with pytest.raises(NoAnswer, match="no answer within 5 s"):
                    await served.vsp.request()
                assert trio.current_time() - began == pytest.approx(5)

            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(Unavailable, match="already in progress"):
                await served.vsp.request()
        assert served.vsp.contact is Contact.MUTE


async def test_what_waits_ends_with_the_channel() -> None:
    """A guest that closes the channel in the middle of a request leaves nobody waiting."""
    async with serving(ShutdownVsp) as served:
        async with open_shutdown(served.guest_end, platform(served)):
            await ready(served)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(NoAnswer, match="closed"):
                    await served.vsp.request()

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            served.scope.cancel()
        assert served.vsp.contact is Contact.NONE


@pytest.mark.parametrize("version", VERSIONS[Component.SHUTDOWN])
async def test_every_shutdown_version_works(version: Version) -> None:
    """Alone; a flag that it does not know is not sent."""
    driver = ShutdownDriver()
    driver.on_request = lambda flags, text: True
    responder = Responder(Component.SHUTDOWN, driver.answer, [version])
    async with serving(ShutdownVsp) as served, responding(served.guest_end, responder):
        await ready(served)
        assert served.vsp.version == str(version)
        await served.vsp.request()
        for flag, least in ((ShutdownFlags.RESTART, Version(3, 1)), (ShutdownFlags.HIBERNATE, Version(3, 2))):
            if version >= least:
                await served.vsp.request(flag)
            else:
                with pytest.raises(Unavailable, match=f"needs version {least}"):
                    await served.vsp.request(flag)


async def test_no_common_version() -> None:
    """Is a state, and no error."""
    responder = Responder(Component.SHUTDOWN, ShutdownDriver().answer, [Version(9, 0)])
    async with serving(ShutdownVsp) as served, responding(served.guest_end, responder):
        await trio.testing.wait_all_tasks_blocked()
        assert served.vsp.contact is Contact.REFUSED
        with pytest.raises(Unavailable, match="no common version"):
            await served.vsp.request()


# --- time synchronization


@pytest.mark.parametrize("version", VERSIONS[Component.TIME_SYNC])
async def test_the_guest_knows_the_date(autojump_clock: trio.testing.MockClock, version: Version) -> None:
    """One order to set the clock, then a sample every five seconds; after a pause another order."""
    began = trio.current_time()

    def wall_clock() -> datetime.datetime:
        return NOW + datetime.timedelta(seconds=trio.current_time() - began)

    async with serving(partial(TimeSyncVsp, wall_clock)) as served:
        driver = TimeSyncDriver(platform(served))
        assert driver.now() is None
        async with responding(served.guest_end, Responder(Component.TIME_SYNC, driver.answer, [version])):
            await trio.sleep(12)
            assert (driver.syncs, driver.samples, driver.drift) == (1, 2, 0)
            assert driver.now() == wall_clock()
            served.clock.pause()
            await trio.sleep(60)
            assert driver.now() != wall_clock()
            served.clock.resume()
            served.vsp.sync_soon()
            await trio.sleep(1)
            assert driver.now() == wall_clock()
            assert (driver.syncs, served.vsp.syncs, served.vsp.samples) == (2, 2, 2)


async def test_time_sync_opens_like_the_others(autojump_clock: trio.testing.MockClock) -> None:
    """By the name that the device table has."""
    make = partial(TimeSyncVsp, lambda: NOW)
    async with serving(make) as served, open_time_sync(served.guest_end, platform(served)) as driver:
        await ready(served)
        assert driver.now() == NOW


# --- key-value pairs


async def test_items_both_ways() -> None:
    """Get, set, delete and enumerate, texts and numbers, every pool for itself."""
    async with serving(KvpVsp) as served, open_kvp(served.guest_end, platform(served)) as driver:
        driver.pools[Pool.AUTO] = {"OSName": "Ünix", "Answer": 42, "Large": 1 << 40, "Empty": ""}
        await ready(served)
        vsp = served.vsp
        assert vsp.version == "5.0"
        assert await vsp.items() == driver.pools[Pool.AUTO]
        assert list(await vsp.items()) == list(driver.pools[Pool.AUTO])
        await vsp.set("greeting", "hello")
        await vsp.set("greeting", "hello again")
        await vsp.set("count", 3)
        assert driver.pools[Pool.EXTERNAL] == {"greeting": "hello again", "count": 3}
        assert await vsp.get("greeting", Pool.EXTERNAL) == "hello again"
        assert await vsp.get("greeting") is None
        assert await vsp.delete("greeting")
        assert not await vsp.delete("greeting")
        assert await vsp.items(Pool.GUEST) == {}


async def test_the_longest_key_and_value_fit() -> None:
    """255 and 1,023 units of UTF-16 and their NULs; one more is the caller's mistake, and nothing is sent."""
    async with serving(KvpVsp) as served, open_kvp(served.guest_end, platform(served)):
        await ready(served)
        await served.vsp.set("k" * 255, "v" * 1023)
        assert await served.vsp.items(Pool.EXTERNAL) == {"k" * 255: "v" * 1023}
        for key, value in (("k" * 256, ""), ("k", "v" * 1024), ("", "v"), ("a\0b", "v"), ("k", -1)):
            with pytest.raises(ValueError, match=r"limit|without NUL|a number is"):
                await served.vsp.set(key, value)


async def test_questions_from_several_tasks_take_turns() -> None:
    """Each gets its own answer."""
    async with serving(KvpVsp) as served, open_kvp(served.guest_end, platform(served)) as driver:
        driver.pools[Pool.GUEST] = {f"key {number}": number for number in range(20)}
        await ready(served)
        got: dict[int, object] = {}

        async def get(number: int) -> None:
            got[number] = await served.vsp.get(f"key {number}")

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(get, number)
        assert got == {number: number for number in range(20)}


async def test_a_guest_with_endless_items_is_cut_off() -> None:
    """1,024 are asked for, whatever the guest claims."""
    async with serving(KvpVsp) as served, open_kvp(served.guest_end, platform(served)) as driver:
        driver.pools[Pool.AUTO] = {str(number): "" for number in range(1100)}
        await ready(served)
        assert len(await served.vsp.items()) == 1024
