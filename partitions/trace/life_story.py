"""The life of a VM's connection to the bus, or of a channel: what happened, in order, and why. Root side.

Pure: feed a `LifeTeller` every event, in order, then take the life. Of what happens all the time, packets and the like,
it keeps counts only; its moments are bounded, and what is beyond the bound is counted.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import attrs
import msgspec

from hypervisor.clock import seconds
from hypervisor.msr import Msr
from hypervisor.trace import Layer, Level, TraceEvent
from partitions.explain import os_words
from partitions.logs import ROOT_NAME, printable
from partitions.recording.event_codec import STARTED
from partitions.trace.channel_names import ChannelNames
from partitions.trace.story import CHOICES
from vmbus.protocol.versions import version_text

MAX_MOMENTS: Final = 5000
_WORD = re.compile(r"(\w+)=(\S+)")
_GPADLS: Final = frozenset({"gpadl_header", "gpadl_body", "gpadl_created", "gpadl_teardown", "gpadl_torndown"})
_QUIET: Final = frozenset({"partition_state", "offer_channel"})
"""Events that other lines tell better."""
_CHANGES: Final = {
    "start": "somebody started it",
    "restart": "its restart policy started it",
    "pause": "somebody paused it",
    "resume": "somebody let it go on",
    "reset": "somebody reset it",
    "save": "somebody saved it",
    "shut_down": "somebody pressed its power button",
    "turn_off": "somebody cut its power",
    "started": "it runs",
    "was_paused": "it stands still",
    "was_resumed": "it runs again",
    "was_reset": "it boots again",
    "was_saved": "it is saved",
    "guest_reset": "its guest asked for a reset",
    "ended": "it has ended",
    "ended_for_now": "it has ended, and will start again",
}
"""Causes of `vm_state` for people; where somebody is known, the name takes the word's place."""
_SOMEBODY: Final = "the program that opened the host"
"""Who asks where no name is given: `partita run` itself, or a script."""


