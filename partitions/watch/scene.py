"""What the picture shows beside the moving request: VMs and channels with their states, from trace events. Root side.

Pure: an event in, the changes that it makes to the picture out. A page applies the same changes, forwards and again
from the start, so it needs to understand no event for that. A change is one of

    ("vm", NAME, STATE)                         STATE: a `VmState`'s value, or "crashed"
    ("channel", NAME, ID, DEVICE, STATE)        STATE: "offered", "opening", "open", "closing" or "gone"
    ("reset",)                                  forget all VMs: what follows says how it is now

and a VM that goes off loses its channels without further words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from hypervisor.trace import Layer, Level, TraceEvent
from partitions.lifecycle import VmState
from partitions.recording.event_codec import STARTED
from partitions.trace.channel_names import interface_name
from partitions.watch.rows import Change, text

CRASHED: Final = "crashed"
RESTING: Final = frozenset(state.value for state in VmState if not state.active) | {CRASHED}
"""States in which a VM has no partition, and so no channels."""
RESET: Final[Change] = ("reset",)
MAX_CHANNELS: Final = 2048
"""Channels of one VM; the bus has no more."""

_CHANNEL_STATES: Final = {
    "client released": "gone",
    "closed": "offered",
    "reoffered": "offered",
    "opening": "opening",
    "open": "open",
    "closing": "closing",
    "closing, to reopen": "closing",
    "closing, released": "gone",
    "opening, released": "gone",
    "revoked": "gone",
}
"""From the words of the bus's own states to what a picture can show."""
_INTERFACE: Final = re.compile(r"\binterface=(\S+)")


class Scene:
    """VMs by name and their channels by ID, as far as the events have told."""

    def __init__(self) -> None:
        self._vms: dict[str, str] = {}
        self._channels: dict[str, dict[int, tuple[str, str]]] = {}

    def feed(self, event: TraceEvent, vm: str) -> list[Change]:
        """What an event about the VM of this name changes."""
        match event.layer:
            case Layer.STATE:
                return self._state(event, text(vm))
            case Layer.CONTROL if event.event == "offer_channel" and event.channel is not None:
                found = _INTERFACE.search(event.words)
                return self._channel(
                    text(vm), event.channel, text(interface_name(found[1])) if found else "", "offered"
                )
            case Layer.PACKET if event.channel is not None:
                # A recording that began late has not seen the offer. That packets pass says enough.
                known = self._channels.get(text(vm), {}).get(event.channel)
                if known is None or known[1] != "open" or not known[0]:
                    return self._channel(text(vm), event.channel, text(str(event.fields.get("device", ""))), "open")
            case _:
                pass
        return []

    def set_vm(self, name: str, state: str) -> list[Change]:
        """A VM's state as somebody knows it who has not got it from an event."""
        if self._vms.get(name) == state:
            return []
        self._vms[name] = state
        if state in RESTING:
            self._channels.pop(name, None)
        return [("vm", name, state)]

    def apply(self, changes: Iterable[Change]) -> None:
        """Take over changes that another scene has told."""
        for change in changes:
            match change:
                case ("vm", name, state):
                    self.set_vm(name, state)
                case ("channel", name, number, device, state):
                    self._channel(name, number, device, state)
                case _:
                    self._vms.clear()
                    self._channels.clear()

    def snapshot(self) -> list[Change]:
        """The changes that make a picture this one, whatever it showed before."""
        changes: list[Change] = [RESET]
        changes += [("vm", name, state) for name, state in self._vms.items()]
        for name, channels in self._channels.items():
            changes += [("channel", name, number, device, state) for number, (device, state) in channels.items()]
        return changes

    def _state(self, event: TraceEvent, vm: str) -> list[Change]:
        match event.event:
            case "vm_state":
                state = event.words.rpartition(" -> ")[2]
                # How it ended stays in the picture until it starts again.
                if state in RESTING and self._vms.get(vm) == CRASHED:
                    return []
                return self.set_vm(vm, text(state))
            case "guest_crash" | "unrecoverable_exception":
                return self.set_vm(vm, CRASHED)
            case "vm_ended" if event.level >= Level.ERROR:
                return self.set_vm(vm, CRASHED)
            case "vmbus_channel" if event.channel is not None:
                channel_state = _CHANNEL_STATES.get(event.words.rpartition(" -> ")[2])
                return [] if channel_state is None else self._channel(vm, event.channel, "", channel_state)
            case _ if event.event == STARTED:
                return self._known(event.fields)
            case _:
                return []

    def _known(self, fields: dict[str, Any]) -> list[Change]:
        """What a recording says that it began with: VMs with a partition, and their channels."""
        changes: list[Change] = []
        names, channels = fields.get("names"), fields.get("channels")
        if not isinstance(names, dict):
            return changes
        for name in names.values():
            changes += self.set_vm(text(str(name)), VmState.RUNNING.value)
        for row in channels if isinstance(channels, list) else ():
            match row:
                case [int(partition), int(number), str(device)] if str(partition) in names:
                    changes += self._channel(text(str(names[str(partition)])), number, text(device), "open")
                case _:
                    pass
        return changes

    def _channel(self, vm: str, number: int, device: str, state: str) -> list[Change]:
        channels = self._channels.setdefault(vm, {})
        before = channels.get(number)
        if before is not None and not device:
            device = before[0]
        if before == (device, state) or (before is None and (state == "gone" or len(channels) >= MAX_CHANNELS)):
            return []
        if state == "gone":
            del channels[number]
        else:
            channels[number] = device, state
        changes: list[Change] = [] if vm in self._vms else self.set_vm(vm, VmState.RUNNING.value)
        return [*changes, ("channel", vm, number, device, state)]
