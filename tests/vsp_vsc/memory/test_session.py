"""The host's end of dynamic memory: versions, what it asks, whose pages are whose."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import WireError
from vmbus.ring import Packet, PacketType
from vsp_vsc.memory.protocol import BALLOON_UNIT, MAX_MESSAGE, MAX_RANGES, Capabilities, Pages
from vsp_vsc.memory.ranges import PageSet
from vsp_vsc.memory.session import (
    Asked,
    BalloonDone,
    Ballooned,
    HotAddDone,
    MemorySession,
    Report,
    State,
    UnballoonDone,
)

RAM = 0x10000
LINUX_CAPABILITIES = 0x1F
"""Balloon, hot add, and 2**7 MiB."""


def packet(kind: int, body: bytes = b"", transaction: int = 1, size: int | None = None) -> Packet:
    """A message as Linux packs it: type, size, transaction."""
    header = struct.pack("<HHI", kind, 8 + len(body) if size is None else size, transaction)
    return Packet(PacketType.INBAND, 0, 0, 0, header + body)


def ranges(*runs: tuple[int, int]) -> bytes:
    """As a bit field of 40 and 24."""
    return b"".join(struct.pack("<Q", first | count << 40) for first, count in runs)


def balloon_response(*runs: tuple[int, int], more: bool = False) -> Packet:
    """Linux's: a reserved word, then one bit and 31."""
    return packet(7, struct.pack("<II", 0, len(runs) << 1 | more) + ranges(*runs))


def said(session: MemorySession) -> list[tuple[int, bytes]]:
    """What the host sends, without sizes and transactions; each message is as long as it says."""
    sent, session.outbox[:] = session.outbox[:], []
    found = []
    for one in sent:
        kind, size, _ = struct.unpack_from("<HHI", one.payload)
        assert size == len(one.payload) <= MAX_MESSAGE
        found.append((kind, bytes(one.payload[8:])))
    return found


def ready(most_pages: int = 0) -> MemorySession:
    """After Linux's handshake."""
    session = MemorySession()
    session.ram = PageSet(Pages(0, RAM))
    session.most_pages = most_pages
    session.take(packet(1, struct.pack("<II", 0x20000, 0)))
    session.take(packet(3, struct.pack("<QQQ", LINUX_CAPABILITIES, 0, 0xFFFF_FFFF_FFFF_FFFF)))
    said(session)
    return session


def happened(session: MemorySession) -> list[object]:
    """Since the last look."""
    found, session.happened = session.happened, []
    return list(found)


def test_linux_and_its_handshake() -> None:
    """Linux's bytes, message by message: 2.0 is accepted, capabilities are, and it is told what it can ever have."""
    session = MemorySession()
    session.most_pages = 0x40000
    session.take(Packet(PacketType.INBAND, 0, 0, 0, bytes.fromhex("01001000 01000000 00000200 00000000")))
    assert session.outbox[0].payload == bytes.fromhex("02001000 01000000 01000000 00000000")
    session.outbox.clear()
    caps = "03002000 02000000 1f000000 00000000 00000000 00000000 ffffffff ffffffff"
    session.take(Packet(PacketType.INBAND, 0, 0, 0, bytes.fromhex(caps)))
    assert [bytes(one.payload) for one in session.outbox] == [
        bytes.fromhex("04001000 02000000 01000000 00000000"),
        bytes.fromhex("0c002000 03000000 00000000 10000000 00000000 08000000 00000400 00000000"),
    ]
    assert session.ready
    assert session.capabilities == Capabilities(balloon=True, hot_add=True, alignment=32 * 1024)
    assert session.capabilities.word == LINUX_CAPABILITIES


@pytest.mark.parametrize("version", [0x20000, 0x10000, 3])
def test_versions(version: int) -> None:
    """2.0, 1.0 and 0.3 are spoken; others are refused, and the host waits, until the guest's last attempt."""
    session = MemorySession()
    session.take(packet(1, struct.pack("<II", 0x30000, 0)))
    assert said(session) == [(2, bytes(8))]
    session.take(packet(1, struct.pack("<II", version, 1)))
    assert said(session) == [(2, b"\1" + bytes(7))]
    assert session.version == version


