"""What a guest says as it crashes, through the crash MSRs. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from hypervisor.memory import GpaFault
from hypervisor.msr import (
    CRASH_MESSAGE,
    CRASH_MESSAGE_MAX,
    CRASH_NO_DUMP,
    CRASH_NOTIFY,
    CRASH_PRE_OS_MASK,
    CRASH_PRE_OS_SHIFT,
)
from hypervisor.trace import TO_ROOT, Layer, Level

if TYPE_CHECKING:
    from hypervisor.vp import VirtualProcessor

CRASH_CAPABILITIES = CRASH_NOTIFY | CRASH_MESSAGE | CRASH_NO_DUMP
"""What reading CRASH_CTL gives."""
_DEFINED = CRASH_CAPABILITIES | CRASH_PRE_OS_MASK << CRASH_PRE_OS_SHIFT


class CrashReport(msgspec.Struct, frozen=True):
    """One crash, as the guest told it. Everything in it is a guest's word and data only."""

    partition_id: int
    vp_index: int
    time: int
    """100 ns units on the host's clock."""
    parameters: tuple[int, int, int, int, int]
    """P0 is the bug check code; P3 and P4 locate the message where there is one."""
    message: bytes | None
    """The text, where the guest gave one that can be read."""
    problem: str = ""
    """Why a message that was announced is missing."""
    pre_os: int = 0
    """Not 0: who crashed before there was an operating system."""
    no_dump: bool = False
    guest_os_id: int = 0

    @property
    def text(self) -> str:
        """The message for people: unprintable bytes replaced, the end trimmed."""
        decoded = (self.message or b"").decode("utf-8", "replace").rstrip("\0\r\n ")
        return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in decoded)


def report_crash(vp: VirtualProcessor, untrusted_control: int) -> None:
    """A write of CRASH_CTL. Without the notify bit nothing happens; a second report is counted and ignored."""
    partition = vp.partition
    trace = partition.hypervisor.trace
    if untrusted_control & ~_DEFINED or not untrusted_control & CRASH_NOTIFY:
        trace.warn(Layer.MSR, "crash_control_ignored", partition.id, f"CRASH_CTL = {untrusted_control:#x}")
        return
    if partition.crash is not None:
        trace.warn(Layer.MSR, "crash_repeated", partition.id, "a partition reports one crash")
        return
    p0, p1, p2, p3, p4 = partition.registers.crash_parameters
    message: bytes | None = None
    problem = ""
    if untrusted_control & CRASH_MESSAGE:
        message, problem = _message(vp, p3, p4)
    report = CrashReport(
        partition.id,
        vp.index,
        partition.hypervisor.clock(),
        (p0, p1, p2, p3, p4),
        message,
        problem,
        untrusted_control >> CRASH_PRE_OS_SHIFT & CRASH_PRE_OS_MASK,
        bool(untrusted_control & CRASH_NO_DUMP),
        partition.guest_os_id,
    )
    partition.crash = report
    partition.counters["crashes"] += 1
    if trace.on:
        words = report.text.split("\n", 1)[0][:200] or " ".join(f"P{n}={p:#x}" for n, p in enumerate(report.parameters))
        trace.emit(Layer.STATE, "guest_crash", partition.id, level=Level.ERROR, direction=TO_ROOT, words=words)
    if partition.on_crash is not None:
        partition.on_crash(report)


def _message(vp: VirtualProcessor, untrusted_gpa: int, untrusted_length: int) -> tuple[bytes | None, str]:
    if untrusted_length > CRASH_MESSAGE_MAX:
        return None, f"message of {untrusted_length} bytes, {CRASH_MESSAGE_MAX} are the limit"
    try:
        return vp.partition.memory.read(untrusted_gpa, untrusted_length), ""
    except GpaFault as fault:
        return None, f"message is not in memory: {fault}"
