"""What the dissector knows beyond one packet: who answers whom, what is wrong, what a channel is."""

from __future__ import annotations

import struct
from pathlib import Path

from hypervisor.wire import Guid
from tests.doubles.captures import (
    COMPLETION,
    GPA_DIRECT,
    HEARTBEAT,
    INBAND,
    TO_CHILD,
    TO_ROOT,
    Unit,
    event_block,
    link_header,
    message,
    packet,
    pages,
    raw_capture,
    write_capture,
)
from tests.doubles.tshark import FAULTS, faults_of, needs_tshark, read_clean, read_fields, run_tshark
from vmbus.gpadl import GpadlRange, encode_gpadl, page_range
from vmbus.pipe import frame
from vmbus.protocol import messages as m
from vmbus.protocol.hvsocket import service_of
from vsp_vsc.integration.protocol import encode_message
from vsp_vsc.storage import protocol as s

pytestmark = needs_tshark

PAIR = ("vmbus.packet.completion_in", "vmbus.packet.request_in", "vmbus.packet.response_time")
INVALID = bytes.fromhex("70000500000000 0a 00000000 2400 00000000")
"""Sense data: ILLEGAL REQUEST, invalid field in CDB."""


def to_root(made: m.Message, **more: int) -> Unit:
    return message(TO_ROOT, made.encode(), **more)


def to_child(made: m.Message, **more: int) -> Unit:
    return message(TO_CHILD, made.encode(), **more)


def gpadl(gpadl_id: int = 0x10, pages: int = 16) -> list[Unit]:
    data = encode_gpadl(1, gpadl_id, [page_range(range(100, 100 + pages))])
    created = to_child(m.GpadlCreated(channel_id=1, gpadl_id=gpadl_id))
    return [*(message(TO_ROOT, part) for part in data), created]


def opened() -> list[Unit]:
    """A connection with a storage channel that is open: 9 units."""
    return [
        to_root(m.InitiateContact(version=0x50003), version=0),
        to_child(m.VersionResponse(supported=1, detail=4), version=0),
        to_root(m.RequestOffers()),
        to_child(m.OfferChannel(channel_id=1, interface=s.STORAGE_INTERFACE, connection_id=0x2001)),
        to_child(m.AllOffersDelivered()),
        *gpadl(),
        to_root(m.OpenChannel(channel_id=1, gpadl_id=0x10, open_id=1, downstream_page=8)),
        to_child(m.OpenChannelResult(channel_id=1, open_id=1)),
    ]


def command(
    transaction: int, cdb: str = "28000000000800000800", *, lun: int = 0, size: int = 4096, ticks: int | None = None
) -> Unit:
    srb = s.Srb(lun=lun, cdb_length=10, data_in=1, data_transfer_length=size, cdb_or_sense=bytes.fromhex(cdb))
    payload = s.PacketHeader(s.Operation.EXECUTE_SRB, flags=1).encode() + srb.encode()
    return packet(
        TO_ROOT, GPA_DIRECT, payload, transaction=transaction, flags=1, extended=pages(7, size=size), ticks=ticks
    )


def result(transaction: int, *, status: int = 1, scsi: int = 0, sense: bytes = b"", size: int = 4096) -> Unit:
    srb = s.Srb(
        srb_status=status, scsi_status=scsi, cdb_or_sense=sense, sense_length=len(sense), data_transfer_length=size
    )
    payload = s.PacketHeader(s.Operation.COMPLETE_IO).encode() + srb.encode()
    return packet(TO_CHILD, COMPLETION, payload, transaction=transaction)


def test_a_transaction_id_used_again_is_answered_in_order(tmp_path: Path) -> None:
    """Two requests with one ID under way at once, then a third: each completion goes to the oldest that is open."""
    units = [*opened(), command(4), command(4), command(5), result(4), result(5), result(4), command(4), result(4)]
    rows = read_clean(write_capture(tmp_path / "a.pcapng", units), *PAIR)
    completed = {frame: row[PAIR[0]] for frame, row in rows.items() if PAIR[0] in row}
    assert completed == {10: ["13"], 11: ["15"], 12: ["14"], 16: ["17"]}
    asked = {frame: (row[PAIR[1]][0], float(row[PAIR[2]][0])) for frame, row in rows.items() if PAIR[1] in row}
    assert asked == {13: ("10", 3e-6), 14: ("12", 2e-6), 15: ("11", 4e-6), 17: ("16", 1e-6)}


