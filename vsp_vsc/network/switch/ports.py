"""One port of a switch: its settings, its adapter, its counters. Root side."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from hypervisor.inspect import Branch, Setting, counters
from vsp_vsc.network.port import FRAME_OVERHEAD, Adapter
from vsp_vsc.network.switch.addresses import mac_words
from vsp_vsc.network.switch.kinds import Mirroring
from vsp_vsc.network.switch.settings import PortSettings, vlan_words

if TYPE_CHECKING:
    from vsp_vsc.network.switch.switch import VirtualSwitch


class Drop(enum.StrEnum):
    """Why a frame went no further. Those that a port sent, first; then those that did not go out to it."""

    LINK_DOWN = "link_down"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    """Than the MTU and 22 bytes, of the port that it came from or that it was for."""
    BAD_SOURCE = "bad_source"
    """From no address, or one of a group."""
    SPOOFED = "spoofed"
    """From another address than the port's own, and spoofing is off."""
    OTHERS_ADDRESS = "others_address"
    """From the address of another port."""
    RESERVED = "reserved"
    """For a neighbour on the wire, such as a pause frame: no switch passes it on."""
    TAG = "tag"
    """Tagged, at a port without a trunk."""
    TAG_STACK = "tag_stack"
    """Tagged twice, or by another tag than 802.1Q's."""
    VLAN = "vlan"
    """In a VLAN that is not in the port's trunk, or for a station in another VLAN."""
    ISOLATED = "isolated"
    ACL_OUT = "acl_out"
    ACL_IN = "acl_in"
    DHCP_GUARD = "dhcp_guard"
    ROUTER_GUARD = "router_guard"
    STORM = "storm"
    """More for many receivers than the port may send in a second."""
    LOOP = "loop"
    """Adapters answered one another at once, more than a switch passes on in one turn."""
    UNKNOWN = "unknown"
    """Nobody is known by that address, and nobody is there to whom unknown ones go."""
    ITSELF = "itself"
    """For a station at the same port."""
    BANDWIDTH = "bandwidth"
    """More than the port's bandwidth lets out, and its queue is full."""
    LINK_LOSS = "link_loss"
    """Lost on a bad cable."""
    LINK_FULL = "link_full"
    """More on a slow cable than there is room for."""
    NO_ADAPTER = "no_adapter"
    ADAPTER_FULL = "adapter_full"


class Tap(Protocol):
    """Who watches a port."""

    def sent(self, frame: bytes, drop: Drop | None) -> None:
        """The adapter sent it; why it went no further, if so."""
        ...

    def received_frames(self, frames: Sequence[bytes], taken: int) -> None:
        """They came out at the port, and the adapter took the first `taken`."""
        ...


class Outlet(Protocol):
    """What stands between a port's adapter and its switch."""

    def transmit(self, frames: Sequence[bytes]) -> None:
        """From the adapter, in order; they come to the switch later, or never."""
        ...


