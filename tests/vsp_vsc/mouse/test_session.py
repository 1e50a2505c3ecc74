"""The host's end of a mouse: what Linux's driver says and hears, the HID descriptors, what waits, what is saved."""

from __future__ import annotations

import itertools
import struct

import pytest
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hypervisor.wire import BadValue, WireError
from tests.doubles.campaign import examples
from tests.doubles.input import serving
from vmbus.pipe import frame, unframe
from vmbus.ring import Packet
from vsp_vsc.mouse.protocol import (
    HID_DESCRIPTOR,
    REPORT_DESCRIPTOR,
    MouseReport,
    MouseType,
    decode_device_info,
    decode_message,
)
from vsp_vsc.mouse.session import MAX_REPORTS, MouseSession, State, signed
from vsp_vsc.mouse.vsp import MouseVsp

REQUEST = bytes.fromhex("00000000 04000000 00000200")
ACK = bytes.fromhex("03000000 01000000 00")


def ready() -> MouseSession:
    session = MouseSession()
    session.take(frame(REQUEST))
    session.take(frame(ACK))
    session.outbox.clear()
    return session


def reports(session: MouseSession) -> list[MouseReport]:
    """Those that wait."""
    return [report(one) for one in session.outbox]


def report(one: Packet) -> MouseReport:
    kind, body = decode_message(unframe(one))
    assert kind == MouseType.INPUT_REPORT
    return MouseReport.decode(body)


def test_what_linux_says_and_hears() -> None:
    """Its request, the answer as its driver reads it (approved in byte 12), the description, its acknowledgement."""
    session = MouseSession()
    session.take(frame(REQUEST))
    answer, description = session.outbox
    assert answer.body.hex() == "010000000d00000001000000050000000000020001"
    assert session.state is State.DESCRIBED
    kind, body = decode_message(unframe(description))
    assert (kind, len(body), len(unframe(description))) == (2, 32 + 9 + 67, 8 + 32 + 9 + 128)
    info, descriptor = decode_device_info(body)
    assert (info.info_size, info.vendor, info.product) == (32, 0x045E, 0x0621)
    assert descriptor == REPORT_DESCRIPTOR
    session.outbox.clear()
    session.take(frame(ACK))
    session.report(1, 0x1234, 3, -1)
    assert session.outbox[0].body.hex() == "010000000f00000004000000070000000301003412ffff"


def test_the_report_descriptor_is_valid_hid() -> None:
    """Read item by item as HID 1.11, 6.2.2 has it: five buttons, padding, X, Y and a wheel in 56 bits."""
    fields: list[tuple[int, list[int], int, int, int, int]] = []
    page = low = high = size = count = depth = 0
    usages: list[int] = []
    at = 0
    while at < len(REPORT_DESCRIPTOR):
        head = REPORT_DESCRIPTOR[at]
        length = (0, 1, 2, 4)[head & 3]
        data = REPORT_DESCRIPTOR[at + 1 : at + 1 + length]
        at += 1 + length
        value, wide = int.from_bytes(data, "little", signed=True), int.from_bytes(data, "little")
        match head & 0xFC:
            case 0x04:
                page = wide
            case 0x08:
                usages.append(wide)
            case 0x18:
                first = wide
            case 0x28:
                usages += range(first, wide + 1)
            case 0x14:
                low = value
            case 0x24:
                high = value
            case 0x34:
                assert value == 0
            case 0x74:
                size = wide
            case 0x94:
                count = wide
            case 0xA0:
                depth, usages = depth + 1, []
            case 0xC0:
                depth -= 1
            case 0x80:
                fields.append((page, usages, wide, low, high, size * count))
                usages = []
            case _:
                raise AssertionError(f"item {head:#x}")
    assert depth == 0
    variable, constant, relative = 2, 3, 6
    assert fields == [
        (9, [1, 2, 3, 4, 5], variable, 0, 1, 5),
        (9, [], constant, 0, 1, 3),
        (1, [0x30, 0x31], variable, 0, 32767, 32),
        (1, [0x38], relative, -32767, 32767, 16),
    ]
    assert struct.unpack("<BBHBBBH", HID_DESCRIPTOR) == (9, 0x21, 0x111, 0, 1, 0x22, len(REPORT_DESCRIPTOR))


