"""From a live partition to records and back. Hypervisor.

The one place that knows both. `restore` checks everything first and changes nothing before it is sure; what it changes
then cannot fail.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from hypervisor.msr import PAGE_ENABLE
from hypervisor.msr_table import refresh_tsc_page, reset_partition_registers
from hypervisor.overlay import OverlayPage
from hypervisor.pages import PAGE_SHIFT, PAGE_SIZE
from hypervisor.saved_state.records import (
    CRASH_WORDS,
    MAGIC,
    SINT_WORDS,
    TIMER_RUNS,
    TIMER_WAITS,
    VERSION,
    BeneathRecord,
    MessageRecord,
    OverlayRecord,
    Page,
    PartitionRecord,
    ProcessorRecord,
    RegisterRecord,
    StreamHeader,
    TimerRecord,
)
from hypervisor.saved_state.stream import BadStream, SavedPartition, StateResult
from hypervisor.synic.messages import PAYLOAD_MAX, SINT_COUNT, MessageType
from hypervisor.synic.ports import PortType
from hypervisor.synic.synic import Message
from hypervisor.synic.timer_registers import TimerMessage

if TYPE_CHECKING:
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

_NO_PAGE = bytes(PAGE_SIZE)
_OWN_CONTENT = frozenset({Page.HYPERCALL, Page.REFERENCE_TSC})
"""Pages that the hypervisor fills itself, in the way of the machine that it is on."""


def capture(partition: Partition, *, summary: bool = False) -> SavedPartition:
    """The state as it is now; with `summary`, only what tells whether it would fit another partition."""
    header = _header(partition, summary=summary)
    vps = partition.vps.values()
    if summary:
        return SavedPartition(header, None, tuple(ProcessorRecord(vp.index, *_NO_STATE) for vp in vps))
    registers = partition.registers
    time = partition.reference_time
    return SavedPartition(
        header,
        PartitionRecord(
            guest_os_id=partition.guest_os_id,
            hypercall=partition.hypercall_msr,
            reference_tsc=registers.reference_tsc,
            tsc_invariant=registers.tsc_invariant,
            reference_time=time.now(),
            last_reading=time.last_reading + 1,
            tsc_sequence=registers.tsc_sequence,
            crash_parameters=struct.pack(CRASH_WORDS, *registers.crash_parameters),
        ),
        tuple(map(_processor, vps)),
        tuple(
            RegisterRecord(vp.index, name, value.to_bytes(16, "little"))
            for vp in vps
            for name, value in vp.registers.items()
        ),
        tuple(
            MessageRecord(
                vp.index,
                sint,
                len(message.payload),
                message.message_type,
                message.origination_id,
                message.payload.ljust(PAYLOAD_MAX, b"\0"),
            )
            for vp in vps
            for sint in range(SINT_COUNT)
            for message in vp.synic.queues[sint]
        ),
        tuple(_overlays(partition)),
        tuple(BeneathRecord(gpn, beneath) for gpn, beneath, _ in partition.overlays.places() if beneath is not None),
        tuple(record for vp in vps if vp.has_timers for record in _timers(vp)),
    )


def check(partition: Partition, saved: SavedPartition) -> None:
    """Whether this state, or the state of this summary, can go into that partition. Raises `BadStream`."""
    header, own = saved.header, _header(partition, summary=False)
    if header.vp_count != own.vp_count:
        words = f"{header.vp_count} processors were saved, the partition has {own.vp_count}"
        raise BadStream(StateResult.PROCESSOR_COUNT_MISMATCH, words)
    if saved.indices != sorted(partition.vps):
        words = f"processors {saved.indices} were saved, the partition has {sorted(partition.vps)}"
        raise BadStream(StateResult.PROCESSOR_INDEX_MISMATCH, words)
    if header.features & ~own.features:
        words = f"the guest was shown features {header.features:#x}, here are {own.features:#x}"
        raise BadStream(StateResult.PROCESSOR_FEATURES_MISMATCH, words)
    if (header.tsc_frequency, header.apic_frequency) != (own.tsc_frequency, own.apic_frequency):
        words = f"the guest was told {header.tsc_frequency} Hz, this processor has {own.tsc_frequency}"
        raise BadStream(StateResult.INCOMPATIBLE_PROCESSOR, words)
    covered = _covered(saved)
    for record in saved.beneath:
        if record.gpn not in covered or partition.memory.source(record.gpn) is None:
            raise BadStream(StateResult.CORRUPT_DATA, f"page {record.gpn:#x} lies under no overlay, or is not there")


def restore(partition: Partition, saved: SavedPartition) -> None:
    """Put a state into a partition whose processors are suspended. Raises `BadStream` and then has changed nothing."""
    check(partition, saved)
    if saved.partition is None:
        raise BadStream(StateResult.CORRUPT_DATA, "a summary has no state in it")
    for vp in partition.vps.values():
        vp.reset()
    reset_partition_registers(partition)
    _restore_partition(partition, saved.partition)
    for processor in saved.processors:
        _restore_processor(partition.vps[processor.index], processor)
    for register in saved.registers:
        partition.vps[register.vp].registers[register.name] = int.from_bytes(register.value, "little")
    for beneath in saved.beneath:
        source = partition.memory.source(beneath.gpn)
        assert source is not None, "checked"
        start = source[1] << PAGE_SHIFT
        source[0].view[start : start + PAGE_SIZE] = beneath.content
    _restore_overlays(partition, saved)
    for timer in saved.timers:
        _restore_timer(partition.vps[timer.vp], timer)
    for message in saved.messages:
        _restore_message(partition, message)
    # The guest's clock page holds for the processor that it was computed on, and this may be another.
    refresh_tsc_page(partition)


# --- there

_NO_STATE = (0, 0, 0, 0, 0, 0, 0, 0, bytes(128), bytes(32))


def _header(partition: Partition, *, summary: bool) -> StreamHeader:
    registers = partition.registers
    return StreamHeader(
        magic=MAGIC,
        version=VERSION,
        summary=int(summary),
        vp_count=len(partition.vps),
        features=partition.cpuid_features.features & 0xFFFFFFFF,
        tsc_frequency=registers.tsc_frequency,
        apic_frequency=registers.apic_frequency,
    )


def _processor(vp: VirtualProcessor) -> ProcessorRecord:
    synic = vp.synic
    return ProcessorRecord(
        index=vp.index,
        intercept_suspend=int(vp.intercept_suspend),
        runtime=vp.run_time(),
        vp_assist=vp.vp_assist,
        tpr=vp.tpr,
        icr=vp.icr,
        scontrol=synic.scontrol,
        siefp=synic.siefp,
        simp=synic.simp,
        sints=struct.pack(SINT_WORDS, *synic.sints),
        pending=sum(1 << vector for vector in vp.pending).to_bytes(32, "little"),
    )


def _overlays(partition: Partition) -> Iterator[OverlayRecord]:
    """Those that are shown, from below to above where they share a page; then those that hold something unseen."""
    pages = {id(overlay): (vp, page) for vp, page, overlay in _pages(partition)}
    shown = [overlay for _, _, stack in partition.overlays.places() for overlay in stack]
    hidden = [overlay for _, _, overlay in _pages(partition) if overlay.gpn is None and any(overlay.view)]
    for overlay in (*shown, *hidden):
        vp, page = pages[id(overlay)]
        own = page in _OWN_CONTENT
        if own and overlay.gpn is None:
            continue
        yield OverlayRecord(vp, page, _NO_PAGE if own else bytes(overlay.view))


def _timers(vp: VirtualProcessor) -> Iterator[TimerRecord]:
    for index, timer in enumerate(vp.timers.state.timers):
        runs, waits = timer.due is not None, timer.waits
        flags = runs * TIMER_RUNS | waits * TIMER_WAITS
        if timer.config or timer.count or flags:
            yield TimerRecord(vp.index, index, timer.config, timer.count, timer.due or 0, timer.not_before, flags)


def _pages(partition: Partition) -> Iterator[tuple[int, Page, OverlayPage]]:
    yield 0, Page.HYPERCALL, partition.registers.hypercall_page
    yield 0, Page.REFERENCE_TSC, partition.registers.tsc_page
    for vp in partition.vps.values():
        yield vp.index, Page.MESSAGES, vp.synic.message_page
        yield vp.index, Page.EVENTS, vp.synic.event_page
        yield vp.index, Page.ASSIST, vp.assist_page


# --- and back


def _places(saved: SavedPartition) -> dict[tuple[int, int], int]:
    """Where each overlay page lies by its register; without those that are disabled."""
    assert saved.partition is not None
    registers: dict[tuple[int, int], int] = {
        (0, Page.HYPERCALL): saved.partition.hypercall,
        (0, Page.REFERENCE_TSC): saved.partition.reference_tsc,
    }
    for processor in saved.processors:
        registers[processor.index, Page.MESSAGES] = processor.simp
        registers[processor.index, Page.EVENTS] = processor.siefp
        registers[processor.index, Page.ASSIST] = processor.vp_assist
    return {key: value >> PAGE_SHIFT for key, value in registers.items() if value & PAGE_ENABLE}


def _covered(saved: SavedPartition) -> frozenset[int]:
    return frozenset() if saved.partition is None else frozenset(_places(saved).values())


def _restore_partition(partition: Partition, record: PartitionRecord) -> None:
    registers = partition.registers
    partition.guest_os_id = record.guest_os_id
    partition.hypercall_msr = record.hypercall
    registers.reference_tsc = record.reference_tsc
    registers.tsc_invariant = record.tsc_invariant
    registers.tsc_sequence = record.tsc_sequence
    registers.crash_parameters[:] = struct.unpack(CRASH_WORDS, record.crash_parameters)
    partition.reference_time.go_on_from(record.reference_time, record.last_reading - 1)


def _restore_processor(vp: VirtualProcessor, record: ProcessorRecord) -> None:
    synic = vp.synic
    vp.intercept_suspend = bool(record.intercept_suspend)
    vp.runtime = record.runtime
    vp.vp_assist = record.vp_assist
    vp.tpr = record.tpr
    vp.icr = record.icr
    synic.scontrol = record.scontrol
    synic.siefp = record.siefp
    synic.simp = record.simp
    synic.sints[:] = struct.unpack(SINT_WORDS, record.sints)
    pending = int.from_bytes(record.pending, "little")
    vp.pending.update(vector for vector in range(256) if pending >> vector & 1)


def _restore_overlays(partition: Partition, saved: SavedPartition) -> None:
    pages = {(vp, int(page)): overlay for vp, page, overlay in _pages(partition)}
    places = _places(saved)
    for record in saved.overlays:
        if record.page not in _OWN_CONTENT:
            pages[record.vp, record.page].view[:] = record.content
    hypercall = partition.registers.hypercall_page
    hypercall.view[:] = partition.registers.hypercall_code.ljust(PAGE_SIZE, b"\0")
    # In the stream's order; what is enabled and stands in no record comes on top.
    order = dict.fromkeys((record.vp, record.page) for record in saved.overlays) | dict.fromkeys(places)
    for key in order:
        if key in places:
            partition.overlays.put(pages[key], places[key])


def _restore_timer(vp: VirtualProcessor, record: TimerRecord) -> None:
    """It starts to wait when its processor is resumed, as after any suspension."""
    timer = vp.timers.state.timers[record.index]
    timer.config, timer.count, timer.not_before = record.config, record.count, record.not_before
    timer.due = record.due if record.flags & TIMER_RUNS else None


def _restore_message(partition: Partition, record: MessageRecord) -> None:
    vp = partition.vps[record.vp]
    payload = record.payload[: record.size]
    message = _timer_message(vp, payload) if record.message_type == MessageType.TIMER_EXPIRED else None
    if message is None:
        message = Message(record.message_type, payload, record.origination_id, _buffer(partition, record))
    vp.synic.queues[record.sint].append(message)
    vp.synic.queued += 1


def _timer_message(vp: VirtualProcessor, payload: bytes) -> Message | None:
    """A timer's message, in that timer's one buffer; None if there is no such timer, or its buffer is taken."""
    if len(payload) < TimerMessage.SIZE or not vp.has_timers:
        return None
    expired = TimerMessage.decode(payload)
    timers = vp.timers.state.timers
    if expired.timer_index >= len(timers) or timers[expired.timer_index].waits:
        return None
    timer = timers[expired.timer_index]
    timer.waits = True
    return vp.timers.message(expired.timer_index, timer, expired.expiration_time)


def _buffer(partition: Partition, record: MessageRecord) -> Callable[[], None] | None:
    """A buffer of the port that the message came through, if the parent has made it again."""
    port = partition.ports.get(record.origination_id)
    if port is None or port.type is not PortType.MESSAGE or port.sint != record.sint or not port.buffers:
        return None
    port.buffers -= 1
    return port.release_buffer
