"""What a guest's trace comes to: the version, each channel and how far it got, what went wrong. Root side."""

from __future__ import annotations

from collections import Counter

import attrs

from hypervisor.clock import seconds
from hypervisor.trace import TO_CHILD, Layer, Level, TraceEvent
from partitions.decode.words import interface_words
from vmbus.protocol.messages import OfferChannel

_FAULTS_SHOWN = 8


@attrs.define
class _Channel:
    """One channel, as far as the trace tells."""

    device: str
    """In words, `?` where no offer was seen."""
    subchannel: int = 0
    states: list[str] = attrs.field(factory=list)
    to_host: int = 0
    from_host: int = 0


class BusStory:
    """Takes the events of one guest in their order."""

    def __init__(self) -> None:
        self._channels: dict[int, _Channel] = {}
        self._refused: list[str] = []
        self._version: str | None = None
        self._first: int | None = None
        self._last = 0
        self._faults: list[str] = []
        self._fault_count = 0
        self._all_offered = False
        self._unloaded = False
        self.count: Counter[str] = Counter()
        """Events by layer."""

    def offered(self, message: OfferChannel) -> str:
        """Note an offer; the device's name, empty where it is nobody's known."""
        words = interface_words(str(message.interface))
        self._channels[message.channel_id] = _Channel(
            words or f"interface {message.interface}", message.subchannel_index
        )
        return words.partition(",")[0]

    def device_of(self, channel: int) -> str:
        """What is known to be at a channel; empty where nothing is."""
        known = self._channels.get(channel)
        return "" if known is None or known.device.startswith(("interface", "?")) else known.device.partition(",")[0]

    def take(self, event: TraceEvent) -> None:
        """One more event."""
        self._first = event.time if self._first is None else self._first
        self._last = event.time
        self.count[event.layer] += 1
        if event.level >= Level.WARNING and event.event != "version_response":
            self._fault_count += 1
            if len(self._faults) < _FAULTS_SHOWN:
                self._faults.append(f"{seconds(event.time):.6f}  {event.words}")
        if event.layer is Layer.CONTROL:
            self._control(event)
        elif event.channel is not None:
            self._signal(event, event.channel)

    def _control(self, event: TraceEvent) -> None:
        match event.event:
            case "version_response":
                text = event.fields.get("version", "an unknown version")
                if event.fields.get("supported"):
                    self._version = text
                else:
                    self._refused.append(text)
            case "all_offers_delivered":
                self._all_offered = True
            case "unload" | "unload_complete":
                self._unloaded = True
            case _ if event.channel is not None:
                state = _STATES.get(event.event)
                if state is not None:
                    self._of(event.channel).states.append(state if event.level < Level.WARNING else f"{state}: failed")
            case _:
                pass

    def _signal(self, event: TraceEvent, channel: int) -> None:
        known = self._of(channel)
        if event.event == "signal_event":
            known.to_host += 1
        elif event.event == "event_flag" and event.direction == TO_CHILD:
            known.from_host += 1

    def _of(self, channel: int) -> _Channel:
        return self._channels.setdefault(channel, _Channel("?"))

    def lines(self) -> list[str]:
        """The story, for people."""
        if self._first is None:
            return ["nothing of a bus is in this trace"]
        told = [f"a guest's bus from {seconds(self._first):.6f} to {seconds(self._last):.6f} s"]
        refused = f"; {', '.join(self._refused)} refused before" if self._refused else ""
        if self._version is not None:
            told.append(f"  version {self._version} negotiated{refused}")
        elif self._refused:
            told.append(f"  no version negotiated; {', '.join(self._refused)} refused")
        else:
            told.append("  the contact is not in this trace: it begins later, or nobody answered")
        end = " and said that these are all" if self._all_offered else ""
        offered = sum(channel.device != "?" for channel in self._channels.values())
        if offered:
            told.append(f"  the host offered {offered} channel{'s' * (offered != 1)}{end}")
        told += [self._channel_line(number, self._channels[number]) for number in sorted(self._channels)]
        if self._unloaded:
            told.append("  the guest left the bus")
        if self._faults:
            told.append(f"  {self._fault_count} went wrong:")
            told += [f"    {fault}" for fault in self._faults]
            if self._fault_count > len(self._faults):
                told.append(f"    and {self._fault_count - len(self._faults)} more")
        return told

    @staticmethod
    def _channel_line(number: int, channel: _Channel) -> str:
        name = channel.device + (f", subchannel {channel.subchannel}" if channel.subchannel else "")
        states = ", ".join(_without_repeats(channel.states)) or ("offered" if channel.device != "?" else "seen")
        signals = f"; signals {channel.to_host} to the host, {channel.from_host} from it"
        return f"    ch {number:<4} {name:<18} {states}" + (signals if channel.to_host or channel.from_host else "")


_STATES = {
    "gpadl_created": "GPADL made",
    "open_channel_result": "open",
    "close_channel": "closed",
    "rescind_channel_offer": "taken away by the host",
    "rel_id_released": "released",
    "modify_channel": "moved to another processor",
}


def _without_repeats(states: list[str]) -> list[str]:
    kept: list[str] = []
    for state in states:
        if not kept or kept[-1] != state:
            kept.append(state)
    return kept
