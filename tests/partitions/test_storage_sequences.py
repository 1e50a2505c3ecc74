"""Whole sequences of rings and storage through the boundary driver: packets of the guest's, and all that it gets.

Many are those that openvmm's storvsp and vmbus_ring are tested with (storvsp/src/lib.rs, vmbus_ring/src/lib.rs), told
from the guest's end. The rules one by one are in tests/vsp_vsc/storage and tests/vmbus.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest

from partitions.topology_schema import DiskTable, Size
from tests.doubles.boundary_guest import DATA, BoundaryGuest, Rings, boundary_guest, run
from tests.doubles.root import MIB, topology, vm_table
from vsp_vsc.storage.protocol import NtStatus, Operation

_COMPLETION, _INBAND, _GPA_DIRECT = 0xB, 6, 9
_BLUE = 0x0600
_SUCCESS, _INVALID_REQUEST, _INVALID_LUN = 1, 6, 0x20
_AUTOSENSE = 0x80
_OUT, _IN = 0, 1


@attrs.define
class Completion:
    """What came back for one packet."""

    transaction: int
    body: bytes

    @property
    def operation(self) -> int:
        return self._word(0)

    @property
    def flags(self) -> int:
        return self._word(4)

    @property
    def status(self) -> NtStatus:
        return NtStatus(self._word(8))

    @property
    def srb_status(self) -> int:
        return self.body[14]

    @property
    def scsi_status(self) -> int:
        return self.body[15]

    @property
    def moved(self) -> int:
        return self._word(24)

    @property
    def sense(self) -> tuple[int, int, int]:
        """Key, code, qualifier."""
        data = self.body[28:46]
        assert (data[0] & 0x7F, data[7]) == (0x70, 10)
        return data[2] & 0xF, data[12], data[13]

    def _word(self, offset: int) -> int:
        return int.from_bytes(self.body[offset : offset + 4], "little")


@attrs.define
class Storage:
    """A guest that speaks in storage packets."""

    guest: BoundaryGuest
    rings: Rings
    transaction: int = 0

    async def send(self, operation: int, body: bytes = b"", *, kind: int = _INBAND, extended: bytes = b"") -> None:
        self.transaction += 1
        payload = struct.pack("<III", operation, 0, 0) + body
        await self.rings.send(payload, self.transaction, kind=kind, extended=extended)

    async def heard(self) -> list[Completion]:
        """Completions since the last look."""
        return [
            Completion(int.from_bytes(head[8:16], "little"), body)
            for head, body in await self.rings.received()
            if head[0] == _COMPLETION
        ]

    async def ask(self, operation: int, body: bytes = b"", *, kind: int = _INBAND, extended: bytes = b"") -> Completion:
        """One packet, one completion."""
        await self.send(operation, body, kind=kind, extended=extended)
        (completion,) = await self.heard()
        assert completion.transaction == self.transaction
        assert (completion.operation, completion.flags) == (Operation.COMPLETE_IO, 0)
        return completion

    async def negotiate(self, version: int = _BLUE) -> None:
        """Each packet as short as it can be."""
        for operation, body in (
            (Operation.BEGIN_INITIALIZATION, b""),
            (Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", version, 0)),
            (Operation.QUERY_PROPERTIES, b""),
            (Operation.END_INITIALIZATION, b""),
        ):
            assert (await self.ask(operation, body)).status is NtStatus.SUCCESS

    async def scsi(
        self, cdb: bytes, length: int = 0, direction: int = _IN, *, lun: int = 0, gpa: int = DATA, said: int = 10
    ) -> Completion:
        """A command with its data at `gpa`; its CDB is said to have `said` bytes."""
        srb = struct.pack("<HBBBBBBBBBBI", 52, 0, 0, 0, 0, 0, lun, said, 0, direction, 0, length)
        srb = (srb + cdb.ljust(20, b"\0")).ljust(52, b"\0")
        if not length:
            return await self.ask(Operation.EXECUTE_SRB, srb)
        pages = range(gpa >> 12, (gpa + length + 4095) >> 12)
        extended = struct.pack(f"<IIII{len(pages)}Q", 0, 1, length, gpa & 0xFFF, *pages)
        return await self.ask(Operation.EXECUTE_SRB, srb, kind=_GPA_DIRECT, extended=extended)


Sequence = Callable[[Storage], Awaitable[None]]


def on_a_controller(sequence: Sequence, folder: Path, *, processors: int = 1, disks: int = 1) -> None:
    """Run it with the controller's channel open and nothing said yet."""
    tables = [DiskTable(path=f"d{number}.img", size=Size(MIB)) for number in range(disks)]

    async def session() -> None:
        table = vm_table("vm", processors=processors, disk=tables)
        async with boundary_guest(topology(table, folder=folder)) as guest:
            await guest.boot()
            await guest.connect()
            await sequence(Storage(guest, await guest.open_channel()))

    run(session)


