"""HvSavePartitionState and HvRestorePartitionState: a partition's state out and in, 4,080 bytes a call. Hypervisor.

The first call of each says START; the state is taken, or put in, as a whole, so what lies between two calls cannot tear
it. A stream that is refused has changed nothing, and neither has one that was given up half-way.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from hypervisor.hypercall.layouts import (
    STATE_CHUNK,
    RestorePartitionStateInput,
    RestorePartitionStateOutput,
    SavePartitionStateInput,
    SavePartitionStateOutput,
)
from hypervisor.partition import Partition
from hypervisor.saved_state.live import capture, check, restore
from hypervisor.saved_state.records import StreamHeader
from hypervisor.saved_state.stream import BadStream, StateResult, decode, decode_header, encode
from hypervisor.status import HvError, HvStatus
from hypervisor.trace import Layer

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor


class StateFlags(enum.IntFlag):
    """HV_SAVE_RESTORE_STATE_FLAGS."""

    START = 1
    """Begin; what was under way is given up."""
    SUMMARY = 2
    """Only what tells whether the state would fit; no processor need be suspended for that."""


_ALL = int(StateFlags.START | StateFlags.SUMMARY)


@attrs.define(eq=False)
class SaveUnderWay:
    """Between the first chunk and the last."""

    data: bytes
    summary: bool
    taken_at: int
    """Reference time: it stands while all processors are suspended, so another one means that they were not."""
    position: int = 0


@attrs.define(eq=False)
class RestoreUnderWay:
    """Between the first chunk and the last."""

    summary: bool
    data: bytearray = attrs.field(factory=bytearray)
    length: int = StreamHeader.SIZE
    """Of the stream; of its header, until that is here."""


def save_partition_state(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SavePartitionStateInput
) -> bytes:
    """The next chunk of a state, the first with START."""
    summary = _begin(target, request.flags)
    now = target.reference_time.now()
    if request.flags & StateFlags.START:
        target.state_under_way = SaveUnderWay(encode(capture(target, summary=summary)), summary, now)
    save = target.state_under_way
    if not isinstance(save, SaveUnderWay) or save.summary is not summary or (save.taken_at != now and not summary):
        raise HvError(HvStatus.INVALID_SAVE_RESTORE_STATE)
    chunk = save.data[save.position : save.position + STATE_CHUNK]
    save.position += len(chunk)
    result = StateResult.INCOMPLETE
    if save.position == len(save.data):
        target.state_under_way, result = None, StateResult.COMPLETE
    return SavePartitionStateOutput(result, len(chunk), chunk.ljust(STATE_CHUNK, b"\0")).encode()


def restore_partition_state(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: RestorePartitionStateInput
) -> bytes:
    """Take a chunk of a state; with the last one the partition has it. Bytes behind the stream are not consumed."""
    if request.count > STATE_CHUNK:
        raise HvError(HvStatus.INVALID_PARAMETER)
    summary = _begin(target, request.flags)
    if request.flags & StateFlags.START:
        target.state_under_way = RestoreUnderWay(summary)
    under_way = target.state_under_way
    if not isinstance(under_way, RestoreUnderWay) or under_way.summary is not summary:
        raise HvError(HvStatus.INVALID_SAVE_RESTORE_STATE)
    try:
        consumed = _take(under_way, request.data[: request.count])
        result = _finish(target, under_way)
    except BadStream as refusal:
        target.state_under_way = None
        hypervisor.trace.warn(Layer.STATE, "state_refused", target.id, f"{refusal.result.name}: {refusal}")
        return RestorePartitionStateOutput(refusal.result, request.count).encode()
    if result is not StateResult.INCOMPLETE:
        target.state_under_way = None
    return RestorePartitionStateOutput(result, consumed).encode()


def _begin(target: Partition, untrusted_flags: int) -> bool:
    """What both calls ask for first; whether it is about a summary."""
    if untrusted_flags & ~_ALL:
        raise HvError(HvStatus.INVALID_PARAMETER)
    summary = bool(untrusted_flags & StateFlags.SUMMARY)
    suspended = all(vp.explicit_suspend for vp in target.vps.values())
    if target.state_elsewhere or not (suspended or summary):
        raise HvError(HvStatus.OPERATION_DENIED)
    return summary


def _take(under_way: RestoreUnderWay, untrusted: bytes) -> int:
    """Add what the stream still lacks; how many bytes that were. Raises `BadStream` for a header that is none."""
    data, taken = under_way.data, 0
    if len(data) < StreamHeader.SIZE:
        taken = min(StreamHeader.SIZE - len(data), len(untrusted))
        data += untrusted[:taken]
        if len(data) == StreamHeader.SIZE:
            under_way.length = decode_header(bytes(data)).length
    more = untrusted[taken : taken + under_way.length - len(data)]
    data += more
    return taken + len(more)


def _finish(target: Partition, under_way: RestoreUnderWay) -> StateResult:
    """If all is here: check it and, unless it is about a summary, put it in."""
    if len(under_way.data) < under_way.length or len(under_way.data) == StreamHeader.SIZE:
        return StateResult.INCOMPLETE
    saved = decode(bytes(under_way.data))
    if under_way.summary:
        check(target, saved)
        return StateResult.RESTORABLE
    restore(target, saved)
    return StateResult.COMPLETE
