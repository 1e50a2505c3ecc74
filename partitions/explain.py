"""How far a guest got on its way to its devices, from trace events alone: a pure state machine. Root side.

Feed it every `TraceEvent` of one VM; `progress` is what has been seen, and `partitions.explain_steps` puts it into
words: what was reached, and what the next step needs. It asks the guest for nothing, and works for a Linux kernel as
for a model guest. What is not an event cannot be seen: KVM answers CPUID without us, and reading ACPI tables is reading
memory.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from hypervisor.msr import PAGE_ENABLE, Msr
from hypervisor.synic.messages import LEAST_VECTOR, Sint
from hypervisor.trace import Layer, Level, TraceEvent
from hypervisor.wire import Guid
from partitions.ports import COM1_TRANSMIT
from partitions.recording.link import device_name
from vsp_vsc.device import name_of

_PAGE: Final = ~0xFFF
_WORD = re.compile(r"(\w+)=(\S+)")
_KEPT_MISTAKES: Final = 8
HARMLESS: Final = frozenset({"unknown_port", "socket_refused"})
"""Warnings that say nothing about a guest's way: every kernel for PCs probes for a PCI bus, a keyboard and timers, and
who knocks where nobody listens, host or guest, has made no mistake."""


@attrs.define
class SynicProgress:
    """One virtual processor's SynIC, as the guest has set it up."""

    messages: int | None = None
    """GPA of the message page (SIM), while it is on."""
    events: int | None = None
    """GPA of the event flags page (SIEF), while it is on."""
    vector: int | None = None
    """Of SINT2, which is VMBus's, while it is not masked."""
    enabled: bool = False
    """SCONTROL's bit 0."""
    since: int = 0
    """When the last of them was set."""

    @property
    def missing(self) -> list[str]:
        """The registers that still have to be written, in the order in which Linux writes them."""
        wanted = (("SIMP", self.messages), ("SIEFP", self.events), ("SINT2", self.vector))
        return [name for name, value in wanted if value is None] + ([] if self.enabled else ["SCONTROL"])


@attrs.define
class ChannelProgress:
    """One offered channel and what the guest did with it."""

    id: int
    name: str
    """The device's, or its interface GUID."""
    subchannel: int = 0
    offered: int = 0
    ring: int | None = None
    """When the GPADL of its rings was taken."""
    refused: str = ""
    """Words of a GPADL or an open that the host refused."""
    opened: int | None = None
    closed: bool = False
    rescinded: bool = False
    first_packet: int | None = None
    """When the guest's first packet was read."""
    packets_in: int = 0
    packets_out: int = 0
    negotiated: str = ""
    """Of storage: the last step of its negotiation."""
    inquired: set[int] = attrs.field(factory=set)
    """LUNs that were asked what they are."""
    sized: set[int] = attrs.field(factory=set)
    """LUNs whose capacity was asked: only a disk driver does that."""
    transfers: set[int] = attrs.field(factory=set)
    """LUNs that were read or written."""
    faults: list[str] = attrs.field(factory=list)


@attrs.define
class Progress:
    """What has been seen since the VM's start, or its last reset. Times are those of events; None is "not yet"."""

    started: int | None = None
    last: int = 0
    """The newest event."""
    touched: int | None = None
    """The first synthetic register, hypercall or port that the guest used."""
    enlightened: int | None = None
    """The first synthetic register: whoever uses one has seen "Microsoft Hv" in CPUID."""
    printed: int = 0
    """Bytes on COM1."""
    os_id: int = 0
    os_id_at: int | None = None
    hypercall_page: int | None = None
    """Its GPA."""
    hypercall_page_at: int | None = None
    synic: dict[int, SynicProgress] = attrs.field(factory=dict)
    tried: list[str] = attrs.field(factory=list)
    """VMBus versions asked for, in order."""
    contact: int | None = None
    """When the first was asked for."""
    agreed: str = ""
    agreed_at: int | None = None
    requested: int | None = None
    """When the guest asked for offers."""
    channels: dict[int, ChannelProgress] = attrs.field(factory=dict)
    delivered: int | None = None
    """When the last offer had been told."""
    unloaded: bool = False
    """The guest let go of the bus in order."""
    mistakes: dict[str, int] = attrs.field(factory=dict)
    """Warnings by their words, with their counts; the first few kinds."""
    failure: str = ""
    """How it ended, where it did not end well."""
    ended: str = ""
    """How it ended, in the VMMS's words."""


