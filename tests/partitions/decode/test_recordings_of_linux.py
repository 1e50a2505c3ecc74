"""Bytes of Linux's own drivers, decoded: names and numbers are those that the recording says of them.

data/linux_6_12.json says where its bytes come from.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from hypervisor.msr import Msr
from hypervisor.trace import TO_ROOT, Layer
from partitions.decode.field import Field
from partitions.decode.kinds import KINDS, Context, guess
from partitions.decode.message import decode_channel_message
from partitions.decode.network import decode_rndis
from partitions.decode.packet import decode_ring_packet
from partitions.decode.registers import decode_msr
from partitions.decode.summary import summary
from tests.partitions.decode.trees import check_tree
from vmbus.protocol.table import Direction, decode_message, describe
from vmbus.protocol.versions import VERSIONS, version_text
from vmbus.ring import PacketType
from vsp_vsc.network.rndis import Oid

RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "linux_6_12.json").read_text())
VERSION_NUMBERS = {version_text(row.version): int(row.version) for row in VERSIONS}
NAMES = {
    "CHANNELMSG_OFFERCHANNEL": "OFFER_CHANNEL",
    "CHANNELMSG_REQUESTOFFERS": "REQUEST_OFFERS",
    "CHANNELMSG_ALLOFFERS_DELIVERED": "ALL_OFFERS_DELIVERED",
    "CHANNELMSG_OPENCHANNEL": "OPEN_CHANNEL",
    "CHANNELMSG_OPENCHANNEL_RESULT": "OPEN_CHANNEL_RESULT",
    "CHANNELMSG_GPADL_HEADER": "GPADL_HEADER",
    "CHANNELMSG_GPADL_BODY": "GPADL_BODY",
    "CHANNELMSG_GPADL_CREATED": "GPADL_CREATED",
    "CHANNELMSG_GPADL_TEARDOWN": "GPADL_TEARDOWN",
    "CHANNELMSG_INITIATE_CONTACT": "INITIATE_CONTACT",
    "CHANNELMSG_VERSION_RESPONSE": "VERSION_RESPONSE",
}
"""What Linux calls our messages, as far as any were recorded."""


def value(field: Field, path: str) -> object:
    """What stands at a path that has to be there."""
    found = field.find(path)
    assert found is not None, path
    return found.value


@pytest.mark.parametrize("entry", RECORDED["messages"], ids=lambda entry: str(entry["linux"]))
def test_messages(entry: dict[str, Any]) -> None:
    """Every message is what Linux calls it, without a fault, and its line is what a host's trace prints."""
    data, way = bytes.fromhex(entry["hex"]), entry["direction"]
    version = VERSION_NUMBERS[entry["version"]]
    field = decode_channel_message(data, way, version, 0)
    check_tree(field, data)
    assert field.name == NAMES[entry["linux"]]
    assert not field.faults
    (number,) = struct.unpack_from("<I", data)
    assert value(field, "message_type") == number
    assert field.words == describe(decode_message(data, sender=Direction(way), version=version))
    assert summary(Layer.CONTROL, data, "", way, version) == field.words
    found = guess(data)
    assert found is not None
    assert found.kind == "message"


@pytest.mark.parametrize("entry", RECORDED["gpadls"], ids=lambda entry: f"{entry['pages']} pages")
def test_gpadls(entry: dict[str, Any]) -> None:
    """The pages of header and bodies are those that the driver named, in their order."""
    trees = [decode_channel_message(bytes.fromhex(text), TO_ROOT) for text in entry["hex"]]
    assert all(value(tree, "gpadl_id") == entry["gpadl"] for tree in trees)
    assert value(trees[0], "range[0].byte_count") == entry["byte_count"]
    pages = [one.value for tree in trees for one in tree.walk() if one.name.startswith("page[")]
    assert pages == list(range(entry["first_pfn"], entry["first_pfn"] + entry["pages"]))
    assert not [fault for tree in trees for fault in tree.faults]


