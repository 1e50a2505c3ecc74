"""The switch itself: which frame goes to which ports, and which to none. Root side.

    sender -> length -> source -> VLAN -> guards, ACL -> receivers -> isolation, VLAN, ACL, length -> their adapters

A frame whose way is known and on which nothing needs a look goes by `Port.routes`: one dictionary lookup. Anything that
could change a way empties them all.

Receivers of a unicast frame: the port whose own address it is; else where that station was heard; else every port that
may have more stations than its own (spoofing on, uplinks), for a port without cannot be the one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from hypervisor.inspect import Branch, Many
from vsp_vsc.network.port import ETHERNET_HEADER_BYTES
from vsp_vsc.network.switch.addresses import NO_ADDRESS, is_reserved, mac_words
from vsp_vsc.network.switch.frames import TAG, TAGS, Says, says, tagged, untagged, vlan_of
from vsp_vsc.network.switch.kinds import Mirroring, SwitchKind
from vsp_vsc.network.switch.ports import Drop, Port
from vsp_vsc.network.switch.stations import StationTable

SECOND: Final = 10_000_000
"""In 100 ns units."""
SWEEP: Final = 10 * SECOND
"""How often silent stations are looked for. Known ways end then, so who uses one is heard again."""
MAX_ROUTES: Final = 1024
"""Known ways of one port; with more they are forgotten and found again."""
MAX_WAITING: Final = 4096
"""Frames that adapters sent while the switch was delivering, at a time."""
MAX_TURNS: Final = 64
"""How often in one call those are passed on: adapters that answer at once must not keep everybody else waiting."""

Groups = dict[Port, list[bytes]]
"""Frames by receiver, each in the order of sending."""


class VirtualSwitch:
    """One of a host."""

    def __init__(self, name: str, kind: SwitchKind, now: Callable[[], int]) -> None:
        """`now` gives 100 ns units; asked for once a batch at most, and never for frames between known ports."""
        self.name = name
        self.kind = kind
        self.ports: dict[str, Port] = {}
        """By name."""
        self.stations = StationTable()
        self._now = now
        self._owners: dict[bytes, Port] = {}
        """Ports by their own addresses."""
        self._learning: list[Port] = []
        """Those that may have more stations than their own."""
        self._mirrors: list[Port] = []
        self._routed: set[Port] = set()
        self._sweep_at = 0
        self._delivering = False
        self._waiting: deque[tuple[Port, Sequence[bytes]]] = deque()
        self._waiting_frames = 0

    # --- ports

    def connect(self, port: Port) -> None:
        """Plug a port in. Raises `ValueError` for a name or an address that is taken, or one that is elsewhere."""
        if port.switch is not None:
            raise ValueError(f"port {port.name} is connected to {port.switch.name}")
        if port.name in self.ports:
            raise ValueError(f"switch {self.name} has a port {port.name} already")
        owner = self._owners.get(port.mac)
        if owner is not None:
            raise ValueError(f"{mac_words(port.mac)} is the address of port {owner.name}")
        self.ports[port.name] = port
        if port.mac != NO_ADDRESS:
            self._owners[port.mac] = port
            self.stations.forget_address(port.mac)
        port.switch = self
        self.port_changed(port)
        port.tell_link(False)

    def disconnect(self, port: Port) -> None:
        """Pull a port out; nothing if it is not in."""
        if port.switch is not self:
            return
        was = port.link_up
        port.switch = None
        del self.ports[port.name]
        self._owners.pop(port.mac, None)
        self.port_changed(port)
        port.tell_link(was)

    def port_changed(self, port: Port) -> None:
        """Its settings or its link are not as they were: what was known of it does not hold."""
        self.stations.forget_port(port)
        self.forget_routes()
        self._learning = [one for one in self.ports.values() if one.settings.spoofing]
        self._mirrors = [one for one in self.ports.values() if one.settings.mirroring is Mirroring.DESTINATION]

    def forget_routes(self) -> None:
        """Find every way anew."""
        for port in self._routed:
            port.routes.clear()
        self._routed.clear()

    # --- frames

    def transmit(self, sender: Port, frames: Sequence[bytes]) -> None:
        """Frames of a port of this switch. What an adapter sends while it is delivered to comes after that."""
        if self._delivering:
            if self._waiting_frames + len(frames) > MAX_WAITING:
                sender.drop(Drop.LOOP, len(frames))
                return
            self._waiting_frames += len(frames)
            self._waiting.append((sender, frames))
            return
        self._delivering = True
        try:
            self._pass_on(sender, frames)
            turns = 0
            while self._waiting:
                sender, frames = self._waiting.popleft()
                self._waiting_frames -= len(frames)
                turns += 1
                if turns > MAX_TURNS:
                    sender.drop(Drop.LOOP, len(frames))
                elif sender.switch is self and sender.enabled:
                    self._pass_on(sender, frames)
        finally:
            self._delivering = False

    def _pass_on(self, sender: Port, frames: Sequence[bytes]) -> None:
        """One batch."""
        if len(self.stations):
            now = self._now()
            if now >= self._sweep_at:
                self._sweep_at = now + SWEEP
                self.stations.age(now)
                self.forget_routes()
        groups: Groups = {}
        known, longest = sender.routes.get, sender.longest
        last: Port | None = None
        out: list[bytes] = []
        for frame in frames:
            receiver = known(frame[:ETHERNET_HEADER_BYTES])
            if receiver is not None and len(frame) <= longest:
                if receiver is not last:
                    last = receiver
                    out = groups.setdefault(receiver, [])
                out.append(frame)
            else:
                reason = self._switch(sender, frame, groups)
                if reason is not None:
                    sender.drop(reason)
                if sender.tap is not None:
                    sender.tap.sent(frame, reason)
        sender.sent_frames += len(frames)
        sender.sent_bytes += sum(map(len, frames))
        for receiver, taken in groups.items():
            self._deliver(receiver, taken)

    def _deliver(self, receiver: Port, frames: list[bytes]) -> None:
        adapter = receiver.adapter
        if adapter is None or receiver.switch is not self or not receiver.enabled:
            receiver.drop(Drop.NO_ADAPTER if adapter is None else Drop.LINK_DOWN, len(frames))
            return
        taken = adapter.deliver(frames)
        if receiver.tap is not None:
            receiver.tap.received_frames(frames, taken)
        if taken < len(frames):
            receiver.drop(Drop.ADAPTER_FULL, len(frames) - taken)
            frames = frames[:taken]
        receiver.received_frames += taken
        receiver.received_bytes += sum(map(len, frames))

    def _switch(self, sender: Port, frame: bytes, groups: Groups) -> Drop | None:
        """One frame the long way, into `groups`; why not, if it goes to nobody."""
        size = len(frame)
        if size < ETHERNET_HEADER_BYTES:
            return Drop.TOO_SHORT
        if size > sender.longest:
            return Drop.TOO_LONG
        source, destination = frame[6:12], frame[:6]
        if source != sender.mac and (reason := self._foreign_source(sender, source)):
            return reason
        settings = sender.settings
        vlan, plain = settings.vlan, frame
        tag: bytes | None = None
        if frame[12:14] in TAGS:
            if frame[12:14] != TAG or frame[16:18] in TAGS:
                return Drop.TAG_STACK
            if size < ETHERNET_HEADER_BYTES + 4:
                return Drop.TOO_SHORT
            if inside := vlan_of(frame):
                if settings.trunk is None:
                    return Drop.TAG
                if inside not in settings.trunk:
                    return Drop.VLAN
                vlan, tag = inside, frame
            plain = untagged(frame)
        if not sender.simple and (reason := _not_let_out(sender, plain)):
            return reason
        if source != sender.mac and self.stations.hear(vlan, source, sender, self._now()):
            self.forget_routes()
        mirrored = settings.mirroring is Mirroring.SOURCE
        if destination[0] & 1:
            if is_reserved(destination):
                return Drop.RESERVED
            return self._flood(sender, list(self.ports.values()), vlan, frame, plain, tag, groups, mirrored)
        receiver = self._owners.get(destination) or self.stations.find(vlan, destination)
        if receiver is None:
            if not any(port is not sender for port in self._learning):
                if mirrored:
                    self._mirror(sender, frame, groups, set())
                return Drop.UNKNOWN
            return self._flood(sender, self._learning, vlan, frame, plain, tag, groups, mirrored)
        if receiver is sender:
            return Drop.ITSELF
        reason = _put(sender, receiver, vlan, plain, tag, groups)
        if mirrored or (reason is None and receiver.settings.mirroring is Mirroring.SOURCE):
            self._mirror(sender, frame, groups, {receiver} if reason is None else set())
        if reason in (Drop.ACL_IN, Drop.TOO_LONG):
            receiver.drop(reason)
            return None
        if reason is None and plain is frame and groups[receiver][-1] is frame:
            self._remember(sender, receiver, frame)
        return reason

    def _foreign_source(self, sender: Port, source: bytes) -> Drop | None:
        """Whether a port may send from an address that is not its own."""
        if source[0] & 1 or source == NO_ADDRESS:
            return Drop.BAD_SOURCE
        if not sender.settings.spoofing:
            return Drop.SPOOFED
        return Drop.OTHERS_ADDRESS if source in self._owners else None

    def _flood(
        self,
        sender: Port,
        receivers: Sequence[Port],
        vlan: int,
        frame: bytes,
        plain: bytes,
        tag: bytes | None,
        groups: Groups,
        mirrored: bool,
    ) -> Drop | None:
        if limit := sender.settings.storm_limit:
            second = self._now() // SECOND
            if second != sender.storm_second:
                sender.storm_second, sender.storm_count = second, 0
            sender.storm_count += 1
            if sender.storm_count > limit:
                return Drop.STORM
        sender.flooded += 1
        got: set[Port] = set()
        for receiver in receivers:
            if receiver is not sender and receiver.enabled:
                reason = _put(sender, receiver, vlan, plain, tag, groups)
                if reason is None:
                    got.add(receiver)
                elif reason is not Drop.VLAN and reason is not Drop.ISOLATED:
                    receiver.drop(reason)
        if self._mirrors and (mirrored or any(port.settings.mirroring is Mirroring.SOURCE for port in got)):
            self._mirror(sender, frame, groups, got)
        return None

    def _mirror(self, sender: Port, frame: bytes, groups: Groups, got: set[Port]) -> None:
        """Show a frame, as it was sent, to the destinations of mirrors that have not got it anyway."""
        for mirror in self._mirrors:
            if mirror is not sender and mirror not in got and mirror.enabled and len(frame) <= mirror.longest:
                groups.setdefault(mirror, []).append(frame)

    def _remember(self, sender: Port, receiver: Port, frame: bytes) -> None:
        """The next frame with this header goes the same way, if no port on it wants to look."""
        if sender.simple and receiver.simple and sender.longest <= receiver.longest:
            if len(sender.routes) >= MAX_ROUTES:
                sender.routes.clear()
            sender.routes[frame[:ETHERNET_HEADER_BYTES]] = receiver
            self._routed.add(sender)

    # --- looking

    def inspect(self) -> Branch:
        """Its ports and who was heard where."""
        return Branch(
            {
                "kind": self.kind.value,
                "ports": Many(self.ports, str),
                "stations": self._stations,
                "moves": self.stations.moves,
                "pushed_out": self.stations.pushed_out,
            }
        )

    def _stations(self) -> Branch:
        """Own addresses of ports, which are never forgotten, and those that were heard."""
        now = self._now()
        seen: dict[str, partial[Branch]] = {}
        for address, port in self._owners.items():
            seen[mac_words(address)] = partial(_station, port, port.settings.vlan, None)
        for place, port, when in self.stations:
            name = mac_words(place.address) + (f" vlan {place.vlan}" if place.vlan else "")
            seen[name] = partial(_station, port, place.vlan, (now - when) / SECOND)
        return Branch(dict(sorted(seen.items())))


def _station(port: Port, vlan: int, silent: float | None) -> Branch:
    return Branch({"port": port.name, "vlan": vlan, "learned": silent is not None, "seconds_silent": silent})


def _not_let_out(sender: Port, plain: bytes) -> Drop | None:
    """What guards and access list of the sender say."""
    settings = sender.settings
    if settings.dhcp_guard or settings.router_guard:
        said = says(plain)
        if settings.dhcp_guard and said & (Says.DHCP_SERVER | Says.HIDDEN):
            return Drop.DHCP_GUARD
        if settings.router_guard and said & (Says.ROUTER | Says.HIDDEN):
            return Drop.ROUTER_GUARD
    return None if not settings.acl or settings.acl.lets_out(plain) else Drop.ACL_OUT


def _put(sender: Port, receiver: Port, vlan: int, plain: bytes, tag: bytes | None, groups: Groups) -> Drop | None:
    """A frame into the receiver's group, with a tag or without as its port wants it; why not, if not."""
    settings = receiver.settings
    if vlan == settings.vlan:
        frame = plain
    elif settings.trunk is not None and vlan in settings.trunk:
        frame = tagged(plain, vlan) if tag is None else tag
    else:
        return Drop.VLAN
    if settings.isolated and sender.settings.isolated:
        return Drop.ISOLATED
    if len(frame) > receiver.longest:
        return Drop.TOO_LONG
    if settings.acl and not settings.acl.lets_in(plain):
        return Drop.ACL_IN
    group = groups.get(receiver)
    if group is None:
        groups[receiver] = [frame]
    else:
        group.append(frame)
    return None