class Moment(msgspec.Struct, frozen=True):
    """One thing that happened. `time` in seconds since the host was opened."""

    time: float
    words: str
    event: str
    answer: bool = False
    """It answers the moment before."""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, by stable names."""

    name: str
    device: str = ""
    moments: list[Moment]
    left_out: int
    answers: dict[str, str]
    """Questions that people have, and what the trace says: `version`, `end`, and the like."""


class UnknownLife(ValueError):
    """There is no such VM or channel in the trace; the text names the nearest."""


@attrs.define
class _Contact:
    asked: str
    accepted: bool | None = None
    why: str = ""


@attrs.define
class _Traffic:
    packets_in: int = 0
    packets_out: int = 0
    first: int | None = None
    last: int = 0


class LifeTeller:
    """Takes every event of a trace, in order, and keeps what belongs to one VM or one of its channels."""

    def __init__(self, vm: str, channel: int | None = None) -> None:
        self._vm = vm
        self._channel = channel
        self._channels = ChannelNames()
        self._moments: list[Moment] = []
        self._left_out = 0
        self._vms: dict[str, None] = {}
        self._known_channels: dict[int, None] = {}
        self._contacts: list[_Contact] = []
        self._let_go = False
        """The guest has let go of the bus, or was reset: its next contact is a new beginning."""
        self._version_before = ""
        """What a recording that began later says was agreed on."""
        self._asked = ""
        """Who asked last for an end, and how."""
        self._end: TraceEvent | None = None
        self._closed = ""
        self._traffic: dict[int, _Traffic] = {}
        self._gpadls: dict[str, int] = {}
        """Channel of a GPADL, whose further messages name no channel."""
        self._warnings: Counter[str] = Counter()

    def feed(self, event: TraceEvent, vm: str) -> None:
        """One more thing happened, to this VM."""
        if event.event == STARTED:
            self._began(event)
        if vm and vm != ROOT_NAME and not vm.startswith("#") and len(self._vms) < MAX_MOMENTS:
            self._vms.setdefault(vm)
        if vm != self._vm:
            return
        self._channels.learn(event, vm)
        if event.channel is not None:
            self._known_channels.setdefault(event.channel)
        if event.layer is Layer.PACKET and event.channel is not None:
            self._packet(event, event.channel)
        elif self._channel is None:
            self._of_vm(event)
        else:
            self._of_channel(event, self._channel)

    def finish(self) -> Life:
        """There is no more. Raises `UnknownLife`."""
        if self._vm not in self._vms:
            # A channel has no choice: `slowst` is, and `slowst/1` is not, a slip of `slowest`.
            raise UnknownLife(unknown("VM", self._vm, list(self._vms), CHOICES if self._channel is None else ()))
        if self._channel is None:
            answers = _printed(self._vm_answers())
            return Life(name=printable(self._vm), moments=self._moments, left_out=self._left_out, answers=answers)
        if self._channel not in self._known_channels:
            there = ", ".join(map(str, sorted(self._known_channels)))
            has = f"it has {there}" if there else "none of its channels is in it"
            raise UnknownLife(f"{self._vm} has no channel {self._channel} in this trace; {has}")
        return Life(
            name=printable(f"{self._vm}/{self._channel}"),
            device=printable(self._channels.device(self._vm, self._channel)),
            moments=self._moments,
            left_out=self._left_out,
            answers=_printed(self._channel_answers(self._channel)),
        )

    def _began(self, event: TraceEvent) -> None:
        """A recording's first words: what was so before it began."""
        names, versions = event.fields.get("names"), event.fields.get("versions")
        if not isinstance(names, dict) or not isinstance(versions, dict):
            return
        for partition, name in names.items():
            self._vms.setdefault(str(name))
            version = versions.get(partition)
            if name == self._vm and isinstance(version, int):
                self._version_before = version_text(version)

    # --- of a VM

    def _of_vm(self, event: TraceEvent) -> None:
        said = dict(_WORD.findall(event.words))
        match event.layer, event.event:
            case Layer.STATE, "vm_state":
                self._state(event)
            case Layer.STATE, "vm_ended":
                self._end = event
                self._add(event, f"the end: {event.words}")
            case Layer.STATE, name if name not in _QUIET:
                self._let_go |= name == "partition_reset"
                if name != "vmbus_channel":
                    connection = name == "vmbus_connection"
                    self._add(event, f"{name.replace('_', ' ')}: {event.words}".removesuffix(": "), answer=connection)
                elif event.words.endswith(" -> open"):
                    self._add(event, f"channel {event.channel} ({self._device(event)}) is open")
                elif event.words.startswith("open -> "):
                    self._add(event, f"channel {event.channel} ({self._device(event)}): {event.words}")
            case Layer.MSR, "write_msr" if event.fields.get("msr") == Msr.GUEST_OS_ID:
                value = event.fields.get("value")
                if isinstance(value, int) and value:
                    self._add(event, f"the guest says what it is: {os_words(value)}")
            case Layer.CONTROL, "initiate_contact":
                if self._let_go:
                    self._forget_contacts()
                self._contacts.append(_Contact(said.get("version", "?")))
                self._add(event, f"the guest asks for VMBus {said.get('version', '?')}")
            case Layer.CONTROL, "refused_contact":
                if self._contacts:
                    self._contacts[-1].why = event.words.rpartition(": ")[2]
            case Layer.CONTROL, "version_response":
                self._answered(event, said)
            case Layer.CONTROL, "request_offers" | "unload" | "all_offers_delivered" | "unload_complete":
                self._let_go |= event.event == "unload"
                self._add(event, _MESSAGES[event.event].format(offers=len(self._known_channels)))
            case Layer.CONTROL, "rescind_channel_offer":
                self._add(event, f"the host takes channel {event.channel} ({self._device(event)}) away")
            case _ if event.level >= Level.WARNING:
                self._add(event, f"{event.level.name.lower()}: {event.event.replace('_', ' ')}: {event.words}")
            case _:
                pass

    def _state(self, event: TraceEvent) -> None:
        cause, by = str(event.fields.get("cause", "")), str(event.fields.get("by", ""))
        if cause in ("start", "restart"):
            self._forget_contacts()
            self._asked, self._end = "", None
        words = _CHANGES.get(cause, cause.replace("_", " "))
        if "somebody" in words:
            words = words.replace("somebody", by or _SOMEBODY)
            if cause in ("shut_down", "turn_off", "save"):
                self._asked = words
        elif by:
            words += f" (asked by {by})"
        self._add(event, f"{event.words.partition(', asked by')[0]}: {words}")

    def _forget_contacts(self) -> None:
        """What comes now is another connection; the answers are about the last one."""
        self._contacts.clear()
        self._let_go = False
        self._version_before = ""

    def _answered(self, event: TraceEvent, said: dict[str, str]) -> None:
        accepted = said.get("supported", "0") != "0" and said.get("state", "0") == "0"
        contact = self._contacts[-1] if self._contacts else _Contact("?")
        contact.accepted = accepted
        why = f": {contact.why}" if contact.why else ""
        self._add(event, f"the host agrees on {contact.asked}" if accepted else f"the host refuses{why}", answer=True)

    def _vm_answers(self) -> Iterator[tuple[str, str]]:
        agreed = next((contact for contact in reversed(self._contacts) if contact.accepted), None)
        tried = _refusals(self._contacts)
        if agreed is not None:
            first = "the first that the guest asked for" if not tried else "the next that the guest asked for"
            yield "version", f"VMBus {agreed.asked}, {first}{': ' if tried else ''}{', '.join(tried)}"
        elif self._version_before and not self._contacts:
            yield "version", f"VMBus {self._version_before}; it was agreed on before this trace begins"
        elif self._contacts:
            yield "version", f"none: {', '.join(tried) or 'the guest was not answered'}"
        else:
            yield "version", "the trace has no contact: it begins later, or has no messages (layer control)"
        yield "end", self._vm_end()
        for channel, traffic in sorted(self._traffic.items()):
            device = self._channels.device(self._vm, channel) or "no known device"
            yield f"channel {channel}", f"{device}, {traffic.packets_in} packets in, {traffic.packets_out} out"

    def _vm_end(self) -> str:
        if self._end is None:
            return "it has not ended in this trace"
        reason, by = str(self._end.fields.get("reason", self._end.words)), str(self._end.fields.get("by", ""))
        code = self._end.fields.get("exit_code")
        match reason:
            case "powered off" if self._asked:
                return f"its guest powered off, as it was asked to: {self._asked}"
            case "powered off":
                words = "its guest powered itself off; nobody had asked"
                return words + (f" (exit code {code})" if code else "")
            case "turned off" | "saved":
                return f"{reason}: {self._asked or f'{by or _SOMEBODY} did it'}"
            case _:
                return f"{self._end.words}{f', after {self._asked}' if self._asked else '; nobody had asked'}"

    def _device(self, event: TraceEvent) -> str:
        return self._channels.device(self._vm, event.channel) or "no known device"

    # --- of a channel

    def _of_channel(self, event: TraceEvent, channel: int) -> None:
        said = dict(_WORD.findall(event.words))
        if event.layer is Layer.CONTROL and event.event in _GPADLS and "gpadl" in said:
            if event.channel is not None:
                self._gpadls[said["gpadl"]] = event.channel
            if self._gpadls.get(said["gpadl"]) != channel:
                return
            self._add(event, f"{_who(event)}: {event.words}")
            return
        if event.layer is Layer.STATE and event.event in ("vm_ended", "partition_reset"):
            self._add(event, f"{event.event.replace('_', ' ')}: {event.words}")
            self._closed = self._closed or f"with its VM: {event.words}"
            return
        if event.channel != channel:
            return
        match event.layer:
            case Layer.CONTROL:
                self._add(event, f"{_who(event)}: {event.words}")
                if event.event == "close_channel":
                    self._closed = "by the guest (CLOSE_CHANNEL)"
                elif event.event == "rescind_channel_offer":
                    self._closed = "by the host, which took the offer back (RESCIND_CHANNEL_OFFER)"
                elif event.event == "open_channel":
                    self._closed = ""
            case Layer.STATE:
                self._add(event, f"state: {event.words}", answer=True)
            case Layer.DEVICE if event.event.endswith(("_control", "_negotiated")) or event.level >= Level.WARNING:
                self._add(event, f"{self._device(event)} VSP: {event.words}")
            case _:
                pass

    def _packet(self, event: TraceEvent, channel: int) -> None:
        traffic = self._traffic.get(channel)
        if traffic is None:
            if len(self._traffic) >= MAX_MOMENTS:
                return
            traffic = self._traffic[channel] = _Traffic()
        if traffic.first is None:
            traffic.first = event.time
            if channel == self._channel:
                self._add(event, f"the first packet, from the {'guest' if event.direction == '>root' else 'host'}")
        traffic.last = event.time
        if event.event == "packet_received":
            traffic.packets_in += 1
        else:
            traffic.packets_out += 1

    def _channel_answers(self, channel: int) -> Iterator[tuple[str, str]]:
        traffic = self._traffic.get(channel)
        if traffic is None or traffic.first is None:
            yield "traffic", "no packet"
        else:
            span = f"from {seconds(traffic.first):.6f} s to {seconds(traffic.last):.6f} s"
            yield "traffic", f"{traffic.packets_in} packets in, {traffic.packets_out} out, {span}"
        yield "end", f"closed {self._closed}" if self._closed else "it was not closed in this trace"

    # --- pieces

    def _add(self, event: TraceEvent, words: str, *, answer: bool = False) -> None:
        if len(self._moments) >= MAX_MOMENTS:
            self._left_out += 1
            return
        self._moments.append(Moment(seconds(event.time), printable(words), event.event, answer))


