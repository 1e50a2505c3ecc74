"""What the host makes of INITIATE_CONTACT: the terms of a connection, or the reason for a refusal. Root side."""

from __future__ import annotations

import enum
from collections.abc import Callable

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
from vmbus.protocol.pages import ConnectionPages
from vmbus.protocol.versions import IMPLEMENTED, Ability, Version, abilities, version_text

Contact = InitiateContactLegacy | InitiateContact | InitiateContact2

SUPPORTED_FEATURES = (
    Feature.GUEST_SPECIFIED_SIGNAL_PARAMETERS
    | Feature.CHANNEL_INTERRUPT_REDIRECTION
    | Feature.MODIFY_CONNECTION
    | Feature.CLIENT_ID
    | Feature.PAUSE_RESUME
)
"""What this host grants at 6.0."""


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


class Elsewhere(msgspec.Struct, frozen=True):
    """A contact that is meant for another server. There is none, and it changes nothing here."""

    words: str
    """What it is meant for, for people."""
    answer_at: tuple[int, int] | None
    """VP and SINT that wait for a refusal; None for another trust level, whose own server would be the one to speak."""


def addressee(contact: Contact, *, multiclient: bool) -> Elsewhere | None:
    """None for a contact that is meant for this server: all those that did not come by connection ID 4.

    Raises a `WireError` where no answer is due: a client ID is announced and missing.
    """
    if isinstance(contact, InitiateContactLegacy):
        return None
    announced = contact.version >= Version.V6_0 and contact.features & Feature.CLIENT_ID
    if announced and not isinstance(contact, InitiateContact2):
        raise BadValue("INITIATE_CONTACT announces a client ID and is too short to hold it")
    if multiclient and contact.version >= Version.V5_1 and contact.target_vtl:
        return Elsewhere(f"VTL {contact.target_vtl}", None)
    if multiclient and contact.target_sint != SINT:
        return Elsewhere(f"SINT {contact.target_sint}", (contact.target_vp, contact.target_sint))
    return None


class Judged(msgspec.Struct, frozen=True):
    """One contact and what came of it, for people who ask why a connection is as it is."""

    asked: int
    """The version."""
    accepted: bool
    why: str


class Verdict(msgspec.Struct, frozen=True):
    """The answer to a contact."""

    response: VersionResponse | VersionResponse2
    target_vp: int
    """Where the answer, and all that follows, goes."""
    version: int | None = None
    """The connection's, if there is one now."""
    features: int = 0
    pages: ConnectionPages = ConnectionPages()
    refusal: str = ""
    """Why there is none, for people."""


def judge(contact: Contact, *, max_version: int, usable: Callable[[ConnectionPages], bool]) -> Verdict:
    """Decide on a contact that is meant for this server.

    `usable` says whether the guest has the pages that it names. A page that it has not fails the connection, which
    below 2.4 can only be told as a refusal of the version. Only an exact match with an implemented version is accepted.
    """
    version = contact.version
    can = abilities(version)
    vp = contact.target_vp if Ability.MESSAGE_TARGET in can or version not in IMPLEMENTED else 0
    if version not in IMPLEMENTED or version > max_version:
        above = version > max_version
        why = f"above {version_text(max_version)}, the highest here" if above else "no version that there is here"
        return Verdict(VersionResponse(supported=0), vp, refusal=why)
    granted = 0
    if Ability.FEATURES in can and not isinstance(contact, InitiateContactLegacy):
        granted = int(contact.features & SUPPORTED_FEATURES)
    pages = _pages(contact, can)
    problem = pages_problem(pages, usable)
    if problem and Ability.CONNECTION_STATE not in can:
        return Verdict(VersionResponse(supported=0), vp, refusal=problem)
    state = ConnectionState.FAILED_UNKNOWN_FAILURE if problem else ConnectionState.SUCCESSFUL
    detail = MESSAGE_CONNECTION if Ability.CONTACT_TARGET in can else version
    response: VersionResponse | VersionResponse2
    response = VersionResponse(supported=1, connection_state=state, detail=detail)
    if Ability.FEATURES in can:
        response = VersionResponse2(supported=1, connection_state=state, detail=detail, features=granted)
    if problem:
        return Verdict(response, vp, refusal=problem)
    return Verdict(response, vp, version, granted, pages)


def pages_problem(pages: ConnectionPages, usable: Callable[[ConnectionPages], bool]) -> str:
    """Why a connection cannot have these pages, for people; empty if it can."""
    return pages.problem or ("" if usable(pages) else "a page that is not there")


def _pages(contact: Contact, can: Ability) -> ConnectionPages:
    """Those that count: from 2.4 on the interrupt page is named and ignored."""
    interrupt = 0
    if isinstance(contact, InitiateContactLegacy) and Ability.INTERRUPT_PAGE in can:
        interrupt = contact.interrupt_page
    return ConnectionPages(
        interrupt=interrupt,
        to_child=contact.parent_to_child_monitor_page,
        to_root=contact.child_to_parent_monitor_page,
    )
