"""How commands end, and the buffers that they fill or empty. Root side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from vsp_vsc.storage.scsi.cdb import ScsiStatus
from vsp_vsc.storage.scsi.sense import Reason, fixed_sense

Tag = Any
"""Whatever a front end knows a command by; handed back with its result."""
Views = Sequence[memoryview]
"""A command's data buffer: where data is to go to or to come from."""


class ScsiResult(msgspec.Struct, frozen=True, gc=False):
    """How a command ended."""

    status: int
    """A `ScsiStatus`."""
    sense: bytes = b""
    """With CHECK CONDITION: 18 bytes in fixed format, or at most 20 in descriptor format if a guest has chosen that."""
    transferred: int = 0
    """Bytes moved."""


Done = Callable[[Tag, ScsiResult], None]
"""Takes the result of a command that could not be answered at once; called in the Trio thread."""

GOOD = ScsiResult(ScsiStatus.GOOD)
RESERVATION_CONFLICT = ScsiResult(ScsiStatus.RESERVATION_CONFLICT)
TASK_ABORTED = ScsiResult(ScsiStatus.TASK_ABORTED)


class Refused(Exception):
    """A command ends with sense data; raised by handlers, caught where they are called. The arguments of `fixed_sense`.

    `field` is of the CDB, or of the parameter list if `in_data`.
    """

    def __init__(
        self,
        reason: Reason,
        *,
        information: int | None = None,
        field: int | None = None,
        bit: int | None = None,
        in_data: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.information = information
        self.field = field
        self.bit = bit
        self.in_data = in_data


class Conflict(Exception):
    """A command ends with RESERVATION CONFLICT; raised by handlers."""


def failed(
    reason: Reason, *, information: int | None = None, field: int | None = None, bit: int | None = None
) -> ScsiResult:
    """CHECK CONDITION with sense data; the arguments are those of `fixed_sense`."""
    return ScsiResult(ScsiStatus.CHECK_CONDITION, fixed_sense(reason, information=information, field=field, bit=bit))


def give(data: bytes, allocation: int, views: Views, length: int) -> ScsiResult:
    """Put as much of an answer into the buffer as the command and the buffer allow."""
    data = data[: min(allocation, length)]
    position = 0
    for view in first_bytes(views, len(data)):
        view[:] = data[position : position + len(view)]
        position += len(view)
    return ScsiResult(ScsiStatus.GOOD, b"", len(data))


def first_bytes(views: Views, size: int) -> list[memoryview]:
    """The part of a buffer that holds its first `size` bytes."""
    kept: list[memoryview] = []
    for view in views:
        if size <= 0:
            break
        kept.append(view[:size])
        size -= len(view)
    return kept