def test_channels_partitions_and_ways_do_not_answer_each_other(tmp_path: Path) -> None:
    """The same ID on another channel, in another VM, and the other way is another transaction."""
    first = command(9)
    others = [
        first._replace(channel=2),
        first._replace(partition=3),
        packet(TO_CHILD, INBAND, bytes(8), transaction=9, flags=1, device=0),
    ]
    answers = [
        packet(TO_ROOT, COMPLETION, bytes(8), transaction=9, device=0),
        result(9)._replace(partition=3),
        result(9)._replace(channel=2),
        result(9),
    ]
    capture = write_capture(tmp_path / "a.pcapng", [first, *others, *answers])
    rows = read_fields(capture, ["vmbus.packet.request_in"], where="vmbus.packet.type == 11")
    assert [row["vmbus.packet.request_in"] for row in rows] == [["4"], ["3"], ["2"], ["1"]]


def test_a_new_opening_answers_nothing_of_the_old_one(tmp_path: Path) -> None:
    """Requests that were open when a channel was closed stay open; their IDs begin anew."""
    again = [to_root(m.CloseChannel(channel_id=1)), *opened()[-2:]]
    capture = write_capture(tmp_path / "a.pcapng", [*opened(), command(4), *again, command(4), result(4)])
    assert read_clean(capture, "vmbus.packet.completion_in") == {14: {"vmbus.packet.completion_in": ["15"]}}


def test_messages_find_their_answers(tmp_path: Path) -> None:
    """Contact, offers, GPADL with bodies, open, teardown, rescind, modify, reserved channels and sockets."""
    units = [
        *opened()[:5],
        *gpadl(pages=80),
        to_root(m.OpenChannel(channel_id=1, gpadl_id=0x10, open_id=7, downstream_page=40)),
        to_child(m.OpenChannelResult(channel_id=1, open_id=7)),
        to_root(m.ModifyChannel(channel_id=1, target_vp=1)),
        to_child(m.ModifyChannelResponse(channel_id=1)),
        to_child(m.RescindChannelOffer(channel_id=1)),
        to_root(m.GpadlTeardown(channel_id=1, gpadl_id=0x10)),
        to_child(m.GpadlTorndown(gpadl_id=0x10)),
        to_root(m.RelIdReleased(channel_id=1)),
        to_root(m.TlConnectRequest()),
        to_child(m.TlConnectResult(status=0xC0000236)),
        to_root(m.CloseReservedChannel(channel_id=3)),
        to_child(m.CloseReservedResponse(channel_id=3)),
        to_root(m.Unload()),
        to_child(m.UnloadComplete()),
    ]
    names = ["message.request_in", "message.answer_in", "gpadl.body_in", "gpadl.header_in", "message.offer_in"]
    names += ["message.ring_to_root", "message.ring_to_child"]
    found = read_clean(write_capture(tmp_path / "a.pcapng", units), *(f"vmbus.{name}" for name in names))
    rows = {frame: {name.removeprefix("vmbus."): value for name, value in row.items()} for frame, row in found.items()}
    pairs = {frame: int(row["message.request_in"][0]) for frame, row in rows.items() if "message.request_in" in row}
    assert pairs == {2: 1, 5: 3, 9: 6, 11: 10, 13: 12, 16: 15, 17: 14, 19: 18, 21: 20, 23: 22}
    assert rows[6] == {"message.answer_in": ["9"], "gpadl.body_in": ["7", "8"]}
    assert rows[10] == {
        "message.answer_in": ["11"],
        "message.offer_in": ["4"],
        "gpadl.header_in": ["6"],
        "message.ring_to_root": ["40"],
        "message.ring_to_child": ["40"],
    }


def test_sockets_are_named_by_their_port(tmp_path: Path) -> None:
    """An offer of a socket, a guest's request and its refusal say the port; a service with a GUID of its own is one."""
    own = Guid("11223344-5566-7788-99aa-bbccddeeff00")
    units = [
        *opened()[:3],
        to_child(m.OfferChannel(channel_id=1, interface=service_of(80), connection_id=0x2001)),
        to_root(m.TlConnectRequest(service=service_of(0xA0B0C0D0))),
        to_child(m.TlConnectResult(service=service_of(0xA0B0C0D0), status=0xC0000236)),
        to_root(m.TlConnectRequest(service=own)),
    ]
    rows = read_fields(write_capture(tmp_path / "a.pcapng", units), ["_ws.col.Info"], where="frame.number > 3")
    infos = [row["_ws.col.Info"][0] for row in rows]
    assert "channel 1: socket port 80," in infos[0]
    assert "to service socket port 2695938256" in infos[1]
    assert "service socket port 2695938256: " in infos[2]
    assert "to service 11223344" in infos[3]