@pytest.mark.parametrize("entry", RECORDED["packets"], ids=lambda entry: f"{entry['device']} {entry['direction']}")
def test_packets(entry: dict[str, Any]) -> None:
    """Every packet has the type, the flags and the transaction that were recorded, and a payload without a fault."""
    data = bytes.fromhex(entry["hex"])
    field = decode_ring_packet(data, entry["device"], entry["direction"])
    check_tree(field, data)
    assert not field.faults
    assert value(field, "descriptor.type") == entry["type"]
    assert value(field, "descriptor.flags") == entry["flags"]
    assert value(field, "descriptor.transaction_id") == entry["transaction_id"]
    kind = PacketType(entry["type"]).name
    assert field.words == f"{kind} id={entry['transaction_id']:#x} flags={entry['flags']}"
    assert summary(Layer.PACKET, data) == field.words
    payload = field.find("payload")
    assert payload is not None
    assert payload.words
    assert summary(Layer.DEVICE, data, entry["device"], entry["direction"]) == payload.words
    found = guess(data)
    assert found is not None
    assert found.kind == "packet"
    assert found.device == (entry["device"] if entry["device"] != "keyboard" else "")


def test_what_the_drivers_say() -> None:
    """The sequences of storage, network and heartbeat that Linux goes through, in words."""

    def said(device: str) -> list[str]:
        chosen = [entry for entry in RECORDED["packets"] if entry["device"] == device]
        return [summary(Layer.DEVICE, bytes.fromhex(one["hex"]), device, one["direction"]) for one in chosen]

    storage = [line for line in said("storage") if not line.startswith("COMPLETE_IO")]
    assert storage[:4] == [
        "BEGIN_INITIALIZATION",
        "QUERY_PROTOCOL_VERSION 6.2",
        "QUERY_PROPERTIES",
        "END_INITIALIZATION",
    ]
    network = said("network")
    assert network[:7] == [
        "INIT 6.1",
        "INIT_COMPLETE SUCCESS",
        "SEND_NDIS_CONFIG mtu=1514",
        "SEND_NDIS_VERSION",
        "SEND_RECEIVE_BUFFER gpadl=0xe1e11",
        "SEND_RECEIVE_BUFFER_COMPLETE SUCCESS",
        "SEND_SEND_BUFFER gpadl=0xe1e12",
    ]
    assert said("keyboard") == ["PROTOCOL_REQUEST 1.0", "PROTOCOL_RESPONSE accepted"]
    assert "negotiate framework 3.0, messages 3.0" in said("heartbeat")


@pytest.mark.parametrize("entry", RECORDED["rndis"], ids=lambda entry: str(entry["oid"]))
def test_rndis(entry: dict[str, Any]) -> None:
    """What the network driver asks of the host behind NVSP."""
    data = bytes.fromhex(entry["hex"])
    field = decode_rndis(data)
    check_tree(field, data)
    assert not field.faults
    assert value(field, "header.message_length") == len(data)
    if entry["oid"] is not None:
        number = int(entry["oid"], 16)
        assert value(field, "body.oid") == number
        assert Oid(number).name in field.words


def test_registers() -> None:
    """The registers that Linux sets up its SynIC with."""
    told = []
    for _, register, content in RECORDED["registers"]:
        field = decode_msr(struct.pack("<IQ", int(register, 16), int(content, 16)))
        assert not field.faults
        told.append(field.words)
    assert "SIMP = 0x6001001: page at GPA 0x6001000" in told
    assert "SINT2 = 0x200f3: vector 0xf3, auto EOI" in told
    assert "SCONTROL = 0x1: enabled" in told
    assert value(decode_msr(struct.pack("<IQ", Msr.SINT2, 0x200F3)), "value.vector") == 0xF3


def test_posted_by_hypercall() -> None:
    """A message in the input of HvPostMessage is decoded in its place."""
    message = bytes.fromhex(RECORDED["messages"][0]["hex"])
    block = struct.pack("<QIIII", 0x5C, 4, 0, 1, len(message)) + message.ljust(240, b"\0")
    field = KINDS["hypercall"].decode(block, Context())
    check_tree(field, block)
    inner = field.find("input.request.payload.INITIATE_CONTACT")
    assert inner is not None
    assert inner.offset == 24
    assert inner.size == len(message)
    assert inner.words in field.words
    assert not field.faults