@given(st.integers(0, 0xFFFFFFFF))
def test_one_version_is_taken(version: int) -> None:
    """Every other is refused with its own number, and the guest may ask again."""
    session = MouseSession()
    session.take(frame(REQUEST[:8] + version.to_bytes(4, "little")))
    accepted = version == 0x20000
    assert unframe(session.outbox[0])[8:] == version.to_bytes(4, "little") + bytes((accepted,))
    assert len(session.outbox) == 1 + accepted


@pytest.mark.parametrize("agreed", [False, True])
@given(data=st.binary(max_size=40), piped=st.booleans())
def test_any_bytes(agreed: bool, data: bytes, piped: bool) -> None:
    """A session takes them, or says what is wrong."""
    session = ready() if agreed else MouseSession()
    try:
        session.take(frame(data) if piped else Packet(6, 0, 0, 0, data))
    except WireError:
        pass
    assert len(session.outbox) <= 2


@pytest.mark.parametrize("said", [REQUEST, ACK])
def test_what_is_not_due(said: bytes) -> None:
    """Once reports flow a guest has nothing to say."""
    with pytest.raises(BadValue):
        ready().take(frame(said))


@pytest.mark.parametrize("wrong", [(-1, 0, 0, 0), (32768, 0, 0, 0), (0, 32768, 0, 0), (0, 0, 32, 0), (0, 0, 0, 32768)])
def test_what_no_report_can_say(wrong: tuple[int, int, int, int]) -> None:
    """The caller's mistake."""
    with pytest.raises(ValueError, match=r"pointer|buttons"):
        ready().report(*wrong)


class Pointing(RuleBasedStateMachine):
    """A pointer at random before a guest that reads now and then.

    What it has read in the end is where the pointer is; the wheel's steps add up; no click is lost while there is room.
    """

    def __init__(self) -> None:
        super().__init__()
        self.session = ready()
        self.turned = 0
        self.clicks = 0
        self.buttons = 0
        self.seen: list[MouseReport] = []

    @rule(x=st.integers(0, 32767), y=st.integers(0, 32767), buttons=st.integers(0, 31), wheel=st.integers(-3, 3))
    def point(self, x: int, y: int, buttons: int, wheel: int) -> None:
        self.session.report(x, y, buttons, wheel)
        self.turned += wheel
        self.clicks += buttons != self.buttons
        self.buttons = buttons

    @rule(times=st.integers(1, 200))
    def click(self, times: int) -> None:
        for _ in range(times):
            self.point(5, 5, 1, 0)
            self.point(5, 5, 0, 0)

    @rule()
    def release(self) -> None:
        self.session.release_all()
        self.clicks += self.buttons != 0
        self.buttons = 0

    @rule(count=st.integers(1, 300))
    def read(self, count: int) -> None:
        self.seen += [report(one) for one in self.session.outbox[:count]]
        del self.session.outbox[:count]

    @rule()
    def save(self) -> None:
        other = MouseSession.load(self.session.save())
        (last,) = reports(other)
        assert (last.x, last.y, last.buttons) == (self.session.last.x, self.session.last.y, 0)

    @invariant()
    def the_end_is_right(self) -> None:
        every = self.seen + reports(self.session)
        assert len(self.session.outbox) <= MAX_REPORTS
        assert sum(signed(one.wheel) for one in every) == self.turned
        if every:
            assert (every[-1].x, every[-1].y, every[-1].buttons) == (
                *(self.session.last.x, self.session.last.y),
                self.buttons,
            )
        states = [0, *(one.buttons for one in every)]
        changes = sum(a != b for a, b in itertools.pairwise(states))
        assert changes >= self.clicks - 2 * self.session.lost
        assert changes <= self.clicks


TestPointing = Pointing.TestCase
TestPointing.settings = settings(max_examples=examples(30), stateful_step_count=40, deadline=None)


@given(st.binary(max_size=60))
def test_any_saved_state(data: bytes) -> None:
    """It is loaded, or is said to be none."""
    try:
        MouseSession.load(data)
    except BadValue:
        pass


async def test_a_report_on_its_way_stays_as_it_is() -> None:
    """One that waits for room was shown to nobody and is replaced; the one that is being sent is not."""
    before = ready()
    async with serving(MouseVsp, restored=before.save()) as served:
        await trio.testing.wait_all_tasks_blocked()
        for place in range(1000):
            served.vsp.move(place, 0)
        last = 0
        while last != 999:
            body = unframe(Packet(6, 0, 0, 0, await served.hear()))
            last = MouseReport.decode(decode_message(body)[1]).x
