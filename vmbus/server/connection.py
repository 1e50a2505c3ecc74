"""What the host makes of INITIATE_CONTACT: the terms of a connection, or the reason for a refusal. Root side."""

from __future__ import annotations

import enum

import msgspec

from hypervisor.wire import BadValue
from vmbus.protocol.features import Feature
from vmbus.protocol.identifiers import MESSAGE_CONNECTION, SINT, ConnectionState
from vmbus.protocol.messages import (
    InitiateContact,
    InitiateContact2,
    InitiateContactLegacy,
    VersionResponse,
    VersionResponse2,
)
from vmbus.protocol.versions import IMPLEMENTED, Version

Contact = InitiateContactLegacy | InitiateContact | InitiateContact2

SUPPORTED_FEATURES = (
    Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    | Feature.CHANNEL_INTERRUPT_REDIRECTION
    | Feature.CLIENT_ID
    | Feature.PAUSE_RESUME
)
"""What this host grants at 6.0. There are no monitor pages, so no MODIFY_CONNECTION either."""


class Phase(enum.Enum):
    """The connection to one guest. A contact is answered at once, so there is no state for one under way."""

    DISCONNECTED = "disconnected"
    CONNECTED = "connected"
    DISCONNECTING = "disconnecting"
    """Devices are stopping and views are going; what comes then is an `AfterDisconnect`."""


class AfterDisconnect(enum.Enum):
    """What a disconnect was for."""

    RESET = "reset"
    """The host reset the machine: say nothing."""
    UNLOAD = "unload"
    """The guest asked: UNLOAD_COMPLETE."""
    RECONNECT = "reconnect"
    """The guest made a new contact: answer it."""


class Verdict(msgspec.Struct, frozen=True):
    """The answer to a contact."""

    response: VersionResponse | VersionResponse2
    target_vp: int
    target_sint: int
    """Where the answer, and all that follows, goes."""
    version: int | None = None
    """The connection's, if there is one now."""
    features: int = 0
    refusal: str = ""
    """Why there is none, for people."""


def judge(contact: Contact, *, multiclient: bool, max_version: int) -> Verdict:
    """Decide on a contact. `multiclient` says that it came by connection ID 4, where the target SINT counts.

    Only an exact match with an implemented version is accepted. Raises a `WireError` where no answer is due: a client
    ID is announced and missing.
    """
    version = contact.version
    # Below 3.0 the guest cannot choose, whatever it writes there.
    vp = contact.target_vp if version >= Version.V3_0 else 0
    unsupported = VersionResponse(supported=0)
    if version not in IMPLEMENTED or version > max_version:
        return Verdict(unsupported, vp, SINT, refusal="version not supported")
    sint, requested = SINT, 0
    if not isinstance(contact, InitiateContactLegacy):
        if multiclient:
            sint = contact.target_sint
        if sint != SINT:
            return Verdict(unsupported, vp, sint, refusal=f"SINT {sint}")
        if version >= Version.V5_1 and contact.target_vtl:
            return Verdict(unsupported, vp, sint, refusal=f"VTL {contact.target_vtl}")
        if version >= Version.V6_0:
            requested = contact.features
        if requested & Feature.CLIENT_ID and not isinstance(contact, InitiateContact2):
            raise BadValue("INITIATE_CONTACT announces a client ID and is too short to hold it")
    if bool(contact.parent_to_child_monitor_page) != bool(contact.child_to_parent_monitor_page):
        failed = VersionResponse(supported=1, connection_state=ConnectionState.FAILED_UNKNOWN_FAILURE)
        return Verdict(failed, vp, sint, refusal="one monitor page of two")
    detail = MESSAGE_CONNECTION if version >= Version.V5_0 else version
    if version < Version.V6_0:
        return Verdict(VersionResponse(supported=1, detail=detail), vp, sint, version)
    granted = int(requested & SUPPORTED_FEATURES)
    return Verdict(VersionResponse2(supported=1, detail=detail, features=granted), vp, sint, version, granted)
