"""Freezing and file copy: each real VSP against its real VSC, over a channel in plain memory, on the virtual clock."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from partitions.root.integration import frozen
from tests.doubles.integration import Served, serving
from vsp_vsc.integration.component import Contact, NoAnswer, Unavailable
from vsp_vsc.integration.file_copy.protocol import FRAGMENT, CopyFlags, encode_start
from vsp_vsc.integration.file_copy.vsc import FileCopyDriver, open_file_copy
from vsp_vsc.integration.file_copy.vsp import CopyBroken, CopyRefused, CopyState, FileCopyVsp
from vsp_vsc.integration.protocol import RESPONSE, VERSIONS, Component, Status, Version, encode_message
from vsp_vsc.integration.responder import Responder, responding
from vsp_vsc.integration.vss.vsc import VssDriver, open_vss
from vsp_vsc.integration.vss.vsp import FreezeState, ThawedEarly, VssRefused, VssVsp


def platform(served: Served) -> Any:
    return served


async def ready(served: Served) -> None:
    await trio.testing.wait_all_tasks_blocked()
    assert served.vsp.ready


# --- freezing


async def test_frozen_as_long_as_the_block(autojump_clock: trio.testing.MockClock) -> None:
    """The program writes out what it has before the block begins, and hears of its end."""
    heard: list[str] = []

    async def freeze() -> None:
        await trio.sleep(3)
        heard.append("written out")

    async def thaw() -> None:
        heard.append("thawed")

    async with serving(VssVsp) as served, open_vss(served.guest_end, platform(served)) as driver:
        driver.on_freeze, driver.on_thaw = freeze, thaw
        await ready(served)
        assert served.vsp.version == "7.0"
        async with frozen(served.vsp, 60):
            assert (heard, driver.frozen, served.vsp.state) == (["written out"], True, FreezeState.FROZEN)
            with pytest.raises(Unavailable, match="already frozen"):
                await served.vsp.freeze()
            await trio.sleep(30)
        assert (heard[1:], driver.frozen, served.vsp.state) == (["thawed"], False, FreezeState.THAWED)
        with pytest.raises(Unavailable, match="not frozen"):
            await served.vsp.thaw()


async def test_nobody_stands_still_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """After its time the host thaws by itself, and whoever froze hears at the end that the copy may not be whole."""
    async with serving(VssVsp) as served, open_vss(served.guest_end, platform(served)) as driver:
        await ready(served)
        with pytest.raises(ThawedEarly, match="too long"):  # noqa: PT012  # at the end of the block
            async with frozen(served.vsp, 20):
                await trio.sleep(19)
                assert driver.frozen
                await trio.sleep(2)
                assert not driver.frozen
        assert (served.vsp.state, served.vsp.late_thaws) == (FreezeState.THAWED, 1)
        async with frozen(served.vsp, 20):
            assert driver.freezes == 2


async def test_a_paused_guest_does_not_use_up_its_time(autojump_clock: trio.testing.MockClock) -> None:
    """The limit is of the guest's own time: nobody in it waits while it is paused."""
    async with serving(VssVsp) as served, open_vss(served.guest_end, platform(served)) as driver:
        await ready(served)
        async with frozen(served.vsp, 20):
            served.clock.pause()
            await trio.sleep(100)
            assert driver.frozen
            served.clock.resume()
        assert not driver.frozen


async def test_whoever_is_cancelled_thaws_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    """In the block and in the middle of freezing: the thaw goes out without the one who froze."""

    async def slow() -> None:
        await trio.sleep(10)

    async with serving(VssVsp) as served, open_vss(served.guest_end, platform(served)) as driver:
        await ready(served)
        with trio.move_on_after(1):
            async with frozen(served.vsp, 60):
                await trio.sleep_forever()
        await trio.testing.wait_all_tasks_blocked()
        assert (driver.frozen, served.vsp.state) == (False, FreezeState.THAWED)
        driver.on_freeze = slow
        with trio.move_on_after(1):
            await served.vsp.freeze()
        assert served.vsp.state is FreezeState.THAWING
        await trio.sleep(20)
        assert (driver.freezes, driver.frozen, served.vsp.state) == (2, False, FreezeState.THAWED)
        assert served.vsp.stale == 1


async def test_a_guest_that_refuses_is_thawed(autojump_clock: trio.testing.MockClock) -> None:
    """What it froze before it gave up must not stay so."""

    async def refuse() -> bool:
        return False

    async with serving(VssVsp) as served, open_vss(served.guest_end, platform(served)) as driver:
        driver.on_freeze = refuse
        await ready(served)
        with pytest.raises(VssRefused, match="freeze: fail"):
            await served.vsp.freeze()
        await trio.testing.wait_all_tasks_blocked()
        assert served.vsp.state is FreezeState.THAWED