class Explainer:
    """Takes the events of one VM, in order. Raises nothing over what they hold."""

    def __init__(self) -> None:
        self.progress = Progress()
        self.resets = 0

    def feed(self, event: TraceEvent) -> None:
        """One more thing happened."""
        self.progress.last = max(self.progress.last, event.time)
        if event.level is Level.WARNING:
            self._mistake(event)
        match event.layer:
            case Layer.MSR:
                self._msr(event)
            case Layer.PORT | Layer.HYPERCALL:
                self._trap(event)
            case Layer.CONTROL:
                self._control(event)
            case Layer.PACKET:
                self._packet(event)
            case Layer.DEVICE:
                self._device(event)
            case Layer.STATE:
                self._state(event)
            case Layer.SYNIC | Layer.INTERRUPT | Layer.SCHEDULER:
                pass  # consequences of what the other layers have shown

    def _mistake(self, event: TraceEvent) -> None:
        if event.event in HARMLESS:
            return
        mistakes, words = self.progress.mistakes, f"{event.event}: {event.words}" if event.words else event.event
        if words in mistakes or len(mistakes) < _KEPT_MISTAKES:
            mistakes[words] = int(event.fields.get("count", 1))

    def _msr(self, event: TraceEvent) -> None:
        seen, msr = self.progress, event.fields.get("msr")
        if event.event not in ("read_msr", "write_msr"):
            return
        if seen.touched is None:
            seen.touched = event.time
        if seen.enlightened is None:
            seen.enlightened = event.time
        if event.event == "read_msr":
            return
        value = int(event.fields.get("value", 0))
        match msr:
            case Msr.GUEST_OS_ID if value:
                # 0 is how a guest says goodbye, before kexec or power off: how far it got stays as it was.
                seen.os_id, seen.os_id_at = value, event.time
            case Msr.HYPERCALL if value & PAGE_ENABLE:
                seen.hypercall_page, seen.hypercall_page_at = value & _PAGE, event.time
            case Msr.SIMP | Msr.SIEFP | Msr.SCONTROL | Msr.SINT2:
                self._synic(event, msr, value)
            case _:
                pass

    def _synic(self, event: TraceEvent, msr: Msr, value: int) -> None:
        """What is switched off again at a shutdown in order does not count as never done: only switching on is kept."""
        synic = self.progress.synic.setdefault(int(event.fields.get("vp", 0)), SynicProgress())
        before = len(synic.missing)
        if msr == Msr.SINT2:
            if not value & Sint.MASKED and value & Sint.VECTOR >= LEAST_VECTOR:
                synic.vector = value & Sint.VECTOR
        elif value & PAGE_ENABLE:  # of SCONTROL the same bit
            if msr == Msr.SIMP:
                synic.messages = value & _PAGE
            elif msr == Msr.SIEFP:
                synic.events = value & _PAGE
            else:
                synic.enabled = True
        if len(synic.missing) < before:
            synic.since = event.time

    def _trap(self, event: TraceEvent) -> None:
        seen = self.progress
        by_guest = event.layer is Layer.PORT or event.fields.get("caller") == event.partition
        if by_guest and seen.touched is None:
            seen.touched = event.time
        if event.event == "port_out" and event.fields.get("port") == COM1_TRANSMIT:
            seen.printed += 1

    def _control(self, event: TraceEvent) -> None:
        seen, words = self.progress, dict(_WORD.findall(event.words))
        channel = None if event.channel is None else seen.channels.get(event.channel)
        match event.event:
            case "initiate_contact":
                seen.tried.append(words.get("version", "?"))
                if seen.contact is None:
                    seen.contact = event.time
            case "version_response" if words.get("supported") not in (None, "0") and seen.tried:
                seen.agreed, seen.agreed_at = seen.tried[-1], event.time
            case "request_offers":
                seen.requested = event.time
            case "offer_channel" if event.channel is not None:
                name = _device_name(words.get("interface", ""))
                sub = int(words["sub"]) if words.get("sub", "").isdecimal() else 0
                # After an unload all offers are told again; a channel that was used keeps what is known of it.
                if channel is None or channel.name != name:
                    seen.channels[event.channel] = ChannelProgress(event.channel, name, sub, event.time)
            case "all_offers_delivered":
                seen.delivered = event.time
            case "unload":
                seen.unloaded = True
            case _ if channel is not None:
                self._channel(event, channel, words)
            case _:
                pass

    def _channel(self, event: TraceEvent, channel: ChannelProgress, words: dict[str, str]) -> None:
        well = words.get("status", "0x0") == "0x0"
        match event.event:
            case "gpadl_created" | "open_channel_result" if not well:
                channel.refused = event.words
            case "gpadl_created" if channel.ring is None:
                channel.ring = event.time
            case "open_channel_result":
                channel.opened, channel.closed, channel.refused = event.time, False, ""
            case "close_channel":
                channel.closed = True
            case "rescind_channel_offer":
                channel.rescinded = True
            case _:
                pass

    def _packet(self, event: TraceEvent) -> None:
        channel = self.progress.channels.get(event.channel or 0)
        if channel is None:
            return
        if event.event == "packet_received":
            channel.packets_in += 1
            if channel.first_packet is None:
                channel.first_packet = event.time
        elif event.event == "packet_sent":
            channel.packets_out += 1

    def _device(self, event: TraceEvent) -> None:
        channel = self.progress.channels.get(event.channel or 0)
        if channel is None:
            return
        if event.level >= Level.WARNING:
            if event.event.endswith("_stopped"):
                channel.faults.append(event.words)
            return
        lun, words = int(event.fields.get("lun", 0)), event.words
        if event.event == "storage_control":
            channel.negotiated = words
        elif event.event == "scsi_command":
            if words.startswith("SCSI INQUIRY"):
                channel.inquired.add(lun)
            elif words.startswith("SCSI READ CAPACITY"):
                channel.sized.add(lun)
            elif words.startswith(("SCSI READ(", "SCSI WRITE(")):
                channel.transfers.add(lun)

    def _state(self, event: TraceEvent) -> None:
        seen = self.progress
        match event.event:
            case "vm_state" if event.fields.get("cause") in ("start", "restart"):
                self.progress, self.resets = Progress(started=event.time, last=event.time), 0
            case "vm_state" if event.fields.get("cause") == "started" and seen.started is None:
                seen.started = event.time
            case "partition_reset":
                self.progress = Progress(started=event.time, last=event.time)
                self.resets += 1
            case "guest_crash" | "unrecoverable_exception":
                seen.failure = event.words or event.event.replace("_", " ")
            case "vm_ended":
                seen.ended = event.words
                if event.level >= Level.WARNING and not seen.failure:
                    seen.failure = event.words
            case _:
                pass


