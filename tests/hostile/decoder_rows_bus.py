"""Decoders of the hypervisor's and the bus's bytes, and of the root's own files and lines."""

from __future__ import annotations

import io
import struct

from hypervisor.hypercall import abi
from hypervisor.monitor_page import MonitorPage
from hypervisor.pages import PAGE_SIZE
from hypervisor.saved_state import stream
from hypervisor.saved_state.records import EndRecord, PartitionRecord, ProcessorRecord, RecordHeader, StreamHeader
from partitions.boundary import protocol as boundary
from partitions.root import saving_file
from partitions.root.saving_records import Facts, MemoryRun, SavedChipset, SavedCom1, SavedVm
from tests.hostile.decoder_rows import NONE, Decoder, Rows, packet_of, stateless
from vmbus import gpadl, pipe
from vmbus.interrupt_page import InterruptPage
from vmbus.protocol import messages, table
from vmbus.protocol.features import Feature
from vmbus.protocol.versions import IMPLEMENTED
from vmbus.server.saved import CannotRestore, SavedBus
from vmbus.server.state import ServerState


def choose_version(number: int) -> tuple[int | None, int]:
    """A connection's version and features."""
    version = (None, *IMPLEMENTED)[number % (len(IMPLEMENTED) + 1)]
    return version, int(Feature(0xFF)) if number & 1 << 20 else 0


def any_message(data: bytes, number: int) -> object:
    version, features = choose_version(number)
    sender = table.Direction.TO_ROOT if number & 1 << 21 else table.Direction.TO_CHILD
    return table.decode_message(data, sender=sender, version=version, features=features)


def bus(data: bytes, number: int) -> object:
    """The server's state machine: answers and faults, and never an exception."""
    state = ServerState()
    version, features = choose_version(number)
    if version is not None:
        state.handle(messages.initiate_contact(version, features=features & ~Feature.CLIENT_ID).encode())
    return state.handle(data, multiclient=bool(number & 1 << 22))


def add_tails(data: bytes, number: int) -> object:
    """As many bytes as were announced, or not."""
    length, count = (len(data), 1) if number & 1 else (number & 0xFFFF, number >> 16 & 7)
    assembly = gpadl.GpadlAssembly(messages.GpadlHeader(byte_length=length, range_count=count))
    for at in range(0, max(len(data), 1), 56):
        if assembly.add(data[at : at + 56]):
            return assembly.ranges()
    return None


def file_of(data: bytes, number: int) -> object:
    return saving_file.decode_file(io.BytesIO(data))


def a_file() -> bytes:
    """A saved VM with one page of memory."""
    com1 = SavedCom1(1, 0, 3, 0, 0, False, False, b"")
    chipset = SavedChipset(com1, 0, False, None, b"hello")
    memory = (MemoryRun(1, bytes(PAGE_SIZE)),)
    saved = SavedVm(Facts("web", 2 * PAGE_SIZE, 1, 0, []), STATE, SavedBus(), chipset, memory)
    return b"".join(saving_file.encode_file(saved))


def look_at_monitors(data: bytes, number: int) -> object:
    page = MonitorPage(memoryview(bytearray(data[:4096].ljust(4096, b"\xfe"))))
    groups = [(page.pending(group), page.latency(group), page.take_pending(group)) for group in range(4)]
    return groups, page.enabled_groups, page.parameter(number & 127)


PARTITION, PROCESSOR = (
    PartitionRecord.decode(bytes(PartitionRecord.SIZE)),
    ProcessorRecord.decode(bytes(ProcessorRecord.SIZE)),
)
STATE = stream.encode(
    stream.SavedPartition(StreamHeader(stream.MAGIC, stream.VERSION, vp_count=1), PARTITION, (PROCESSOR,))
)
NO_STATE = stream.seal(
    StreamHeader(stream.MAGIC, stream.VERSION, length=StreamHeader.SIZE + RecordHeader.SIZE + EndRecord.SIZE)
).encode()

