"""What an `Explainer` has seen, in words: the steps on a guest's way, and what the next one needs. Root side."""

from __future__ import annotations

import enum
import textwrap
from typing import Final

import msgspec

from hypervisor.clock import seconds
from partitions.explain import ChannelProgress, Explainer, Progress, os_words
from vmbus.protocol.versions import IMPLEMENTED, version_text

LINUX_DRIVERS: Final = {
    "storage": "hv_storvsc",
    "network": "hv_netvsc",
    "heartbeat": "hv_utils",
    "shutdown": "hv_utils",
    "time-sync": "hv_utils",
    "kvp": "hv_utils",
    "vss": "hv_utils",
    "file-copy": "hv_utils",
    "keyboard": "hyperv_keyboard",
    "mouse": "hid_hyperv",
    "dynamic-memory": "hv_balloon",
    "video": "hyperv_drm",
}
"""Which module of Linux binds to a device, by our name for it."""


LINUX_DAEMONS: Final = {"kvp": "hv_kvp_daemon", "vss": "hv_vss_daemon", "file-copy": "hv_fcopy_daemon"}
"""Devices of which the kernel has half a driver: it answers once this program of the guest's runs."""


class Reached(enum.StrEnum):
    """How a step stands."""

    YES = "yes"
    NO = "no"
    UNSEEN = "?"
    """It leaves no trace by itself, and nothing that was seen says that it happened."""


class Step(msgspec.Struct, frozen=True):
    """One step on the way, in the order in which guests take them."""

    name: str
    reached: Reached
    detail: str
    time: float | None = None
    """Seconds since the VM's start; None where there is no one moment."""


class Explanation(msgspec.Struct, frozen=True):
    """One VM, by stable names."""

    vm: str
    complete: bool
    """The guest has come to every device it was offered, and has not fallen over."""
    seconds: float
    """Since the VM's start or its last reset."""
    steps: list[Step]
    next: list[str]
    """What the next steps need, the most urgent first; empty when nothing is missing."""
    notes: list[str]
    """What else was seen: mistakes that were answered, resets, the end."""


def explain(explainer: Explainer, *, vm: str, kvm: bool, processors: int, failure: str = "") -> Explanation:
    """The state of things now. `kvm`: the guest is a kernel on KVM and not a program of ours.

    `failure` is how the VM ended, for those who know it better than from events.
    """
    seen = explainer.progress
    seen.failure = seen.failure or failure
    wanted = _next(seen, kvm)
    return Explanation(
        vm=vm,
        complete=not wanted and not seen.failure,
        seconds=seconds(seen.last - (seen.started or 0)),
        steps=_steps(seen, kvm, processors),
        next=wanted,
        notes=_notes(explainer, processors),
    )


def _steps(seen: Progress, kvm: bool, processors: int) -> list[Step]:
    def when(moment: int | None) -> float | None:
        return None if moment is None else seconds(moment - (seen.started or 0))

    def step(name: str, moment: int | None, detail: str, otherwise: str = "") -> Step:
        done = moment is not None
        return Step(name, Reached.YES if done else Reached.NO, detail if done else otherwise, when(moment))

    quiet = "KVM answers CPUID without us" if kvm else "CPUID leaves no event"
    steps = [
        Step(
            "CPUID",
            Reached.UNSEEN if seen.enlightened is None else Reached.YES,
            f"{quiet}; inferred from what follows"
            if seen.enlightened is not None
            else f"{quiet}, and no synthetic register has been used yet",
            when(seen.enlightened),
        ),
        step("guest OS ID", seen.os_id_at, f"{os_words(seen.os_id)} ({seen.os_id:#018x})", "never written"),
        step(
            "hypercall page",
            seen.hypercall_page_at,
            f"at {seen.hypercall_page or 0:#x}",
            "HYPERCALL was never written",
        ),
    ]
    ready = [index for index, synic in sorted(seen.synic.items()) if not synic.missing]
    if kvm:
        found = bool(seen.synic)
        steps.append(
            Step(
                "ACPI device",
                Reached.YES if found else Reached.UNSEEN,
                "Linux sets SynIC up only after it has found the device VMBus"
                if found
                else 'HID "VMBus" is in the tables; reading them leaves no event',
            )
        )
    since = max((synic.since for synic in seen.synic.values()), default=None) if ready else None
    steps.append(step("SynIC", since, _synic_words(seen, ready, processors), _synic_words(seen, ready, processors)))
    tried = ", ".join(seen.tried)
    steps += [
        step(
            "contact",
            seen.agreed_at,
            f"VMBus {seen.agreed}" + (f", after {', '.join(seen.tried[:-1])}" if len(set(seen.tried)) > 1 else ""),
            f"asked for {tried}, none agreed" if tried else "INITIATE_CONTACT never came",
        ),
        step(
            "offers",
            seen.delivered,
            f"{len(seen.channels)} offered" if seen.channels else "none: the topology gives this VM no device",
            "asked for, not yet all told" if seen.requested is not None else "REQUEST_OFFERS never came",
        ),
    ]
    for channel in seen.channels.values():
        name = f"channel {channel.id}"
        steps.append(step(name, channel.opened, _channel_words(channel), _channel_words(channel)))
    return steps


