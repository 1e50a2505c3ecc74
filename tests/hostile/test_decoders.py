"""Every decoder of a peer's bytes, found by itself: any bytes give a value, or the error that its docstring names.

`found` reads the packages' source: a function is a decoder if it takes `untrusted` bytes, if its name says so, or if
it walks with a `Cursor`. Each has a row in `DECODERS` or a reason in `ELSEWHERE`; a new one without either fails here.
Layouts need no row: all `@wire` classes are tried.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import functools
import importlib
import io
import pkgutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hypervisor
import vmbus
import vsp_vsc
from hypervisor.hypercall import abi
from hypervisor.monitor_page import MonitorPage
from hypervisor.saved_state import stream
from hypervisor.saved_state.records import EndRecord, RecordHeader, StreamHeader
from hypervisor.wire import Wire, WireError
from partitions.boundary import protocol as boundary
from partitions.root import saving_file
from tests.doubles.campaign import examples
from tests.doubles.storage import PlainPlatform
from vmbus import gpadl, pipe
from vmbus.interrupt_page import InterruptPage
from vmbus.protocol import messages, table
from vmbus.protocol.features import Feature
from vmbus.protocol.versions import IMPLEMENTED
from vmbus.ring import Packet, PacketType
from vmbus.server.saved import CannotRestore
from vmbus.server.state import ServerState
from vsp_vsc.integration import protocol as integration
from vsp_vsc.integration.heartbeat.vsc import HeartbeatDriver
from vsp_vsc.integration.kvp import protocol as kvp
from vsp_vsc.integration.kvp.vsc import KvpDriver
from vsp_vsc.integration.protocol import Component
from vsp_vsc.integration.responder import Responder
from vsp_vsc.integration.session import Session
from vsp_vsc.integration.shutdown import protocol as shutdown
from vsp_vsc.integration.shutdown.vsc import ShutdownDriver
from vsp_vsc.integration.time_sync.protocol import SyncFlags, TimeMessage, TimeReference, file_time
from vsp_vsc.integration.time_sync.vsc import TimeSyncDriver
from vsp_vsc.storage import saved
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.negotiation import Negotiation
from vsp_vsc.storage.scsi import modes, primary, provisioning, sense
from vsp_vsc.storage.scsi.answer import Refused, ScsiResult
from vsp_vsc.storage.scsi.target import ScsiTarget

ROOT = Path(hypervisor.__file__).parent.parent
PACKAGES = (hypervisor, vmbus, vsp_vsc)
SAYS_SO = ("decode", "parse", "unframe", "unpack")


# --- which there are


@functools.cache
def found() -> frozenset[str]:
    """Decoders by module and name."""
    names: set[str] = set()
    folders = [ROOT / package.__name__ for package in PACKAGES] + [
        ROOT / "partitions" / "root",
        ROOT / "partitions/boundary",
    ]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names |= {f"{module}.{name}" for name in decoders_in(ast.parse(path.read_text()))}
    return frozenset(names)


def decoders_in(node: ast.AST, outer: str = "") -> Iterator[str]:
    """Decoders in a piece of source."""
    for child in ast.iter_child_nodes(node):
        name = outer
        if isinstance(child, ast.ClassDef):
            name = f"{outer}{child.name}."
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and is_decoder(child):
            yield outer + child.name
        yield from decoders_in(child, name)


def is_decoder(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    takes = any(
        argument.arg.startswith("untrusted") and argument.annotation and "bytes" in ast.unparse(argument.annotation)
        for argument in arguments
    )
    walks = any(isinstance(node, ast.Name) and node.id == "Cursor" for node in ast.walk(function))
    return takes or walks or function.name.lstrip("_").startswith(SAYS_SO)


def layouts() -> list[type[Wire]]:
    """All `@wire` classes."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    todo, classes = [Wire], []
    while todo:
        kinds = todo.pop().__subclasses__()
        todo += kinds
        classes += [kind for kind in kinds if kind.SIZE and kind.__module__.split(".")[0] != "tests"]
    return sorted(set(classes), key=lambda kind: (kind.__module__, kind.__qualname__))


# --- how each is tried


@attrs.frozen
class Decoder:
    """One row."""

    take: Callable[[bytes, int], object]
    """Gets the bytes, and a number for whatever else there is to choose."""
    seeds: tuple[bytes, ...] = ()
    """Good ones; what is tried is near to them, or nowhere near."""
    errors: type[Exception] = WireError


