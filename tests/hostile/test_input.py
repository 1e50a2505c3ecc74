"""A guest that talks nonsense to its keyboard and mouse, or does not listen, through a whole host.

Cases 99 and 100 of the list of malformed inputs; tests/vsp_vsc has every single one without a host.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from hypervisor.wire import Guid
from partitions.host import VmState
from partitions.topology_schema import InputName, Size
from tests.doubles.boundary_guest import BoundaryGuest, Rings, boundary_guest, run
from tests.doubles.root import topology, vm_table
from tests.hostile.invariants import all_is_given_back, check, others, reset_clears, sibling, sibling_goes_on
from vmbus.protocol.messages import OfferChannel
from vsp_vsc.input_device import InputRefused, NoDriver
from vsp_vsc.keyboard.protocol import KEYBOARD_INSTANCE, KEYBOARD_INTERFACE
from vsp_vsc.keyboard.session import MAX_EVENTS
from vsp_vsc.mouse.protocol import MOUSE_INSTANCE, MOUSE_INTERFACE
from vsp_vsc.mouse.session import MAX_REPORTS

MEMORY = 8 << 20
BEAT = 60 * 10_000_000
"""A minute between two signs of life of the sibling."""
KEYBOARD_REQUEST = struct.pack("<II", 1, 0x10000)
MOUSE_REQUEST = struct.pack("<IIIII", 1, 12, 0, 4, 0x20000)
MOUSE_ACK = struct.pack("<IIIIB", 1, 9, 3, 1, 0)
FOR_EVER = 5000


@asynccontextmanager
async def evil() -> AsyncIterator[BoundaryGuest]:
    """A guest with keyboard and mouse and nothing else, beside a sibling."""
    table = vm_table("evil", memory=Size(MEMORY), input=list(InputName), integration=[])
    machine = topology(table, vm_table("sibling"))
    async with boundary_guest(machine, siblings={"sibling": partial(sibling, beat=BEAT)}) as guest:
        before = others(guest.host)
        await guest.boot()
        yield guest
        assert others(guest.host) == before
        check(guest.host)
        await sibling_goes_on(guest, BEAT)
        await reset_clears(guest, MEMORY)
        await all_is_given_back(guest.host)


async def channel(guest: BoundaryGuest, interface: Guid, instance: Guid) -> Rings:
    """The device's, open, among those on offer."""
    offers = [OfferChannel.decode(offer) for offer in await guest.connect()]
    (offer,) = [offer for offer in offers if offer.interface == interface]
    assert offer.instance == instance
    return await guest.open_channel(offer.channel_id)


async def say(rings: Rings, payload: bytes) -> list[bytes]:
    """A packet, and what the host has said since."""
    await rings.send(payload, flags=0)
    return [body for _, body in await rings.received()]


def test_99_keys_for_a_guest_that_does_not_read() -> None:
    """No more than 256 wait for room in its ring, whatever is typed; then they are refused, and counted."""

    async def session() -> None:
        async with evil() as guest:
            rings = await channel(guest, KEYBOARD_INTERFACE, KEYBOARD_INSTANCE)
            assert await say(rings, KEYBOARD_REQUEST) == [struct.pack("<II", 2, 1)]
            keyboard = guest.host["evil"].keyboard
            assert keyboard is not None
            for _ in range(FOR_EVER):
                try:
                    keyboard.tap(0x2A, 0x1E)
                except InputRefused:
                    break
            refused = sum(not keyboard.try_press(0x1E) for _ in range(FOR_EVER))
            assert refused == FOR_EVER
            waiting = await guest.host.inspect("vm/evil/devices/keyboard/waiting")
            assert MAX_EVENTS - 2 <= waiting <= MAX_EVENTS + 2
            assert keyboard.refused >= FOR_EVER
            assert keyboard.held == ()

    run(session)


def test_99_a_guest_that_floods_its_keyboard() -> None:
    """Lamps without end cost nothing but their reading; versions that are none are refused each."""

    async def session() -> None:
        async with evil() as guest:
            rings = await channel(guest, KEYBOARD_INTERFACE, KEYBOARD_INSTANCE)
            for version in (0, 0x20000, 0xFFFFFFFF, 0x10001):
                assert await say(rings, struct.pack("<II", 1, version)) == [struct.pack("<II", 2, 0)]
            await say(rings, KEYBOARD_REQUEST)
            for number in range(100):
                assert await say(rings, struct.pack("<II", 4, number)) == []
            keyboard = guest.host["evil"].keyboard
            assert keyboard is not None
            assert int(keyboard.leds) == 99 & 7
            assert await guest.host.inspect("vm/evil/devices/keyboard/state") == "ready"

    run(session)


