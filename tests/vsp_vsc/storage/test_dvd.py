"""A DVD drive, command by command: byte for byte where MMC-6 says so, and what becomes of a disc."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.scsi.answer import ScsiResult
from vsp_vsc.storage.scsi.cdb import DIRECTION, Direction, Opcode
from vsp_vsc.storage.scsi.dvd import BLOCK, DvdDrive
from vsp_vsc.storage.scsi.sense import Reason, decode_sense

DISC = bytes(range(256)) * 8 * 100
"""A hundred blocks."""


class Player:
    """A drive and its one initiator."""

    def __init__(self, disc: MemoryBackend | None = None, *, empty: bool = False) -> None:
        disc = None if empty else disc or MemoryBackend(DISC, read_only=True)
        self.drive = DvdDrive(disc, identity="test")
        self.nexus = self.drive.connect("guest")
        self.results: list[ScsiResult] = []

    def do(self, text: str, length: int = 0) -> tuple[ScsiResult, bytes]:
        """The result and the data of a CDB in hexadecimal."""
        data = bytearray(length)
        views = [memoryview(data)] if length else []
        cdb = bytes.fromhex(text).ljust(16, b"\0")
        result = self.nexus.start(cdb, views, length, None, lambda _tag, result: self.results.append(result))
        if result is None:
            assert self.results, "an inline backend answers at once"
            result = self.results.pop()
        return result, bytes(data[: result.transferred])

    def good(self, text: str, length: int = 0) -> bytes:
        result, data = self.do(text, length)
        assert result.status == 0, decode_sense(result.sense).words
        return data

    def bad(self, text: str, length: int = 0) -> str:
        result, _ = self.do(text, length)
        assert result.status == 2
        return decode_sense(result.sense).words


EJECT, LOAD, PREVENT, ALLOW = "1B0000000200", "1B0000000300", "1E0000000100", "1E0000000000"
EVENT = "4A010000100000000800"


def test_inquiry_says_what_it_is() -> None:
    """Type 5, removable; its pages name it."""
    player = Player()
    data = player.good("120000002400", 36)
    assert data[:5] == bytes((0x05, 0x80, 0x05, 0x02, 31))
    assert data[8:32] == b"PARTITA VIRTUAL DVD     "
    assert player.good("120100004000", 64) == bytes((5, 0, 0, 3, 0x00, 0x80, 0x83))
    assert player.good("120180004000", 64)[4:] == player.drive.serial.encode()
    assert player.good("120183004000", 64)[4:8] == bytes((2, 1, 0, 24))
    assert "invalid field in CDB (24h/00h) at CDB byte 2" in player.bad("1201B0004000", 64)
    assert "at CDB byte 2" in player.bad("120080002400", 36)


class _Vast(MemoryBackend):
    """Says that it has ten terabytes."""

    @property
    def size_bytes(self) -> int:
        return 10 << 40


def test_a_disc_that_no_drive_could_play() -> None:
    """Its end has no address of 32 bits: what is told is the last one that has, whoever put it in."""
    player = Player(_Vast(DISC, read_only=True))
    assert player.good("25" + "00" * 9, 8) == struct.pack(">II", 0xFFFF_FFFE, BLOCK)
    assert len(player.good("43000000000000001400", 20)) == 20
    assert "out of range" in player.bad("2800FFFFFFFF00000200", 4096)


def test_blocks_of_the_disc_are_read() -> None:
    """By READ(10) and READ(12); what is past the end is refused, and nothing is moved for a buffer too small."""
    player = Player()
    assert player.good("25" + "00" * 9, 8) == struct.pack(">II", 99, BLOCK)
    assert player.good("28000000000500000200", 4096) == DISC[5 * BLOCK : 7 * BLOCK]
    assert player.good("A8000000006300000001" + "0000", BLOCK) == DISC[99 * BLOCK :]
    assert player.good("28000000006400000000", BLOCK) == b""
    assert "out of range (21h/00h) at block 100" in player.bad("28000000006300000200", 4096)
    assert "at CDB byte 7" in player.bad("28000000000000000200", BLOCK)
    assert "at CDB byte 6" in player.bad("A8000000000000000002" + "0000", BLOCK)
    buffer = bytearray(BLOCK)
    assert player.nexus.read_now(3, 1, [memoryview(buffer)])
    assert buffer == DISC[3 * BLOCK : 4 * BLOCK]
    assert not player.nexus.read_now(100, 1, [memoryview(buffer)])


def test_a_disc_that_must_be_waited_for() -> None:
    """The answer comes when the host's storage has it, and its errors become sense data."""
    slow = SlowBackend(DISC, read_only=True)
    player = Player(slow)
    data = bytearray(BLOCK)
    cdb = bytes.fromhex("28000000000100000100").ljust(16, b"\0")
    for error in (None, errno.EIO, errno.ENOMEM):
        slow.error = error
        assert player.nexus.start(cdb, [memoryview(data)], BLOCK, "tag", lambda _, r: player.results.append(r)) is None
        assert player.nexus.under_way == 1
        slow.finish()
        assert player.nexus.under_way == 0
    first, second, third = player.results
    assert (first.status, bytes(data)) == (0, DISC[BLOCK : 2 * BLOCK])
    assert "unrecovered read error (11h/00h) at block 1" in decode_sense(second.sense).words
    assert "internal target failure" in decode_sense(third.sense).words
    assert player.drive.statistics().host_errors == 2
    slow.cached = True
    assert "internal target failure" in player.bad("28000000000100000100", BLOCK)
    assert not player.nexus.read_now(0, 1, [memoryview(data)])


