"""Heartbeat messages: the host sends a number, the guest answers with the next one. Both sides.

Layout after Linux 6.12 include/linux/hyperv.h, struct heartbeat_msg_data, which counts the application state among its
reserved words; Linux leaves it as the host sent it.
"""

from __future__ import annotations

import enum

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u32, u64

SEQUENCE_MASK = (1 << 64) - 1
ANSWER_SIZE = 8
"""Least bytes of an answer: the number."""


class ApplicationState(enum.IntEnum):
    """What the guest says of the software that runs in it."""

    UNKNOWN = 0
    HEALTHY = 1
    CRITICAL = 2
    STOPPED = 3


@wire(size=40, spec="Linux hyperv.h, struct heartbeat_msg_data")
class Beat(Wire):
    """A beat and its answer."""

    sequence: u64 = at(0)
    application_state: u32 = at(8, default=0)


def describe(body: bytes) -> str:
    """The host's message in words: `beat 41`. Any bytes are fine."""
    return f"beat {Beat.decode(body).sequence}" if len(body) >= Beat.SIZE else "beat"