def _device_name(interface: str) -> str:
    try:
        known = Guid(interface)
    except ValueError:
        return interface or "unknown"
    return device_name(known) or name_of(known)


_OPEN_SOURCE: Final = 1 << 63
_MODEL_KERNEL: Final = 0x50
"""No registered number: what our own guests write."""
_OPEN_SOURCE_KINDS: Final = {1: "Linux", 2: "FreeBSD", 3: "Xen", 4: "illumos", _MODEL_KERNEL: "Partita's model kernel"}
"""Bits 62:56 (TLFS 2.6)."""
_MICROSOFT_KINDS: Final = {1: "MS-DOS", 2: "Windows 3.x", 3: "Windows 9x", 4: "Windows NT", 5: "Windows CE"}


def os_words(os_id: int) -> str:
    """A guest OS ID for people: `Linux 6.1.170`, `Windows NT 10.0 build 20348`."""
    if os_id & _OPEN_SOURCE:
        kind, version = os_id >> 56 & 0x7F, os_id >> 16 & 0xFFFFFFFF
        name = _OPEN_SOURCE_KINDS.get(kind, f"an open-source system of kind {kind:#x}")
        if kind == _MODEL_KERNEL:
            return f"{name} {version >> 8}.{version & 0xFF}"
        # LINUX_VERSION_CODE: one byte for the last part, where 255 means "255 or more".
        major, minor, patch = version >> 16, version >> 8 & 0xFF, version & 0xFF
        return f"{name} {major}.{minor}.{patch}{'+' if kind == 1 and patch == 255 else ''}"
    vendor, kind = os_id >> 48 & 0x7FFF, os_id >> 40 & 0xFF
    release = f"{os_id >> 32 & 0xFF}.{os_id >> 24 & 0xFF}"
    if vendor == 1:
        name = _MICROSOFT_KINDS.get(kind, f"Microsoft system {kind:#x}")
        return f"{name} {release} build {os_id & 0xFFFF}"
    return f"a system of vendor {vendor:#x}, kind {kind:#x}, version {release}"
