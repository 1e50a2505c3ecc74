"""What Linux's drivers did, done again at the boundary: the same bytes at the same addresses, and our host's answers.

The driver of the boundary takes Linux's place: it writes guest memory where the recorded run had it, posts the
recorded messages, puts the recorded packets into the rings and signals. Linux accepted the recorded host's answers;
ours must say the same wherever Linux looks. The files in `data` folders say where their bytes come from.
"""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from partitions.topology import parse_topology
from tests.doubles.boundary_guest import HYPERCALL_PAGE, BoundaryGuest, Rings, boundary_guest, run
from vmbus.ring import PacketType
from vsp_vsc.storage.protocol import STORAGE_INTERFACE

TESTS: Final = Path(__file__).parents[1]
MESSAGES: Final[dict[str, Any]] = json.loads((TESTS / "vmbus/data/linux_6_12_messages.json").read_text())
STORVSC: Final[dict[str, Any]] = json.loads((TESTS / "data/linux_6_12_storvsc.json").read_text())

TOPOLOGY = """
[[vm]]
name = "linux"
memory = "256MiB"

[[vm.disk]]
path = "disk.img"
size = "16MiB"
"""
OTHER_DEVICES = """
import trio
from hypervisor.wire import Guid
from vmbus.server.offers import Offer

class Idle:
    async def serve(self, channel, opened):
        await trio.sleep_forever()
"""
"""Devices whose interfaces sort before the storage controller's, so that it gets the recorded channel ID."""


@asynccontextmanager
async def linux_at(folder: Path, *, before_storage: int = 7) -> AsyncIterator[BoundaryGuest]:
    """A booted guest with Linux's registers, nothing said on the bus; the disk is channel `before_storage` + 1."""
    source, text = OTHER_DEVICES, TOPOLOGY
    for number in range(1, before_storage + 1):
        guid = f"0000000{number}-0000-0000-0000-000000000001"
        source += f'class Idle{number}(Idle):\n    offer = Offer(Guid("{guid}"), Guid("{guid}"))\n'
        text += f'[[vm.device]]\nvsp = "other.py:Idle{number}"\n'
    (folder / "other.py").write_text(source)
    async with boundary_guest(parse_topology(text, folder, programs=False)) as guest:
        await guest.do("wrmsr", msr=0x40000000, value=0x8100_0006_0C75_0000)
        await guest.do("wrmsr", msr=0x40000001, value=HYPERCALL_PAGE | 1)
        for step in STORVSC["registers"]:
            if step["op"] == "wrmsr":
                assert await guest.wrmsr(step["msr"], step["value"]) == "ok"
            elif step["msr"] != 0x40000092:  # the run began with SINTs of 0, where hardware has them masked
                assert (await guest.do("rdmsr", msr=step["msr"]))["value"] == step["value"]
        values = {step["msr"]: step["value"] for step in STORVSC["registers"] if step["op"] == "wrmsr"}
        guest.message_page, guest.flags_page = values[0x40000083] & ~0xFFF, values[0x40000082] & ~0xFFF
        yield guest


def contact_of(post: dict[str, Any]) -> tuple[int, bytes]:
    data = bytes.fromhex(post["hex"])
    return struct.unpack_from("<I", data, 8)[0], data


def payload(entry: dict[str, Any]) -> bytes:
    return bytes.fromhex(entry["payload"])


# --- negotiation


@pytest.mark.parametrize("case", sorted(MESSAGES["negotiate"]))
def test_negotiation(tmp_path: Path, case: str) -> None:
    """Every contact that Linux posts on its way down is answered in words that it takes.

    Our host speaks all its versions, so Linux would stay with the first; each one after it is a new connection. Below
    5.0 the last word is the version again, from 5.0 on the connection ID for all that follows (Linux uses it).
    """

    async def session() -> None:
        async with linux_at(tmp_path, before_storage=0) as guest:
            *contacts, request = MESSAGES["negotiate"][case]
            for post in contacts:
                version, data = contact_of(post)
                (response,) = await guest.say(data, post["connection_id"])
                last = 1 if version >= 0x50000 else version
                assert response == struct.pack("<IIBBHI", 15, 0, 1, 0, 0, last), f"{version:#x}"
                assert len(response) == 16
            major, minor = map(int, case.split("."))
            assert version == major << 16 | minor
            offer, end = await guest.say(bytes.fromhex(request["hex"]), 1)
            assert_an_offer(offer, 1)
            assert end == struct.pack("<II", 4, 0)

    run(session)