def test_ranges_of_a_gpadl_that_begin_in_a_body(tmp_path: Path) -> None:
    """Bodies are nothing but words: only what came before says which of them is a range and which a page."""
    ranges = [GpadlRange(4096 * count - 200, 100, tuple(range(count))) for count in (20, 15, 30)]
    units = [message(TO_ROOT, data) for data in encode_gpadl(1, 5, ranges)]
    units.append(to_child(m.GpadlCreated(channel_id=1, gpadl_id=5)))
    capture = write_capture(tmp_path / "a.pcapng", units)
    names = ["vmbus.gpadl.range.byte_count", "vmbus.gpadl.pfn", "vmbus.gpadl.pages"]
    rows = list(read_clean(capture, *names).values())
    assert [len(row.get(names[0], [])) for row in rows] == [2, 1, 0, 0]
    assert [len(row.get(names[1], [])) for row in rows] == [25, 27, 13, 0]
    assert rows[1][names[0]] == [str(4096 * 30 - 200)]
    assert rows[3] == {names[2]: ["65"]}


def test_integration_components_know_their_answers(tmp_path: Path) -> None:
    """By the transaction ID in the message: the packets want no completion."""
    question, answer = (
        [
            packet(
                way,
                INBAND,
                frame(encode_message(1, bytes(40), flags=flags, transaction_id=n)).payload,
                device=HEARTBEAT,
            )
            for n in (1, 2)
        ]
        for way, flags in ((TO_CHILD, 3), (TO_ROOT, 5))
    )
    capture = write_capture(tmp_path / "a.pcapng", [*question, *reversed(answer), question[0], answer[0]])
    rows = read_clean(capture, "vmbus.ic.answer_in", "vmbus.ic.request_in")
    found = [next(iter(row.values())) for row in rows.values()]
    assert found == [["4"], ["3"], ["2"], ["1"], ["6"], ["5"]]


def test_a_capture_can_be_read_alone(tmp_path: Path) -> None:
    """The summary says who, what and how it went, without a look into any packet."""
    units = [*opened(), command(4, lun=2), result(4), command(5), result(5, status=0x84, scsi=2, sense=INVALID, size=0)]
    lines = run_tshark(write_capture(tmp_path / "a.pcapng", units)).splitlines()
    assert lines[3] == (
        "    4   0.000003         root → reader       VMBus 212 OFFER_CHANNEL channel 1: storage, instance 00000000..."
    )
    assert [line.partition(" VMBus ")[2].partition(" ")[2] for line in lines[5:]] == [
        "GPADL_HEADER channel 1 (storage) gpadl 0x10, 17 words",
        "GPADL_CREATED channel 1 (storage) gpadl 0x10: success",
        "OPEN_CHANNEL channel 1 (storage) gpadl 0x10, VP 0, rings of 8 and 8 pages",
        "OPEN_CHANNEL_RESULT channel 1 (storage): success",
        "channel 1 storage: READ(10) LBA 8, 8 blocks LUN 2, 4096 bytes id 0x4",
        "channel 1 storage: READ(10) LBA 8, 8 blocks LUN 2: good, 4096 bytes id 0x4",
        "channel 1 storage: READ(10) LBA 8, 8 blocks LUN 0, 4096 bytes id 0x5",
        "channel 1 storage: READ(10) LBA 8, 8 blocks LUN 0: ERROR ILLEGAL REQUEST 24/00, 0 bytes id 0x5",
    ]


def test_commands_and_sense_data_are_shown_by_wiresharks_own_dissector(tmp_path: Path) -> None:
    """Its fields can be filtered by, and request and response know each other, also where an ID comes again."""
    units = [*opened(), command(4), result(4), command(4), result(4, status=0x84, scsi=2, sense=INVALID, size=0)]
    capture = write_capture(tmp_path / "a.pcapng", units)
    lba, asked, status, failed, key = (
        *("scsi_sbc.rdwr10.lba", "scsi.request_frame", "scsi.status"),
        *("iscsi.request_frame", "scsi.sns.key"),
    )
    assert read_clean(capture, lba, asked, status, failed, key) == {
        10: {lba: ["8"]},
        11: {asked: ["10"], status: ["0x00"], failed: ["10"]},
        12: {lba: ["8"]},
        13: {failed: ["12"], key: ["0x05"]},
    }


