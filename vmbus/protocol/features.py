"""Feature flags that version 6.0 negotiates, and the flags of an offer. Both sides."""

from __future__ import annotations

import enum


class Feature(enum.IntFlag):
    """Asked for in INITIATE_CONTACT, granted in VERSION_RESPONSE (openvmm vmbus_core, FeatureFlags).

    The answer holds what was asked for and is supported; other bits are dropped silently and are never an error.
    """

    NONE = 0
    GUEST_SPECIFIED_SIGNAL_PARAMETERS = 0x01
    """OPEN_CHANNEL names the connection ID and event flag."""
    CHANNEL_INTERRUPT_REDIRECTION = 0x02
    MODIFY_CONNECTION = 0x04
    CLIENT_ID = 0x08
    """INITIATE_CONTACT carries a client GUID."""
    CONFIDENTIAL_CHANNELS = 0x10
    PAUSE_RESUME = 0x20
    SERVER_SPECIFIED_MONITOR_PAGES = 0x40
    GPA_PINNING = 0x80


SIGNAL_PARAMETERS = Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS | Feature.CHANNEL_INTERRUPT_REDIRECTION
"""Either of them makes OPEN_CHANNEL the longer form."""


class OfferFlag(enum.IntFlag):
    """Flags of OFFER_CHANNEL (Linux hyperv.h, VMBUS_CHANNEL_*; openvmm vmbus_core, OfferFlags)."""

    NONE = 0
    ENUMERATE_DEVICE_INTERFACE = 0x0001
    CONFIDENTIAL_RING_BUFFER = 0x0002
    CONFIDENTIAL_EXTERNAL_MEMORY = 0x0004
    REQUIRE_PINNED_EXTERNAL_MEMORY = 0x0008
    NAMED_PIPE_MODE = 0x0010
    """`user_defined` begins with a pipe type; packets carry the pipe header."""
    TLNPI_PROVIDER = 0x2000
    """A Hyper-V socket."""


def offer_flags_for(flags: int, features: int) -> int:
    """The flags that a guest with these features may see: those it did not negotiate are cleared."""
    if not features & Feature.CONFIDENTIAL_CHANNELS:
        flags &= ~(OfferFlag.CONFIDENTIAL_RING_BUFFER | OfferFlag.CONFIDENTIAL_EXTERNAL_MEMORY)
    if not features & Feature.GPA_PINNING:
        flags &= ~OfferFlag.REQUIRE_PINNED_EXTERNAL_MEMORY
    return int(flags)