def assert_an_offer(offer: bytes, channel: int) -> None:
    """OFFERCHANNEL as Linux reads it: 196 bytes, the channel's own event connection, no monitor."""
    assert len(offer) == 196
    assert offer[:8] == struct.pack("<II", 1, 0)
    assert offer[40:56] == bytes(16)
    assert struct.unpack_from("<HH", offer, 56) == (0, 0)
    assert offer[60:180] == bytes(120)
    assert struct.unpack_from("<HHIBBHI", offer, 180) == (0, 0, channel, 0xFF, 0, 1, 0x2000 | channel)


# --- channels


def test_gpadls_and_opens_of_three_devices(tmp_path: Path) -> None:
    """Linux's boot with three devices, then GPADLs of 1 to 100 pages and a teardown: the recorded answers, in order."""

    async def session() -> None:
        async with linux_at(tmp_path) as guest:
            answers: list[bytes] = []
            for entry in MESSAGES["boot"]:
                data = bytes.fromhex(entry["hex"])
                if entry["way"] == ">root":
                    assert answers == []
                    answers = await guest.say(data, 4 if "CONTACT" in entry["name"] else 1)
                elif "VERSION_RESPONSE" in entry["name"]:
                    assert answers.pop(0) == data[:12] + struct.pack("<I", 1)
                elif "OFFER" in entry["name"]:
                    # What is on offer is the host's business: these are its eight devices, and the end of the list.
                    for channel in range(1, 9):
                        if answers:
                            assert_an_offer(answers.pop(0), channel)
                    answers = answers[1:]
                else:
                    assert answers.pop(0) == data
            for case in MESSAGES["gpadls"]:
                *quiet, last = case["posts"]
                for post in quiet:
                    assert await guest.say(bytes.fromhex(post)) == []
                (created,) = await guest.say(bytes.fromhex(last))
                assert created == struct.pack("<IIIII", 10, 0, 5, case["gpadl"], 0)
            for post in MESSAGES["gpadl_teardown"]:
                data = bytes.fromhex(post)
                assert await guest.say(data) == [struct.pack("<II", 12, 0) + data[12:16]]

    run(session)


# --- storage


async def open_storage(guest: BoundaryGuest) -> Rings:
    """From contact to an open channel, by the record."""
    await guest.do("write", gpa=0x6040000, data="00" * (64 << 12))
    offers = await guest.connect()
    (offer,) = [offer for offer in offers if offer[8:24] == bytes(STORAGE_INTERFACE)]
    channel, connection = struct.unpack_from("<I", offer, 184)[0], struct.unpack_from("<I", offer, 192)[0]
    answers: list[bytes] = []
    opened = b""
    for entry in STORVSC["initialization"]:
        if entry["what"] != "message":
            continue
        data = bytes.fromhex(entry["hex"])
        if entry["way"] == ">root":
            assert answers == []
            answers = await guest.say(data, entry["connection_id"])
            opened = data
        else:
            assert answers.pop(0) == data
    assert channel == struct.unpack_from("<I", opened, 8)[0] == 8
    downstream = struct.unpack_from("<I", opened, 24)[0] << 12
    assert await guest.flags() == set()
    return Rings(guest, 0x6040000, downstream, 0x40000 - downstream, connection)


