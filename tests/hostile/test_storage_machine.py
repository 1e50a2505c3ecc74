"""A storage controller at random: negotiation, commands, resets, disks that come and go, subchannels, limits.

The model is a bytearray for each disk and a list of what is under way. Every request is answered once, with the status
that the model says, or its channel has stopped; what was read is what the bytearray holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hypervisor.trace import Trace
from hypervisor.wire import WireError
from tests.doubles.campaign import examples
from tests.doubles.stepper import Stepper
from tests.doubles.storage import INSTANCE, PlainPlatform, SlowBackend, channel_pair, opened_channel
from tests.doubles.storage_guest import HANDSHAKE, command, control, srb
from vmbus.channel import Channel
from vmbus.ring import Packet, PacketType
from vsp_vsc.storage import controller, vsp
from vsp_vsc.storage.protocol import (
    HEADER_SIZE,
    VERSIONS,
    NtStatus,
    Operation,
    PacketHeader,
    ProtocolVersion,
    SrbStatus,
    SrbWin7,
    SubChannelCount,
    Version,
)
from vsp_vsc.storage.scsi.cdb import Direction, read_cdb, write_cdb
from vsp_vsc.storage.scsi.sense import Reason, SenseKey, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget
from vsp_vsc.storage.vsp import StorageVsp

BLOCKS = 64
AT_DISK, AT_CHANNEL, SUBCHANNELS = 3, 5, 2
SENTINEL = b"\xa5" * 4096
MEMORY = 2 << 20
PICK = st.integers(0, 7)
LUNS = st.integers(0, 3)
SELDOM = st.sampled_from([False] * 9 + [True])
FATAL_OPERATIONS = (0, 1, 2, 11, 14, 1 << 31)


@attrs.define(eq=False)
class Disk:
    """A disk as it should be."""

    lun: int
    backend: SlowBackend
    target: ScsiTarget
    data: bytearray
    attentions: list[Reason] = attrs.field(factory=list)
    jobs: list[Request] = attrs.field(factory=list)
    """In the order in which the backend does them."""
    stale: set[Request] = attrs.field(factory=set)
    resets: list[Request] = attrs.field(factory=list)

    def attend(self, reason: Reason) -> None:
        if reason.is_reset:
            self.attentions = [reason]
        elif reason not in self.attentions:
            self.attentions.append(reason)


@attrs.define(eq=False)
class Request:
    """What the guest has asked for and was not answered."""

    number: int
    packet: Packet
    what: str
    """read, write, look (TEST UNIT READY), unknown, invalid, control, reset."""
    lun: int = 0
    lba: int = 0
    blocks: int = 0
    page: int = 0
    data: bytes = b""
    operation: int = 0
    argument: int = 0
    aborted: bool = False
    at_once: bool = False
    """Would be too many if it had to wait, which it need not: the host may look for data first."""
    waits_for: set[Disk] = attrs.field(factory=set)


@attrs.define(eq=False)
class Line:
    """One channel, and what is on its way."""

    index: int
    guest_end: Channel
    scope: trio.CancelScope
    inbox: list[Packet] = attrs.field(factory=list)
    stopped: list[WireError] = attrs.field(factory=list)
    backlog: list[Request] = attrs.field(factory=list)
    """Sent, and not taken by the host."""
    under_way: set[Request] = attrs.field(factory=set)
    dead: bool = False


class Bench:
    """What runs in Trio's thread."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.platform = PlainPlatform(MEMORY)
        self.offered = 0
        self.vsp = StorageVsp({}, INSTANCE, Trace(lambda: 0), 7, max_sub_channels=SUBCHANNELS)

    def open(self, index: int) -> Line:
        host_end, guest_end = channel_pair()
        line = Line(index, guest_end, trio.CancelScope())
        opened = opened_channel(self.platform.guest, 5 + index, index, self.offer)

        async def serve() -> None:
            try:
                with line.scope:
                    await self.vsp.serve(host_end, opened)
            except WireError as fault:
                line.stopped.append(fault)

        async def collect() -> None:
            while True:
                line.inbox += await guest_end.receive_batch()

        self.nursery.start_soon(serve)
        self.nursery.start_soon(collect)
        return line

    def offer(self, count: int) -> None:
        self.offered = count

    def remove(self, lun: int) -> None:
        self.nursery.start_soon(self.vsp.remove_disk, lun)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        made = Bench(nursery)
        yield made
        nursery.cancel_scope.cancel()