class Port:
    """See `vsp_vsc.network.port.SwitchPort`. `connect` and `disconnect` of a switch plug it in and out."""

    def __init__(self, name: str, mac: bytes, settings: PortSettings | None = None) -> None:
        """`mac` of an uplink, behind which there are many, is `NO_ADDRESS`."""
        self.name = name
        self.mac = mac
        self.settings = PortSettings() if settings is None else settings
        self.longest = self.settings.mtu + FRAME_OVERHEAD
        """Bytes of a frame."""
        self.switch: VirtualSwitch | None = None
        self.driver: Adapter | None = None
        """Who sits here."""
        self.adapter: Adapter | None = None
        """Who gets what comes out of the switch: the driver, or what stands before it."""
        self.outlet: Outlet | None = None
        """What stands before the switch, if anything."""
        self.show_controls: Callable[[], Mapping[str, Branch]] | None = None
        """What can be set here besides, for people."""
        self._inlet: Adapter | None = None
        self.enabled = True
        """The cable is in; as its owner wants it, whether there is a switch or not."""
        self.routes: dict[bytes, Port] = {}
        """By the first fourteen bytes of a frame: where it goes, and that nothing is to be done to it on the way."""
        self.tap: Tap | None = None
        self.sent_frames = self.sent_bytes = self.received_frames = self.received_bytes = self.flooded = 0
        self.drops: dict[Drop, int] = {}
        self.storm_second = self.storm_count = 0

    @property
    def mtu(self) -> int:
        """Bytes behind the Ethernet header and tags."""
        return self.settings.mtu

    @property
    def link_up(self) -> bool:
        """Whether it is connected."""
        return self.enabled and self.switch is not None

    @property
    def simple(self) -> bool:
        """A frame that was let through once may be let through again without a look at more than its header."""
        settings = self.settings
        looked_at = settings.acl or settings.dhcp_guard or settings.router_guard
        return not looked_at and settings.mirroring is Mirroring.NONE and self.tap is None

    def attach(self, adapter: Adapter) -> None:
        """From now on frames go to this adapter. Raises `RuntimeError` if there is one."""
        if self.driver is not None:
            raise RuntimeError(f"port {self.name} has an adapter")
        self.driver = adapter
        self.adapter = adapter if self._inlet is None else self._inlet

    def detach(self) -> None:
        """Nobody is there any more."""
        self.driver = self.adapter = None

    def shape(self, outlet: Outlet | None, inlet: Adapter | None) -> None:
        """Put something between adapter and switch, for frames that are sent and for those that are got."""
        self.outlet, self._inlet = outlet, inlet
        if self.driver is not None:
            self.adapter = self.driver if inlet is None else inlet

    def transmit(self, frames: Sequence[bytes]) -> None:
        """Frames into the switch, in order."""
        if self.switch is None or not self.enabled:
            self.drop(Drop.LINK_DOWN, len(frames))
            if self.tap is not None:
                for frame in frames:
                    self.tap.sent(frame, Drop.LINK_DOWN)
        elif self.outlet is None:
            self.switch.transmit(self, frames)
        else:
            self.outlet.transmit(frames)

    def set_enabled(self, enabled: bool) -> None:
        """Plug the cable in, or pull it out."""
        if enabled != self.enabled:
            was = self.link_up
            self.enabled = enabled
            if self.switch is not None:
                self.switch.port_changed(self)
            self.tell_link(was)

    def tell_link(self, was: bool) -> None:
        """The adapter hears of it if the link is not as it was."""
        if self.driver is not None and self.link_up is not was:
            self.driver.link_changed(self.link_up)

    def change(self, settings: PortSettings) -> None:
        """Other settings from now on. The MTU stays: its adapter has made buffers for it."""
        if settings.mtu != self.settings.mtu:
            raise ValueError("the MTU of a port cannot be changed")
        self.settings = settings
        if self.switch is not None:
            self.switch.port_changed(self)

    def watch(self, tap: Tap | None) -> None:
        """Show everything to a tap, or to none."""
        self.tap = tap
        if self.switch is not None:
            self.switch.forget_routes()

    def drop(self, reason: Drop, count: int = 1) -> None:
        """Count frames that went no further."""
        self.drops[reason] = self.drops.get(reason, 0) + count

    # --- looking

    def inspect(self) -> Branch:
        """Counters and settings."""
        settings = self.settings
        controls = {} if self.show_controls is None else self.show_controls()
        return Branch(
            {
                "mac": None if self.mac == bytes(6) else mac_words(self.mac),
                "link": Setting("up" if self.link_up else "down", self._set_link, 'plugs the cable: "up" or "down"'),
                "switch": None if self.switch is None else self.switch.name,
                "adapter": None if self.driver is None else type(self.driver).__name__,
                "captured": self.tap is not None,
                "sent": Branch({"frames": self.sent_frames, "bytes": self.sent_bytes, "flooded": self.flooded}),
                "received": Branch({"frames": self.received_frames, "bytes": self.received_bytes}),
                "drops": counters({str(reason): count for reason, count in self.drops.items()}),
                "settings": Branch(
                    {
                        "mtu": settings.mtu,
                        "vlan": settings.vlan,
                        "trunk": None if settings.trunk is None else vlan_words(settings.trunk),
                        "spoofing": settings.spoofing,
                        "dhcp_guard": settings.dhcp_guard,
                        "router_guard": settings.router_guard,
                        "isolated": settings.isolated,
                        "mirroring": settings.mirroring.value,
                        "storm_limit": settings.storm_limit,
                    }
                ),
                "acl": Branch(
                    {
                        str(number): Branch({"rule": str(rule), "frames": rule.frames, "bytes": rule.bytes})
                        for number, rule in enumerate(settings.acl.rules)
                    }
                ),
                **controls,
            }
        )

    def _set_link(self, written: str) -> None:
        if written not in ("up", "down"):
            raise ValueError('must be "up" or "down"')
        self.set_enabled(written == "up")