async def exchange(guest: BoundaryGuest, rings: Rings, trace: list[dict[str, Any]]) -> list[tuple[bytes, bytes]]:
    """Put the recorded packets into the ring, byte for byte, and check each answer's envelope."""
    completions = []
    for entry in trace:
        if entry["way"] == ">root" and entry["what"] == "packet":
            raw = bytes.fromhex(entry["descriptor"]) + payload(entry)
            await rings.put(raw + struct.pack("<Q", rings._written << 32))
        elif entry["way"] == ">child" and entry["what"] == "packet":
            ((head, body),) = await rings.received()
            expected = struct.pack("<HHHHQ", entry["type"], 2, 2 + len(body) // 8, 0, entry["transaction_id"])
            assert head == expected
            assert len(body) == len(payload(entry)), "as many bytes as Linux sent"
            completions.append((payload(entry), body))
        elif entry["what"] == "event_flag":
            assert await guest.flags() == {entry["channel_id"]}
    return completions


def test_storvsc_initialization(tmp_path: Path) -> None:
    """BEGIN, version 6.2, properties, END: the recorded host's answers, but for the properties, which are our own."""

    async def session() -> None:
        async with linux_at(tmp_path) as guest:
            rings = await open_storage(guest)
            packets = [entry for entry in STORVSC["initialization"] if entry["what"] != "message"]
            begin, version, properties, end = await exchange(guest, rings, packets)
            for theirs, ours in (begin, version, end):
                assert ours == theirs
            _, ours = properties
            assert ours[:12] == struct.pack("<III", 1, 0, 0)
            *_, flags, transfer = struct.unpack_from("<IHHII", ours, 12)
            assert flags & 1
            assert transfer == 0x40000
            assert ours[28:] == bytes(36)

    run(session)


@pytest.mark.parametrize("name", sorted(STORVSC["commands"]))
def test_storvsc_command(tmp_path: Path, name: str) -> None:
    """A recorded READ(10) or WRITE(10): the data is where Linux wants it, and the completion says what it looks at."""
    record = STORVSC["commands"][name]
    cdb = bytes.fromhex(record["cdb"])
    lba = int.from_bytes(cdb[2:6], "big")
    pattern = bytes(index * 7 & 0xFF for index in range(record["bytes"]))

    async def session() -> None:
        async with linux_at(tmp_path) as guest:
            image = tmp_path / "disk.img"
            reading = cdb[0] == 0x28
            if reading:
                with image.open("r+b") as file:
                    file.seek(lba * 512)
                    file.write(pattern)
            else:
                await guest.write(record["first_gpa"], pattern)
            rings = await open_storage(guest)
            await exchange(guest, rings, [e for e in STORVSC["initialization"] if e["what"] != "message"])
            ((theirs, ours),) = await exchange(guest, rings, record["trace"])
            # vstor_packet: operation, status; vmscsi_request: length, srb_status, scsi_status, data_transfer_length.
            assert ours[:4] == theirs[:4]
            assert ours[8:16] == theirs[8:16]
            assert ours[24:28] == theirs[24:28]
            if reading:
                assert await guest.read(record["first_gpa"], len(pattern)) == pattern
            else:
                with image.open("rb") as file:
                    file.seek(lba * 512)
                    assert file.read(len(pattern)) == pattern
            assert record["linux_result"] == "0x0"

    run(session)


def test_signals_as_recorded(tmp_path: Path) -> None:
    """Linux signals with control word 1005Dh and the offer's connection ID; only when the host's ring end was empty."""

    async def session() -> None:
        async with linux_at(tmp_path) as guest:
            rings = await open_storage(guest)
            (signal, *_) = [entry for entry in STORVSC["initialization"] if entry["what"] == "signal"]
            answer = await guest.do("hypercall", control=signal["control"], input=rings.connection)
            assert (answer["rax"], answer.status) == (0, "SUCCESS")
            assert await rings.received() == []
            answer = await guest.do("hypercall", control=signal["control"], input=signal["connection_id"])
            assert answer.status == "INVALID_CONNECTION_ID", "that ID was another host's"
            # The host has read everything, and asks to be told of more.
            assert await guest.read(rings.out_page, 20) == struct.pack("<IIII", 0, 0, 0, 0) + bytes(4)
            assert (await guest.read(rings.in_page + 64, 4))[0] & 1, "it knows pending send sizes"
            assert PacketType.COMPLETION == 0xB

    run(session)
