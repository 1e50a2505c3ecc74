"""Bytes of Linux's own drivers, and of what they accepted: read without a fault, as our own decoder reads them.

tests/partitions/decode/data/linux_6_12.json says where they come from. Partita has no network device yet; this is what
tells that NVSP is read right.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from partitions.recording.file import record_to
from partitions.recording.link import CODES
from tests.doubles.boundary_guest import run
from tests.doubles.captures import MESSAGE, PACKET, TO_CHILD, TO_ROOT, Unit, read_units, write_capture
from tests.doubles.tshark import needs_tshark, read_info
from tests.end_to_end.test_linux_recordings import STORVSC, exchange, linux_at, open_storage
from tests.partitions.dissector.agreement import compare
from vmbus.protocol.versions import VERSIONS, version_text

pytestmark = needs_tshark

DATA = Path(__file__).parents[1] / "decode" / "data" / "linux_6_12.json"
RECORDED: dict[str, Any] = json.loads(DATA.read_text())
WAYS = {">root": TO_ROOT, ">child": TO_CHILD}
BUS = {version_text(row.version): int(row.version) for row in VERSIONS}


def packets() -> list[Unit]:
    """Every recorded packet, a channel a device."""
    units = []
    for entry in RECORDED["packets"]:
        device = CODES[entry["device"]]
        units.append(Unit(PACKET, WAYS[entry["direction"]], bytes.fromhex(entry["hex"]), device, channel=device))
    return units


def test_packets(tmp_path: Path) -> None:
    """Storage, network, keyboard and integration components."""
    units = packets()
    capture = write_capture(tmp_path / "a.pcapng", units)
    assert compare(capture, units) > 500
    assert {unit.device for unit in units} >= {CODES[name] for name in ("storage", "network", "keyboard", "heartbeat")}


def test_messages(tmp_path: Path) -> None:
    """Each in the version in which it was said, and GPADLs with their bodies."""
    units = []
    for number, entry in enumerate(RECORDED["messages"]):
        data, version = bytes.fromhex(entry["hex"]), BUS[entry["version"]]
        if "GPADL" not in entry["linux"]:  # of long ones not all bodies were kept
            units.append(Unit(MESSAGE, WAYS[entry["direction"]], data, partition=100 + number, version=version))
    for entry in RECORDED["gpadls"]:
        units += [Unit(MESSAGE, TO_ROOT, bytes.fromhex(text), partition=50) for text in entry["hex"]]
    capture = write_capture(tmp_path / "a.pcapng", units)
    assert compare(capture, units) > 300


def test_the_network_driver_can_be_followed(tmp_path: Path) -> None:
    """How netvsc begins: version, configuration, buffers, then RNDIS in pages and in the receive buffer."""
    capture = write_capture(tmp_path / "a.pcapng", packets())
    told = [line.removeprefix("channel 2 network: ") for line in read_info(capture, "vmbus.network.type")]
    assert told[:9] == [
        "INIT version 6.1 id 0x1",
        "INIT_COMPLETE id 0x1",
        "SEND_NDIS_CONFIG MTU 1514",
        "SEND_NDIS_VERSION",
        "SEND_RECEIVE_BUFFER gpadl 0xe1e11 id 0x2",
        "SEND_RECEIVE_BUFFER_COMPLETE 9709 pieces of 1728 bytes id 0x2",
        "SEND_SEND_BUFFER gpadl 0xe1e12 id 0x3",
        "SEND_SEND_BUFFER_COMPLETE sections of 6144 bytes id 0x3",
        "SEND_RNDIS_PACKET control, 24 bytes in pages id 0x4",
    ]


def test_storvsc_at_our_host(tmp_path: Path) -> None:
    """Linux's driver, by the record, from its contact to a READ(10), and what our host answers it: not one fault."""
    capture = tmp_path / "run.pcapng"

    async def session() -> None:
        async with linux_at(tmp_path) as guest:
            recording = record_to(capture, guest.host.trace, inline=True)
            rings = await open_storage(guest)
            await exchange(guest, rings, [e for e in STORVSC["initialization"] if e["what"] != "message"])
            for name in sorted(STORVSC["commands"]):
                await exchange(guest, rings, STORVSC["commands"][name]["trace"])
            recording.close()

    run(session)
    units = read_units(capture)
    assert compare(capture, units) > 300
    told = read_info(capture, "vmbus.storage.opcode or (vmbus.storage.operation and vmbus.packet.type == 11)")
    assert told[-4:] == [
        "channel 8 storage: READ(10) LBA 4096, 8 blocks LUN 0, 4096 bytes id 0x6",
        "channel 8 storage: READ(10) LBA 4096, 8 blocks LUN 0: good, 4096 bytes id 0x6",
        "channel 8 storage: WRITE(10) LBA 8192, 8 blocks LUN 0, 4096 bytes id 0x8",
        "channel 8 storage: WRITE(10) LBA 8192, 8 blocks LUN 0: good, 4096 bytes id 0x8",
    ]