def test_nothing_after_the_last_attempt() -> None:
    """A guest that has no other version to offer offers none."""
    session = MemorySession()
    session.take(packet(1, struct.pack("<II", 0x40000, 1)))
    assert session.state is State.VERSION
    with pytest.raises(WireError, match="last attempt"):
        session.take(packet(1, struct.pack("<II", 0x20000, 0)))


def test_reports() -> None:
    """Pages available and committed; absurd numbers are cut to what can be."""
    session = ready()
    session.take(packet(5, struct.pack("<QQQQII", 100, 2**64 - 1, 7, 0, 0, 0)))
    assert happened(session) == [Report(available=100, committed=1 << 40, page_file=7)]


def test_a_balloon_of_several_messages() -> None:
    """Ranges are the host's as soon as they are named; the last message says that there are no more."""
    session = ready()
    session.balloon(3 * BALLOON_UNIT)
    assert said(session) == [(6, struct.pack("<II", 1536, 0))]
    session.take(balloon_response((0x1000, 512), (0x2000, 512), more=True))
    assert happened(session) == [Ballooned((Pages(0x1000, 512), Pages(0x2000, 512)))]
    assert session.asked is Asked.BALLOON
    session.take(balloon_response((0x9000, 1)))
    assert happened(session) == [Ballooned((Pages(0x9000, 1),)), BalloonDone(1536, 1025)]
    assert session.asked is Asked.NOTHING
    assert session.ballooned.total == 1025


def test_a_balloon_with_nothing_in_it() -> None:
    """A guest at its floor answers with no range, which is an answer."""
    session = ready()
    session.balloon(512)
    session.take(balloon_response())
    assert happened(session) == [BalloonDone(512, 0)]


def test_unballoon_in_several_messages_and_one_answer() -> None:
    """No message is longer than a page, all but the last say that there is more, and the guest answers once."""
    session = ready()
    for page in range(0, 2 * (MAX_RANGES + 5), 2):
        session.ballooned.add(Pages(page, 1))
    assert session.unballoon(RAM) == MAX_RANGES + 5
    assert session.ballooned.total == 0
    assert session.returning == MAX_RANGES + 5
    first, second = said(session)
    assert first == (8, struct.pack("<II", 1, MAX_RANGES) + ranges(*((2 * n, 1) for n in range(MAX_RANGES))))
    assert second == (8, struct.pack("<II", 0, 5) + ranges(*((2 * n, 1) for n in range(MAX_RANGES, MAX_RANGES + 5))))
    session.take(packet(9))
    assert happened(session) == [UnballoonDone(MAX_RANGES + 5)]
    assert session.returning == 0


def test_a_large_balloon_goes_back_in_pieces() -> None:
    """A guest that scattered its pages makes the host send a bounded list, and then another."""
    session = ready()
    for page in range(0, 2 * 9000, 2):
        session.ballooned.add(Pages(page, 1))
    assert session.unballoon(9000) == 16 * MAX_RANGES
    assert len(said(session)) == 16
    assert session.ballooned.total == 9000 - 16 * MAX_RANGES


@pytest.mark.parametrize(
    ("taken", "result", "never"),
    [(0x8000, 1, False), (0x4000, 1, True), (0, 0, False), (0, 1, True)],
    ids=["all", "fewer: never more", "none: later", "none: never"],
)
def test_hot_add_answers(taken: int, result: int, never: bool) -> None:
    """What Linux's answers mean: fewer pages is the most there will ever be, none and a failure may be tried again."""
    session = ready()
    session.hot_add(Pages(0x100000, 0x8000))
    assert said(session) == [(10, ranges((0x100000, 0x8000)))]
    assert session.offered == Pages(0x100000, 0x8000)
    session.take(packet(11, struct.pack("<II", taken, result)))
    assert happened(session) == [HotAddDone(Pages(0x100000, 0x8000), taken, never)]
    assert session.offered is None


