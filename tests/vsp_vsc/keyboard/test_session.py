"""The host's end of a keyboard: Linux's own bytes, what a guest may say, what waits, and what is saved."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hypervisor.wire import BadValue, WireError
from tests.doubles.campaign import examples
from tests.doubles.input import serving
from vmbus.ring import Packet, PacketType
from vsp_vsc.keyboard.protocol import KeyboardType, KeyFlags, Keystroke, Leds, decode_message
from vsp_vsc.keyboard.scan_codes import CAPS_LOCK, E0, E1, KEYS, PAUSE
from vsp_vsc.keyboard.session import MAX_EVENTS, KeyboardSession
from vsp_vsc.keyboard.vsp import KeyboardVsp

CODES = st.sampled_from([0x1E, 0x2A, 0x1D, CAPS_LOCK, E0 | 0x53, PAUSE, E1 | 0x10])


def packet(payload: bytes, kind: int = PacketType.INBAND) -> Packet:
    return Packet(kind, 0, 0, 0, payload)


def ready() -> KeyboardSession:
    session = KeyboardSession()
    session.take(packet(bytes.fromhex("0100000000000100")))
    session.outbox.clear()
    return session


def strokes(session: KeyboardSession) -> list[tuple[int, bool]]:
    """What waits, as codes with their prefix; down or up."""
    return [stroke(one) for one in session.outbox]


def stroke(one: Packet) -> tuple[int, bool]:
    kind, body = decode_message(one)
    assert kind == KeyboardType.EVENT
    event = Keystroke.decode(body)
    prefix = E0 if event.flags & KeyFlags.E0 else E1 if event.flags & KeyFlags.E1 else 0
    return prefix | event.make_code, not event.flags & KeyFlags.BREAK


def test_what_linux_says_and_hears() -> None:
    """Linux 6.12's own request, in the bytes that its driver sent, and the answer in those that it took."""
    session = KeyboardSession()
    session.take(packet(bytes.fromhex("0100000000000100")))
    assert [one.body.hex() for one in session.outbox] == ["0200000001000000"]
    assert session.outbox[0].flags == 0
    assert session.ready
    session.outbox.clear()
    session.press(E0 | 0x53)
    session.release(E0 | 0x53)
    assert [one.body.hex() for one in session.outbox] == ["030000005300000004000000", "030000005300000006000000"]


@given(st.integers(0, 0xFFFFFFFF))
def test_one_version_is_taken(version: int) -> None:
    """Every other is refused, and the guest may ask again."""
    session = KeyboardSession()
    session.take(packet(b"\1\0\0\0" + version.to_bytes(4, "little")))
    assert session.ready is (version == 0x10000)
    assert session.outbox[0].body == b"\2\0\0\0" + bytes((version == 0x10000, 0, 0, 0))


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "010000",
        "04000000",
        "0100000000000100",
        "0200000001000000",
        "030000001e00000000000000",
        "00000000",
        "63000000",
    ],
)
def test_what_is_not_due(payload: str) -> None:
    """Anything but lamps, once a version is agreed on; too short for what it says."""
    with pytest.raises(WireError):
        ready().take(packet(bytes.fromhex(payload)))
    if payload != "0100000000000100":
        with pytest.raises(WireError):
            KeyboardSession().take(packet(bytes.fromhex(payload)))


@pytest.mark.parametrize("kind", [PacketType.COMPLETION, PacketType.GPA_DIRECT, PacketType.TRANSFER_PAGES])
def test_other_kinds_of_packets(kind: PacketType) -> None:
    """Keyboards speak in-band."""
    with pytest.raises(BadValue, match="in-band"):
        KeyboardSession().take(packet(bytes.fromhex("0100000000000100"), kind))


@given(st.binary(max_size=40), st.booleans())
def test_any_bytes(data: bytes, agreed: bool) -> None:
    """A session takes them, or says what is wrong."""
    session = ready() if agreed else KeyboardSession()
    try:
        session.take(packet(data))
    except WireError:
        pass
    assert len(session.outbox) <= 1


