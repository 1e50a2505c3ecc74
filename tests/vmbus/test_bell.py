"""The bell: level-like, one waiter, nothing lost. Both sides."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from vmbus.bell import Bell


async def test_a_ring_is_remembered_once() -> None:
    """A ring before the wait ends it at once; two rings are one."""
    bell = Bell()
    bell.ring()
    bell.ring()
    with trio.testing.assert_checkpoints():
        await bell.wait()
    with trio.move_on_after(0) as scope:
        await bell.wait()
    assert scope.cancelled_caught


async def test_a_ring_wakes_the_waiter() -> None:
    """A ring while somebody waits wakes that task and leaves nothing behind."""
    bell = Bell()
    woken = 0

    async def sleeper() -> None:
        nonlocal woken
        await bell.wait()
        woken += 1
        await bell.wait()
        woken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await trio.testing.wait_all_tasks_blocked()
        assert bell.awaited
        bell.ring()
        assert not bell.awaited
        await trio.testing.wait_all_tasks_blocked()
        assert woken == 1
        bell.ring()
    assert woken == 2


async def test_clear_forgets() -> None:
    """After `clear` an old ring does not end a wait."""
    bell = Bell()
    bell.ring()
    bell.clear()
    with trio.move_on_after(0) as scope:
        await bell.wait()
    assert scope.cancelled_caught


async def test_cancelled_wait_keeps_a_ring() -> None:
    """A wait that is cancelled takes no ring with it, and leaves the bell free for the next."""
    bell = Bell()
    bell.ring()
    with trio.CancelScope() as scope:
        scope.cancel()
        await bell.wait()
    with trio.fail_after(1):
        await bell.wait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not bell.awaited
    bell.ring()
    with trio.fail_after(1):
        await bell.wait()


async def test_one_waiter() -> None:
    """A second task that waits is told that this is a bug."""
    bell = Bell()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bell.wait)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await bell.wait()
        bell.ring()
