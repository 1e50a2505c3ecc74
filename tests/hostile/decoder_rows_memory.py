"""Decoders of dynamic memory's bytes, and of resource control's."""

from __future__ import annotations

import contextlib

from hypervisor.wire import WireError
from tests.hostile.decoder_rows import Decoder, Rows, packet_of
from vsp_vsc.memory import protocol as memory
from vsp_vsc.memory.protocol import MemoryType, Pages
from vsp_vsc.memory.ranges import PageSet
from vsp_vsc.memory.session import MemorySession

RAM = Pages(0, 1 << 16)


def agreed() -> MemorySession:
    """A guest with 256 MiB that has said what it can do."""
    session = MemorySession()
    session.ram = PageSet(RAM)
    session.take(memory.encode_message(MemoryType.VERSION_REQUEST, 1, memory.MemoryVersionRequest(0x20000)))
    session.take(memory.encode_message(MemoryType.CAPABILITIES_REPORT, 2, memory.MemoryCapabilities(0x1F)))
    return session


def answer(data: bytes, number: int) -> object:
    """To any question; the balloon has nothing that the guest has not, whatever was wrong with the answer."""
    session = agreed()
    match number % 4:
        case 0:
            session.balloon(number % 5000 + 1)
        case 1:
            session.ballooned.add(Pages(1, 1000))
            session.unballoon(1000)
        case 2:
            session.hot_add(Pages(1 << 16, 512))
    try:
        session.take(packet_of(data, number))
    finally:
        assert all(session.ram.covers(run) for run in session.ballooned)
    return session.happened


def go_on(data: bytes, number: int) -> object:
    """A record that is taken can be written again, and the guest go on with it."""
    session = MemorySession.load(MemorySession.load(data).save())
    session.ram = PageSet(RAM)
    with contextlib.suppress(WireError):
        session.take(packet_of(BALLOON[0], 0))
    return session


def saved() -> bytes:
    """In the middle of a balloon."""
    session = agreed()
    session.balloon(1024)
    session.ballooned.add(Pages(0x1000, 512))
    return session.save()


RANGES = memory.encode_ranges([Pages(0x1000, 512), Pages(0x2000, 7)])
BALLOON = (
    memory.encode_message(MemoryType.BALLOON_RESPONSE, 7, memory.BalloonResponse(0, 2 << 1), RANGES).body,
    memory.encode_message(MemoryType.STATUS_REPORT, 8, memory.MemoryStatus(1000, 3000)).body,
    memory.encode_message(MemoryType.UNBALLOON_RESPONSE, 9).body,
    memory.encode_message(MemoryType.MEM_HOT_ADD_RESPONSE, 9, memory.HotAddResponse(512, 1)).body,
)
DECODERS = {
    "vsp_vsc.memory.protocol.decode_message": Decoder(
        lambda data, number: memory.decode_message(packet_of(data, number)), BALLOON
    ),
    "vsp_vsc.memory.protocol.decode_ranges": Decoder(
        lambda data, number: memory.decode_ranges(data, number % 64), (RANGES,)
    ),
    "vsp_vsc.memory.ranges.PageSet.unpacked": Decoder(
        lambda data, number: list(PageSet.unpacked(data, 1 << 40)),
        (PageSet(RAM, Pages(1 << 17, 3)).packed(),),
        ValueError,
    ),
    "vsp_vsc.memory.session.MemorySession._take_pages": Decoder(answer, BALLOON),
    "vsp_vsc.memory.session.MemorySession.load": Decoder(go_on, (agreed().save(), saved())),
}
ELSEWHERE = {
    "partitions.root.resources.Resources._parse": "reads a person's path; `ResourceError` for one that is none",
    "vsp_vsc.memory.vsp.MemoryVsp.load": "hands on to its session's own, and looks whose pages they are",
}
REACHED = {
    "vsp_vsc.memory.active": "vsp_vsc/memory/test_active.py",
    "vsp_vsc.memory.guest": "vsp_vsc/memory/test_guest.py",
}
ROWS = Rows(DECODERS, ELSEWHERE, REACHED)
