"""Which device is at the end of which channel, learned from the events of a trace. Root side."""

from __future__ import annotations

import re

from hypervisor.trace import Layer, TraceEvent
from hypervisor.wire import Guid
from partitions.recording.event_codec import STARTED
from partitions.recording.link import device_name
from vsp_vsc.device import name_of

_INTERFACE = re.compile(r"\binterface=(\S+)")


class ChannelNames:
    """Feed it every event, in order; ask it for names. A channel that was never offered here has none."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, int], str] = {}

    def learn(self, event: TraceEvent, vm: str) -> None:
        """Offers and packets say it, and a recording at its start, of channels that were there before."""
        channel = event.channel
        if event.event == STARTED:
            self._begin(event)
        if channel is None:
            return
        if event.layer is Layer.PACKET:
            device = event.fields.get("device")
            if device and (vm, channel) not in self._names:
                self._names[vm, channel] = str(device)
        elif event.event == "offer_channel" and (found := _INTERFACE.search(event.words)):
            self._names[vm, channel] = interface_name(found[1])

    def _begin(self, event: TraceEvent) -> None:
        names, channels = event.fields.get("names"), event.fields.get("channels")
        if not isinstance(names, dict) or not isinstance(channels, list):
            return
        for each in channels:
            match each:
                case [int(partition), int(channel), str(device)] if device and str(partition) in names:
                    self._names[str(names[str(partition)]), channel] = device
                case _:
                    pass  # of a channel without a name, or in a file that we did not write

    def device(self, vm: str, channel: int | None) -> str:
        """The short name of the device, such as `storage`; empty where nobody has said it."""
        return "" if channel is None else self._names.get((vm, channel), "")


def interface_name(interface: str) -> str:
    """The short name behind an interface GUID; for a device of somebody's own, the name that it registered or ""."""
    try:
        guid = Guid(interface)
    except ValueError:
        return ""
    name = device_name(guid)
    if name:
        return name
    registered = name_of(guid)
    return "" if registered == str(guid) else registered
