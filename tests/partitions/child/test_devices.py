"""Which driver gets which device, and how it lets go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from partitions.child import devices
from partitions.child.devices import DeviceBusy, NoSuchDevice
from partitions.child.guest import Guest, GuestMain
from partitions.child.kernel import boot
from tests.doubles.machine import FakeMachine
from tests.doubles.scripted_bus import UNKNOWN, ScriptedBus
from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vmbus.protocol import messages as m
from vsp_vsc.storage.requests import StorageError

Driver = Callable[[Channel, GuestPlatform], Any]


class FakeKind:
    """A `DeviceKind` whose driver is a test's."""

    name = "fake"
    wants_bus = False

    def __init__(self, driver: Driver) -> None:
        self.load_vsc = lambda: driver
        self.ring_bytes = 16384


async def run(monkeypatch: pytest.MonkeyPatch, driver: Driver, main: GuestMain, bus: ScriptedBus) -> str:
    """Boot to the end of `main`; the console."""
    monkeypatch.setitem(devices.BY_INTERFACE, UNKNOWN, FakeKind(driver))  # type: ignore[misc]
    with trio.fail_after(100):
        await boot([bus.machine], main)
    assert bus.machine.exit_code == 0, bus.machine.text
    return bus.machine.text


def one_device() -> ScriptedBus:
    return ScriptedBus(FakeMachine(), offers=[UNKNOWN])


async def test_the_host_lets_go_before_the_driver_does(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """Pages that packets named may be reused only when the host cannot write to them any more."""
    bus = one_device()
    at_the_end: list[str] = []

    @asynccontextmanager
    async def driver(channel: Channel, platform: GuestPlatform) -> AsyncIterator[None]:
        yield
        at_the_end.extend(type(message).__name__ for message in bus.heard[-2:])
        assert channel.closed

    async def main(guest: Guest) -> None:
        await guest.settled()

    await run(monkeypatch, driver, main, bus)
    assert at_the_end == ["CloseChannel", "GpadlTeardown"]
    assert isinstance(bus.heard[-1], m.Unload), "and the bus is left last"


async def test_a_driver_that_gives_up_says_so_and_leaves_the_device(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A device that does not work is a line on the console and an error to who asks for it; the guest goes on."""

    @asynccontextmanager
    async def driver(channel: Channel, platform: GuestPlatform) -> AsyncIterator[None]:
        raise StorageError("the controller is on fire")
        yield

    async def main(guest: Guest) -> None:
        with pytest.raises(NoSuchDevice, match=r"channel 1 \(failed: the controller is on fire\)"):
            await guest.disk(0)
        await guest.open_channel(UNKNOWN)  # a program may try what the driver could not

    text = await run(monkeypatch, driver, main, one_device())
    assert text == "driver of channel 1: the controller is on fire\n"


async def test_a_driver_that_waits_for_ever_can_be_taken_off(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A silent device holds up neither the boot, nor `unbind`, nor the end of the guest."""

    @asynccontextmanager
    async def driver(channel: Channel, platform: GuestPlatform) -> AsyncIterator[None]:
        await trio.sleep_forever()
        yield

    async def main(guest: Guest) -> None:
        first, _ = guest.bus.offers
        await guest.sleep(1)
        with pytest.raises(DeviceBusy, match="probing"):
            await guest.open_channel(first)
        await guest.unbind(first)
        await guest.open_channel(first)

    await run(monkeypatch, driver, main, ScriptedBus(FakeMachine(), offers=[UNKNOWN] * 2))


async def test_a_bug_in_a_driver_is_a_crash_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """What no driver may raise is our mistake; it is not swallowed."""

    @asynccontextmanager
    async def driver(channel: Channel, platform: GuestPlatform) -> AsyncIterator[None]:
        yield
        raise TypeError("a bug")

    async def main(guest: Guest) -> None:
        await guest.settled()

    monkeypatch.setitem(devices.BY_INTERFACE, UNKNOWN, FakeKind(driver))  # type: ignore[misc]
    bus = one_device()
    with trio.move_on_after(100):
        await boot([bus.machine], main)
    assert bus.machine.exit_code == 1
    assert "TypeError: a bug" in bus.machine.text
