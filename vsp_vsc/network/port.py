"""What a network adapter and the port of a virtual switch are to each other. Root side.

A frame is `bytes`: one Ethernet frame from the destination address on, without the frame check sequence, with its
802.1Q tag in place if it has one. Checksums are filled in, and what a guest left to segment is segmented: the VSP does
both before `transmit`. Everything is synchronous, on the Trio thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from hypervisor.inspect import Branch

ADDRESS_BYTES: Final = 6
ETHERNET_HEADER_BYTES: Final = 14
"""Destination, source and type."""
VLAN_TAG_BYTES: Final = 4
FRAME_OVERHEAD: Final = ETHERNET_HEADER_BYTES + 2 * VLAN_TAG_BYTES
"""A frame has at most this many bytes more than the port's MTU: room for two tags."""
DEFAULT_MTU: Final = 1500
MIN_MTU: Final = 576
"""What every IPv4 host must take (RFC 791)."""
MAX_MTU: Final = 9000
"""Jumbo frames, as far as Hyper-V's switch takes them."""


class Adapter(Protocol):
    """Whoever sits at a port: a VSP, a TAP device."""

    def deliver(self, frames: Sequence[bytes]) -> int:
        """Take frames from the switch; how many, counted from the first. The rest is dropped, and counted at the port.

        Never blocks, and raises nothing that a guest can cause. May be called from within another adapter's `transmit`,
        and may transmit itself: the switch passes that on when this call has returned. The sequence belongs to the
        caller: keep the frames, not the sequence.
        """
        ...

    def link_changed(self, up: bool) -> None:
        """The cable was plugged in or pulled out. Not called for how it was when the adapter was attached."""
        ...


class SwitchPort(Protocol):
    """A port as its adapter sees it."""

    @property
    def name(self) -> str:
        """`web/0`: the VM and the number of its NIC; `lan:host` and `lan:uplink` on the host's side."""
        ...

    @property
    def mac(self) -> bytes:
        """The adapter's permanent address, six bytes."""
        ...

    @property
    def mtu(self) -> int:
        """Bytes behind the Ethernet header and tags; the same as long as the port is there."""
        ...

    @property
    def link_up(self) -> bool:
        """Whether the port is connected to a switch."""
        ...

    def attach(self, adapter: Adapter) -> None:
        """From now on frames go to this adapter. Raises `RuntimeError` if there is one."""
        ...

    def detach(self) -> None:
        """Nobody is there any more, and frames for it are dropped and counted; nothing if nobody was."""
        ...

    def transmit(self, frames: Sequence[bytes]) -> None:
        """Frames into the switch, in order. What must not pass is dropped and counted: never an exception.

        Nothing is looked at before: any bytes will do, as a guest sends them.
        """
        ...

    def inspect(self) -> Branch:
        """Counters and settings."""
        ...
