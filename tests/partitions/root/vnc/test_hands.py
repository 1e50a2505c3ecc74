"""What VNC clients do to a guest's keyboard and mouse: keysyms as keys, shift as the character needs it, all let go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from partitions.root.vnc.connection import Key, Pointer
from partitions.root.vnc.hands import Hands
from partitions.root.vnc.keysyms import character_of, key_of, xt_code
from tests.doubles.input import Served, serving
from vsp_vsc.keyboard.protocol import RING_BYTES
from vsp_vsc.keyboard.scan_codes import E0, KEYS, LEFT_SHIFT, PAUSE, RIGHT_SHIFT, TYPED
from vsp_vsc.keyboard.vsc import Keyboard, open_keyboard
from vsp_vsc.keyboard.vsp import KeyboardVsp
from vsp_vsc.mouse.protocol import Buttons
from vsp_vsc.mouse.vsc import Mouse, Report, open_mouse
from vsp_vsc.mouse.vsp import MouseVsp

SHIFT, CAPS, CTRL = 0xFFE1, 0xFFE5, 0xFFE3


@attrs.frozen
class Desk:
    """One client's hands, and what a guest reads of them."""

    hands: Hands
    keys: Served[KeyboardVsp]
    keyboard: Keyboard
    mouse: Mouse
    pointer: Served[MouseVsp]

    def tap(self, *keysyms: int) -> None:
        for keysym in keysyms:
            self.hands.key(Key(keysym, True))
            self.hands.key(Key(keysym, False))

    async def typed(self) -> str:
        """What arrived as text; ends with Enter, which this sends."""
        self.tap(0xFF0D)
        return await self.keyboard.read_line()


@asynccontextmanager
async def desk(*, takes_unicode: bool = False) -> AsyncIterator[Desk]:
    def make(*given: object) -> KeyboardVsp:
        return KeyboardVsp(*given, takes_unicode=lambda: takes_unicode)  # type: ignore[arg-type]

    async with (
        serving(make, ring_bytes=RING_BYTES) as keys,
        serving(MouseVsp) as pointer,
        open_keyboard(keys.guest_end, None) as keyboard,  # type: ignore[arg-type]
        open_mouse(pointer.guest_end, None) as mouse,  # type: ignore[arg-type]
    ):
        await trio.testing.wait_all_tasks_blocked()
        yield Desk(Hands(lambda: keys.vsp, lambda: pointer.vsp), keys, keyboard, mouse, pointer)


async def test_characters_without_their_shift() -> None:
    """Some clients send the character alone: shift is pressed for it, and let go."""
    async with desk() as it:
        text = "".join(sorted(c for c in TYPED if c.isprintable()))
        it.tap(*map(ord, text))
        await trio.testing.wait_all_tasks_blocked()
        assert await it.typed() == text
        assert it.keys.vsp.held == ()


async def test_characters_with_their_shift() -> None:
    """Others send shift as a person holds it; where the character needs none on a US keyboard, it is let go for it."""
    async with desk() as it:
        it.hands.key(Key(SHIFT, True))
        it.tap(ord("A"), ord("/"), ord("!"))  # a German keyboard has / on shift and 7
        it.hands.key(Key(SHIFT, False))
        it.tap(ord("b"))
        assert await it.typed() == "A/!b"
        assert it.keys.vsp.held == ()


async def test_caps_lock() -> None:
    """A client sends letters as caps lock makes them; the guest's own caps lock is on too, and no shift is needed."""
    async with desk() as it:
        it.tap(CAPS, ord("A"), ord("B"), ord("1"))
        assert [(await it.keyboard.receive()).code for _ in range(2)] == [KEYS["caps-lock"]] * 2
        assert await it.typed() == "AB1"
        it.tap(CAPS, ord("c"))
        assert await it.typed() == "c"


async def test_characters_that_no_key_has() -> None:
    """They go to a guest that takes them, and are counted for one that does not."""
    for takes in (True, False):
        async with desk(takes_unicode=takes) as it:
            it.tap(0xFC, 0x0100_20AC, ord("x"))
            assert await it.typed() == ("ü€x" if takes else "x")
            assert it.hands.unknown == (0 if takes else 4)


