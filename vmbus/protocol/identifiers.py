"""Numbers that both ends of VMBus agree on: SINT, connection, port and channel IDs, statuses. Both sides."""

from __future__ import annotations

import enum

SINT = 2
"""The synthetic interrupt source of VMBus messages and event flags."""

SYNIC_MESSAGE_TYPE = 1
"""The type in the header of every SynIC message that carries a channel message."""

MAX_MESSAGE_BYTES = 240
"""A SynIC message's payload; a channel message must fit one."""

MESSAGE_CONNECTION = 1
"""Where a guest posts channel messages (classic)."""

MESSAGE_CONNECTION_MULTICLIENT = 4
"""Where a guest posts INITIATE_CONTACT for 5.0 and later; the same server answers."""

SHARED_EVENT_CONNECTION = 2
"""What a guest signals below 1.1, for all channels: the interrupt page says which."""

SHARED_EVENT_FLAG = 0
"""What the host sets below 2.4, likewise. It is no channel's."""

MAX_CHANNELS = 2047
"""A VP has 2,048 event flags on a SINT and flag 0 is reserved."""

INTERRUPTS_OFF = 0xFFFF_FFFF
"""The target VP of a channel that is to raise no interrupts."""

NO_MONITOR = 0xFF
"""The monitor ID of an offer without one."""

FIRST_GPADL_ID = 0xE1E10
"""Where Linux begins to count GPADL handles; any number is legal."""


class ChannelStatus(enum.IntEnum):
    """The status words of OPEN_RESULT, GPADL_CREATED, MODIFY_CHANNEL_RESPONSE and TL_CONNECT_RESULT."""

    SUCCESS = 0
    FAILURE = 0x8000_FFFF
    CONNECTION_REFUSED = 0xC000_0236
    """Only in TL_CONNECT_RESULT: nobody listens."""


class ConnectionState(enum.IntEnum):
    """How a contact of a supported version went (VERSION_RESPONSE, MODIFY_CONNECTION_RESPONSE)."""

    SUCCESSFUL = 0
    FAILED_LOW_RESOURCES = 1
    FAILED_UNKNOWN_FAILURE = 2


def event_connection_id(channel_id: int) -> int:
    """The connection that a guest signals for a channel: 0x2001 for channel 1."""
    return SINT << 12 | channel_id
