"""The protocol versions of VMBus and what each changed. Both sides.

A version is one number, `major << 16 | minor`, so versions compare as integers. The host accepts only an exact match
with a version that it implements; the guest tries its own from the highest down.
"""

from __future__ import annotations

import enum

import msgspec


class Version(enum.IntEnum):
    """Every version there has been (openvmm vmbus_core; Linux hyperv.h, VERSION_*)."""

    V0_13 = 0x0000_000D
    V1_1 = 0x0001_0001
    V2_4 = 0x0002_0004
    V3_0 = 0x0003_0000
    V4_0 = 0x0004_0000
    V4_1 = 0x0004_0001
    V5_0 = 0x0005_0000
    V5_1 = 0x0005_0001
    V5_2 = 0x0005_0002
    V5_3 = 0x0005_0003
    V6_0 = 0x0006_0000


class Ability(enum.Flag):
    """What a version can do, beyond which messages it has; `table.py` says that."""

    NONE = 0
    INTERRUPT_PAGE = enum.auto()
    """Channels are told apart by bits of a page that the guest names (`vmbus.interrupt_page`)."""
    DEDICATED_SIGNALS = enum.auto()
    """The guest signals each channel on a connection of its own; before, one connection serves all."""
    UNLOAD_COMPLETE = enum.auto()
    """UNLOAD is answered."""
    CONNECTION_STATE = enum.auto()
    """VERSION_RESPONSE can say that the version is fine and the connection failed all the same."""
    MESSAGE_TARGET = enum.auto()
    """The guest names the processor that takes channel messages; before, it is the first."""
    RESERVED_CHANNELS = enum.auto()
    SOCKETS = enum.auto()
    """TL_CONNECT_REQUEST: Hyper-V sockets."""
    MODIFY_CHANNEL = enum.auto()
    """Interrupts of an open channel move to another processor."""
    SOCKET_RESULTS = enum.auto()
    """TL_CONNECT_RESULT: a refused socket is told so."""
    CONTACT_TARGET = enum.auto()
    """INITIATE_CONTACT names the SINT, and the answer the connection ID to post to."""
    CONTACT_VTL = enum.auto()
    """INITIATE_CONTACT names the virtual trust level."""
    SOCKET_SILOS = enum.auto()
    """TL_CONNECT_REQUEST names the container that it comes from."""
    MODIFY_RESPONSE = enum.auto()
    """MODIFY_CHANNEL is answered, and waits its turn."""
    FEATURES = enum.auto()
    """`Feature` flags are negotiated."""


class VersionRow(msgspec.Struct, frozen=True):
    """One version as documentation, `partita inspect` and the code see it."""

    version: Version
    release: str
    """The Windows release that brought it."""
    changes: str
    adds: Ability
    drops: Ability = Ability.NONE


VERSIONS = (
    VersionRow(
        Version.V0_13,
        "Windows Server 2008",
        "one interrupt page for both ways; a failure is told as a refusal",
        Ability.INTERRUPT_PAGE,
    ),
    VersionRow(
        Version.V1_1,
        "Windows 7",
        "UNLOAD_COMPLETE; the guest signals each channel by itself, the host still by the interrupt page",
        Ability.DEDICATED_SIGNALS | Ability.UNLOAD_COMPLETE,
    ),
    VersionRow(
        Version.V2_4,
        "Windows 8",
        "every channel has its own event flag and connection; no interrupt page",
        Ability.CONNECTION_STATE,
        Ability.INTERRUPT_PAGE,
    ),
    VersionRow(
        Version.V3_0, "Windows 8.1", "the guest names the VP that takes channel messages", Ability.MESSAGE_TARGET
    ),
    VersionRow(
        Version.V4_0,
        "Windows 10",
        "reserved channels; TL_CONNECT_REQUEST",
        Ability.RESERVED_CHANNELS | Ability.SOCKETS,
    ),
    VersionRow(
        Version.V4_1,
        "Windows 10 RS3",
        "MODIFY_CHANNEL without an answer; TL_CONNECT_RESULT",
        Ability.MODIFY_CHANNEL | Ability.SOCKET_RESULTS,
    ),
    VersionRow(
        Version.V5_0,
        "Windows 10 RS3",
        "INITIATE_CONTACT names the SINT; the answer names a connection ID",
        Ability.CONTACT_TARGET,
    ),
    VersionRow(Version.V5_1, "Windows 10 RS4", "INITIATE_CONTACT names the VTL", Ability.CONTACT_VTL),
    VersionRow(Version.V5_2, "Windows 10 RS5", "TL_CONNECT_REQUEST with a silo ID", Ability.SOCKET_SILOS),
    VersionRow(Version.V5_3, "Windows Server 2022", "MODIFY_CHANNEL_RESPONSE", Ability.MODIFY_RESPONSE),
    VersionRow(
        Version.V6_0,
        "Copper",
        "feature flags, client ID, signal parameters at OPEN_CHANNEL, pause and resume",
        Ability.FEATURES,
    ),
)
"""Oldest first."""

IMPLEMENTED = tuple(row.version for row in reversed(VERSIONS))
"""What a guest tries, in this order, and a host accepts: 6.0 down to 0.13."""


def _by_version() -> dict[int, Ability]:
    table: dict[int, Ability] = {}
    now = Ability.NONE
    for row in VERSIONS:
        now = table[row.version] = (now | row.adds) & ~row.drops
    return table


_ABILITIES = _by_version()


def abilities(version: int | None) -> Ability:
    """What a version can do; nothing without one, or for a number that is none."""
    return Ability.NONE if version is None else _ABILITIES.get(version, Ability.NONE)


def version_text(version: int) -> str:
    """`5.3` for 0x00050003, for people."""
    return f"{version >> 16}.{version & 0xFFFF}"