@pytest.mark.parametrize(
    "cdb",
    ["00" * 6, "25" + "00" * 9, "28000000000000000100", "43000000000000002000", "51000000000000002200"],
)
def test_without_a_disc_there_is_no_medium(cdb: str) -> None:
    """NOT READY, medium not present: for all that is about the disc."""
    assert "NOT READY, medium not present (3Ah/00h)" in Player(empty=True).bad(cdb, BLOCK)


def test_the_table_of_contents() -> None:
    """One data track from block 0, the lead-out behind the last block; by number or by time."""
    player = Player()
    track, lead_out = bytes((0, 0x14, 1, 0)), bytes((0, 0x14, 0xAA, 0))
    toc = bytes((0, 18, 1, 1)) + track + bytes(4) + lead_out + (100).to_bytes(4, "big")
    assert player.good("43000000000000002000", 32) == toc
    assert player.good("43000000000000000C00", 12) == toc[:12]
    assert player.good("43000000000001002000", 32) == toc
    assert player.good("4300000000" + "00AA002000", 32) == bytes((0, 10, 1, 1)) + lead_out + (100).to_bytes(4, "big")
    timed = player.good("43020000000000002000", 32)
    assert (timed[8:12], timed[16:20]) == (bytes((0, 0, 2, 0)), bytes((0, 0, 3, 25)))
    assert player.good("43000100000000002000", 32) == bytes((0, 10, 1, 1)) + track + bytes(4)
    assert "at CDB byte 6" in player.bad("43000000000002002000", 32)
    assert "at CDB byte 2" in player.bad("43000200000000002000", 32)


def test_the_configuration() -> None:
    """DVD-ROM while there is a disc; each feature once, in order, and by itself where one is asked for."""
    player = Player()
    data = player.good("4600000000000001" + "0000", 256)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert data[6:8] == b"\x00\x10"
    codes, position = [], 8
    while position < len(data):
        codes.append(int.from_bytes(data[position : position + 2], "big"))
        position += 4 + data[position + 3]
    assert codes == [0x0000, 0x0001, 0x0002, 0x0003, 0x0010, 0x001F, 0x0105]
    assert position == len(data)
    one = player.good("46020010000000010000", 256)
    assert one[8:16] == bytes((0, 0x10, 1, 8, 0, 0, 8, 0))
    empty = Player(empty=True)
    assert empty.good("4600000000000001" + "0000", 256)[6:8] == bytes(2)
    current = empty.good("46010000000000010000", 256)
    assert b"\x00\x10\x01\x08" not in current
    assert "at CDB byte 1" in player.bad("46030000000000010000", 256)