ONE_PAGE = m.GpadlHeader(byte_length=16, range_count=1).encode() + struct.pack("<IIQ", 4096, 0, 5)

FAULTY: tuple[tuple[list[Unit], str, str], ...] = (
    ([message(TO_ROOT, bytes(6))], "truncated", "Padding does not fit: 6 bytes are there"),
    ([message(TO_ROOT, m.OpenChannel().encode()[:20])], "truncated", "Target VP does not fit: 20 bytes are there"),
    ([message(TO_ROOT, struct.pack("<Q", 99))], "unknown", "No channel message has type 99"),
    ([to_child(m.Unload())], "direction", "UNLOAD never travels this way"),
    ([to_root(m.ModifyChannel(), version=0x40000)], "version", "MODIFY_CHANNEL came with version 4.1"),
    ([*opened(), result(4)], "unpaired", "No request with this transaction ID is open"),
    ([*opened(), command(4), result(4), result(4)], "unpaired", "No request with this transaction ID is open"),
    ([*opened(), to_child(m.GpadlCreated(gpadl_id=3))], "unpaired", "No GPADL of this ID was being made"),
    ([*gpadl(3)[:-1], *opened()[:2], gpadl(3)[-1]], "unpaired", "No GPADL of this ID was being made"),
    ([*opened(), command(4), *opened()[:2], result(4)], "unpaired", "No request with this transaction ID is open"),
    ([packet(TO_ROOT, INBAND, bytes(8), flags=2)], "corrupt", "Flags: reserved bits 0x2 are set"),
    ([packet(TO_ROOT, 5, bytes(8))], "corrupt", "No ring packet has type 5"),
    ([packet(TO_ROOT, GPA_DIRECT, bytes(64))], "corrupt", "A payload that begins at 2 of 10"),
    (
        [packet(TO_ROOT, GPA_DIRECT, bytes(64), extended=struct.pack("<IIII", 0, 1, 8192, 0))],
        "corrupt",
        "0 pages where the range needs 2",
    ),
    ([gpadl(pages=40)[0], gpadl()[-1]], "gpadl", "Created while 14 words were missing"),
    (
        [message(TO_ROOT, m.GpadlHeader(byte_length=16, range_count=1).encode() + struct.pack("<IIQ", 8192, 0, 5))],
        "gpadl",
        "1 page numbers fewer than the ranges need",
    ),
    (
        [message(TO_ROOT, m.GpadlHeader(byte_length=16, range_count=2).encode() + struct.pack("<IIQ", 4096, 0, 5))],
        "gpadl",
        "1 ranges where the header counts 2",
    ),
    ([packet(TO_ROOT, INBAND, struct.pack("<III", 77, 0, 0))], "unknown", "No storage packet has operation 77"),
    ([packet(TO_ROOT, INBAND, bytes(8))._replace(data=bytes(10))], "truncated", "Transaction ID does not fit"),
    ([message(TO_ROOT, struct.pack("<II", 3, 7))], "reserved", "Padding is not zero"),
    ([message(TO_ROOT, ONE_PAGE + bytes(8))], "extra", "1 words more than the GPADL has"),
    (
        [packet(TO_ROOT, GPA_DIRECT, bytes(64), extended=pages(7, 8, size=4096, offset=4096))],
        "corrupt",
        "The range begins at 4096, past its first page",
    ),
    (
        [command(4)._replace(data=command(4, size=512).data[:56] + command(4).data[56:])],
        "corrupt",
        "512 bytes of pages",
    ),
    (
        [packet(TO_CHILD, INBAND, struct.pack("<II", 1, 100) + bytes(8), device=HEARTBEAT)],
        "truncated",
        "8 bytes of 100 are there",
    ),
    (
        [packet(TO_CHILD, INBAND, struct.pack("<II", 9, 8) + bytes(8), device=HEARTBEAT)],
        "unknown",
        "A pipe packet of type 9",
    ),
    (
        [packet(TO_CHILD, INBAND, frame(encode_message(1, bytes(40), flags=5)).payload, device=HEARTBEAT)],
        "direction",
        "Neither a host's request nor a guest's answer",
    ),
    ([message(TO_ROOT, bytes(8))._replace(kind=7)], "unknown", "There is no such kind"),
)
"""What crosses, the kind of the fault that its last unit is, and the words."""