async def test_a_guest_that_falls_silent_while_frozen(autojump_clock: trio.testing.MockClock) -> None:
    """The thaw is asked again and again; the first to wait hears that it has not been answered."""
    async with serving(VssVsp) as served:
        async with open_vss(served.guest_end, platform(served)):
            await ready(served)
            await served.vsp.freeze()
        with pytest.raises(NoAnswer, match="no answer within 10 s"):
            await served.vsp.thaw()
        assert served.vsp.contact is Contact.MUTE
        assert served.vsp.state is FreezeState.THAWING
        for _ in range(3):
            message = await served.hear()
            assert message.body[0] == 6
        header = message.header
        await served.say(
            encode_message(Component.VSS, message.body, transaction_id=header.transaction_id, flags=RESPONSE)
        )
        await trio.testing.wait_all_tasks_blocked()
        assert served.vsp.state is FreezeState.THAWED


async def test_a_guest_that_goes_while_frozen(autojump_clock: trio.testing.MockClock) -> None:
    """A reset or a rescind in the middle: nothing is frozen any more, and the end of the block says so."""
    async with serving(VssVsp) as served, open_vss(served.guest_end, platform(served)):
        await ready(served)
        with pytest.raises(ThawedEarly, match="gone"):  # noqa: PT012  # at the end of the block
            async with frozen(served.vsp, 60):
                served.scope.cancel()
                await served.ended.wait()
        assert served.vsp.state is FreezeState.THAWED