@pytest.mark.parametrize("code", [0, 0x80, 0xFF, 0x100, E0, 0xE080, 0xE21E, -1])
def test_what_is_no_scan_code(code: int) -> None:
    """The caller's mistake."""
    with pytest.raises(ValueError, match="no scan code"):
        ready().press(code)


def test_lamps_and_caps_lock() -> None:
    """A guest's lamps count; until it shows some, caps lock is where the key has put it."""
    session = ready()
    session.press(CAPS_LOCK)
    session.press(CAPS_LOCK)  # it repeats
    session.release(CAPS_LOCK)
    assert session.caps_lock
    session.take(packet(b"\4\0\0\0" + b"\xff\xff\xff\xff"))
    assert session.leds == Leds(7)
    session.take(packet(b"\4\0\0\0" + b"\1\0\0\0"))
    assert (session.leds, session.caps_lock) == (Leds.SCROLL_LOCK, False)


class Typist(RuleBasedStateMachine):
    """Keys at random, a guest that reads now and then: what it has seen go down comes up, and nothing is out of order.

    Some keys are refused; those that were not are exactly what the guest sees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.session = ready()
        self.expected: list[tuple[int, bool]] = []
        self.seen: list[tuple[int, bool]] = []
        self.refused = 0

    @rule(code=CODES, times=st.integers(1, 150))
    def press(self, code: int, times: int) -> None:
        for _ in range(times):
            if self.session.press(code):
                self.expected += [(code, True), (0x45, True)] if code == PAUSE else [(code, True)]
            else:
                self.refused += 1

    @rule(code=CODES)
    def release(self, code: int) -> None:
        held = code in self.session.held
        assert self.session.release(code) is held
        if held:
            self.expected += [(code, False), (0x45, False)] if code == PAUSE else [(code, False)]

    @rule()
    def release_all(self) -> None:
        for code in reversed(self.session.held):
            self.release(code)

    @rule(count=st.integers(1, 200))
    def read(self, count: int) -> None:
        self.seen += [stroke(one) for one in self.session.outbox[:count]]
        del self.session.outbox[:count]

    @precondition(lambda self: len(self.session.outbox) < MAX_EVENTS)
    @rule()
    def save(self) -> None:
        """A guest that goes on from a saved state sees every key come up that it saw go down."""
        other = KeyboardSession.load(self.session.save())
        down = [code for code, pressed in self.seen if pressed]
        up = [code for code, pressed in self.seen if not pressed]
        held = {code for code in down if down.count(code) and self._last(code)} - {0x45}
        assert held <= {code for code, _ in strokes(other)}
        assert not any(pressed for _, pressed in strokes(other))
        assert other.held == ()
        assert up is not None

    def _last(self, code: int) -> bool:
        return next(pressed for one, pressed in reversed(self.seen) if one == code)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.seen + strokes(self.session) == self.expected
        assert len(self.session.outbox) <= MAX_EVENTS + 2 * len(KEYS)
        assert self.session.refused == self.refused


TestTypist = Typist.TestCase
TestTypist.settings = settings(max_examples=examples(30), stateful_step_count=40, deadline=None)


@given(st.binary(max_size=60))
def test_any_saved_state(data: bytes) -> None:
    """It is loaded, or is said to be none."""
    try:
        KeyboardSession.load(data)
    except BadValue:
        pass


async def test_a_restored_keyboard_lets_go() -> None:
    """Keys that somebody held when the VM was saved come up in its next life, and typing goes on."""
    before = ready()
    before.press(0x2A)
    before.outbox.clear()
    async with serving(KeyboardVsp, restored=before.save()) as served:
        heard = await served.hear()
        assert stroke(packet(heard)) == (0x2A, False)
        served.vsp.press(0x1E)
        assert stroke(packet(await served.hear())) == (0x1E, True)
        saved = served.vsp.save(5)
        assert saved is not None
        assert KeyboardSession.load(saved).ready