DECODERS = {
    "hypervisor.hypercall.abi.ControlWord.decode": Decoder(
        lambda data, number: abi.ControlWord.decode(int.from_bytes(data[:8], "little")),
        (bytes(8), b"\x0c\0\1\0\5\0\0\0"),
    ),
    "hypervisor.saved_state.stream.decode_header": Decoder(
        stateless(stream.decode_header), (NO_STATE, STATE), stream.BadStream
    ),
    "hypervisor.saved_state.stream.decode": Decoder(
        stateless(stream.decode), (STATE, NO_STATE + bytes(400)), stream.BadStream
    ),
    "vmbus.gpadl.GpadlAssembly.add": Decoder(add_tails, (struct.pack("<3Q", 8192, 1, 2), bytes(400))),
    "vmbus.gpadl.decode_ranges": Decoder(
        lambda data, number: gpadl.decode_ranges(data, number & 0xFFFF), (struct.pack("<3Q", 8192, 1, 2),)
    ),
    "vmbus.pipe.unframe": Decoder(
        lambda data, number: pipe.unframe(packet_of(data, number)), (pipe.frame(b"eight by").body,)
    ),
    "vmbus.protocol.table.decode_message": Decoder(
        any_message, tuple(row.layout().encode().ljust(240, b"\0") for row in table.MESSAGES)
    ),
    "vmbus.server.state.ServerState.handle": Decoder(
        bus, tuple(row.layout().encode().ljust(240, b"\0") for row in table.MESSAGES), NONE
    ),
    "MonitorPage": Decoder(look_at_monitors, (bytes(64),), NONE),
    "InterruptPage.take": Decoder(
        lambda data, number: InterruptPage(memoryview(bytearray(data[:4096].ljust(4096, b"\xff"))), host=True).take(),
        (bytes(4096),),
        NONE,
    ),
    "partitions.boundary.protocol.decode": Decoder(
        stateless(boundary.decode), (b'{"op":"settle","id":1}', b'{"op":"hypercall","id":2,"vp":0}'), boundary.BadLine
    ),
    "partitions.root.saving_file.decode_file": Decoder(file_of, (a_file(), a_file()[:16] + bytes(200)), CannotRestore),
}

ELSEWHERE = {
    "hypervisor.hypercall.call.Call._unpack": "hands out a layout's struct; whole calls: test_hostile",
    "hypervisor.hypercall.saving._take": "copies a slice; the stream: here and test_stream",
    "hypervisor.saved_state.stream._decode": "the part of `decode` behind the header; sealed streams: test_stream",
    "hypervisor.wire.codec.Wire.decode": "all layouts: `test_every_layout`",
    "partitions.boundary.driver.Session.handle": "tests/hostile/test_boundary_sessions",
    "partitions.root.devices.CountedDevice.load": "hands on to a device's own",
    "partitions.root.intercepts.Intercepts._decode": "the hypervisor's messages, not a guest's bytes",
    "partitions.root.saving_file._unpacked": "of `decode_file`; damaged files: tests/partitions/test_saving",
    "vmbus.ring.RingReader._parse": "tests/hostile/test_ring and test_ring_machine",
    "vmbus.server.offers.SavableDevice.load": "says what a device's own is like",
    "vmbus.server.saved_replay._Replay._decode": "`decode_message`, and a saved bus's own error: test_saving_bus",
    "vmbus.server.saved_replay._Replay._say": "`ServerState.handle`",
    "vmbus.server.service.VmbusServer._arrived": "`ServerState.handle`, later",
    "vmbus.server.service.VmbusServer._receive": "`ServerState.handle`",
    "vmbus.server.state.ServerState._dispatch": "of `handle`",
}

REACHED = {
    "hypervisor.crash": "hypervisor/test_crash.py",
    "hypervisor.hypercall.": "hypervisor/hypercall/test_hostile.py",
    "hypervisor.monitor": "hostile/test_monitor_pages.py",
    "vmbus.server.": "hostile/test_bus_machine.py",
}

ROWS = Rows(DECODERS, ELSEWHERE, REACHED)