BALLOONING = ("balloon", 1024)
MISTAKES = {
    "a report before a version": (None, packet(5, bytes(40))),
    "capabilities before a version": (None, packet(3, bytes(24))),
    "a second handshake": (("ready", 0), packet(1, struct.pack("<II", 0x20000, 0))),
    "a balloon that nobody asked for": (("ready", 0), balloon_response((0x1000, 1))),
    "an unballoon answer to nothing": (("ready", 0), packet(9)),
    "an unballoon answer to a balloon": (BALLOONING, packet(9)),
    "a hot add answer to nothing": (("ready", 0), packet(11, bytes(8))),
    "more added than there was": (("hot add", 256), packet(11, struct.pack("<II", 257, 1))),
    "more pages than asked for": (BALLOONING, balloon_response((0x1000, 1025))),
    "more ranges than bytes": (BALLOONING, packet(7, struct.pack("<II", 0, 9 << 1) + ranges((1, 1)))),
    "two thousand million ranges": (BALLOONING, packet(7, struct.pack("<II", 0, 0xFFFF_FFFF) + ranges((1, 1)))),
    "no pages in a range": (BALLOONING, balloon_response((0x1000, 0))),
    "pages past its memory": (BALLOONING, balloon_response((RAM - 1, 2))),
    "pages at the end of the address space": (BALLOONING, balloon_response(((1 << 40) - 1, 1024))),
    "the same page twice": (BALLOONING, balloon_response((0x1000, 512), (0x11FF, 1))),
    "a page that is in the balloon": (("held", 1024), balloon_response((0x4000, 1))),
    "a host's message": (("ready", 0), packet(6, struct.pack("<II", 1, 0))),
    "an unknown type": (("ready", 0), packet(99)),
    "less than a header": (("ready", 0), Packet(PacketType.INBAND, 0, 0, 0, b"1234")),
    "a size beyond its packet": (("ready", 0), packet(5, bytes(40), size=4096)),
    "a size below its header": (("ready", 0), packet(5, bytes(40), size=7)),
    "too short for its type": (("ready", 0), packet(5, bytes(8))),
    "a packet of another type": (("ready", 0), Packet(PacketType.COMPLETION, 0, 0, 0, bytes(16))),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_the_channel(name: str) -> None:
    """`WireError`, and no page is the host's but those that were named properly before the mistake."""
    before, mistake = MISTAKES[name]
    session = MemorySession() if before is None else ready()
    match before:
        case ("balloon", pages):
            session.balloon(int(pages))
        case ("held", pages):
            session.ballooned.add(Pages(0x4000, 512))
            session.balloon(int(pages))
        case ("hot add", pages):
            session.hot_add(Pages(RAM, int(pages)))
    held = session.ballooned.total
    with pytest.raises(WireError):
        session.take(mistake)
    given = [run for one in happened(session) if isinstance(one, Ballooned) for run in one.runs]
    assert session.ballooned.total == held + sum(run.count for run in given)
    assert all(session.ram.covers(run) for run in given)


@given(st.lists(st.tuples(st.integers(0, 12), st.binary(max_size=60)), max_size=12), st.integers(0, 4))
def test_any_bytes_are_an_answer_or_a_mistake(messages: list[tuple[int, bytes]], asked: int) -> None:
    """Nothing but `WireError` comes out, whatever is said, and the balloon never has pages that the guest has not."""
    session = ready()
    if asked == 1:
        session.balloon(1024)
    elif asked == 2:
        session.ballooned.add(Pages(0, 512))
        session.unballoon(512)
    elif asked == 3:
        session.hot_add(Pages(RAM, 512))
    for kind, body in messages:
        try:
            session.take(packet(kind, body))
        except WireError:
            break
    assert all(session.ram.covers(run) for run in session.ballooned)


def test_saved_and_restored() -> None:
    """A session goes on where it was, in the middle of an answer; a record that cannot be is refused."""
    session = ready()
    session.balloon(1024)
    session.take(balloon_response((0x1000, 512), more=True))
    again = MemorySession.load(session.save())
    again.ram = PageSet(Pages(0, RAM))
    assert said(again) == [(6, struct.pack("<II", 1024, 0))]
    again.take(balloon_response((0x2000, 512)))
    assert again.ballooned.total == 1024
    assert happened(again) == [Ballooned((Pages(0x2000, 512),)), BalloonDone(1024, 1024)]
    for bad in (b"", b"\x80", session.save()[:-1], session.save().replace(b"ready", b"reads")):
        with pytest.raises(WireError):
            MemorySession.load(bad)
