"""Integration messages against a table made from Linux's own, and against bytes that Linux's drivers answered."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from hypervisor.wire import Wire
from vmbus.pipe import unframe
from vmbus.ring import Packet, PacketType
from vsp_vsc.integration import protocol
from vsp_vsc.integration.heartbeat import protocol as heartbeat
from vsp_vsc.integration.heartbeat.protocol import Beat
from vsp_vsc.integration.kvp import ip_info
from vsp_vsc.integration.kvp import protocol as kvp
from vsp_vsc.integration.protocol import Component, Version, decode_message
from vsp_vsc.integration.session import Session, State
from vsp_vsc.integration.shutdown import protocol as shutdown
from vsp_vsc.integration.time_sync import protocol as time_sync

ROWS = [
    line.split(maxsplit=4)
    for line in (Path(__file__).parent / "layouts" / "integration.txt").read_text().splitlines()
    if line and not line.startswith("#")
]
LAYOUTS = {
    name: layout
    for module in (protocol, heartbeat, shutdown, time_sync, kvp, ip_info)
    for name, layout in vars(module).items()
    if inspect.isclass(layout) and issubclass(layout, Wire) and layout is not Wire
}

# Payloads behind the 16-byte descriptor that the hv_utils of Linux 6.12.117 was recorded answering with, when a small
# host had sent it the offers and the beat above each. They repeat the host's padding and what they leave of its words.
LINUX = {
    "heartbeat offer": (
        "010000002c0000000000000000000000000018000000000003050000020002000000000001000000030000000100000003000000"
    ),
    "heartbeat choice": (
        "010000002c000000000000000000000000001000000000000305000001000100000000000300000003000000010000000300"
        "000000000000"
    ),
    "shutdown offer": (
        "0100000034000000000000000000000000002000000000000305000002000400000000000100000003000000010000000300"
        "00000300010003000200"
    ),
    "shutdown choice": (
        "0100000034000000000000000000000000001000000000000305000001000100000000000300000003000200010000000300"
        "0000030001000300020000000000"
    ),
    "beat": (
        "010000003c000000030000000100030000002800000000000305000029000000000000000000000000000000000000000000"
        "000000000000000000000000000000000000"
    ),
    "beat answered": (
        "010000003c00000003000000010003000000280000000000030500002a000000000000000000000000000000000000000000"
        "00000000000000000000000000000000000000000000"
    ),
}

TRANSACTION_AND_FLAGS = slice(16, 18)


def linux(name: str) -> bytes:
    """A recorded message, without its pipe header and padding."""
    return unframe(Packet(PacketType.INBAND, 0, 0, 0, bytes.fromhex(LINUX[name])))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}.{row[1]}")
def test_a_field_lies_where_the_driver_has_it(row: list[str]) -> None:
    """Offset and size of every field are those of the table."""
    layout, field, offset, size = LAYOUTS[row[0]], row[1], int(row[2]), int(row[3])
    if field == "*":
        assert size == layout.SIZE
        return
    declared = next(entry for entry in layout.FIELDS if entry.name == field)
    assert (declared.offset, declared.size) == (offset, size)


def test_no_field_is_without_a_row() -> None:
    """Whoever declares a field writes its row, from the source and not from the declaration."""
    declared = {(name, field.name) for name, layout in LAYOUTS.items() for field in layout.FIELDS}
    declared |= {(name, "*") for name in LAYOUTS}
    assert {(row[0], row[1]) for row in ROWS} == declared


def test_a_kvp_message_is_as_long_as_the_largest_of_its_kind() -> None:
    """2,580 bytes for an item, whatever the operation, and 7,428 for addresses, as openvmm's host sends them.

    Linux 6.12's driver looks at no length, and answers with the length that it got.
    """
    whole = kvp.encode_request(kvp.Operation.DELETE, kvp.Pool.AUTO, kvp.encode_key("a"))
    assert len(whole) == kvp.MESSAGE_SIZE == kvp.KvpHeader.SIZE + kvp.KvpIndex.SIZE + kvp.KvpItem.SIZE == 2580
    assert ip_info.IP_MESSAGE_SIZE == 2 + ip_info.IpTexts.SIZE == 7428


@pytest.mark.parametrize(
    ("name", "component", "version"),
    [("heartbeat", Component.HEARTBEAT, Version(3, 0)), ("shutdown", Component.SHUTDOWN, Version(3, 2))],
)
def test_linux_accepts_our_offer(name: str, component: Component, version: Version) -> None:
    """Our offer has the bytes that Linux was sent; its recorded answer makes the session ready."""
    session = Session(component)
    offer, choice = bytearray(session.negotiate()), bytearray(linux(f"{name} choice"))
    theirs = linux(f"{name} offer")
    # That host numbered its questions otherwise, and marked them as answers, which Linux does not look at.
    offer[TRANSACTION_AND_FLAGS] = theirs[TRANSACTION_AND_FLAGS]
    assert offer == theirs
    choice[16] = 0
    assert session.take(bytes(choice)) is None
    assert (session.state, session.framework, session.version) == (State.READY, Version(3, 0), version)


def test_linux_counts_a_beat_on() -> None:
    """The recorded beat and its answer, decoded."""
    assert Beat.decode(decode_message(linux("beat")).body).sequence == 41
    assert Beat.decode(decode_message(linux("beat answered")).body).sequence == 42