def handshake(component: Component) -> bytes:
    """A host's offer of versions."""
    body = integration.encode_negotiate(integration.FRAMEWORK_VERSIONS, integration.VERSIONS[component])
    return integration.encode_message(Component.NEGOTIATE, body, transaction_id=1)


def answered(component: Component) -> bytes:
    """A guest's choice."""
    framework, version = integration.FRAMEWORK_VERSIONS[0], integration.VERSIONS[component][0]
    body = integration.encode_negotiate([framework], [version])
    return integration.encode_message(Component.NEGOTIATE, body, transaction_id=0, flags=integration.RESPONSE)


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
    assembly = gpadl.GpadlAssembly(messages.GpadlHeader(byte_length=number & 0xFFFF, range_count=number >> 16 & 7))
    for at in range(0, max(len(data), 1), 56):
        if assembly.add(data[at : at + 56]):
            return assembly.ranges()
    return None


def packet_of(data: bytes, number: int) -> Packet:
    """As a ring reader hands it out."""
    body = data[: len(data) & ~7]
    offset = number % (len(body) // 8 + 1) * 8
    return Packet(PacketType.INBAND, 0, number, offset if number & 1 << 20 else 0, body)


def take_in_session(data: bytes, number: int) -> object:
    component = list(integration.VERSIONS)[number % len(integration.VERSIONS)]
    session = Session(component)
    session.negotiate()
    if number & 1 << 20:
        session.take(answered(component))
        session.ask(b"")
    return session.take(data)


def answer_host(data: bytes, number: int) -> object:
    return Responder(Component.KVP, KvpDriver().answer).take(data)


def stateless(function: Callable[[bytes], object]) -> Callable[[bytes, int], object]:
    return lambda data, number: function(data)


@functools.cache
def disk() -> ScsiTarget:
    return ScsiTarget(MemoryBackend(1 << 20))


def command(data: bytes, number: int) -> object:
    """Any CDB, and any parameter data in its buffer."""
    cdb, rest = data[:16].ljust(16, b"\0"), bytearray(data[16:])
    nexus, ended = disk().connect("guest"), list[ScsiResult]()
    result = nexus.start(cdb, (memoryview(rest),), len(rest), "tag", lambda _tag, late: ended.append(late))
    assert (result is None) == bool(ended)
    nexus.close()
    return result


def negotiate(data: bytes, number: int) -> object:
    """Whatever a guest's control packet says, in any state."""
    negotiation = Negotiation(4)
    for operation, body in ((7, b""), (9, struct.pack("<HH", 0x602, 0)), (10, b""), (8, b""))[: number % 5]:
        negotiation.control(operation, bytes(12) + body.ljust(52, b"\0"))
    return negotiation.control(number >> 8 & 15, data)


def file_of(data: bytes, number: int) -> object:
    return saving_file.decode_file(io.BytesIO(data))


def a_file() -> bytes:
    """The beginning of a saved VM."""
    bare = saving_file.FileHeader(saving_file.MAGIC, saving_file.VERSION, 0).encode()[:12]
    return bare + zlib.crc32(bare).to_bytes(4, "little")


def look_at_monitors(data: bytes, number: int) -> object:
    page = MonitorPage(memoryview(bytearray(data[:4096].ljust(4096, b"\xfe"))))
    groups = [(page.pending(group), page.latency(group), page.take_pending(group)) for group in range(4)]
    return groups, page.enabled_groups, page.parameter(number & 127)


KVP_ITEM = kvp.encode_item("key", "value")
STREAM = stream.seal(
    StreamHeader(stream.MAGIC, stream.VERSION, length=StreamHeader.SIZE + RecordHeader.SIZE + EndRecord.SIZE)
).encode()
FIXED_SENSE, DESCRIPTOR_SENSE = bytes((0x70, 0, 5, 0, 0, 0, 0, 10)) + bytes(10), bytes((0x72, 5, 0x24, 0, 0, 0, 0, 8))

DECODERS = {
    "hypervisor.hypercall.abi.ControlWord.decode": Decoder(
        lambda data, number: abi.ControlWord.decode(int.from_bytes(data[:8], "little")),
        (bytes(8), b"\x0c\0\1\0\5\0\0\0"),
    ),
    "hypervisor.saved_state.stream.decode_header": Decoder(
        stateless(stream.decode_header), (STREAM,), stream.BadStream
    ),
    "hypervisor.saved_state.stream.decode": Decoder(
        stateless(stream.decode), (STREAM, STREAM + bytes(400)), stream.BadStream
    ),
    "vmbus.gpadl.GpadlAssembly.add": Decoder(add_tails, (struct.pack("<3Q", 8192, 1, 2), bytes(400))),
    "vmbus.gpadl.decode_ranges": Decoder(
        lambda data, number: gpadl.decode_ranges(data, number & 0xFFFF), (struct.pack("<3Q", 8192, 1, 2),)
    ),
    "vmbus.pipe.unframe": Decoder(
        lambda data, number: pipe.unframe(packet_of(data, number)), (pipe.frame(b"some words").body,)
    ),
    "vmbus.protocol.table.decode_message": Decoder(
        any_message, tuple(row.layout().encode().ljust(240, b"\0") for row in table.MESSAGES)
    ),
    "vsp_vsc.integration.heartbeat.vsc.HeartbeatDriver.answer": Decoder(
        lambda data, number: HeartbeatDriver().answer(data, integration.NO_VERSION), (bytes(40),)
    ),
    "vsp_vsc.integration.kvp.protocol.decode_item": Decoder(
        lambda data, number: kvp.decode_item(data, number % 8), (KVP_ITEM, bytes(4) + KVP_ITEM)
    ),
    "vsp_vsc.integration.kvp.protocol.decode_text": Decoder(
        lambda data, number: kvp.decode_text(data, number & 0x3FF), ("text".encode("utf-16-le"),)
    ),
    "vsp_vsc.integration.kvp.protocol.decode_value": Decoder(
        lambda data, number: kvp.decode_value(number & 15, data, number >> 8 & 0x1FF), (bytes(2048),)
    ),
    "vsp_vsc.integration.kvp.vsc.KvpDriver.answer": Decoder(
        lambda data, number: KvpDriver().answer(data, integration.NO_VERSION),
        tuple(kvp.encode_request(operation, kvp.Pool.GUEST, KVP_ITEM) for operation in kvp.Operation),
    ),
    "vsp_vsc.integration.protocol.decode_message": Decoder(
        stateless(integration.decode_message), (handshake(Component.KVP),)
    ),
    "vsp_vsc.integration.protocol.decode_offer": Decoder(
        stateless(integration.decode_offer), (handshake(Component.KVP)[20:], handshake(Component.SHUTDOWN)[20:])
    ),
    "vsp_vsc.integration.protocol.decode_choice": Decoder(
        lambda data, number: integration.decode_choice(
            data, integration.FRAMEWORK_VERSIONS, integration.VERSIONS[Component.KVP]
        ),
        (answered(Component.KVP)[20:],),
    ),
    "vsp_vsc.integration.responder.Responder.take": Decoder(answer_host, (handshake(Component.KVP),)),
    "vsp_vsc.integration.session.Session.load": Decoder(
        lambda data, number: Session.load(Component.KVP, data), (msgspec.msgpack.encode({"state": "ready"}),)
    ),
    "vsp_vsc.integration.session.Session.take": Decoder(
        take_in_session, tuple(answered(component) for component in integration.VERSIONS)
    ),
    "vsp_vsc.integration.shutdown.protocol.decode_text": Decoder(
        stateless(shutdown.decode_text), (shutdown.encode_text("because"),)
    ),
    "vsp_vsc.integration.shutdown.vsc.ShutdownDriver.answer": Decoder(
        lambda data, number: ShutdownDriver().answer(data, integration.NO_VERSION), (bytes(3000),)
    ),
    "vsp_vsc.storage.saved.decode_session": Decoder(
        stateless(saved.decode_session), (saved.encode_session(Negotiation(), [Packet(11, 0, 5, 0, bytes(64))]),)
    ),
    "vsp_vsc.storage.scsi.modes.ModePages.select": Decoder(
        lambda data, number: modes.ModePages().select(data, number & 15),
        tuple(page.defaults for page in modes.PAGES.values()),
        Refused,
    ),
    "vsp_vsc.storage.scsi.primary._says_the_same": Decoder(
        lambda data, number: primary._says_the_same(data, bytes(8 if number & 1 else 16)), (bytes(8), bytes(16))
    ),
    "vsp_vsc.storage.scsi.provisioning._unmap_ranges": Decoder(
        lambda data, number: provisioning._unmap_ranges(disk(), data),
        (struct.pack(">HH4xQI4x", 22, 16, 4, 8), struct.pack(">HH4x", 6, 0)),
        Refused,
    ),
    "vsp_vsc.storage.scsi.sense.decode_sense": Decoder(
        stateless(sense.decode_sense), (FIXED_SENSE, DESCRIPTOR_SENSE + bytes(12))
    ),
    # What the rule of names does not find, and what stands for those that it does.
    "vmbus.server.state.ServerState.handle": Decoder(
        bus, tuple(row.layout().encode().ljust(240, b"\0") for row in table.MESSAGES)
    ),
    "vsp_vsc.storage.negotiation.Negotiation.control": Decoder(negotiate, (bytes(64),)),
    "Nexus.start": Decoder(
        command,
        (
            *(bytes((code,)).ljust(40, b"\0") for code in (0x12, 0x15, 0x1A, 0x28, 0x2A, 0x41, 0x55, 0x5E, 0x5F)),
            struct.pack(">B6xHx6x", 0x42, 24) + struct.pack(">HH4xQI4x", 22, 16, 4, 8),
        ),
    ),
    "MonitorPage": Decoder(look_at_monitors, (bytes(64),)),
    "InterruptPage.take": Decoder(
        lambda data, number: InterruptPage(memoryview(bytearray(data[:4096].ljust(4096, b"\xff"))), host=True).take(),
        (bytes(4096),),
    ),
    "partitions.boundary.protocol.decode": Decoder(
        stateless(boundary.decode), (b'{"op":"settle","id":1}', b'{"op":"hypercall","id":2,"vp":0}'), boundary.BadLine
    ),
    "partitions.root.saving_file.decode_file": Decoder(file_of, (a_file(), a_file() + bytes(200)), CannotRestore),
}

ELSEWHERE = {
    "hypervisor.hypercall.call.Call._unpack": "hands out a layout's struct; whole calls: test_hostile",
    "hypervisor.hypercall.saving._take": "copies a slice; the stream: here and test_stream",
    "hypervisor.saved_state.stream._decode": "the part of `decode` behind the header; sealed streams: test_stream",
    "hypervisor.wire.codec.Wire.decode": "all layouts: `test_every_layout`",
    "partitions.boundary.driver.Session.handle": "tests/hostile/test_boundary_sessions",
    "vsp_vsc.network.guest_control.RndisControl.heard": "any bytes: test_guest_frames, test_guest_channel",
    "vsp_vsc.network.guest_frames._with_tag": "any bytes: test_guest_frames, test_guest_channel",
    "vsp_vsc.network.guest_parameters.decode_offload": "any bytes: test_guest_frames, test_guest_channel",
    "vsp_vsc.network.vsc.Network._heard": "any bytes: test_guest_frames, test_guest_channel",
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
    "vsp_vsc.integration.component.IntegrationVsp._take": "`Session.take`, and a word for the trace",
    "vsp_vsc.integration.component.IntegrationVsp.load": "`Session.load`",
    "vsp_vsc.integration.component.Link.take": "`Session.take`",
    "vsp_vsc.integration.time_sync.vsc.TimeSyncDriver.answer": "`test_the_date_that_a_host_sends`",
    "vsp_vsc.network.switch.acl.parse_end": "a person's words; any of them: tests/vsp_vsc/network/switch/test_words",
    "vsp_vsc.network.switch.addresses.parse_mac": "as above",
    "vsp_vsc.network.switch.settings.parse_vlans": "as above",
    "vsp_vsc.storage.scsi.modes.ModePages._select_one": "of `select`",
    "vsp_vsc.storage.scsi.sense._decode_descriptors": "of `decode_sense`",
    "vsp_vsc.storage.negotiation.Negotiation._before_the_end": "of `control`",
    "vsp_vsc.storage.negotiation.Negotiation._create_sub_channels": "of `control`",
    "vsp_vsc.storage.negotiation.Negotiation._query_version": "of `control`",
    "vsp_vsc.storage.negotiation.Negotiation._ready": "of `control`",
    "vsp_vsc.storage.session.StorageSession._reset": "whole packets: tests/hostile/test_storage",
    "vsp_vsc.storage.session.StorageSession._without_data": "whole packets: as above",
    "vsp_vsc.storage.vsp.StorageVsp.load": "`decode_session`",
}
"""Decoders without a row: why."""


REACHED = {
    "partitions.child.net.stack": "partitions/child/net/test_stack.py",
    "vsp_vsc.network.guest_channel": "vsp_vsc/network/test_guest_channel.py",
    "vsp_vsc.network.vsc": "vsp_vsc/network/test_guest_channel.py",
    "hypervisor.crash": "hypervisor/test_crash.py",
    "hypervisor.hypercall.": "hypervisor/hypercall/test_hostile.py",
    "hypervisor.monitor": "hostile/test_monitor_pages.py",
    "vmbus.server.": "hostile/test_bus_machine.py",
    "vsp_vsc.integration.": "pairs/test_integration_pair.py",
    "vsp_vsc.storage.": "hostile/test_storage_machine.py",
}
"""Modules with `untrusted` values and no decoder: by which test any values reach them."""


# --- what is tried


@st.composite
def near(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """Any bytes; or good ones cut off, gone on with, and with some of them changed."""
    if not seeds or draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        if data:
            at = draw(st.integers(0, min(len(data) - 1, 63)) | st.integers(0, len(data) - 1))
            data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    end = draw(st.just(len(data)) | st.integers(0, len(data)))
    return bytes(data[:end]) + draw(st.just(b"") | st.binary(max_size=64))


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_every_decoder(name: str) -> None:
    """A value, or the error that it names."""
    decoder = DECODERS[name]

    @settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(near(decoder.seeds), st.integers(0, (1 << 32) - 1))
    def attempt(data: bytes, number: int) -> None:
        with contextlib.suppress(decoder.errors):
            decoder.take(data, number)

    attempt()


@settings(max_examples=examples(10), deadline=None)
@given(st.binary(max_size=600), st.integers(0, 300))
def test_every_layout(data: bytes, offset: int) -> None:
    """A value that encodes to the bytes that it was read from but for padding, or `ShortMessage` and nothing else."""
    for layout in layouts():
        enough = offset + layout.SIZE <= len(data)
        try:
            value = layout.decode(data, offset)
        except WireError:
            assert not enough, layout
        else:
            assert enough, layout
            assert layout.decode(value.encode()) == value


@settings(max_examples=examples(25), deadline=None)
@given(near((TimeMessage(1, 2, 3, 1).encode(), bytes(64))), st.sampled_from(integration.VERSIONS[Component.TIME_SYNC]))
def test_the_date_that_a_host_sends(data: bytes, version: integration.Version) -> None:
    """A date or a `WireError`, however far away the date would be."""
    driver = TimeSyncDriver(PlainPlatform(1 << 14))  # type: ignore[arg-type]
    try:
        driver.answer(data, version)
    except WireError:
        return
    driver.now()


@pytest.mark.parametrize("reference", [0, 0x7F00_0000_0000_0000, (1 << 64) - 1])
def test_a_reference_time_that_does_not_go_with_its_date(reference: int) -> None:
    """Regression: a sound date at an absurd reference time made the guest's clock raise whenever it was asked."""
    driver = TimeSyncDriver(PlainPlatform(1 << 14))  # type: ignore[arg-type]
    last = file_time(datetime.datetime.max.replace(tzinfo=datetime.UTC))
    told = TimeReference(parent_time=last, reference_time=reference, flags=SyncFlags.SYNC)
    driver.answer(told.encode(), integration.VERSIONS[Component.TIME_SYNC][-1])
    date = driver.now()
    assert date is None or date.year > 0


# --- that none is forgotten


def test_no_decoder_is_forgotten() -> None:
    """Each that there is has a row or a reason, and neither outlives its decoder."""
    there = found()
    rows = {name for name in DECODERS if name.count(".") > 1}
    assert sorted(there - rows - ELSEWHERE.keys()) == [], "give it a row in DECODERS, or a reason in ELSEWHERE"
    assert sorted(rows | ELSEWHERE.keys()) == sorted(there)
    assert not rows & ELSEWHERE.keys()


def test_whoever_names_untrusted_values_is_looked_at() -> None:
    """A module that speaks of `untrusted` values has a decoder, or a test that reaches it is named here."""
    decoders = {part for name in found() for part in (name.rsplit(".", 1)[0], name.rsplit(".", 2)[0])}
    used: set[str] = set()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package.__name__).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        if any(name.startswith("untrusted") for name in names) and module not in decoders:
            reached = [start for start in REACHED if module.startswith(start)]
            assert reached, f"{module}: nobody tries to break it"
            used.update(reached)
    assert used == REACHED.keys()
    for test in REACHED.values():
        assert (ROOT / "tests" / test).exists(), test


def test_the_rule_finds_decoders() -> None:
    """And does not take others for some."""
    source = """
class Session:
    def take(self, untrusted: bytes) -> int: ...
    def send(self, data: bytes) -> int: ...
async def handle(untrusted_line: bytes | None): ...
def _parse_it(data): ...
def walk(data):
    return Cursor(data).u16()
def check(untrusted_flags: int): ...
"""
    assert set(decoders_in(ast.parse(source))) == {"Session.take", "handle", "_parse_it", "walk"}
    assert len(layouts()) > 100