def _refusals(contacts: Iterable[_Contact]) -> list[str]:
    """`7.1 and 7.0 were refused (above 6.0, the highest here)`: those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for contact in contacts:
        if contact.accepted is False:
            by_reason.setdefault(contact.why, []).append(contact.asked)
    return [
        f"{' and '.join(asked)} {'was' if len(asked) == 1 else 'were'} refused{f' ({why})' if why else ''}"
        for why, asked in by_reason.items()
    ]


_MESSAGES: Final = {
    "request_offers": "the guest asks which devices there are",
    "all_offers_delivered": "the host has told of all: {offers}",
    "unload": "the guest lets go of the bus",
    "unload_complete": "the host has let go as well",
}


def _printed(answers: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {question: printable(answer) for question, answer in answers}


def _who(event: TraceEvent) -> str:
    return {">root": "guest", ">child": "host"}.get(event.direction, "host")


def unknown(kind: str, value: str, known: list[str], also: tuple[str, ...] = ()) -> str:
    """That a trace has no such thing, and the nearest that it has, or that might `also` have been meant."""
    if not known:
        return f'no {kind} "{value}" in this trace: it names none'
    near = difflib.get_close_matches(value, [*known, *also], n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known[:8])}"
    return f'no {kind} "{value}" in this trace; {hint}'


def lines(life: Life, *, colour: bool = False) -> list[str]:
    """For people: the moments, then the answers."""
    bold, dim, reset = ("\033[1m", "\033[2m", "\033[0m") if colour else ("", "", "")
    shown = [f"{bold}{life.name}{reset}" + (f"  {life.device}" if life.device else ""), ""]
    for moment in life.moments:
        shown.append(f"{dim}{moment.time:11.6f}{reset}  {'  ' if moment.answer else ''}{moment.words}")
    if not life.moments:
        shown.append("nothing but traffic in this trace")
    if life.left_out:
        shown.append(f"... and {life.left_out} moments more")
    shown.append("")
    width = max(map(len, life.answers), default=0)
    shown += [f"{bold}{question:<{width}}{reset}  {answer}" for question, answer in life.answers.items()]
    return shown
