"""Shutdown messages: the host asks, the guest says whether it is going to. Both sides.

The answer's status is all that counts: 0 is "I will", anything else a refusal. Layout after Linux 6.12
include/linux/hyperv.h, struct shutdown_msg_data.
"""

from __future__ import annotations

import enum
from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u32
from vsp_vsc.integration.protocol import Version

TEXT_BYTES = 2048
PLANNED = 0x8000_0000
"""In `reason`: nothing went wrong."""

_text = Annotated[bytes, "2048s"]


class ShutdownFlags(enum.IntFlag):
    """What to do, besides powering off."""

    NONE = 0
    FORCE = 1
    """Do not let programs object."""
    RESTART = 2
    """Instead of powering off."""
    HIBERNATE = 4
    """Instead of powering off."""


KNOWN_FLAGS = 0x7
LEAST_VERSION = {
    ShutdownFlags.RESTART: Version(3, 1),
    ShutdownFlags.HIBERNATE: Version(3, 2),
}
"""The versions that brought a flag."""


@wire(size=12 + TEXT_BYTES, spec="Linux hyperv.h, struct shutdown_msg_data")
class ShutdownRequest(Wire):
    """The host's request."""

    reason: u32 = at(0, default=PLANNED)
    timeout_seconds: u32 = at(4, default=0)
    flags: u32 = at(8, default=0)
    text: _text = at(12, default=b"")
    """For people in the guest: UTF-16 with a NUL behind it."""


def encode_text(text: str) -> bytes:
    """As much of a text as there is room for, with its NUL."""
    raw = text.encode("utf-16-le", "replace")[: TEXT_BYTES - 2]
    return raw.decode("utf-16-le", "ignore").encode("utf-16-le")


def decode_text(untrusted: bytes) -> str:
    """Up to the NUL; what is no UTF-16 is replaced."""
    return untrusted.decode("utf-16-le", "replace").split("\0", 1)[0]


def describe(body: bytes) -> str:
    """The host's message in words: `shut down, flags 0x1`. Any bytes are fine."""
    return (
        f"shut down, flags {ShutdownRequest.decode(body).flags:#x}"
        if len(body) >= ShutdownRequest.SIZE
        else "shut down"
    )