async def test_keys_by_their_own_code() -> None:
    """What the client calls the key's place counts, whatever its layout has written there."""
    async with desk() as it:
        it.hands.key(Key(ord("z"), True, 0x15))
        it.hands.key(Key(ord("z"), False, 0x15))
        event = await it.keyboard.receive()
        assert (event.code, event.text) == (0x15, "y")
    assert [xt_code(code) for code in (0, 0x1E, 0x9D, 0xC6, 0xE053, 0x80, 0x100, 0xFFFF_FFFF)] == [
        *(None, 0x1E, E0 | 0x1D, PAUSE, E0 | 0x53),
        *(None, None, None),
    ]


async def test_a_client_that_leaves_lets_go() -> None:
    """Of keys and of buttons, where the pointer was; what another holds stays down."""
    async with desk() as it:
        other = Hands(lambda: it.keys.vsp, lambda: it.pointer.vsp)
        other.key(Key(CTRL, True))
        for keysym in (SHIFT, 0xFFE9, 0xFFFF):
            it.hands.key(Key(keysym, True))
        it.hands.point(Pointer(1, 50, 60), 101, 101)
        it.hands.leave()
        it.hands.leave()
        assert it.keys.vsp.held == (KEYS["ctrl"],)
        down = [(await it.keyboard.receive()).pressed for _ in range(7)]
        assert down == [True] * 4 + [False] * 3
        reports = [await it.mouse.receive() for _ in range(2)]
        assert [(report.at(101, 101), report.buttons) for report in reports] == [
            ((50, 60), Buttons.LEFT),
            ((50, 60), Buttons(0)),
        ]


async def test_buttons_and_wheel() -> None:
    """RFB has the middle button second; a click of its fourth or fifth is a step of the wheel, once."""
    async with desk() as it:
        reports = []
        for mask in (0b1, 0b10, 0b100, 0b1000, 0b1001, 0, 0b10000, 0b11000, 0b1000_0000, 0):
            it.hands.point(Pointer(mask, 0, 0), 10, 10)
            reports.append(await it.mouse.receive())
        left, right, middle, none = Buttons.LEFT, Buttons.RIGHT, Buttons.MIDDLE, Buttons(0)
        assert [(one.buttons, one.wheel) for one in reports] == [
            *((left, 0), (middle, 0), (right, 0), (none, 1), (left, 0), (none, 0)),
            *((none, -1), (none, 1), (Buttons.BACK, 0), (none, 0)),
        ]


async def test_a_pointer_outside() -> None:
    """Is at the edge."""
    async with desk() as it:
        it.hands.point(Pointer(0, 65535, 65535), 640, 480)
        assert await it.mouse.receive() == Report(32767, 32767, Buttons(0), 0)


async def test_nobody_is_there() -> None:
    """Input for a VM that is off, or whose guest has no driver, is dropped and counted."""
    hands = Hands(lambda: None, lambda: None)
    hands.key(Key(0x61, True))
    hands.point(Pointer(1, 2, 3), 10, 10)
    hands.leave()
    assert hands.dropped >= 2
    async with serving(KeyboardVsp) as keys, serving(MouseVsp) as pointer:
        hands = Hands(lambda: keys.vsp, lambda: pointer.vsp)
        hands.key(Key(0x61, True))
        hands.point(Pointer(1, 2, 3), 10, 10)
        hands.leave()
        assert hands.dropped == 3
        assert keys.heard() == pointer.heard() == []


async def test_a_guest_that_does_not_read() -> None:
    """Keys that go down are dropped past what may wait, and nothing hangs in the air."""
    async with desk() as it:
        for _ in range(1000):
            it.tap(ord("A"))
            await trio.testing.wait_all_tasks_blocked()
        assert it.hands.dropped > 0
        assert it.keys.vsp.held == ()
        held: set[int] = set()
        with trio.move_on_after(0):
            while True:
                event = await it.keyboard.receive()
                (held.add if event.pressed else held.discard)(event.code)
        assert held == set()


@given(st.integers(0, 0xFFFF_FFFF))
def test_any_keysym(keysym: int) -> None:
    """Is a key, a character or nothing."""
    code, character = key_of(keysym), character_of(keysym)
    assert code is None or code in KEYS.values()
    assert character is None or len(character) == 1
    assert code is None or character is None


def test_named_keysyms() -> None:
    """Both shifts, F12, and the keypad without num lock."""
    expected = {SHIFT: LEFT_SHIFT, 0xFFE2: RIGHT_SHIFT, 0xFFC9: 0x58, 0xFF9F: 0x53}
    assert {keysym: key_of(keysym) for keysym in expected} == expected