def test_faults_are_told(tmp_path: Path) -> None:
    """Each break of the protocol is expert info under its own name. Here each has a partition of its own."""
    units = [unit._replace(partition=100 + index) for index, case in enumerate(FAULTY) for unit in case[0]]
    capture = write_capture(tmp_path / "a.pcapng", units)
    names = ["vmbus.partition", "_ws.expert.message", "_ws.lua.error", *(f"vmbus.fault.{kind}" for kind in FAULTS)]
    last = {int(row["vmbus.partition"][0]) - 100: row for row in read_fields(capture, names)}
    for index, (_, kind, words) in enumerate(FAULTY):
        assert f"vmbus.fault.{kind}" in last[index], f"{words}: {last[index]}"
        assert any(words in told for told in last[index]["_ws.expert.message"]), f"{words}: {last[index]}"
        assert "_ws.lua.error" not in last[index]
    assert len(faults_of(capture)) >= len(FAULTY)


def test_failures_are_noted(tmp_path: Path) -> None:
    """A status that is no success is no fault of the protocol, and can be filtered by all the same."""
    units = [*opened(), command(4), result(4, status=0x20, size=0), to_root(m.OpenChannel(open_id=2))]
    units.append(to_child(m.OpenChannelResult(open_id=2, status=0x8000FFFF)))
    capture = write_capture(tmp_path / "a.pcapng", units)
    rows = read_clean(capture, "_ws.expert.message", "vmbus.fault.failed")
    assert [row["_ws.expert.message"] for row in rows.values()] == [["INVALID_LUN"], ["Status: failure"]]
    assert all("vmbus.fault.failed" in row for row in rows.values())


def test_a_capture_that_begins_late_has_no_faults(tmp_path: Path) -> None:
    """An answer to what was never seen is only noted where the capture does not have the channel's opening."""
    capture = write_capture(tmp_path / "a.pcapng", [result(4), command(5), result(5)])
    assert list(read_clean(capture, "vmbus.fault.uncaptured")) == [1]


def test_response_times_are_exact(tmp_path: Path) -> None:
    """To 100 ns, with times since 1970 and an event without a time at the beginning: a float has too few digits."""
    start = 1_795_421_034 * 10**7
    units = [command(4, ticks=start + 1), result(4)._replace(ticks=start + 8), command(5, ticks=start + 9)]
    units.append(result(5)._replace(ticks=start + 9 + 12_345_678_901))
    frames = [(0, unit.ticks or 0, link_header(unit) + unit.data) for unit in units]
    capture = tmp_path / "a.pcapng"
    section = raw_capture([], names=())
    capture.write_bytes(section + event_block(b"") + raw_capture(frames)[len(section) :])
    rows = read_clean(capture, "vmbus.packet.response_time", "scsi.time")
    times = [[float(value) for [value] in row.values()] for row in rows.values()]
    assert times == [[7e-7, 7e-7], [1234.5678901, 1234.5678901]]


def test_filters(tmp_path: Path) -> None:
    """The filters that the documentation names first."""
    capture = write_capture(tmp_path / "a.pcapng", [*opened(), command(4, lun=3), result(4), command(5)])

    def frames(where: str) -> list[int]:
        return [int(row["frame.number"][0]) for row in read_fields(capture, ["frame.number"], where=where)]

    assert frames("vmbus.message.type == 5 or vmbus.message.interface == ba6163d9-04a1-4d29-b605-72e2ffb1dc7f") == [
        4,
        8,
    ]
    assert frames("vmbus.storage.lun == 3 or vmbus.packet.response_time >= 0.000001") == [10, 11]
    assert frames("vmbus.packet.flags.completion_requested == 1 and not vmbus.packet.completion_in") == [12]
    assert frames("scsi") == [10, 11, 12]


def test_others_of_this_link_type_are_left_alone(tmp_path: Path) -> None:
    """Link type 147 is for anybody's private use: what does not begin as ours does is not ours."""
    capture = tmp_path / "a.pcapng"
    capture.write_bytes(raw_capture([(0, 1, b"\2" + bytes(20)), (0, 2, b"\1" * 15), (0, 3, b"")]))
    assert read_fields(capture, ["frame.number"], where="vmbus") == []
