"""The real VSPs of keyboard and mouse against their real VSCs, over a real channel in plain memory."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.inspect import Branch
from tests.doubles.input import serving
from vmbus.ring import BATCH_PACKETS
from vsp_vsc.input_device import MAX_UNSENT, InputRefused, NoDriver
from vsp_vsc.keyboard.protocol import KeyboardRequest, KeyboardType, Leds
from vsp_vsc.keyboard.protocol import encode_message as packet_of
from vsp_vsc.keyboard.scan_codes import CAPS_LOCK, E0, KEYS, LEFT_SHIFT, PAUSE, TYPED, chord_codes
from vsp_vsc.keyboard.session import MAX_EVENTS
from vsp_vsc.keyboard.vsc import KeyEvent, open_keyboard
from vsp_vsc.keyboard.vsp import CannotType, KeyboardVsp
from vsp_vsc.mouse.protocol import MAX_POSITION, Buttons
from vsp_vsc.mouse.session import MAX_REPORTS
from vsp_vsc.mouse.vsc import Report, open_mouse
from vsp_vsc.mouse.vsp import MouseVsp, scaled

settled = trio.testing.wait_all_tasks_blocked


def leaf(vsp: KeyboardVsp | MouseVsp, name: str) -> object:
    value = vsp.inspect().children[name]
    assert not isinstance(value, Branch)
    return value


# --- keyboard


async def test_what_is_typed_is_read() -> None:
    """Every character of a US keyboard arrives, through shift and keys alone; Enter ends a line."""
    text = "".join(sorted(c for c in TYPED if c.isprintable()))
    async with serving(KeyboardVsp) as served, open_keyboard(served.guest_end, served.platform) as keyboard:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.vsp.type_text, text + "\n")
            assert await keyboard.read_line() == text
        assert served.vsp.held == ()


async def test_a_chord_goes_down_in_order_and_up_in_the_opposite_one() -> None:
    """`ctrl-alt-del` is three keys down at a time; prefixes come along."""
    async with serving(KeyboardVsp) as served, open_keyboard(served.guest_end, served.platform) as keyboard:
        served.vsp.chord("ctrl-alt-del")
        ctrl, alt, delete = 0x1D, 0x38, E0 | 0x53
        expected = [(ctrl, True), (alt, True), (delete, True), (delete, False), (alt, False), (ctrl, False)]
        assert [await keyboard.receive() for _ in expected] == [KeyEvent(*one) for one in expected]


async def test_every_key_arrives_with_its_prefix() -> None:
    """Each name of a key is one code, down and up; pause has two."""
    async with serving(KeyboardVsp) as served, open_keyboard(served.guest_end, served.platform) as keyboard:
        for name, code in KEYS.items():
            served.vsp.tap(*chord_codes(name))
            codes = [code, 0x45] if code == PAUSE else [code]
            for pressed in (True, False):
                for one in codes:
                    event = await keyboard.receive()
                    assert (event.code, event.pressed) == (one, pressed), name


async def test_caps_lock_is_undone_by_shift() -> None:
    """A guest shows its lamps; text comes out as it was given, and a person's keys as the keyboard has them."""
    async with serving(KeyboardVsp) as served, open_keyboard(served.guest_end, served.platform) as keyboard:
        served.vsp.tap(CAPS_LOCK)
        await keyboard.receive()
        await keyboard.receive()
        await settled()
        assert served.vsp.leds == keyboard.leds == Leds.CAPS_LOCK
        assert leaf(served.vsp, "leds") == "caps lock"
        assert any(event.event == "keyboard_leds" for event in served.events)
        await served.vsp.type_text("aB1!\n")
        assert await keyboard.read_line() == "aB1!"
        served.vsp.tap(chord_codes("a")[0])
        assert await keyboard.read_text() == "A"


async def test_lines_are_edited_and_shown() -> None:
    """Backspace takes the last character away, here and on the screen; at the beginning it does nothing."""
    shown: list[str] = []
    async with serving(KeyboardVsp) as served, open_keyboard(served.guest_end, served.platform) as keyboard:
        await served.vsp.type_text("\bab\bc\n")
        assert await keyboard.read_line(echo=shown.append) == "ac"
    assert "".join(shown) == "ab\b \bc\n"


async def test_characters_that_no_key_has() -> None:
    """They go as UTF-16 to a guest that takes them; for others the first is named, and nothing is typed."""
    async with (
        serving(lambda *given: KeyboardVsp(*given, takes_unicode=lambda: True)) as served,
        open_keyboard(served.guest_end, served.platform) as keyboard,
    ):
        await served.vsp.type_text("grüße 😀 €\n")
        assert await keyboard.read_line() == "grüße 😀 €"
    async with serving(KeyboardVsp) as served, open_keyboard(served.guest_end, served.platform):
        with pytest.raises(CannotType, match=r"'ü' \(U\+00FC, character 3\).* Linux"):
            await served.vsp.type_text("grüße")
        assert served.heard() == []


