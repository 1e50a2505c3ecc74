"""The states of a channel as the host sees it, and what it remembers of one. Root side."""

from __future__ import annotations

import enum
from typing import Any

import attrs
import msgspec

from vmbus.protocol.messages import OpenChannel, OpenChannel2
from vmbus.server.offers import Offer

OpenRequest = OpenChannel | OpenChannel2
"""A reserved channel's is kept as an `OpenChannel` without interrupts and user data."""


class ChannelState(enum.Enum):
    """Ten states: what the guest knows of the channel, and what its device is still doing."""

    CLIENT_RELEASED = "client released"
    """The host has it; the guest was not told of it, or has released it."""
    CLOSED = "closed"
    """Offered."""
    OPENING = "opening"
    """The guest asked to open it; the device has not answered."""
    OPEN = "open"
    CLOSING = "closing"
    """The guest closed it; the device has not stopped yet. Nothing tells the guest when it has."""
    CLOSING_REOPEN = "closing, to reopen"
    """Closed and opened again before the device stopped, which is legal for that reason."""
    REVOKED = "revoked"
    """Rescinded, but the guest still holds the ID."""
    REOFFERED = "reoffered"
    """The device came back before the guest released the ID; the release brings a fresh offer of the same ID."""
    CLOSING_CLIENT_RELEASE = "closing, released"
    """The guest holds it no longer, but its device still runs or its pages are still in view."""
    OPENING_CLIENT_RELEASE = "opening, released"
    """The guest holds it no longer, but the device has yet to answer an open."""


class ReservedTarget(msgspec.Struct, frozen=True):
    """Where the answers about a reserved channel go, connection or not; the guest's words, checked when used."""

    vp: int
    sint: int


class DeviceActivity(enum.Enum):
    """What the device behind a channel is doing, whatever the guest may think."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@attrs.define(eq=False)
class ServerChannel:
    """One device's channel. It has an ID while the guest may know it and until all that it caused has ended."""

    offer: Offer
    handle: int
    """The offer's number, for the host's side; changes when a device is offered anew."""
    state: ChannelState = ChannelState.CLIENT_RELEASED
    channel_id: int = 0
    """0 while it has none."""
    activity: DeviceActivity = DeviceActivity.IDLE
    request: OpenRequest | None = None
    """The open in force, or the one under way."""
    monitor_id: int | None = None
    """The one in its offer."""
    reopen: OpenRequest | None = None
    """In CLOSING_REOPEN: what to do next."""
    target_vp: int = 0
    """Takes the interrupts while it is open."""
    reserved: ReservedTarget | None = None
    """Not None from OPEN_RESERVED_CHANNEL to the end of its close."""
    modifying: bool = False
    """A MODIFY_CHANNEL has not been answered by the service."""
    next_target_vp: int | None = None
    """Below 5.3: the last MODIFY_CHANNEL that came meanwhile."""
    offer_due: bool = False
    """To be offered as soon as it is released, or as soon as an ID is free."""
    rescinded: bool = False
    """The host has withdrawn the device for good; goes away with the guest's release."""
    rescind_due: bool = False
    """RESCIND is held back until the GPADL_TORNDOWN of teardowns under way have been sent."""

    def inspect(self) -> dict[str, Any]:
        """As the state machine has it, as children for a branch."""
        return {
            "device": str(self.offer),
            "state": self.state.value,
            "activity": self.activity.value,
            "offer": self.offer.inspect,
            "offered_monitor": self.monitor_id,
            "target_vp": self.target_vp,
            "reserved": self.reserved is not None,
            "rescinded": self.rescinded,
        }

    @property
    def known_to_guest(self) -> bool:
        """May a guest's message name it?"""
        match self.state:
            case (
                ChannelState.CLIENT_RELEASED | ChannelState.CLOSING_CLIENT_RELEASE | ChannelState.OPENING_CLIENT_RELEASE
            ):
                return False
            case (
                ChannelState.CLOSED
                | ChannelState.OPENING
                | ChannelState.OPEN
                | ChannelState.CLOSING
                | ChannelState.CLOSING_REOPEN
                | ChannelState.REVOKED
                | ChannelState.REOFFERED
            ):
                return True

    @property
    def outlives_connection(self) -> bool:
        """Does it stay at UNLOAD and at a new contact? A reserved one does, until its close or a reset."""
        return self.reserved is not None and self.known_to_guest

    @property
    def withdrawn(self) -> bool:
        """Was the guest told that it is gone?"""
        return self.state in (ChannelState.REVOKED, ChannelState.REOFFERED)