def test_mode_sense_and_the_rest() -> None:
    """The capabilities page, and questions that have one answer."""
    player = Player()
    page = player.good("5A002A00000000008000", 128)
    assert (page[2], page[8:10]) == (0x41, bytes((0x2A, 0x14)))
    assert page[0:2] == (len(page) - 2).to_bytes(2, "big")
    assert player.good("1A002A008000", 128)[4:] == page[8:]
    assert len(player.good("1A003F00FF00", 255)) == 4 + 12 + 22
    assert not any(player.good("1A006A008000", 128)[6:])
    assert "saving parameters not supported" in player.bad("1A00EA008000", 128)
    assert "at CDB byte 2" in player.bad("1A0008008000", 128)
    assert "at CDB byte 3" in player.bad("1A002A018000", 128)
    assert player.good("51000000000000002200", 34)[:5] == bytes((0, 32, 0x0E, 1, 1))
    assert "at CDB byte 1" in player.bad("51010000000000002200", 34)
    assert player.good("BD0000000000000000080000", 8) == bytes((0, 0, 0, 0, 0, 1, 0, 0))
    for nothing in ("2B000000000500000000", "BB00FFFF0000000000000000", LOAD, "00" * 6):
        assert player.good(nothing) == b""
    assert "invalid command operation code" in player.bad("2A000000000000000100", BLOCK)


def test_a_guest_ejects_and_the_host_inserts() -> None:
    """News come as a media event, once, and of a new disc as a unit attention too."""
    player, out = Player(), list[str]()
    player.drive.on_eject = lambda: out.append("out")
    assert player.good(EVENT, 8) == bytes((0, 6, 4, 0x10, 0, 2, 0, 0))
    player.good(EJECT)
    assert out == ["out"]
    assert player.good(EVENT, 8) == bytes((0, 6, 4, 0x10, 3, 0, 0, 0))
    assert player.good(EVENT, 8)[4:6] == bytes(2)
    assert "medium not present" in player.bad("00" * 6)
    player.good(EJECT)
    assert out == ["out"], "an empty drive has nothing to eject"
    player.drive.insert(MemoryBackend(BLOCK, read_only=True))
    with pytest.raises(ValueError, match="a disc in it"):
        player.drive.insert(MemoryBackend(BLOCK))
    assert player.good(EVENT, 4) == bytes((0, 6, 4, 0x10)), "a header alone takes no event away"
    assert player.good(EVENT, 8)[4:6] == bytes((2, 2))
    assert "medium may have changed (28h/00h)" in player.bad("00" * 6)
    assert player.good("25" + "00" * 9, 8) == struct.pack(">II", 0, BLOCK)
    assert player.good("4A010000010000000800", 8) == bytes((0, 2, 0x80, 0x10))
    assert "at CDB byte 1" in player.bad("4A000000100000000800", 8)


def test_a_disc_that_is_held_stays() -> None:
    """Until the guest lets go of it; the host may ask, or take it by force, which ends the hold."""
    player = Player()
    player.good(PREVENT)
    assert "medium removal prevented (53h/02h)" in player.bad(EJECT)
    player.drive.request_eject()
    assert player.good(EVENT, 8)[4:6] == bytes((1, 2))
    player.good(ALLOW)
    player.good(EJECT)
    assert player.drive.backend is None
    player.drive.insert(MemoryBackend(BLOCK))
    player.bad("00" * 6)
    player.good(PREVENT)
    player.drive.eject()
    assert not player.drive.preventing


def test_request_sense_tells_what_is_so() -> None:
    """A unit attention that nobody was told, else whether there is a disc."""
    player = Player()
    assert decode_sense(player.good("030000001200", 18)).words.startswith("NO SENSE")
    player.drive.eject()
    assert "medium not present" in decode_sense(player.good("030100001200", 18)).words
    player.drive.insert(MemoryBackend(BLOCK))
    assert "medium may have changed" in decode_sense(player.good("030000001200", 18)).words
    player.good("00" * 6)


def test_a_reset_lets_go_of_the_disc() -> None:
    """And is told like any unit's."""
    player = Player()
    player.good(PREVENT)
    player.drive.reset(Reason.BUS_RESET)
    assert "SCSI bus reset occurred" in player.bad("00" * 6)
    player.good(EJECT)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 4096), st.booleans())
def test_any_cdb_has_an_answer(cdb: bytes, length: int, empty: bool) -> None:
    """GOOD or CHECK CONDITION with sense data, never more bytes than there is room for."""
    result, data = Player(empty=empty).do(cdb.hex(), length)
    assert result.status in (0, 2)
    assert bool(result.sense) == (result.status == 2)
    assert len(data) <= length


def test_every_commands_direction_is_known() -> None:
    """So that a front end hands over a buffer that may be filled, where one is."""
    for command in DvdDrive.commands.rows:
        assert DIRECTION[command.opcode] is not None, command.name
    assert DIRECTION[Opcode.READ_TOC] is Direction.IN