def read_10(block: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x28, 0, block, 0, blocks, 0)


def write_10(block: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", 0x2A, 0, block, 0, blocks, 0)


# --------------------------------------------------------------------------------------------------------- negotiation


def test_a_write_and_a_read(tmp_path: Path) -> None:
    """test_channel_working: the very first command is a write, and what was written is read back."""

    async def sequence(storage: Storage) -> None:
        await storage.negotiate()
        await storage.guest.write(DATA, bytes([7]) * 4096)
        wrote = await storage.scsi(write_10(1, 8), 4096, _OUT)
        assert (wrote.status, wrote.srb_status, wrote.moved) == (NtStatus.SUCCESS, _SUCCESS, 4096)
        read = await storage.scsi(read_10(1, 8), 4096, gpa=DATA + 4096)
        assert (read.status, read.srb_status, read.moved) == (NtStatus.SUCCESS, _SUCCESS, 4096)
        assert await storage.guest.read(DATA + 4096, 4096) == bytes([7]) * 4096

    on_a_controller(sequence, tmp_path)


def test_completions_are_as_long_as_their_packets(tmp_path: Path) -> None:
    """test_packet_sizes: rounded up to 8 bytes as in the ring, and never more than the longest packet there is."""

    async def sequence(storage: Storage) -> None:
        assert (await storage.ask(Operation.BEGIN_INITIALIZATION)).status is NtStatus.SUCCESS
        for length, answered in ((48, 48), (50, 56), (56, 56), (64, 64), (72, 64)):
            body = b"\xff\xff".ljust(length - 12, b"\0")
            refused = await storage.ask(Operation.QUERY_PROTOCOL_VERSION, body)
            assert (refused.status, len(refused.body)) == (NtStatus.REVISION_MISMATCH, answered)
            assert refused.body[12:16] == body[:4]

    on_a_controller(sequence, tmp_path)


@pytest.mark.parametrize("first", [8, 9, 10, 13, 3, 4, 5, 6])
def test_a_wrong_first_packet(tmp_path: Path, first: int) -> None:
    """test_wrong_first_packet: out of order, and the guest may begin all the same."""

    async def sequence(storage: Storage) -> None:
        assert (await storage.ask(first, bytes(52))).status is NtStatus.INVALID_DEVICE_STATE
        await storage.negotiate()

    on_a_controller(sequence, tmp_path)


@pytest.mark.parametrize("operation", [0, 1, 2, 11, 14, 0xFFFFFFFF])
def test_an_operation_that_no_guest_sends(tmp_path: Path, operation: int) -> None:
    """test_unrecognized_operation: no answer any more on this opening; the next is as good as new."""

    async def sequence(storage: Storage) -> None:
        await storage.send(operation, bytes(52))
        assert await storage.heard() == []
        await storage.send(Operation.BEGIN_INITIALIZATION)
        assert await storage.heard() == []
        guest = storage.guest
        assert await guest.say(struct.pack("<III", 7, 0, 1)) == []
        assert await guest.say(struct.pack("<IIII", 11, 0, 1, 0xE1E10)) == [struct.pack("<III", 12, 0, 0xE1E10)]
        await Storage(guest, await guest.open_channel()).negotiate()

    on_a_controller(sequence, tmp_path)


@pytest.mark.parametrize(("processors", "refused"), [(1, 1), (2, 2), (2, 0xFFFF)])
def test_too_many_subchannels(tmp_path: Path, processors: int, refused: int) -> None:
    """test_too_many_subchannels: one less than there are processors; before the end of initialization and after it."""

    async def sequence(storage: Storage) -> None:
        await storage.ask(Operation.BEGIN_INITIALIZATION)
        await storage.ask(Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", _BLUE, 0))
        properties = await storage.ask(Operation.QUERY_PROPERTIES, bytes(52))
        assert struct.unpack_from("<H", properties.body, 16)[0] == processors - 1
        count = struct.pack("<H", refused)
        answer = await storage.ask(Operation.CREATE_SUB_CHANNELS, count)
        assert answer.status is NtStatus.INVALID_PARAMETER
        assert (await storage.ask(Operation.END_INITIALIZATION)).status is NtStatus.SUCCESS
        answer = await storage.ask(Operation.CREATE_SUB_CHANNELS, count)
        assert answer.status is NtStatus.INVALID_PARAMETER
        assert await storage.guest.messages() == []

    on_a_controller(sequence, tmp_path, processors=processors)


@pytest.mark.parametrize("operation", [7, 8, 9, 10])
def test_initialization_when_it_is_over(tmp_path: Path, operation: int) -> None:
    """test_begin_init_on_ready: out of order, and the disks go on."""

    async def sequence(storage: Storage) -> None:
        await storage.negotiate()
        assert (await storage.ask(operation, bytes(4))).status is NtStatus.INVALID_DEVICE_STATE
        assert (await storage.scsi(read_10(0, 1), 512)).srb_status == _SUCCESS

    on_a_controller(sequence, tmp_path)


@pytest.mark.parametrize("version", [0x0200, 0x0402, 0x0501, 0x0600, 0x0602])
def test_each_version(tmp_path: Path, version: int) -> None:
    """Agreed at once and echoed; subchannels are told of from 5.1 on."""

    async def sequence(storage: Storage) -> None:
        await storage.ask(Operation.BEGIN_INITIALIZATION)
        agreed = await storage.ask(Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", version, 0))
        assert (agreed.status, agreed.body[12:14]) == (NtStatus.SUCCESS, struct.pack("<H", version))
        properties = await storage.ask(Operation.QUERY_PROPERTIES, bytes(24))
        subchannels, flags, transfer = struct.unpack_from("<4xH2xII", properties.body, 12)
        assert (subchannels, flags & 1) == ((1, 1) if version >= 0x0501 else (0, 0))
        assert transfer == 0x40000
        assert (await storage.ask(Operation.END_INITIALIZATION)).status is NtStatus.SUCCESS

    on_a_controller(sequence, tmp_path, processors=2)


@pytest.mark.parametrize("before_the_end", [True, False])
def test_a_subchannel_from_offer_to_rescind(tmp_path: Path, before_the_end: bool) -> None:
    """Offered with its primary's GUIDs, served from the end of initialization on, and gone with its primary."""

    async def sequence(storage: Storage) -> None:
        guest = storage.guest
        await storage.ask(Operation.BEGIN_INITIALIZATION)
        await storage.ask(Operation.QUERY_PROTOCOL_VERSION, struct.pack("<HH", _BLUE, 0))
        await storage.ask(Operation.QUERY_PROPERTIES)
        if not before_the_end:
            await storage.ask(Operation.END_INITIALIZATION)
        created = await storage.ask(Operation.CREATE_SUB_CHANNELS, struct.pack("<H", 1))
        assert created.status is NtStatus.SUCCESS
        (offer,) = await guest.messages()
        assert offer[:8] == struct.pack("<II", 1, 0)
        assert struct.unpack_from("<H", offer, 180) == (1,)
        assert struct.unpack_from("<I2xHI", offer, 184) == (2, 1, 0x2002)
        base = 0x60000
        assert len(await guest.gpadl(2, 0xE1E11, range(base >> 12, (base >> 12) + 8))) == 1
        assert await guest.open(2, 0xE1E11) == [struct.pack("<IIIII", 6, 0, 2, 2, 0)]
        sub = Storage(guest, Rings(guest, base, 4 << 12, 4 << 12, 0x2002))
        if before_the_end:
            await storage.ask(Operation.END_INITIALIZATION)
        assert (await sub.scsi(read_10(0, 8), 4096)).srb_status == _SUCCESS
        assert (await sub.ask(Operation.BEGIN_INITIALIZATION)).status is NtStatus.INVALID_DEVICE_STATE
        assert (await storage.scsi(read_10(0, 8), 4096)).srb_status == _SUCCESS
        assert await guest.say(struct.pack("<III", 7, 0, 1)) == [struct.pack("<III", 2, 0, 2)]
        assert await guest.say(struct.pack("<III", 13, 0, 2)) == []

    on_a_controller(sequence, tmp_path, processors=2)


# ------------------------------------------------------------------------------------------------------------ commands


def test_report_luns_goes_by_the_buffer(tmp_path: Path) -> None:
    """test_hot_add_remove: a ten-byte CDB without an allocation length lists every disk of the target."""

    async def sequence(storage: Storage) -> None:
        await storage.negotiate()
        listed = await storage.scsi(b"\xa0", 4096)
        assert (listed.srb_status, listed.moved) == (_SUCCESS, 4 * 8)
        data = await storage.guest.read(DATA, 32)
        assert data == struct.pack(">II", 24, 0) + b"".join(bytes((0, lun)) + bytes(6) for lun in range(3))
        for lun in range(3):
            assert (await storage.scsi(write_10(1, 8), 4096, _OUT, lun=lun)).srb_status == _SUCCESS
        gone = await storage.scsi(write_10(1, 8), 4096, _OUT, lun=3)
        assert (gone.status, gone.srb_status) == (NtStatus.DEVICE_DOES_NOT_EXIST, _INVALID_LUN)

    on_a_controller(sequence, tmp_path, disks=3)


@pytest.mark.parametrize(
    ("cdb", "length", "sense"),
    [
        (read_10(2048, 8), 4096, (5, 0x21, 0)),
        (read_10(2047, 8), 4096, (5, 0x21, 0)),
        (b"\xff", 0, (5, 0x20, 0)),
        (b"\x12\x01\x7f\x00\x24\x00", 36, (5, 0x24, 0)),
        (b"\x12\x00\x80\x00\x24\x00", 36, (5, 0x24, 0)),
        (b"\x1a\x00\x3e\x00\xff\x00", 255, (5, 0x24, 0)),
        (b"\x9e\x1f".ljust(16, b"\0"), 32, (5, 0x24, 0)),
    ],
    ids=["past the end", "over the end", "no command", "no such page", "page without VPD", "no mode page", "no action"],
)
def test_what_cannot_be_done(tmp_path: Path, cdb: bytes, length: int, sense: tuple[int, int, int]) -> None:
    """CHECK CONDITION with sense data in the SRB: INVALID_REQUEST, nothing moved; and the next command is served."""

    async def sequence(storage: Storage) -> None:
        await storage.negotiate()
        refused = await storage.scsi(cdb, length)
        assert (refused.status, refused.scsi_status) == (NtStatus.IO_DEVICE_ERROR, 2)
        assert (refused.srb_status, refused.moved) == (_INVALID_REQUEST | _AUTOSENSE, 0)
        assert refused.sense == sense
        assert (await storage.scsi(read_10(0, 8), 4096)).srb_status == _SUCCESS

    on_a_controller(sequence, tmp_path)


def test_a_direction_that_is_not_given(tmp_path: Path) -> None:
    """2, as programs that pass commands through leave it: the command itself says which way its data goes."""

    async def sequence(storage: Storage) -> None:
        await storage.negotiate()
        await storage.guest.write(DATA, bytes([9]) * 512)
        assert (await storage.scsi(write_10(5, 1), 512, 2)).srb_status == _SUCCESS
        read = await storage.scsi(read_10(5, 1), 512, 2, gpa=DATA + 4096)
        assert (read.srb_status, read.moved) == (_SUCCESS, 512)
        assert await storage.guest.read(DATA + 4096, 512) == bytes([9]) * 512

    on_a_controller(sequence, tmp_path)


@pytest.mark.parametrize(
    ("cdb", "srb_status", "data"),
    [
        (b"\x12\x00\x00\x00\x24\x00", _SUCCESS, b"\x7f"),
        (b"\x12\x01\x00\x00\x24\x00", _INVALID_REQUEST | _AUTOSENSE, b"\0"),
        (b"\x12\x00\x80\x00\x24\x00", _INVALID_REQUEST | _AUTOSENSE, b"\0"),
        (b"\x03\x00\x00\x00\x12\x00", _INVALID_LUN, b"\0"),
        (read_10(0, 1), _INVALID_LUN, b"\0"),
    ],
)
def test_a_disk_that_is_not_there(tmp_path: Path, cdb: bytes, srb_status: int, data: bytes) -> None:
    """INQUIRY says that it could be there and is not; of its pages there are none, and all else is INVALID_LUN."""

    async def sequence(storage: Storage) -> None:
        await storage.negotiate()
        answer = await storage.scsi(cdb, 512, lun=1)
        assert answer.srb_status == srb_status
        assert await storage.guest.read(DATA, 1) == data

    on_a_controller(sequence, tmp_path)


@pytest.mark.parametrize("operation", [4, 5, 6])
def test_resets(tmp_path: Path, operation: int) -> None:
    """Well, with nothing under way; what follows is told once, or not at all."""

    async def sequence(storage: Storage) -> None:
        await storage.negotiate()
        assert (await storage.ask(operation, bytes(52))).status is NtStatus.SUCCESS
        told = [(await storage.scsi(read_10(0, 8), 4096)).srb_status for _ in range(2)]
        assert told[1] == _SUCCESS

    on_a_controller(sequence, tmp_path)


# --------------------------------------------------------------------------------------------------------------- rings


def test_interrupt_mask(tmp_path: Path) -> None:
    """test_interrupt_mask: no interrupt while the guest's ring is masked, and one when it is not."""

    async def sequence(storage: Storage) -> None:
        guest, rings = storage.guest, storage.rings
        for mask, interrupts in ((1, 0), (0, 1), (1, 0)):
            await guest.write(rings.in_page + 8, struct.pack("<I", mask))
            guest.events.clear()
            await storage.ask(Operation.END_INITIALIZATION)
            assert len(guest.events) == interrupts
            assert (await guest.flags() == {1}) == bool(interrupts)

    on_a_controller(sequence, tmp_path)


def test_an_interrupt_for_the_first_of_several(tmp_path: Path) -> None:
    """test_ring: only a ring that was empty is worth one."""

    async def sequence(storage: Storage) -> None:
        guest = storage.guest
        guest.events.clear()
        for interrupts in (1, 1, 1):
            await storage.send(Operation.END_INITIALIZATION)
            assert len(guest.events) == interrupts
        assert len(await storage.heard()) == 3
        await guest.flags()
        await storage.ask(Operation.END_INITIALIZATION)
        assert len(guest.events) == 2

    on_a_controller(sequence, tmp_path)


def test_pending_send_size(tmp_path: Path) -> None:
    """test_pending_send_size: a guest that waits for room in its ring hears of it, whatever its other ring's mask."""

    async def sequence(storage: Storage) -> None:
        guest, rings = storage.guest, storage.rings
        await guest.write(rings.in_page + 8, struct.pack("<I", 1))
        await guest.write(rings.out_page + 64, struct.pack("<I", 1))  # feature bits: flow control
        packet = struct.pack("<HHHHQ", _INBAND, 2, 502, 1, 1) + struct.pack("<I", 8).ljust(4000, b"\0") + bytes(8)
        room = rings.out_size - 3 * len(packet)
        await guest.write(rings.out_page + 4096, 3 * packet)
        await guest.write(rings.out_page, struct.pack("<I", 3 * len(packet)))
        for pending, interrupts in ((room + 8, 1), (0, 0)):
            await guest.write(rings.out_page + 12, struct.pack("<I", pending))
            guest.events.clear()
            assert await guest.signal(rings.connection) == "SUCCESS"
            assert len(guest.events) == interrupts
        assert len(await storage.heard()) == 3

    on_a_controller(sequence, tmp_path)


@pytest.mark.parametrize("kind", [7, 9], ids=["transfer pages", "GPA direct"])
def test_a_packet_whose_ranges_do_not_fit(tmp_path: Path, kind: int) -> None:
    """test_malformed_gpa_direct_packet, test_malformed_transfer_page_packet: no answer any more."""

    async def sequence(storage: Storage) -> None:
        await storage.rings.put(struct.pack("<HHHHQ", kind, 2, 3, 1, 0) + struct.pack("<II", 0, 1) + bytes(8))
        assert await storage.heard() == []
        await storage.send(Operation.BEGIN_INITIALIZATION)
        assert await storage.heard() == []

    on_a_controller(sequence, tmp_path)