def _synic_words(seen: Progress, ready: list[int], processors: int) -> str:
    if not seen.synic:
        return "SIMP was never written"
    begun = [
        f"VP {index} lacks {', '.join(synic.missing)}" for index, synic in sorted(seen.synic.items()) if synic.missing
    ]
    if not ready:
        return "; ".join(begun)
    vectors = sorted({f"{seen.synic[index].vector or 0:#x}" for index in ready})
    words = f"VP {_ranges(ready)} of {processors}, SINT2 at vector {', '.join(vectors)}"
    return "; ".join([words, *begun])


def _ranges(numbers: list[int]) -> str:
    """`0-3, 6`: numbers in order, runs as two ends."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _channel_words(channel: ChannelProgress) -> str:
    words = [channel.name + (f" (subchannel {channel.subchannel})" if channel.subchannel else "")]
    if channel.rescinded:
        words.append("taken away again")
    if channel.opened is None:
        words.append("rings shared, not opened" if channel.ring is not None else "not opened")
    else:
        words.append("opened" + (", closed again" if channel.closed else ""))
        words.append(f"packets in {channel.packets_in}, out {channel.packets_out}")
    if channel.opened is not None and channel.first_packet is None and channel.name in LINUX_DAEMONS:
        words.append(f"silent until {LINUX_DAEMONS[channel.name]} runs in the guest")
    if channel.transfers:
        words.append(f"LUN {_ranges(sorted(channel.transfers))} read or written")
    elif channel.sized:
        words.append(f"LUN {_ranges(sorted(channel.sized))} sized")
    return ", ".join(words)


def _next(seen: Progress, kvm: bool) -> list[str]:
    """The first thing that is missing; once there are channels, one thing for each."""
    linux = kvm or seen.os_id >> 56 & 0x7F == 1
    if seen.started is None:
        return [f"The VM never ran: {seen.failure or seen.ended}." if seen.failure or seen.ended else "Start the VM."]
    if (early := _before_offers(seen, linux, kvm)) is not None:
        return [early]
    return [words for channel in seen.channels.values() if (words := _channel_next(channel, linux))]


def _before_offers(seen: Progress, linux: bool, kvm: bool) -> str | None:
    """What the next step needs, up to the offers."""
    ready = any(not synic.missing for synic in seen.synic.values())
    if seen.touched is None:
        return (
            "Nothing has been seen of the kernel: no port, no register. Give it time (--timeout). If that does not "
            "help, add earlyprintk=ttyS0 to cmdline and watch with `partita run --console`."
            if kvm
            else "Nothing has been seen of the guest: its program has not come to the kernel's first step."
        )
    if seen.os_id_at is None and seen.enlightened is not None:
        return (
            "The kernel has found Hyper-V and not yet said who it is (GUEST_OS_ID), which Linux does once its "
            "interrupt controllers run. Give it time (--timeout); if that does not help, boot without quiet."
            if linux
            else "The guest has to write its ID to GUEST_OS_ID (0x40000000): hypercalls are refused until then."
        )
    if seen.os_id_at is None:
        return (
            "The kernel runs and has not taken Hyper-V's side: it may still be starting (--timeout), be built without "
            'CONFIG_HYPERV, or be booted with "nopv". Without "quiet" in cmdline it says "Hypervisor detected: '
            'Microsoft Hyper-V" when it has.'
            if linux
            else "The guest has to write its ID to GUEST_OS_ID (0x40000000): hypercalls are refused until then."
        )
    if seen.hypercall_page_at is None:
        return "The guest has to write HYPERCALL (0x40000001) with bit 0 set: without the page it can call nothing."
    if not seen.synic:
        return (
            "hv_vmbus is not loaded: the kernel never wrote SIMP. Put hv_vmbus into the initramfs or load it. If it is "
            'loaded, it found no ACPI device "VMBus": look for acpi=off in cmdline and for hv_vmbus in dmesg.'
            if linux
            else "The guest has to set up SynIC: SIMP, SIEFP, SINT2 and SCONTROL on a processor."
        )
    if not ready:
        lacking = "; ".join(f"VP {index} lacks {', '.join(synic.missing)}" for index, synic in seen.synic.items())
        return f"SynIC is half set up: {lacking}. Without all four, no answer of the host arrives."
    if seen.contact is None:
        return (
            "SynIC is ready; INITIATE_CONTACT has not come. It is a message to connection 4 (5.0 and later) or 1: look "
            "for refused hypercalls in `partita run -vv --trace-filter layer=hypercall`."
        )
    if not seen.agreed:
        return (
            f"The guest asked for VMBus {', '.join(seen.tried)} and this host refused; it speaks exactly "
            f"{', '.join(version_text(version) for version in sorted(IMPLEMENTED))}."
        )
    if seen.requested is None:
        return f"VMBus {seen.agreed} is agreed. The guest has to send REQUEST_OFFERS to hear which devices there are."
    if seen.delivered is None:
        return (
            "Offers are on their way and are not taken: the guest has to free its message slot (set its type to 0, and "
            "write EOM if message-pending was set)."
        )
    return None


def _channel_next(channel: ChannelProgress, linux: bool) -> str:
    """What this channel still needs; empty when nothing is missing."""
    who = f"channel {channel.id} ({channel.name})"
    driver = LINUX_DRIVERS.get(channel.name)
    if channel.faults:
        return f"{who}: the device stopped over what the guest sent: {channel.faults[-1]}"
    if channel.rescinded and channel.opened is None:
        return ""
    if channel.opened is None:
        if channel.refused:
            return f"{who}: the host refused: {channel.refused}"
        if channel.ring is not None:
            return f"{who}: its rings are shared; OPEN_CHANNEL has not come."
        if linux and driver:
            return f"{who}: nobody opened it: {driver} is not loaded (put it into the initramfs, or modprobe {driver})."
        if linux:
            return (
                f"{who}: nobody opened it. A device of your own has no driver in Linux: bind uio_hv_generic to it, see "
                "examples/21-own-vsp."
            )
        return f"{who}: nobody opened it: the guest's program has not asked for it."
    if channel.first_packet is None:
        if channel.name in LINUX_DAEMONS:
            return ""
        return f"{who}: it is open, and its driver has sent nothing yet."
    if channel.name == "storage":
        return _storage_next(channel, who, linux)
    return ""


def _storage_next(channel: ChannelProgress, who: str, linux: bool) -> str:
    if not channel.inquired and not channel.sized and not channel.transfers:
        stands = f" (last: {channel.negotiated})" if channel.negotiated else ""
        return f"{who}: no SCSI command has come; the driver is still negotiating{stands}."
    if not channel.sized and not channel.transfers:
        return (
            f"{who}: the SCSI bus was scanned, no disk's capacity was asked: sd_mod is not loaded."
            if linux
            else f"{who}: the SCSI bus was scanned, no disk's capacity was asked."
        )
    if linux and not channel.transfers:
        return f"{who}: the disk is known (/dev/sda and on); nothing has been read from it yet."
    return ""


def _notes(explainer: Explainer, processors: int) -> list[str]:
    seen = explainer.progress
    notes = []
    if explainer.resets:
        times = "once" if explainer.resets == 1 else f"{explainer.resets} times"
        notes.append(f"it was reset {times}; this is what came after")
    idle = processors - len(seen.synic)
    if seen.synic and idle > 0:
        one = "1 processor has" if idle == 1 else f"{idle} processors have"
        notes.append(f"{one} not set up SynIC: the guest has not started {'it' if idle == 1 else 'them'}")
    if seen.printed:
        notes.append(f"{seen.printed} bytes on the console")
    notes += [
        f"mistake answered: {words}" + (f" ({count} times or more)" if count > 1 else "")
        for words, count in seen.mistakes.items()
    ]
    if seen.failure:
        notes.append(f"it fell: {seen.failure}")
    elif seen.ended:
        notes.append(f"ended: {seen.ended}")
    elif seen.unloaded:
        notes.append("the guest has let go of the bus (UNLOAD)")
    return notes


def lines(told: Explanation, *, width: int = 100) -> list[str]:
    """The explanation for people; sentences are wrapped at `width` columns."""
    head = f"{told.vm}: how far it got in {told.seconds:.3f} s"
    longest = max(len(step.name) for step in told.steps)
    shown = [head]
    for step in told.steps:
        moment = "" if step.time is None else f"{step.time:.3f} s"
        shown.append(f"  {step.reached:<3}  {step.name:<{longest}}  {moment:>10}  {step.detail}")
    for label, sentences in (("note: ", told.notes), ("next: ", told.next)):
        for words in sentences:
            shown += textwrap.wrap(words, width, initial_indent=f"  {label}", subsequent_indent=" " * (2 + len(label)))
    if not told.next:
        shown.append("  nothing is missing" if told.complete else "  every step was reached before it fell")
    return shown
