"""Linux's own netvsc, as recorded: what it sends in the ring, byte for byte, to our VSP.

The recording was made of Linux 6.12's driver against a host of another make. The driver's messages are replayed in
their order; our answers are held against what its code takes, which the other host's answers have shown.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from hypervisor.pages import PAGE_SIZE
from tests.doubles.network_vsp import NetworkPair, data_message, frame, serving
from vmbus.gpadl import page_range
from vmbus.ring import Packet, PacketType
from vsp_vsc.network import ndis

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "linux_netvsc.json").read_text())
RECEIVE, SEND = RECORDED["gpadls"]


async def replay(pair: NetworkPair) -> list[bytes]:
    """All of it; what came back as RNDIS, in order."""
    # The recorded addresses are of a machine with more memory than ours; where the buffers lie does not matter.
    base = pair.platform.allocate_pages(1) + 1
    pair.gpadls[RECEIVE["id"]] = (page_range(range(base, base + 1024)),)
    pair.gpadls[SEND["id"]] = (page_range(range(base + 1024, base + 1024 + 255)),)
    pair.receive_at = base * PAGE_SIZE
    page = base + 1024 + 255
    answers: list[bytes] = []
    rndis = iter(RECORDED["rndis"])
    # The last message was recorded without its packet; it went as those before it.
    last = next(entry for entry in reversed(RECORDED["packets"]) if entry["descriptor"].startswith("09"))
    size = len(RECORDED["rndis"][-1]) // 2
    again = last["descriptor"][:48] + size.to_bytes(4, "little").hex() + last["descriptor"][56:]
    for entry in [*RECORDED["packets"], {**last, "descriptor": again}]:
        descriptor, payload = bytes.fromhex(entry["descriptor"]), bytes.fromhex(entry["payload"])
        kind, offset8, _, flags, transaction = struct.unpack_from("<HHHHQ", descriptor)
        extended = descriptor[16:]
        if kind == PacketType.COMPLETION:
            continue  # of the other host's transactions; ours are given back below
        if kind == PacketType.GPA_DIRECT:
            message = bytes.fromhex(next(rndis))
            _, ranges, size, offset, _ = struct.unpack("<IIIIQ", extended)
            assert (ranges, size, offset8) == (1, len(message), 5)
            at = page * PAGE_SIZE + offset
            pair.platform.memory[at : at + size] = message
            extended = extended[:-8] + struct.pack("<Q", page)
        await pair.guest_end.send(Packet(kind, flags, transaction, len(extended), extended + payload))
        if flags:
            completion = await pair.hear()
            assert (completion.type, completion.transaction_id) == (PacketType.COMPLETION, transaction)
            answers.append(completion.payload)
        if kind == PacketType.GPA_DIRECT:
            packet = await pair.hear()
            set_id, _, _, count, size, at = struct.unpack_from("<HBBIII", packet.body)
            assert (set_id, count) == (0xCAFE, 1)
            answers.append(bytes(pair.platform.memory[pair.receive_at + at : pair.receive_at + at + size]))
            await pair.acknowledge(packet.transaction_id)
            if message[:4] == b"\5\0\0\0" and message[12:16] == struct.pack("<I", 0xFC01020C):
                told = await pair.hear()  # what offloads hold now, which the other host did not tell
                await pair.acknowledge(told.transaction_id)
    assert next(rndis, None) is None
    return answers


async def test_linux_finds_all_that_it_asks_for() -> None:
    """Version 6.1, one section of the receive buffer, sections of 6,144 bytes; no query or setting is refused."""
    async with serving() as pair:
        init, receive, send, *rest = await replay(pair)
        assert struct.unpack_from("<IIII", init) == (2, 0xFFFF_FFFF, 34, 1)
        count = 1024 * PAGE_SIZE // 1806
        assert struct.unpack_from("<7I", receive) == (102, 1, 1, 0, 1806, count, 1806 * count)
        assert struct.unpack_from("<III", send) == (105, 1, 6144)
        completions, messages = rest[::2], rest[1::2]
        assert all(one == struct.pack("<II", 108, 1).ljust(40, b"\0") for one in completions)
        initialized, size, address, offload, offload_set, link, speed, scaling, filtered = messages
        assert struct.unpack_from("<IIIIII", initialized) == (0x8000_0002, 52, 1, 0, 1, 0)
        for number, message in enumerate((size, address, offload), 2):
            assert struct.unpack_from("<I4xIII4x", message)[:3] == (0x8000_0004, number, 0)
            assert struct.unpack_from("<I", message, 20) == (16,)
        assert size[24:] == struct.pack("<I", 1500)
        assert address[24:] == pair.port.mac
        assert ndis.Offload.decode(offload[24:]).size == len(offload) - 24 == 156
        assert struct.unpack("<IIII", offload_set) == (0x8000_0005, 16, 5, 0)
        assert link[24:] == bytes(4)
        assert speed[24:] == struct.pack("<I", 100_000_000)
        assert ndis.RssCapabilities.decode(scaling[24:]).receive_queues == 1
        assert struct.unpack("<IIII", filtered) == (0x8000_0005, 16, 9, 0)
        assert not pair.stopped
        assert pair.vsp.statistics().refused == 0


async def test_linux_receives_after_its_beginning() -> None:
    """Its filter is what it set last, and its capabilities have VLAN tags beside the frames."""
    async with serving() as pair:
        await replay(pair)
        pair.port.deliver(frame(64), frame(1514))
        assert await pair.received() == [data_message(frame(64)), data_message(frame(1514))]
