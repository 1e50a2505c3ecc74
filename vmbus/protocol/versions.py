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


class VersionRow(msgspec.Struct, frozen=True):
    """One version as documentation and `partita inspect` show it."""

    version: Version
    release: str
    """The Windows release that brought it."""
    changes: str
    implemented: bool = True
    """False for a version that is known but always refused."""


VERSIONS = (
    VersionRow(
        Version.V0_13, "Windows Server 2008", "one interrupt page for both ways; a refusal cannot be reported", False
    ),
    VersionRow(
        Version.V1_1, "Windows 7", "UNLOAD_COMPLETE; the interrupt page still serves host to guest", implemented=False
    ),
    VersionRow(Version.V2_4, "Windows 8", "every channel has its own event flag and connection; no interrupt page"),
    VersionRow(Version.V3_0, "Windows 8.1", "the guest names the VP that takes channel messages"),
    VersionRow(Version.V4_0, "Windows 10", "reserved channels; TL_CONNECT_REQUEST"),
    VersionRow(Version.V4_1, "Windows 10 RS3", "MODIFY_CHANNEL without an answer; TL_CONNECT_RESULT"),
    VersionRow(Version.V5_0, "Windows 10 RS3", "INITIATE_CONTACT names the SINT; the answer names a connection ID"),
    VersionRow(Version.V5_1, "Windows 10 RS4", "INITIATE_CONTACT names the VTL"),
    VersionRow(Version.V5_2, "Windows 10 RS5", "TL_CONNECT_REQUEST with a silo ID"),
    VersionRow(Version.V5_3, "Windows Server 2022", "MODIFY_CHANNEL_RESPONSE"),
    VersionRow(Version.V6_0, "Copper", "feature flags, client ID, signal parameters at OPEN_CHANNEL, pause and resume"),
)
"""Oldest first."""

IMPLEMENTED = tuple(row.version for row in reversed(VERSIONS) if row.implemented)
"""What a guest tries, in this order, and a host accepts: 6.0 down to 2.4."""


def version_text(version: int) -> str:
    """`5.3` for 0x00050003, for people."""
    return f"{version >> 16}.{version & 0xFFFF}"
