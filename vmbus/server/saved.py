"""What is kept of a guest's bus when its VM is saved: plain records, apart from the live server. Root side.

They say what the guest did, not how the server remembers it: a restore does it again in front of a new server
(`saved_replay`), so all that comes out of a file passes the same checks as when the guest said it.
"""

from __future__ import annotations

import msgspec

from hypervisor.wire import Guid
from vmbus.server.offers import Offer


class CannotSave(Exception):
    """The guest, or the host, is in the middle of something that no record describes; the text says what."""


class CannotRestore(Exception):
    """The records are damaged, or do not lead to the state that was saved, on this host; the text says where."""


class SavedGpadl(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pages that the guest showed to the host."""

    channel_id: int
    gpadl_id: int
    range_count: int
    byte_length: int
    """Of all its words, as its header said."""
    words: bytes
    """Those that have come, all of them unless the guest is in the middle of it."""
    tearing_down: bool = False
    """The guest wants it back, and a view is still there."""


class SavedChannel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A channel that the guest knows."""

    channel_id: int
    interface: bytes
    instance: bytes
    subchannel_index: int = 0
    open_message: bytes | None = None
    """The guest's, where the channel is open."""
    target_vp: int = 0
    device: bytes | None = None
    """The device's own record of an open channel; None where it serves the channel no more."""
    monitor_id: int | None = None
    """The one in its offer."""
    withdrawn: bool = False
    """The device is gone, and the guest still holds the ID."""

    @property
    def offer(self) -> Offer:
        """As much of the offer as tells devices apart. Raises ValueError."""
        return Offer(Guid(self.interface), Guid(self.instance), subchannel_index=self.subchannel_index)


class SavedBus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of one guest's bus."""

    contact: bytes | None = None
    """The guest's INITIATE_CONTACT; None while there is no connection."""
    multiclient: bool = False
    """It came by connection ID 4."""
    offers_sent: bool = False
    paused: bool = False
    channels: list[SavedChannel] = []
    released: list[tuple[bytes, bytes]] = []
    """Devices that the guest has given back, though they are there."""
    gpadls: list[SavedGpadl] = []
    """In the order in which they were made."""
    held: list[bytes] = []
    """Messages to the guest since it paused."""
    outbox: list[bytes] = []
    """Messages that the guest's port had no room for."""
    inbox: list[tuple[bool, bytes]] = []
    """Messages of the guest's that wait for that."""
