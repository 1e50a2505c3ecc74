"""From a control word to a result: checks in one order, input copied once, output written on success. Hypervisor.

The order (our choice, where the specification leaves it open: nothing may tell a caller more than its rights allow):
control word; call code; what the row says of the control word; privilege; alignment, page and bounds of both blocks;
reading the input and finding the output; partition ID; relationship; state; and then the handler's own checks: object
IDs, parameter values, resources.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from hypervisor import interception
from hypervisor.hypercall.abi import (
    FAST,
    FAST_INPUT,
    PARTITION_ID_SELF,
    ControlWord,
    control_word,
    result_value,
)
from hypervisor.hypercall.call import Call, Reps, Unfinished, Who
from hypervisor.hypercall.table import BY_CODE, CALLS
from hypervisor.machine import InvalidOpcode, VpStopped
from hypervisor.memory import GpaFault
from hypervisor.pages import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Access
from hypervisor.partition import ROOT_ID, Partition, PartitionState
from hypervisor.privileges import Privilege
from hypervisor.status import HvError, HvStatus
from hypervisor.trace import Layer

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.vp import VirtualProcessor

_MAY_BE_PARENT = int(Privilege.CREATE_PARTITIONS)
_MISUSE = frozenset(
    {
        HvStatus.INVALID_HYPERCALL_CODE,
        HvStatus.INVALID_HYPERCALL_INPUT,
        HvStatus.INVALID_ALIGNMENT,
        HvStatus.ACCESS_DENIED,
    }
)
"""Answers that sound software never gets: counted and warned of."""

FAST_WORDS: dict[int, Call] = {
    call.code | FAST: call for call in CALLS if call.fast and not call.rep and not call.long_running
}
"""Control words that pass every check on control words and end in one trip: the short way to the same code."""
SLOW_WORDS: dict[int, Call] = {
    call.code: call for call in CALLS if not (call.rep or call.long_running or call.variable)
}
"""As above, for calls with their input in memory."""


def hypercall(
    hypervisor: Hypervisor, vp: VirtualProcessor, control: int, input_gpa: int = 0, output_gpa: int = 0
) -> int:
    """A hypercall to its end: 64-bit RCX, RDX, R8 in, RAX out. Raises InvalidOpcode and VpStopped."""
    if vp.partition.hypercall_msr & 1:
        call = FAST_WORDS.get(control)
        if call is not None:
            return _run_fast(hypervisor, vp, call, input_gpa, output_gpa)
        call = SLOW_WORDS.get(control)
        if call is not None:
            return _run_slow(hypervisor, vp, call, input_gpa, output_gpa)
    while True:
        finished, value = step(hypervisor, vp, control, input_gpa, output_gpa)
        if finished:
            return value
        control = value


def step(
    hypervisor: Hypervisor, vp: VirtualProcessor, control: int, input_gpa: int = 0, output_gpa: int = 0
) -> tuple[bool, int]:
    """One trip: (True, RAX) when the call is done, (False, RCX) when it is to be executed again with that RCX.

    For backends whose guests execute the call again; in between they may take interrupts. Raises as `hypercall` does.
    """
    partition = vp.partition
    if not partition.hypercall_msr & 1:
        return True, _refuse_instruction(hypervisor, vp, control, input_gpa, output_gpa)
    word = ControlWord.decode(control)
    call = BY_CODE.get(control & 0xFFFF)
    status = _check_word(word, call)
    if status is not HvStatus.SUCCESS or word is None or call is None:
        partition.counters["hypercalls"] += 1
        return True, _refused(hypervisor, vp, control, status)
    if call.rep:
        return _run_rep(hypervisor, vp, call, word, input_gpa, output_gpa)
    try:
        if word.fast:
            return True, _run_fast(hypervisor, vp, call, input_gpa, output_gpa)
        return True, _run_slow(hypervisor, vp, call, input_gpa, output_gpa, word.header_qwords)
    except Unfinished:
        return False, control


def _check_word(word: ControlWord | None, call: Call | None) -> HvStatus:
    """Everything that the control word alone decides."""
    if word is None or word.nested or (word.start and word.start >= word.count):
        return HvStatus.INVALID_HYPERCALL_INPUT
    if call is None:
        return HvStatus.INVALID_HYPERCALL_CODE
    # `start` is below `count` here, so a simple call with a start has a count as well.
    header = word.header_qwords and not call.variable
    if header or call.rep != bool(word.count) or (word.fast and not call.fast):
        return HvStatus.INVALID_HYPERCALL_INPUT
    return HvStatus.SUCCESS


def _refuse_instruction(
    hypervisor: Hypervisor, vp: VirtualProcessor, control: int, input_gpa: int, output_gpa: int
) -> int:
    if vp.partition.state is not PartitionState.ACTIVE:
        raise VpStopped(f"{vp!r} has no partition to run in")
    again = partial(hypercall, hypervisor, vp, control, input_gpa, output_gpa)
    return interception.invalid_opcode(hypervisor, vp, InvalidOpcode("the hypercall page is not enabled"), again)


# --- the three ways a call runs


def _run_fast(hypervisor: Hypervisor, vp: VirtualProcessor, call: Call, low: int, high: int) -> int:
    """A simple call with its input in RDX and R8."""
    partition = vp.partition
    partition.counters["hypercalls"] += 1
    request = None
    target = partition
    try:
        if partition.privileges & call.needs != call.needs:
            raise HvError(HvStatus.ACCESS_DENIED)
        values = call.unpack(FAST_INPUT.pack(low, high))
        request = call.request(*values)
        if call.who is not Who.NOBODY:
            target = _find_target(hypervisor, partition, call, values[0])
        call.handler(hypervisor, vp, target, request)
    except HvError as error:
        return _failed(hypervisor, vp, target, call, request, error.status)
    if hypervisor.trace.on:
        _report(hypervisor, vp, target, call, request, HvStatus.SUCCESS)
    return 0


def _run_slow(
    hypervisor: Hypervisor, vp: VirtualProcessor, call: Call, input_gpa: int, output_gpa: int, header_qwords: int = 0
) -> int:
    """A simple call with its input and output in memory."""
    partition = vp.partition
    partition.counters["hypercalls"] += 1
    request = None
    target = partition
    try:
        if partition.privileges & call.needs != call.needs:
            raise HvError(HvStatus.ACCESS_DENIED)
        size = call.input_size + 8 * header_qwords
        data, room = _blocks(hypervisor, vp, input_gpa, size, output_gpa, call.output_size)
        values = call.unpack(data)
        request = call.request(*values)
        if call.who is not Who.NOBODY:
            target = _find_target(hypervisor, partition, call, values[0])
        if call.variable:
            output = call.handler(hypervisor, vp, target, request, data[call.input_size :])
        else:
            output = call.handler(hypervisor, vp, target, request)
    except HvError as error:
        return _failed(hypervisor, vp, target, call, request, error.status)
    if output is not None:
        room[:] = output
    if hypervisor.trace.on:
        _report(hypervisor, vp, target, call, request, HvStatus.SUCCESS)
    return 0


def _run_rep(
    hypervisor: Hypervisor, vp: VirtualProcessor, call: Call, word: ControlWord, input_gpa: int, output_gpa: int
) -> tuple[bool, int]:
    """One trip of a rep call: at least one element, at most what the row allows."""
    partition = vp.partition
    if not word.start:
        partition.counters["hypercalls"] += 1
    reps = Reps(word.start, min(word.count - word.start, call.reps_a_trip))
    done = word.start
    room = memoryview(b"")
    request = None
    target = partition
    status = HvStatus.SUCCESS
    try:
        if partition.privileges & call.needs != call.needs:
            raise HvError(HvStatus.ACCESS_DENIED)
        header = call.input_size + 8 * word.header_qwords
        data, room = _blocks(
            hypervisor, vp, input_gpa, header + word.count * call.element_in, output_gpa, word.count * call.element_out
        )
        values = call.unpack(data)
        request = call.request(*values)
        first = header + word.start * call.element_in
        reps.data = data[first : first + reps.count * call.element_in]
        if call.who is not Who.NOBODY:
            target = _find_target(hypervisor, partition, call, values[0])
        if call.variable:
            call.handler(hypervisor, vp, target, request, data[call.input_size : header], reps)
        else:
            call.handler(hypervisor, vp, target, request, reps)
        done += reps.count
    except HvError as error:
        status = error.status
        done += error.completed
    if reps.output:
        first = word.start * call.element_out
        room[first : first + len(reps.output)] = reps.output
    if status is HvStatus.SUCCESS and done < word.count:
        return False, control_word(word.code, count=word.count, start=done, header_qwords=word.header_qwords)
    if status:
        _failed(hypervisor, vp, target, call, request, status, completed=done)
    elif hypervisor.trace.on:
        _report(hypervisor, vp, target, call, request, status, completed=done)
    return True, result_value(int(status), done)


# --- pieces


def _blocks(
    hypervisor: Hypervisor, vp: VirtualProcessor, input_gpa: int, size: int, output_gpa: int, room: int
) -> tuple[bytes, memoryview]:
    """The input, copied, and where the output goes. An address without a block is not looked at.

    Raises INVALID_ALIGNMENT; a block in memory that is absent or lacks the right stops the VP and raises VpStopped.
    """
    partition = vp.partition
    memory = partition.memory
    # A block is padded to eight bytes; one that an element of four leaves in the middle ends where it ends.
    if size and (input_gpa & 7 or (input_gpa & PAGE_MASK) + size > PAGE_SIZE or input_gpa + size > memory.end):
        raise HvError(HvStatus.INVALID_ALIGNMENT)
    if room:
        if output_gpa & 7 or (output_gpa & PAGE_MASK) + room > PAGE_SIZE or output_gpa + room > memory.end:
            raise HvError(HvStatus.INVALID_ALIGNMENT)
        if size and input_gpa < output_gpa + room and output_gpa < input_gpa + size:
            raise HvError(HvStatus.INVALID_ALIGNMENT)
    try:
        data = memory.read(input_gpa, size) if size else b""
        if not room:
            return data, _NO_ROOM
        if partition.hypercall_msr >> PAGE_SHIFT == output_gpa >> PAGE_SHIFT:
            raise GpaFault(
                output_gpa, Access.WRITE
            )  # the hypercall page may be read and executed, whatever lies beneath
        return data, memory.view(output_gpa, room, Access.WRITE)
    except GpaFault as fault:
        hypervisor.memory_intercept(vp, fault)
        raise VpStopped(f"hypercall parameters: {fault}") from None


_NO_ROOM = memoryview(b"")


def _find_target(hypervisor: Hypervisor, caller: Partition, call: Call, untrusted_id: int) -> Partition:
    """The partition in the first field of the input, if the caller may name it and the call suits its state."""
    target: Partition | None
    if untrusted_id in (caller.id, PARTITION_ID_SELF):
        allowed = call.who is Who.PARENT_OR_SELF or (call.who is Who.PARENT_OR_ROOT_SELF and caller.id == ROOT_ID)
        if not allowed:
            raise HvError(HvStatus.ACCESS_DENIED)
        target = caller
    else:
        target = hypervisor.partitions.get(untrusted_id)
        if target is None:
            # Who can be nobody's parent does not learn which IDs exist.
            may_know = caller.privileges & _MAY_BE_PARENT
            raise HvError(HvStatus.INVALID_PARTITION_ID if may_know else HvStatus.ACCESS_DENIED)
        if target.parent_id != caller.id:
            raise HvError(HvStatus.ACCESS_DENIED)
    if target.state not in call.states:
        raise HvError(HvStatus.INVALID_PARTITION_STATE)
    return target


# --- telling


def _refused(hypervisor: Hypervisor, vp: VirtualProcessor, control: int, status: HvStatus) -> int:
    call = BY_CODE.get(control & 0xFFFF)
    name = call.name if call else f"call {control & 0xFFFF:#06x}"
    words = f"{name} -> {status.name} (control word {control:#x})"
    caller = vp.partition.id
    hypervisor.trace.warn(Layer.HYPERCALL, "hypercall_refused", caller, words)
    if hypervisor.trace.on:
        hypervisor.trace.emit(
            Layer.HYPERCALL,
            "hypercall",
            caller,
            words=words,
            call=name,
            status=status.name,
            caller=caller,
            vp=vp.index,
        )
    return result_value(status)


def _report(
    hypervisor: Hypervisor,
    vp: VirtualProcessor,
    target: Partition,
    call: Call,
    request: object,
    status: HvStatus,
    *,
    completed: int | None = None,
) -> None:
    """Tell whoever listens. The event's partition is the one that the call is about; who made it are `caller`, `vp`."""
    inputs = describe(request)
    words = f"{call.name}{inputs} -> {status.name}"
    if status in _MISUSE:
        hypervisor.trace.warn(Layer.HYPERCALL, "hypercall_refused", vp.partition.id, words)
    if hypervisor.trace.on:
        fields: dict[str, Any] = {} if completed is None else {"completed": completed}
        hypervisor.trace.emit(
            Layer.HYPERCALL,
            "hypercall",
            target.id,
            words=words,
            call=call.name,
            status=status.name,
            caller=vp.partition.id,
            vp=vp.index,
            **fields,
        )


def _failed(
    hypervisor: Hypervisor,
    vp: VirtualProcessor,
    target: Partition,
    call: Call,
    request: object,
    status: HvStatus,
    *,
    completed: int | None = None,
) -> int:
    """RAX of a simple call that was refused, and what is to be told of it."""
    if hypervisor.trace.on or status in _MISUSE:
        _report(hypervisor, vp, target, call, request, status, completed=completed)
    return int(status)


def describe(request: object) -> str:
    """The integers of an input, for people: ` connection_id=0x1 message_type=0x1`."""
    fields = getattr(request, "FIELDS", ())
    pairs = ((field.name, getattr(request, field.name)) for field in fields)
    return "".join(f" {name}={value:#x}" for name, value in pairs if isinstance(value, int))
