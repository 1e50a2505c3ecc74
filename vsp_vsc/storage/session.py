"""One opened channel of a controller: packets in, completions out, with no Trio in it. Root side.

`take` goes through a batch. Whatever can be answered at once is, with its data already in the guest's pages; the rest
is under way at a backend and is answered by `_finish` later. Completions gather in `outbox`.

Trust: a packet is a private copy, checked before use; of guest memory only the views of the data are handed on, to be
filled or written out, never read to decide anything. `protocol.py` says which mistakes are soft and which raise here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import attrs

from hypervisor.inspect import Branch, Hex, Many
from hypervisor.memory import GpaFault, GuestMemory
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Trace
from hypervisor.wire import BadValue, ShortMessage
from vmbus.ring import COMPLETION_REQUESTED, Packet, PacketType
from vsp_vsc.storage.controller import Controller, Unit, address
from vsp_vsc.storage.negotiation import GUEST_OPERATIONS, Negotiation, State
from vsp_vsc.storage.protocol import (
    CDB_SIZE,
    HEADER_SIZE,
    MAX_TRANSFER,
    NT_STATUS,
    PACKET_SIZE,
    SENSE_SIZE,
    SRB_AUTOSENSE_VALID,
    NtStatus,
    Operation,
    PacketHeader,
    Srb,
    SrbStatus,
    Version,
)
from vsp_vsc.storage.scsi.answer import TASK_ABORTED
from vsp_vsc.storage.scsi.cdb import DIRECTION, Direction, Opcode, ScsiStatus, describe_cdb
from vsp_vsc.storage.scsi.nexus import Nexus
from vsp_vsc.storage.scsi.sense import Reason, SenseKey, decode_sense, result_words
from vsp_vsc.storage.scsi.target import ScsiResult, absent_inquiry, report_luns

if TYPE_CHECKING:
    from collections.abc import Iterable

TURN_BYTES = 2 << 20
"""How much a guest's reads may copy before others get their turn: some 200 µs."""
_CACHED_COMPLETIONS = 1024
_COMPLETE, _INBAND, _GPA_DIRECT = int(PacketType.COMPLETION), int(PacketType.INBAND), int(PacketType.GPA_DIRECT)
_EXECUTE_SRB = int(Operation.EXECUTE_SRB)
_READ_10, _REPORT_LUNS, _INQUIRY = int(Opcode.READ_10), int(Opcode.REPORT_LUNS), int(Opcode.INQUIRY)
_IN, _UNSPECIFIED = int(Direction.IN), int(Direction.NONE)
_AT_TARGET = 0xFFFF
_RESETS = {Operation.RESET_LUN, Operation.RESET_ADAPTER, Operation.RESET_BUS}
_INTO_GUEST, _FROM_GUEST = Access.WRITE, Access.READ
_DIRECTIONS = tuple(DIRECTION[code] for code in range(256))
"""By operation code: the direction of the data if we know the command."""

# operation, SRB length, port with path, target and LUN as one word, CDB length, sense length, direction, bytes, CDB
_SRB = "I8xH2xIBBBxI16s"
_header = struct.Struct("<I").unpack_from
_inband_srb = struct.Struct("<" + _SRB).unpack_from


@lru_cache(maxsize=128)
def _gpa_direct_srb(pages: int) -> struct.Struct:
    """A GPA-direct packet's body with one range of so many pages, and the SRB behind it, as one layout."""
    return struct.Struct(f"<4xIII{pages}Q{_SRB}")


# A GPA-direct packet with one page and a READ(10): all that is not page number or block number, in three parts.
_one_page_read = struct.Struct("<16sQ30s4s10s").unpack_from
_ONE_PAGE = 24
_Form = tuple[Nexus, int, int, int, bytes]
"""Nexus, offset into the page, blocks, bytes and completion of reads that differ in page and block only."""
_KEPT_FORMS = 64


_COME_AGAIN = ScsiResult(ScsiStatus.TASK_SET_FULL)
"""Of a command that a gate has let go of without having it carried out."""

_Tag = tuple[Packet, Unit]
"""What a disk hands back with a result."""