async def test_a_guest_that_goes_while_it_freezes(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever waits hears it at once."""

    async def for_ever() -> None:
        await trio.sleep_forever()

    async with serving(VssVsp) as served, open_vss(served.guest_end, platform(served)) as driver:
        driver.on_freeze = for_ever
        await ready(served)
        async with trio.open_nursery() as nursery:

            async def freeze() -> None:
                with pytest.raises(NoAnswer, match="closed"):
                    await served.vsp.freeze()

            nursery.start_soon(freeze)
            await trio.sleep(1)
            served.scope.cancel()
        assert served.vsp.state is FreezeState.THAWED


@pytest.mark.parametrize("version", VERSIONS[Component.VSS])
async def test_every_snapshot_version(autojump_clock: trio.testing.MockClock, version: Version) -> None:
    """Alone; 4.0 cannot freeze and says so before anything is sent."""
    driver = VssDriver()
    responder = Responder(Component.VSS, driver.answer, [version])
    async with serving(VssVsp) as served, responding(served.guest_end, responder):
        await ready(served)
        if version < (5, 0):
            with pytest.raises(Unavailable, match=r"needs version 5\.0, the guest speaks 4\.0"):
                await served.vsp.freeze()
        else:
            async with frozen(served.vsp, 60):
                assert driver.frozen


async def test_a_restored_guest_is_thawed(autojump_clock: trio.testing.MockClock) -> None:
    """Saved while frozen, it goes on in its next life: the saved session knows."""
    async with serving(VssVsp) as served, open_vss(served.guest_end, platform(served)):
        await ready(served)
        assert not served.vsp.load(served.vsp.save(1)).frozen
        async with frozen(served.vsp, 60):
            assert served.vsp.load(served.vsp.save(1)).frozen
        assert not served.vsp.load(served.vsp.save(1)).frozen


# --- file copy


async def content(data: bytes, served: Served, **options: Any) -> None:
    async def read(offset: int, count: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return data[offset : offset + count]

    path = options.pop("path", "/etc/motd")
    folder, _, name = path.rpartition("/")
    await served.vsp.copy(read, options.pop("size", len(data)), folder or "/", name, **options)


@pytest.mark.parametrize("size", [0, 1, FRAGMENT - 1, FRAGMENT, FRAGMENT + 1, 10 * FRAGMENT + 7])
async def test_a_file_arrives_as_it_was(size: int) -> None:
    """Of any size, in pieces; the program hears its path when it is whole."""
    data = bytes(number * 7 & 0xFF for number in range(size))
    async with serving(FileCopyVsp) as served, open_file_copy(served.guest_end, platform(served)) as driver:
        await ready(served)
        assert served.vsp.version == "1.1"
        await content(data, served, path="/größe.bin")
        assert await driver.receive() == "/größe.bin"
        assert driver.files == {"/größe.bin": data}
        assert (served.vsp.copies, served.vsp.done, served.vsp.state) == (1, size, CopyState.IDLE)


async def test_what_a_guest_may_say_no_to() -> None:
    """A file that is there, a folder that is not, no room, a program that does not want it; flags change the first."""
    async with serving(FileCopyVsp) as served, open_file_copy(served.guest_end, platform(served)) as driver:
        await ready(served)
        with pytest.raises(CopyRefused, match="no such folder") as missing:
            await content(b"one", served)
        assert missing.value.status == Status.PATH_NOT_FOUND
        await content(b"one", served, flags=CopyFlags.CREATE_PATH)
        with pytest.raises(CopyRefused, match="overwrite it"):
            await content(b"two", served)
        await content(b"two", served, flags=CopyFlags.OVERWRITE)
        assert (driver.files, driver.folders) == ({"/etc/motd": b"two"}, {"/", "/etc"})
        driver.room = 2 * FRAGMENT
        with pytest.raises(CopyRefused, match="disk is full"):
            await content(bytes(3 * FRAGMENT), served, path="/large")
        await trio.testing.wait_all_tasks_blocked()
        assert (driver.cancelled, served.vsp.state) == (1, CopyState.IDLE)
        driver.on_start = lambda path, size: False
        with pytest.raises(CopyRefused, match="refused"):
            await content(b"three", served, path="/more")
        assert list(driver.files) == ["/etc/motd"]
        assert (served.vsp.copies, served.vsp.failures) == (2, 4)


async def test_a_copy_that_ends_in_the_middle_leaves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """Cancelled, or of a file that shrank: the guest is told, and the next copy has its turn after that."""

    async def slow(offset: int, count: int) -> bytes:
        await trio.sleep(1)
        return bytes(count)

    async with serving(FileCopyVsp) as served, open_file_copy(served.guest_end, platform(served)) as driver:
        await ready(served)
        with trio.move_on_after(2.5):
            await served.vsp.copy(slow, 100 * FRAGMENT, "/", "never")
        await content(b"next", served, path="/next")
        with pytest.raises(CopyBroken, match="3 bytes now; it had 9"):
            await content(b"abc", served, path="/shrunk", size=9)
        await trio.testing.wait_all_tasks_blocked()
        assert (driver.files, driver.cancelled) == ({"/next": b"next"}, 2)


async def test_a_mute_guest_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """After the time that Linux gives its daemon, and a little; then the cancellation is given up, too."""
    async with serving(FileCopyVsp) as served:
        async with open_file_copy(served.guest_end, platform(served)):
            await ready(served)
        with pytest.raises(NoAnswer, match="no answer within 35 s"):
            await content(b"text", served)
        assert served.vsp.contact is Contact.MUTE
        assert served.vsp.state is CopyState.CANCELLING
        await trio.sleep(6)
        assert served.vsp.state is CopyState.IDLE


async def test_copies_take_turns() -> None:
    """Pieces of two files never mix."""
    async with serving(FileCopyVsp) as served, open_file_copy(served.guest_end, platform(served)) as driver:
        await ready(served)
        async with trio.open_nursery() as nursery:
            for number in range(4):

                async def one(number: int = number) -> None:
                    await content(bytes([number]) * 20_000, served, path=f"/{number}")

                nursery.start_soon(one)
        assert driver.files == {f"/{number}": bytes([number]) * 20_000 for number in range(4)}


async def test_a_guest_that_goes_in_the_middle_of_a_copy() -> None:
    """The copy ends with that; a guest that comes back is copied to as any other."""
    async with serving(FileCopyVsp) as served, open_file_copy(served.guest_end, platform(served)):
        await ready(served)

        async def read(offset: int, count: int) -> bytes:
            served.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            return bytes(count)

        with pytest.raises(NoAnswer):
            await served.vsp.copy(read, 10, "/", "file")
        assert served.vsp.state is CopyState.IDLE


@pytest.mark.parametrize("version", VERSIONS[Component.FILE_COPY])
async def test_every_copy_version(version: Version) -> None:
    """Alone."""
    driver = FileCopyDriver()
    async with (
        serving(FileCopyVsp) as served,
        responding(served.guest_end, Responder(Component.FILE_COPY, driver.answer, [version])),
    ):
        await ready(served)
        await content(b"text", served, path="/x")
        assert driver.files == {"/x": b"text"}


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/", ""), ("/", "a/b"), ("/", "a\\b"), ("/", "a\0b"), ("/" + "x" * 300, "a"), ("/", "ü" * 129)],
)
def test_names_that_cannot_be(folder: str, name: str) -> None:
    """Longer ones Linux would cut, and write another file."""
    with pytest.raises(ValueError, match=r"slash|NUL|limit"):
        encode_start(folder, name, 1, CopyFlags.NONE)