KEYBOARD_NONSENSE = {
    "no message at all": b"",
    "lamps before a version": struct.pack("<II", 4, 0),
    "a key of the guest's": struct.pack("<III", 3, 0x1E, 0),
    "the host's own answer": struct.pack("<II", 2, 1),
    "an unknown type": struct.pack("<II", 0xFFFFFFFF, 0),
}
MOUSE_NONSENSE = {
    "no pipe packet": b"",
    "a pipe packet longer than its packet": struct.pack("<II", 1, 0xFFFFFFFF),
    "no header": struct.pack("<III", 1, 4, 0),
    "a size past its packet": struct.pack("<IIIII", 1, 12, 0, 0xFFFFFFFF, 0x20000),
    "a request without a version": struct.pack("<IIII", 1, 8, 0, 0),
    "a report of the guest's": struct.pack("<IIII", 1, 15, 4, 7) + bytes(7),
    "an acknowledgement of nothing": MOUSE_ACK,
    "an unknown type": struct.pack("<IIII", 1, 8, 99, 0),
}


async def stops(guest: BoundaryGuest, interface: Guid, instance: Guid, nonsense: bytes, request: bytes) -> None:
    """It is served no more, and says so; the VM goes on, and a guest that boots again has it again."""
    rings = await channel(guest, interface, instance)
    assert await say(rings, nonsense) == []
    assert await say(rings, request) == []
    name = "keyboard" if interface == KEYBOARD_INTERFACE else "mouse"
    state = await guest.host.inspect(f"vm/evil/devices/{name}/state")
    assert state == "stopped after a mistake of the guest's"
    vm = guest.host["evil"]
    assert vm.state is VmState.RUNNING
    assert vm.keyboard is not None
    with pytest.raises(NoDriver):
        vm.keyboard.press(0x1E)
    await reset_clears(guest, MEMORY)
    await guest.boot()
    rings = await channel(guest, interface, instance)
    assert len(await say(rings, request)) >= 1


@pytest.mark.parametrize("what", KEYBOARD_NONSENSE)
def test_99_what_no_keyboard_is_told(what: str) -> None:
    """The channel is served no more."""

    async def session() -> None:
        async with evil() as guest:
            nonsense = KEYBOARD_NONSENSE[what]
            await stops(guest, KEYBOARD_INTERFACE, KEYBOARD_INSTANCE, nonsense, KEYBOARD_REQUEST)

    run(session)


@pytest.mark.parametrize("what", MOUSE_NONSENSE)
def test_100_what_no_mouse_is_told(what: str) -> None:
    """The channel is served no more."""

    async def session() -> None:
        async with evil() as guest:
            await stops(guest, MOUSE_INTERFACE, MOUSE_INSTANCE, MOUSE_NONSENSE[what], MOUSE_REQUEST)

    run(session)


@pytest.mark.parametrize("move", [lambda n: (n % 32768, 0, 0), lambda n: (0, 0, n & 1)], ids=["moves", "clicks"])
def test_100_reports_for_a_guest_that_does_not_read(move: Callable[[int], tuple[int, int, int]]) -> None:
    """Moves become one, and no more than 256 clicks wait; in the end no button hangs."""

    async def session() -> None:
        async with evil() as guest:
            rings = await channel(guest, MOUSE_INTERFACE, MOUSE_INSTANCE)
            assert len(await say(rings, MOUSE_REQUEST)) == 2
            await say(rings, MOUSE_ACK)
            mouse = guest.host["evil"].mouse
            assert mouse is not None
            for number in range(FOR_EVER):
                mouse.move(*move(number))
            mouse.release_all()
            assert await guest.host.inspect("vm/evil/devices/mouse/waiting") <= MAX_REPORTS
            reports: list[bytes] = []
            while more := [body[16:23] for _, body in await rings.received()]:
                reports += more
                await guest.signal(rings.connection)  # there is room again
            buttons, x, _, _ = struct.unpack("<BHHH", reports[-1])
            assert (buttons, x) == (0, move(FOR_EVER - 1)[0])

    run(session)