@attrs.frozen
class _Wait:
    """A command that a backend takes its time for."""

    tag: _Tag
    began: int
    """On the host's clock."""
    cdb: bytes

    def inspect(self, now: int) -> Branch:
        """Which, and for how long."""
        packet, unit = self.tag
        age = (now - self.began) // 10
        return Branch({"transaction": Hex(packet.transaction_id), "lun": unit.lun, "age_us": age, "words": self.words})

    @property
    def words(self) -> str:
        """The command."""
        return describe_cdb(self.cdb)


@attrs.define
class Counters:
    """What a controller counts, over all openings of its channel."""

    requests: int = 0
    refused: int = 0
    """Requests that ended otherwise than well by the guest's fault, SCSI's own refusals apart."""
    batches: int = 0
    waited: int = 0
    """Commands that could not be answered at once."""
    turned_away: int = 0
    """Commands told to come again, since their disk had too many under way."""
    reset: int = 0
    """Commands that a reset ended."""


class StorageSession:
    """State and work of one open channel. Raises `WireError` from `take` where the channel must stop."""

    def __init__(
        self,
        controller: Controller,
        memory: GuestMemory,
        *,
        trace: Trace,
        partition_id: int,
        channel_id: int,
        counters: Counters,
        on_late: Callable[[], object],
        negotiation: Negotiation | None = None,
        on_ready: Callable[[], object] | None = None,
        offer_sub_channels: Callable[[int], object] | None = None,
    ) -> None:
        """`on_late` is called when the outbox has grown outside of `take`.

        `on_ready` is called when SRBs are taken, `offer_sub_channels` with how many there are to be: ValueError out of
        it means that there cannot be so many. Neither is needed on a subchannel, whose negotiation is ready.
        """
        self.negotiation = negotiation or Negotiation()
        self.outbox: list[Packet] = []
        self.in_flight = 0
        """Commands at a backend, whose views of guest memory are in use."""
        self.resets = 0
        """Resets that wait for commands, of any channel."""
        self._controller = controller
        self._units = controller.units
        self._memory = memory
        self._trace = trace
        self._partition_id = partition_id
        self._channel_id = channel_id
        self._counters = counters
        self._on_late = on_late
        self._on_ready = on_ready
        self._offer_sub_channels = offer_sub_channels
        self._ready = False
        self._srb_size = self._least = 0
        self._look_whether_ready()
        self._taking = False
        self._good: dict[int, bytes] = {}
        self._forms: dict[tuple[bytes, bytes, bytes, int], _Form] = {}
        self._waits: dict[int, _Wait] = {}
        """By the identity of their tags."""
        self._ended_at_once: _Tag | None = None

    @property
    def unanswered(self) -> int:
        """Packets that are under way or whose answers are not in the ring."""
        return self.in_flight + self.resets + len(self.outbox)

    def inspect(self) -> Branch:
        """How it stands with its guest, and what it has under way."""
        negotiation, clock = self.negotiation, self._trace.clock
        return Branch(
            {
                "state": negotiation.state.value,
                "version": negotiation.version_words,
                "primary": negotiation.is_primary,
                "in_flight": self.in_flight,
                "resets": self.resets,
                "unsent": len(self.outbox),
                "pending": Many(self._waits, int, show=lambda wait: wait.inspect(clock())),
            }
        )

    # --- what the controller has to say

    def forget(self) -> None:
        """Ask for each command which disk is meant: one has gone."""
        self._forms.clear()

    def announce(self) -> None:
        """Send ENUMERATE_BUS, if this is the primary channel and its version has it; one unsent is enough."""
        negotiation = self.negotiation
        if not self._ready or not negotiation.is_primary or negotiation.version < Version.WIN7:
            return
        if any(packet.type == _INBAND for packet in self.outbox):
            return
        body = PacketHeader(Operation.ENUMERATE_BUS).encode().ljust(self._least, b"\0")
        self.outbox.append(Packet(_INBAND, 0, 0, 0, body))
        if self._trace.on:
            self._emit_control(None, Operation.ENUMERATE_BUS, NtStatus.SUCCESS)
        if not self._taking:
            self._on_late()

    def take(self, packets: Sequence[Packet]) -> Sequence[Packet]:
        """Work through a batch; returns what is left of it once `TURN_BYTES` have been copied."""
        counters = self._counters
        counters.batches += 1
        counters.requests += len(packets)
        moved = 0
        self._taking = True
        try:
            for position, packet in enumerate(packets, 1):
                if not packet.flags & COMPLETION_REQUESTED:
                    raise BadValue(f"a storage packet of type {packet.type} that wants no completion")
                if packet.type == _GPA_DIRECT and self._ready:
                    moved += self._gpa_direct(packet)
                    if moved >= TURN_BYTES:
                        left = packets[position:]
                        counters.requests -= len(left)
                        return left
                else:
                    self._other(packet)
        finally:
            self._taking = False
        return ()

    # --- what waits in a disk's gate

    def turn_away_waiting(self) -> None:
        """Have the guest send again what has not begun, as where a disk has too much under way: the VM is saved."""
        self._end_waiting(_COME_AGAIN)

    def abandon_waiting(self) -> None:
        """What has not begun never will: the channel is closed."""
        self._end_waiting(TASK_ABORTED)

    def _end_waiting(self, result: ScsiResult) -> None:
        waits = self._waits
        for gate in dict.fromkeys(wait.tag[1].gate for wait in waits.values()):
            if gate is not None:
                gate.end(lambda tag: id(tag) in waits, result)

    # --- one packet

    def _quick_read(self, packet: Packet) -> int:
        """A read of one page that differs only in page and block from one that was checked and went well.

        Returns the bytes moved; 0, with nothing done, where it is another packet or needs more than a look into memory.
        """
        body = packet.body
        head, untrusted_gpn, fixed, lba, rest = _one_page_read(body)
        form = self._forms.get((head, fixed, rest, len(body)))
        if form is None or self._trace.on:
            return 0
        nexus, byte_offset, blocks, wanted, answer = form
        try:
            view = self._memory.view((untrusted_gpn << PAGE_SHIFT) + byte_offset, wanted, _INTO_GUEST)
        except GpaFault:
            return 0
        if not nexus.read_now(int.from_bytes(lba, "big"), blocks, (view,)):
            return 0
        self.outbox.append(Packet(_COMPLETE, 0, packet.transaction_id, 0, answer))
        return wanted

    def _gpa_direct(self, packet: Packet) -> int:
        """A command with data, or whatever else comes in such a packet. Returns the bytes moved at once."""
        body, offset = packet.body, packet.data_offset
        if len(body) < offset + self._least:
            return self._other(packet)
        if offset == _ONE_PAGE:
            moved = self._quick_read(packet)
            if moved:
                return moved
        pages = (offset - 16) >> 3
        if pages <= 0:
            raise BadValue("a GPA-direct packet without pages")
        (
            ranges,
            byte_count,
            byte_offset,
            *untrusted_gpns,
            operation,
            srb_length,
            where,
            cdb_length,
            sense_length,
            direction,
            wanted,
            cdb,
        ) = _gpa_direct_srb(pages).unpack_from(body)
        if operation != _EXECUTE_SRB:
            return self._other(packet)
        if ranges != 1 or not byte_count or byte_offset >= PAGE_SIZE or wanted > byte_count:
            raise BadValue(f"{ranges} GPA ranges, {byte_count} bytes at {byte_offset}, for a transfer of {wanted}")
        if byte_offset + byte_count > pages << PAGE_SHIFT:
            raise BadValue(f"a GPA range of {byte_count} bytes at {byte_offset} in {pages} pages")
        opcode = cdb[0]
        proper = _DIRECTIONS[opcode]
        if direction == _UNSPECIFIED and proper is not None:
            direction = proper  # who passes a program's command through may not know, but the command says it
        if (
            srb_length != self._srb_size
            or sense_length > SENSE_SIZE
            or wanted > MAX_TRANSFER
            or not 0 < cdb_length <= CDB_SIZE
            or (direction != proper and proper is not None and wanted)
        ):
            return self._invalid(packet, f"{describe_cdb(cdb)}: SRB {srb_length}, CDB {cdb_length}, data {wanted}")
        access = _INTO_GUEST if direction == _IN else _FROM_GUEST
        views: Sequence[memoryview]
        try:
            if pages == 1:
                views = (self._memory.view((untrusted_gpns[0] << PAGE_SHIFT) + byte_offset, wanted, access),)
            else:
                views = self._memory.page_views(untrusted_gpns, byte_offset, wanted, access)
        except GpaFault as fault:
            return self._invalid(packet, f"{describe_cdb(cdb)}: {fault}")
        if self._trace.on:
            self._emit_command(packet, where, cdb, wanted)
        unit = self._units.get(where >> 8)
        if unit is None or opcode == _REPORT_LUNS:
            return self._elsewhere(packet, where, cdb, views, wanted)
        nexus = unit.nexus
        if nexus.under_way >= unit.queue_depth:
            return self._turn_away(packet)
        tag = packet, unit
        result = nexus.start(cdb, views, wanted, tag, self._finish)
        if result is None:
            self._wait_for(tag, cdb)
            return 0
        self._complete(packet, result)
        if opcode == _READ_10 and pages == 1 and not result.status and result.transferred == wanted > 0:
            self._remember_form(body, nexus, byte_offset, wanted)
        return result.transferred

    def _remember_form(self, body: bytes, nexus: Nexus, byte_offset: int, wanted: int) -> None:
        """This READ(10) went well: let `_quick_read` have those like it."""
        head, _, fixed, _, rest = _one_page_read(body)
        if len(self._forms) >= _KEPT_FORMS:
            self._forms.clear()
        answer = self.outbox[-1].body
        blocks = int.from_bytes(rest[1:3], "big")
        self._forms[head, fixed, rest, len(body)] = nexus, byte_offset, blocks, wanted, answer

    def _other(self, packet: Packet) -> int:
        """Anything but a command with data."""
        if packet.type not in (_INBAND, _GPA_DIRECT):
            raise BadValue(f"a storage packet of type {packet.type}")
        untrusted = packet.payload
        if len(untrusted) < HEADER_SIZE:
            raise ShortMessage("storage packet", HEADER_SIZE, len(untrusted))
        operation = _header(untrusted)[0]
        if operation not in GUEST_OPERATIONS:
            raise BadValue(f"storage operation {operation}")
        if self._ready:
            if operation == Operation.EXECUTE_SRB:
                self._without_data(packet, untrusted)
                return 0
            if operation in _RESETS:
                self._reset(packet, operation, untrusted)
                return 0
        status, body = self.negotiation.control(operation, untrusted)
        if not self._ready:
            self._look_whether_ready()
        if operation == Operation.CREATE_SUB_CHANNELS and not status:
            status = self._create_sub_channels()
        if status:
            self._counters.refused += 1
        if self._trace.on:
            self._emit_control(packet, operation, status)
        self._answer(packet, PacketHeader(Operation.COMPLETE_IO, 0, status).encode() + body)
        return 0

    def _look_whether_ready(self) -> None:
        if self.negotiation.state is State.READY:
            self._ready = True
            self._srb_size = self.negotiation.srb_size
            self._least = HEADER_SIZE + self._srb_size
            if self._on_ready is not None:
                self._on_ready()

    def _create_sub_channels(self) -> NtStatus:
        """Have them offered; some may be there, and stay, even where there is no room for all."""
        try:
            if self._offer_sub_channels is not None:
                self._offer_sub_channels(self.negotiation.sub_channels)
        except ValueError:
            return NtStatus.INSUFFICIENT_RESOURCES
        return NtStatus.SUCCESS

    def _without_data(self, packet: Packet, untrusted: bytes) -> None:
        if len(untrusted) < self._least:
            raise ShortMessage("storage packet with an SRB", self._least, len(untrusted))
        _, srb_length, where, cdb_length, sense_length, _, wanted, cdb = _inband_srb(untrusted)
        if wanted:
            raise BadValue(f"a transfer of {wanted} bytes without a GPA range")
        if srb_length != self._srb_size or sense_length > SENSE_SIZE or not 0 < cdb_length <= CDB_SIZE:
            self._invalid(packet, f"{describe_cdb(cdb)}: SRB {srb_length}, CDB {cdb_length}")
            return
        if self._trace.on:
            self._emit_command(packet, where, cdb, 0)
        unit = self._units.get(where >> 8)
        if unit is None or cdb[0] == _REPORT_LUNS:
            self._elsewhere(packet, where, cdb, (), 0)
            return
        if unit.nexus.under_way >= unit.queue_depth:
            self._turn_away(packet)
            return
        tag = packet, unit
        result = unit.nexus.start(cdb, (), 0, tag, self._finish)
        if result is None:
            self._wait_for(tag, cdb)
        else:
            self._complete(packet, result)

    def _reset(self, packet: Packet, operation: int, untrusted: bytes) -> None:
        """End what one unit or all of them have under way; answered when the last of it is."""
        if self._trace.on:
            self._emit_control(packet, operation, NtStatus.SUCCESS)
        units, reason = list(self._units.values()), Reason.BUS_RESET
        if operation == Operation.RESET_LUN:
            where = _inband_srb(untrusted)[2] >> 8 if len(untrusted) >= self._least else address(0)
            unit = self._units.get(where)
            if unit is None:
                self._counters.refused += 1
                self._answer(packet, PacketHeader(Operation.COMPLETE_IO, 0, NtStatus.DEVICE_DOES_NOT_EXIST).encode())
                return
            units, reason = [unit], Reason.DEVICE_RESET

        def done() -> None:
            self.resets -= 1
            self._answer(packet, PacketHeader(Operation.COMPLETE_IO, 0, NtStatus.SUCCESS).encode())
            if not self._taking:
                self._on_late()

        self.resets += 1
        self._controller.reset(units, reason, done)

    def _turn_away(self, packet: Packet) -> int:
        """Too many under way at this disk: the guest keeps the command and sends it again."""
        self._counters.turned_away += 1
        self._answer(packet, self._encode(SrbStatus.BUSY, ScsiStatus.TASK_SET_FULL, 0, b""))
        return 0

    def _elsewhere(self, packet: Packet, where: int, cdb: bytes, views: Sequence[memoryview], length: int) -> int:
        """REPORT LUNS, which is answered for a whole target, and commands to a disk that is not there."""
        if cdb[0] == _REPORT_LUNS:
            result = report_luns(self._luns(where >> 8 & _AT_TARGET), cdb, views, length)
            for unit in self._units.values():
                unit.nexus.forget(Reason.REPORTED_LUNS_DATA_HAS_CHANGED)  # it knows by now (SPC-4 6.33)
        elif cdb[0] == _INQUIRY:
            result = absent_inquiry(where >> 24, cdb, views, length)
        else:
            self._counters.refused += 1
            self._end(packet, SrbStatus.INVALID_LUN)
            return 0
        self._complete(packet, result)
        return result.transferred

    def _luns(self, path_and_target: int) -> Iterable[int]:
        return [place >> 16 for place in self._units if place & _AT_TARGET == path_and_target]

    def _invalid(self, packet: Packet, words: str) -> int:
        """An SRB that makes no sense: refused, and the channel goes on."""
        self._counters.refused += 1
        self._trace.warn(Layer.DEVICE, "srb_refused", self._partition_id, words, channel=self._channel_id)
        self._end(packet, SrbStatus.INVALID_REQUEST)
        return 0

    # --- completions

    def _wait_for(self, tag: _Tag, cdb: bytes) -> None:
        """A command is under way; an inline backend may have answered it by now."""
        self.in_flight += 1
        self._counters.waited += 1
        if self._ended_at_once is tag:
            self._ended_at_once = None
        else:
            self._waits[id(tag)] = _Wait(tag, self._trace.clock(), cdb)

    def _finish(self, tag: _Tag, result: ScsiResult) -> None:
        """What a backend took its time for. Also called within `take`, by a backend that is inline."""
        packet, unit = tag
        self.in_flight -= 1
        wait = self._waits.pop(id(tag), None)
        if wait is None:
            self._ended_at_once = tag
        else:
            unit.latency.add((self._trace.clock() - wait.began) // 10)
        aborted = result.status == ScsiStatus.TASK_ABORTED
        if aborted:
            self._counters.reset += 1
            there = self._units.get(address(unit.lun)) is unit
            self._end(packet, SrbStatus.BUS_RESET if there else SrbStatus.INVALID_LUN)
        elif result is _COME_AGAIN:
            self._turn_away(packet)
        else:
            self._complete(packet, result)
        unit.ended(aborted=aborted)
        if not self._taking:
            self._on_late()

    def _complete(self, packet: Packet, result: ScsiResult) -> None:
        size = len(packet.body) - packet.data_offset
        if size > PACKET_SIZE:
            size = PACKET_SIZE
        if result.status:
            body = self._checked(result)[:size]
        else:
            # Successes differ in their byte count only, so the same bytes serve all that moved as much.
            key = result.transferred << 8 | size
            body = self._good.get(key) or self._remember(key, result.transferred, size)
        self.outbox.append(Packet(_COMPLETE, 0, packet.transaction_id, 0, body))
        if self._trace.on:
            self._emit_result(packet, result)

    def _remember(self, key: int, transferred: int, size: int) -> bytes:
        if len(self._good) >= _CACHED_COMPLETIONS:
            self._good.clear()
        body = self._good[key] = self._encode(SrbStatus.SUCCESS, 0, transferred, b"")[:size]
        return body

    def _checked(self, result: ScsiResult) -> bytes:
        if result.status == ScsiStatus.CHECK_CONDITION:
            # As Microsoft's hosts tell a command that cannot be from a disk that cannot; guests go by the sense data.
            refused = decode_sense(result.sense).key == SenseKey.ILLEGAL_REQUEST
            status = SrbStatus.INVALID_REQUEST if refused else SrbStatus.ERROR
            return self._encode(status, result.status, result.transferred, result.sense)
        return self._encode(SrbStatus.ERROR, result.status, result.transferred, b"")

    def _end(self, packet: Packet, status: SrbStatus) -> None:
        """Complete an SRB that never became a SCSI command."""
        self._answer(packet, self._encode(status, 0, 0, b""))
        if self._trace.on:
            self._trace.emit(
                Layer.DEVICE,
                "srb_ended",
                self._partition_id,
                direction=TO_CHILD,
                channel=self._channel_id,
                words=status.name.replace("_", " "),
                transaction=packet.transaction_id,
            )

    def _encode(self, status: SrbStatus, scsi_status: int, transferred: int, sense: bytes) -> bytes:
        header = PacketHeader(Operation.COMPLETE_IO, 0, NT_STATUS[status])
        srb = Srb(
            length=self._srb_size,
            srb_status=status | (SRB_AUTOSENSE_VALID if sense else 0),
            scsi_status=scsi_status,
            data_transfer_length=transferred,
            cdb_or_sense=sense,
        )
        return header.encode() + srb.encode()

    def _answer(self, packet: Packet, body: bytes) -> None:
        """Answer with as many bytes as the guest sent, up to a whole packet: Windows checks the size."""
        size = min(len(packet.body) - packet.data_offset, PACKET_SIZE)
        self.outbox.append(Packet(_COMPLETE, 0, packet.transaction_id, 0, body[:size].ljust(size, b"\0")))

    # --- trace

    def _emit_control(self, packet: Packet | None, operation: int, status: NtStatus) -> None:
        """What a packet of the guest's asked, or without one what the host says."""
        name = Operation(operation).name
        words = name if not status else f"{name}: {status.name}"
        if operation == Operation.QUERY_PROTOCOL_VERSION and not status:
            words += f" {self.negotiation.version_words}"
        fields: dict[str, Any] = {} if packet is None else {"transaction": packet.transaction_id}
        self._trace.emit(
            Layer.DEVICE,
            "storage_control",
            self._partition_id,
            direction=TO_CHILD if packet is None else TO_ROOT,
            channel=self._channel_id,
            words=words,
            status=int(status),
            **fields,
        )

    def _emit_command(self, packet: Packet, where: int, cdb: bytes, size: int) -> None:
        self._trace.emit(
            Layer.DEVICE,
            "scsi_command",
            self._partition_id,
            direction=TO_ROOT,
            channel=self._channel_id,
            size=size,
            words=describe_cdb(cdb),
            path=where >> 8 & 0xFF,
            target=where >> 16 & 0xFF,
            lun=where >> 24,
            transaction=packet.transaction_id,
        )

    def _emit_result(self, packet: Packet, result: ScsiResult) -> None:
        self._trace.emit(
            Layer.DEVICE,
            "scsi_result",
            self._partition_id,
            direction=TO_CHILD,
            channel=self._channel_id,
            size=result.transferred,
            words=result_words(result.status, result.sense),
            transaction=packet.transaction_id,
        )