class StorageMachine(RuleBasedStateMachine):
    """A guest that knows all about the controller, its host, and their model."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(controller, "MAX_AT_DISK", AT_DISK)
        self.patch.setattr(vsp, "MAX_AT_CHANNEL", AT_CHANNEL)
        self.stepper = Stepper(bench)
        self.bench = self.stepper.made
        self.disks: dict[int, Disk] = {}
        self.leaving: list[Disk] = []
        self.lines: list[Line] = []
        self.ended: list[Line] = []
        """Subchannels that the bus has closed."""
        self.forgotten = False
        self.numbers = 0
        self.disks_made = 0
        self.due: list[tuple[Line, Request, object]] = []
        """Answers of this step: a status, or a reason of SCSI's."""
        self.news = 0
        """ENUMERATE_BUS, likewise."""
        self.state = self.version = self.asked = 0
        self.pages = list(range(1, 200))

    @property
    def ready(self) -> bool:
        return self.state == len(HANDSHAKE)

    # --- the model

    def answer(self, line: Line, request: Request, status: object) -> None:
        self.due.append((line, request, status))

    def take(self, line: Line, request: Request) -> None:
        """The host looks at a request."""
        operation = request.operation
        if not request.packet.flags or operation in FATAL_OPERATIONS or request.what == "fatal":
            line.dead = True
        elif operation in (3, 4, 5, 6) and self.ready:
            if operation == Operation.EXECUTE_SRB:
                self.take_srb(line, request)
            else:
                self.take_reset(line, request)
        else:
            self.answer(line, request, self.negotiate(line, request))

    def negotiate(self, line: Line, request: Request) -> NtStatus:
        if request.operation == Operation.CREATE_SUB_CHANNELS and self.state >= 3 and line.index == 0:
            if not self.ready and (self.version < Version.WIN8 or self.asked):
                return NtStatus.INVALID_DEVICE_STATE
            most = SUBCHANNELS if self.version >= Version.WIN8 else 0
            if request.argument > most:
                return NtStatus.INVALID_PARAMETER
            self.asked = max(self.asked, request.argument)
            return NtStatus.SUCCESS
        if request.operation == Operation.FCHBA_DATA and self.state == 3:
            return NtStatus.SUCCESS
        if self.ready or request.operation != HANDSHAKE[self.state]:
            return NtStatus.INVALID_DEVICE_STATE
        if request.operation == Operation.QUERY_PROTOCOL_VERSION:
            if request.argument not in VERSIONS:
                return NtStatus.REVISION_MISMATCH
            self.version = request.argument
        self.state += 1
        return NtStatus.SUCCESS

    def take_srb(self, line: Line, request: Request) -> None:
        disk = self.disks.get(request.lun)
        if request.what == "invalid":
            self.answer(line, request, SrbStatus.INVALID_REQUEST)
        elif disk is None:
            self.answer(line, request, SrbStatus.INVALID_LUN)
        elif len(disk.jobs) >= AT_DISK:
            self.answer(line, request, SrbStatus.BUSY)
            if request.what == "read" and disk.backend.cached and not disk.attentions:
                self.carry_out(disk, request)
                request.at_once = True
        elif disk.attentions:
            self.answer(line, request, disk.attentions.pop(0))
        elif request.what == "look":
            self.answer(line, request, SrbStatus.SUCCESS)
        elif request.what == "unknown":
            self.answer(line, request, Reason.INVALID_OPCODE)
        elif (request.lba + request.blocks) * 512 > len(disk.data):
            self.answer(line, request, Reason.LBA_OUT_OF_RANGE)
        elif request.what == "read" and disk.backend.cached:
            self.carry_out(disk, request)
            self.answer(line, request, SrbStatus.SUCCESS)
        else:
            disk.jobs.append(request)
            line.under_way.add(request)

    def take_reset(self, line: Line, request: Request) -> None:
        disks, reason = list(self.disks.values()), Reason.BUS_RESET
        if request.operation == Operation.RESET_LUN:
            if request.lun not in self.disks:
                self.answer(line, request, NtStatus.DEVICE_DOES_NOT_EXIST)
                return
            disks, reason = [self.disks[request.lun]], Reason.DEVICE_RESET
        for disk in disks:
            disk.stale = set(disk.jobs)
            for job in disk.jobs:
                job.aborted = True
            disk.attend(reason)
            if disk.stale:
                disk.resets.append(request)
                request.waits_for.add(disk)
        line.under_way.add(request)
        if not request.waits_for:
            self.end(request, NtStatus.SUCCESS)

    def carry_out(self, disk: Disk, request: Request) -> None:
        at, size = request.lba * 512, request.blocks * 512
        if request.what == "write":
            disk.data[at : at + size] = request.data
        else:
            request.data = bytes(disk.data[at : at + size])

    def finish_job(self, disk: Disk) -> None:
        request = disk.jobs.pop(0)
        self.carry_out(disk, request)
        self.end(request, SrbStatus.BUS_RESET if request.aborted else SrbStatus.SUCCESS)
        if request in disk.stale:
            disk.stale.discard(request)
            if not disk.stale:
                waiting, disk.resets = disk.resets, []
                for reset in waiting:
                    reset.waits_for.discard(disk)
                    if not reset.waits_for:
                        self.end(reset, NtStatus.SUCCESS)

    def end(self, request: Request, status: object) -> None:
        for line in self.lines:
            if request in line.under_way:
                line.under_way.discard(request)
                self.answer(line, request, status)

    def host_works(self) -> None:
        """Each channel takes what waits in its ring, unless too much of it is under way."""
        for line in self.lines:
            while (
                line.backlog and not line.dead and len(line.under_way) < AT_CHANNEL and (line.index == 0 or self.ready)
            ):
                batch, line.backlog = line.backlog, []
                for request in batch:
                    if not line.dead:
                        self.take(line, request)

    # --- a step

    def act(self, function: Callable[[], object]) -> None:
        """Do it, and compare answers with the model's."""
        self.stepper.step(function)
        self.host_works()
        due, self.due = self.due, []
        news, self.news = self.news, 0
        for line in self.lines:
            inbox = line.inbox[:]
            line.inbox.clear()
            at_work = any(request in disk.jobs for request in line.under_way for disk in self.all_disks)
            assert bool(line.stopped) == (line.dead and not at_work), "it stops when its pages are let go"
            told = [packet for packet in inbox if packet.type == PacketType.INBAND]
            assert [PacketHeader.decode(packet.body).operation for packet in told] == [Operation.ENUMERATE_BUS] * (
                news if line.index == 0 and not line.dead else 0
            )
            answers = {packet.transaction_id: packet for packet in inbox if packet.type == PacketType.COMPLETION}
            expected = {request.number: (request, status) for of, request, status in due if of is line}
            assert len(answers) + len(told) == len(inbox), "something was answered twice"
            if line.dead:
                assert answers.keys() <= expected.keys()
            else:
                assert answers.keys() == expected.keys()
            for number, packet in answers.items():
                self.compare(packet, *expected[number])
        if self.lines and self.lines[0].dead:
            self.primary_has_stopped()

    def primary_has_stopped(self) -> None:
        """The bus closes the subchannels, and the disks forget their guest once nothing of the primary is under way."""
        subs, self.lines = self.lines[1:], self.lines[:1]
        self.ended += subs
        if subs:
            self.stepper.step(lambda: [line.scope.cancel() for line in subs])
        if not self.forgotten and not any(
            request in disk.jobs for request in self.lines[0].under_way for disk in self.all_disks
        ):
            self.forgotten = True
            for disk in self.all_disks:
                disk.attentions.clear()

    @property
    def all_disks(self) -> list[Disk]:
        return [*self.disks.values(), *self.leaving]

    def compare(self, packet: Packet, request: Request, status: object) -> None:
        header = PacketHeader.decode(packet.body)
        assert header.operation == Operation.COMPLETE_IO
        assert len(packet.body) == min(len(request.packet.payload), 64)
        if isinstance(status, NtStatus):
            assert header.status == status
        else:
            done = SrbWin7.decode(packet.body, HEADER_SIZE)
            if request.at_once and done.srb_status == SrbStatus.SUCCESS:
                status = SrbStatus.SUCCESS
            if isinstance(status, Reason):
                illegal = status.key is SenseKey.ILLEGAL_REQUEST
                assert done.srb_status & 0x3F == (SrbStatus.INVALID_REQUEST if illegal else SrbStatus.ERROR)
                told = decode_sense(done.cdb_or_sense)
                assert (told.key, told.asc, told.ascq) == status.value[:3]
            else:
                assert done.srb_status & 0x3F == status
                moved = request.blocks * 512 if status == SrbStatus.SUCCESS else 0
                assert done.data_transfer_length == moved
        if request.page:
            page = bytes(self.bench.platform.memory[request.page << 12 : (request.page + 1) << 12])
            if request.what == "write":
                assert page.startswith(request.data)
            elif status == SrbStatus.SUCCESS:
                assert page == request.data + SENTINEL[len(request.data) :]
            elif status != SrbStatus.BUS_RESET:
                assert page == SENTINEL
            self.pages.append(request.page)

    def send(self, line: Line, *requests: Request) -> None:
        if line.dead:
            return
        line.backlog += requests
        self.act(lambda: line.guest_end.try_send_batch([request.packet for request in requests]))

    def pick_line(self, pick: int) -> Line:
        return self.lines[pick % len(self.lines)]

    # --- channels

    @initialize(
        version=st.sampled_from(VERSIONS), negotiated=st.sampled_from([True, True, True, False]), cached=st.booleans()
    )
    def boot(self, version: int, negotiated: bool, cached: bool) -> None:
        self.lines = [self.stepper.step(lambda: self.bench.open(0))]
        self.add_disk(0, False)
        self.add_disk(1, cached)
        if negotiated:
            self.negotiate_all(version)
        # What the disks have to say of their coming, before there was a guest, is heard first.
        self.look_at_all()

    def look_at_all(self) -> None:
        while self.ready and (telling := [disk for disk in self.disks.values() if disk.attentions]):
            self.look(0, telling[0].lun)

    def negotiate_all(self, version: int) -> None:
        for operation in HANDSHAKE:
            self.control(0, operation, version, 0)

    @rule(
        pick=PICK,
        operation=st.sampled_from([7, 8, 9, 10, 12, 13, 13]),
        version=st.sampled_from([*VERSIONS, 0x0601, 0]),
        count=st.sampled_from([0, 1, 2, 3, 0xFFFF]),
    )
    def control(self, pick: int, operation: int, version: int, count: int) -> None:
        argument, body = 0, b""
        if operation == Operation.QUERY_PROTOCOL_VERSION:
            argument, body = version, ProtocolVersion(version).encode()
        elif operation == Operation.CREATE_SUB_CHANNELS:
            argument, body = count, SubChannelCount(count).encode()
        self.numbers += 1
        packet = control(operation, body, transaction_id=self.numbers)
        self.send(
            self.pick_line(pick), Request(self.numbers, packet, "control", operation=operation, argument=argument)
        )

    @precondition(lambda self: not self.ready)
    @rule(version=st.sampled_from(VERSIONS))
    def go_on_negotiating(self, version: int) -> None:
        self.control(0, HANDSHAKE[self.state], version, 0)

    @precondition(lambda self: len(self.lines) <= self.asked and not self.lines[0].dead)
    @rule()
    def open_subchannel(self) -> None:
        assert self.bench.offered == self.asked
        index = len(self.lines)
        self.lines.append(self.stepper.step(lambda: self.bench.open(index)))

    @rule(pick=PICK, kind=st.sampled_from(["flags", "operation", "short", "type", "range"]), which=PICK, now=SELDOM)
    def fatal(self, pick: int, kind: str, which: int, now: bool) -> None:
        """What stops a channel."""
        if not now:
            return
        self.numbers += 1
        operation = FATAL_OPERATIONS[which % len(FATAL_OPERATIONS)]
        packet = control(7, transaction_id=self.numbers)
        if kind == "flags":
            packet = control(7, transaction_id=self.numbers, flags=0)
        elif kind == "operation":
            packet = control(operation, transaction_id=self.numbers)
        elif kind == "short":
            packet = control(7, transaction_id=self.numbers, size=8)
        elif kind == "type":
            packet = Packet(PacketType.COMPLETION, 1, self.numbers, 0, packet.body)
        elif self.ready:
            packet = self.command_packet(read_cdb(0, 1), 0, [1], 512, ranges=2)
        else:
            return
        self.send(self.pick_line(pick), Request(self.numbers, packet, "fatal"))

    @precondition(lambda self: any(line.dead for line in self.lines))
    @rule(version=st.sampled_from(VERSIONS))
    def open_again(self, version: int) -> None:
        self.close_and_open(version)

    @rule(version=st.sampled_from(VERSIONS), now=SELDOM)
    def close_and_open_again(self, version: int, now: bool) -> None:
        if now:
            self.close_and_open(version)

    def close_and_open(self, version: int) -> None:
        """The bus closes all channels, the subchannels first; what was not answered never is."""
        lines, self.lines, self.ended = [*self.lines, *self.ended], [], []
        disks = self.all_disks

        def close() -> None:
            for line in reversed(lines):
                line.scope.cancel()
            for disk in disks:
                disk.backend.finish()

        for disk in disks:
            while disk.jobs:
                self.finish_job(disk)
            if not self.forgotten:
                disk.attentions.clear()
        self.forgotten = False
        self.stepper.step(close)
        self.due.clear()
        for line in lines:
            self.pages += [request.page for request in (*line.backlog, *line.under_way) if request.page]
        self.leaving.clear()
        self.state = self.version = self.asked = 0
        assert self.bench.vsp.statistics().channels == 0
        self.lines = [self.stepper.step(lambda: self.bench.open(0))]
        self.negotiate_all(version)

    # --- commands

    def command_packet(self, cdb: bytes, lun: int, pages: list[int], length: int, **fields: int) -> Packet:
        version = self.version or Version.WIN10
        return command(cdb, pages, length, transaction_id=self.numbers, version=version, lun=lun, **fields)

    def make(self, what: str, lun: int, lba: int, blocks: int, **fields: int) -> Request:
        self.numbers += 1
        if what in ("look", "unknown"):
            packet = self.command_packet(b"\xff" * 16 if what == "unknown" else bytes(6), lun, [], 0, **fields)
            return Request(self.numbers, packet, what, lun, operation=3)
        page = self.pages.pop(0)
        data, cdb, direction = SENTINEL, read_cdb(lba, blocks), Direction.IN
        if what == "write":
            data, cdb, direction = (
                self.numbers.to_bytes(4, "little") * (128 * blocks),
                write_cdb(lba, blocks),
                Direction.OUT,
            )
        self.bench.platform.memory[page << 12 : (page << 12) + len(data)] = data
        packet = self.command_packet(cdb, lun, [page], 512 * blocks, data_in=direction, **fields)
        written = data if what == "write" else b""
        return Request(self.numbers, packet, what, lun, lba, blocks, page, written, operation=3)

    @rule(
        pick=PICK,
        whats=st.lists(st.sampled_from(["read", "read", "write", "write", "look", "unknown"]), min_size=1, max_size=4),
        lun=LUNS,
        lba=st.integers(0, BLOCKS) | st.sampled_from([2 * BLOCKS, 0xFFFF_FFF0]),
        blocks=st.integers(1, 8),
    )
    def commands(self, pick: int, whats: list[str], lun: int, lba: int, blocks: int) -> None:
        line = self.pick_line(pick)
        if len(self.pages) > 10 and not line.dead:
            self.send(line, *(self.make(what, lun, lba, blocks) for what in whats))

    @rule(pick=PICK, lun=LUNS)
    def look(self, pick: int, lun: int) -> None:
        line = self.pick_line(pick)
        if not line.dead:
            self.send(line, self.make("look", lun, 0, 0))

    @precondition(lambda self: self.ready)
    @rule(pick=PICK, kind=st.sampled_from(["cdb", "sense", "direction", "page"]), lun=LUNS)
    def invalid_command(self, pick: int, kind: str, lun: int) -> None:
        """Wrong in one place: refused, and nothing else."""
        self.numbers += 1
        pages, fields = [1], {}
        if kind == "cdb":
            fields = {"cdb_length": 17}
        elif kind == "sense":
            fields = {"sense_length": 21}
        elif kind == "direction":
            fields = {"data_in": int(Direction.OUT)}
        else:
            pages = [MEMORY >> 12]
        packet = self.command_packet(read_cdb(0, 1), lun, pages, 512, **fields)
        self.send(self.pick_line(pick), Request(self.numbers, packet, "invalid", lun, operation=3))

    @rule(pick=PICK, operation=st.sampled_from([4, 4, 5, 6]), lun=LUNS)
    def reset(self, pick: int, operation: int, lun: int) -> None:
        self.numbers += 1
        body = srb(bytes(6), version=self.version or Version.WIN10, lun=lun)[HEADER_SIZE:]
        packet = control(operation, body, transaction_id=self.numbers)
        self.send(self.pick_line(pick), Request(self.numbers, packet, "reset", lun, operation=operation))

    # --- the host

    @precondition(lambda self: any(disk.jobs for disk in self.all_disks))
    @rule(pick=PICK, count=st.sampled_from([1, 1, 2, 3]))
    def backend_finishes(self, pick: int, count: int) -> None:
        busy = [disk for disk in self.all_disks if disk.jobs]
        disk = busy[pick % len(busy)]
        assert len(disk.backend.jobs) == len(disk.jobs)
        for _ in range(min(count, len(disk.jobs))):
            self.finish_job(disk)
        self.act(lambda: disk.backend.finish(count))

    @rule(lun=LUNS, cached=st.booleans())
    def add_disk(self, lun: int, cached: bool) -> None:
        if lun in self.disks:
            return
        self.disks_made += 1
        data = bytes([self.disks_made & 0xFF]) * (BLOCKS * 512)
        backend = SlowBackend(data, cached=cached)
        target = ScsiTarget(backend, identity=f"disk {self.disks_made}")
        disk = Disk(lun, backend, target, bytearray(data), [Reason.POWER_ON_OR_RESET])
        self.inventory_changed()
        self.disks[lun] = disk
        self.act(lambda: self.bench.vsp.add_disk(lun, target))

    @rule(lun=LUNS, now=SELDOM | st.booleans())
    def remove_disk(self, lun: int, now: bool) -> None:
        if now and lun in self.disks:
            disk = self.disks.pop(lun)
            self.leaving.append(disk)
            self.inventory_changed()
            self.act(lambda: self.bench.remove(lun))

    @rule(lun=LUNS)
    def disk_grows(self, lun: int) -> None:
        disk = self.disks.get(lun)
        if disk is None or len(disk.data) > BLOCKS * 1024:
            return
        disk.data += bytes(16 * 512)
        disk.attend(Reason.CAPACITY_CHANGED)
        self.announce()

        def grow() -> None:
            disk.backend.resize(len(disk.data))
            disk.target.resized()
            self.bench.vsp.disk_changed()

        self.act(grow)

    def inventory_changed(self) -> None:
        for disk in self.disks.values():
            disk.attend(Reason.REPORTED_LUNS_DATA_HAS_CHANGED)
        self.announce()

    def announce(self) -> None:
        if self.ready and self.version >= Version.WIN7 and self.lines and not self.lines[0].dead:
            self.news += 1

    # --- what holds

    @invariant()
    def what_is_under_way_is_bounded_and_known(self) -> None:
        at_disks = sum(len(disk.jobs) for disk in self.all_disks)
        if not any(line.dead for line in self.lines):
            assert self.bench.vsp.statistics().in_flight == at_disks
        assert all(len(disk.jobs) <= AT_DISK for disk in self.disks.values())
        assert set(self.bench.vsp.disks) == set(self.disks)
        for disk in self.all_disks:
            assert disk.backend.data == disk.data

    def teardown(self) -> None:
        """However it went, a new opening is served."""
        try:
            if self.lines:
                self.close_and_open(Version.WIN10)
                for lun in list(self.disks):
                    self.look(0, lun)
                assert self.bench.vsp.statistics().in_flight == 0
        finally:
            self.stepper.close()
            self.patch.undo()


TestStorageMachine = StorageMachine.TestCase
TestStorageMachine.settings = settings(max_examples=examples(25), stateful_step_count=40, deadline=None)
