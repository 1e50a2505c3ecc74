"""An initiator of SCSI commands, at one nexus to one unit, without a transport."""

from __future__ import annotations

from vsp_vsc.storage.backends.memory import MemoryBackend
from vsp_vsc.storage.scsi.answer import ScsiResult
from vsp_vsc.storage.scsi.cdb import ScsiStatus
from vsp_vsc.storage.scsi.sense import Reason, Sense, decode_sense
from vsp_vsc.storage.scsi.target import ScsiTarget

SIZE = 1 << 20
BLOCKS = SIZE // 512
PATTERN = bytes(range(256)) * (SIZE // 256)
"""What a test's disk has on it at first."""


def cdb(*values: int) -> bytes:
    """A CDB of these bytes and zeros."""
    return bytes(values).ljust(16, b"\0")


def words(text: str) -> bytes:
    """A CDB in hexadecimal."""
    return bytes.fromhex(text).ljust(16, b"\0")


class Initiator:
    """Runs commands and keeps what comes back."""

    def __init__(self, unit: ScsiTarget, name: str = "tester") -> None:
        self.unit = unit
        self.nexus = unit.connect(name)
        self.late: list[ScsiResult] = []

    def run(
        self, command: bytes, length: int = 0, data: bytes = b"", tag: object = "tag"
    ) -> tuple[ScsiResult | None, bytes]:
        """The result, if there is one yet, and the buffer, which lies in two pieces."""
        buffer = bytearray(data or length)
        views = [memoryview(buffer)[: len(buffer) // 3], memoryview(buffer)[len(buffer) // 3 :]]
        result = self.nexus.start(command, views, len(buffer), tag, lambda tag, late: self.late.append(late))
        if result is None and self.late:
            result = self.late.pop()
        return result, bytes(buffer)

    def result(self, command: bytes, length: int = 0, data: bytes = b"") -> ScsiResult:
        """The result of a command that has one."""
        result, _ = self.run(command, length, data)
        assert result is not None
        return result

    def good(self, command: bytes, length: int = 0, data: bytes = b"") -> bytes:
        """What a command that ends well has put into the buffer, or taken from it."""
        result, buffer = self.run(command, length, data)
        assert result is not None
        assert result.status == ScsiStatus.GOOD, decode_sense(result.sense).words
        return buffer[: result.transferred]

    def sense(self, command: bytes, length: int = 0, data: bytes = b"") -> Sense:
        """Why a command fails, which moves nothing then."""
        result, _ = self.run(command, length, data)
        assert result is not None
        assert (result.status, result.transferred) == (ScsiStatus.CHECK_CONDITION, 0)
        return decode_sense(result.sense)

    def conflicts(self, command: bytes, length: int = 0, data: bytes = b"") -> bool:
        """Whether a command ends with RESERVATION CONFLICT."""
        return self.result(command, length, data).status == ScsiStatus.RESERVATION_CONFLICT


def initiator(*, read_only: bool = False, contents: bytes = PATTERN, block_size: int = 512) -> Initiator:
    """Of a disk in memory."""
    return Initiator(ScsiTarget(MemoryBackend(contents, read_only=read_only), block_size=block_size))


def codes(reason: Reason) -> tuple[int, int, int]:
    """Sense key, additional sense code and qualifier."""
    return reason.value[:3]


def assert_sense(sense: Sense, reason: Reason) -> None:
    """That it says this."""
    assert (sense.key, sense.asc, sense.ascq) == codes(reason), sense.words