async def test_without_a_driver_nothing_is_typed() -> None:
    """Before the guest has agreed, and after it has gone, every call says so."""
    async with serving(KeyboardVsp) as served:
        await settled()
        with pytest.raises(NoDriver, match="negotiating"):
            served.vsp.press(0x1E)
        async with open_keyboard(served.guest_end, served.platform):
            served.vsp.press(0x1E)
        served.guest_end.close()
        served.host_end.close(by_peer=True)
        await served.ended.wait()
        assert served.vsp.held == ()
        with pytest.raises(NoDriver, match="no driver"):
            await served.vsp.type_text("a")
        served.vsp.release_all()


async def test_a_guest_that_does_not_read_has_no_more_than_so_many_keys_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Keys that go down are refused then, and counted; those that are down come up; typing gives up with its place."""
    async with serving(KeyboardVsp) as served, open_keyboard(served.guest_end, served.platform) as keyboard:
        served.vsp.press(LEFT_SHIFT)
        with pytest.raises(InputRefused, match=r"typed \d+ of 10000 characters: the guest does not read its keys"):
            await served.vsp.type_text("a" * 10000)
        while served.vsp.try_press(0x1E):
            await settled()
        assert served.vsp.refused == leaf(served.vsp, "refused") == 1
        served.vsp.release_all()
        assert MAX_EVENTS <= int(str(leaf(served.vsp, "waiting"))) <= MAX_EVENTS + 2
        held: set[int] = set()
        with trio.move_on_after(1):
            while True:
                event = await keyboard.receive()
                (held.add if event.pressed else held.discard)(event.code)
        assert held == set()
        await served.vsp.type_text("b")


async def test_typing_goes_as_fast_as_the_guest_reads(autojump_clock: trio.testing.MockClock) -> None:
    """A long text for a slow guest arrives whole."""
    text = "0123456789" * 100
    async with (
        serving(KeyboardVsp) as served,
        open_keyboard(served.guest_end, served.platform) as keyboard,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(served.vsp.type_text, text)
        for expected in text:
            assert await keyboard.read_text() == expected
            await trio.sleep(0.1)


async def test_a_guest_that_asks_and_does_not_listen_is_not_heard_for_ever() -> None:
    """Answers that have no room wait, up to a bound; then its own ring fills."""
    async with serving(KeyboardVsp) as served:
        request = packet_of(KeyboardType.PROTOCOL_REQUEST, KeyboardRequest(7))
        said = 0
        while served.guest_end.try_send_batch([request]):
            said += 1
            await settled()
        assert MAX_UNSENT <= int(str(leaf(served.vsp, "waiting"))) <= MAX_UNSENT + BATCH_PACKETS
        heard = 0
        while more := len(served.heard()):
            heard += more
            await settled()
        assert heard == said


# --- mouse


async def test_reports_arrive() -> None:
    """Position, buttons and wheel, as they were given; what kind of device it is came before."""
    async with serving(MouseVsp) as served, open_mouse(served.guest_end, served.platform) as mouse:
        await settled()
        assert (mouse.info.vendor, mouse.info.product, len(mouse.descriptor)) == (0x045E, 0x0621, 67)
        served.vsp.move(0, MAX_POSITION, Buttons.LEFT | Buttons.FORWARD, -3)
        assert await mouse.receive() == Report(0, MAX_POSITION, Buttons.LEFT | Buttons.FORWARD, -3)
        served.vsp.click(5, 6, Buttons.RIGHT)
        await settled()
        buttons = [(await mouse.receive()).buttons for _ in range(3)]
        assert buttons == [Buttons(0), Buttons.RIGHT, Buttons(0)]


@given(st.integers(1, 16384), st.data())
def test_a_pixel_comes_back_as_itself(pixels: int, data: st.DataObject) -> None:
    """Scaled to a report and back, on any screen."""
    pixel = data.draw(st.integers(0, pixels - 1))
    assert Report(scaled(pixel, pixels), 0, Buttons(0), 0).at(pixels, 1)[0] == pixel


async def test_moves_that_a_guest_does_not_read_are_merged() -> None:
    """Where it is counts; clicks wait, up to a bound, past which buttons are right in the end, and losses counted."""
    async with serving(MouseVsp) as served, open_mouse(served.guest_end, served.platform) as mouse:
        await settled()
        vsp = served.vsp
        for place in range(5000):
            vsp.move(place, 0)
            if place % 100 == 0:
                await settled()
        assert int(str(leaf(vsp, "waiting"))) <= 2
        while (last := await mouse.receive()).x != 4999:
            pass
        assert last.wheel == 0
        turned = 0
        for place in range(3 * MAX_REPORTS):
            vsp.move(place, 1, place & 1, 1)
            await settled()
        assert int(str(leaf(vsp, "waiting"))) == MAX_REPORTS
        assert int(str(leaf(vsp, "lost"))) > 0
        vsp.release_all()
        report = Report(0, 0, Buttons(0), 0)
        while (report.x, report.buttons) != (3 * MAX_REPORTS - 1, Buttons(0)):
            report = await mouse.receive()
            turned += report.wheel
        assert turned == 3 * MAX_REPORTS
