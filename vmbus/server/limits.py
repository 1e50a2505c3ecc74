"""What one guest may take of the host on its bus, what it hears at each limit, and how much it has taken. Root side."""

from __future__ import annotations

from typing import Final

import msgspec

from hypervisor.inspect import Branch
from vmbus.protocol.hvsocket import MAX_CONNECT_REQUESTS, MAX_SOCKETS
from vmbus.protocol.identifiers import MAX_CHANNELS
from vmbus.server.gpadls import MAX_GPADL_WORDS, MAX_GPADLS

INBOX_MESSAGES: Final = 1024
"""Guest messages that wait; more are dropped and counted. Linux has one in flight at a time, or a GPADL's few."""

MAX_SCATTERED_PAGES: Final = 4096
"""Per guest: each break in a ring's page list costs the host a memory mapping, of which a process has some 65,000."""

MAX_RESERVED_TARGETS: Final = 16
"""Message targets of reserved channels that are kept connected; the one not used for longest makes room."""


class BusUse(msgspec.Struct, frozen=True):
    """What a guest has taken of its bus at one moment, and how often it was at a limit since its start."""

    channels: int = 0
    """With an ID; of `MAX_CHANNELS`."""
    gpadls: int = 0
    """Unfinished ones too; of `MAX_GPADLS`."""
    gpadl_words: int = 0
    """Page numbers and range headers, promised ones included; of `MAX_GPADL_WORDS`."""
    scattered_pages: int = 0
    """Breaks in the page lists of open rings; of `MAX_SCATTERED_PAGES`."""
    messages_waiting: int = 0
    """From the guest; of `INBOX_MESSAGES`."""
    messages_unsent: int = 0
    """To the guest, who does not take them. No message of the guest's is looked at meanwhile, so there is no limit."""
    gpadls_over_limit: int = 0
    opens_over_limit: int = 0
    messages_dropped: int = 0
    sockets: int = 0
    """Of which anything is left; of `MAX_SOCKETS`."""
    sockets_refused: int = 0
    """For whatever reason."""

    def inspect(self) -> Branch:
        """Each figure, and where there is one its limit after it."""
        return Branch(
            {
                "channels": self.channels,
                "max_channels": MAX_CHANNELS,
                "gpadls": self.gpadls,
                "max_gpadls": MAX_GPADLS,
                "gpadl_words": self.gpadl_words,
                "max_gpadl_words": MAX_GPADL_WORDS,
                "scattered_pages": self.scattered_pages,
                "max_scattered_pages": MAX_SCATTERED_PAGES,
                "messages_waiting": self.messages_waiting,
                "max_messages_waiting": INBOX_MESSAGES,
                "messages_unsent": self.messages_unsent,
                "gpadls_over_limit": self.gpadls_over_limit,
                "opens_over_limit": self.opens_over_limit,
                "messages_dropped": self.messages_dropped,
                "sockets": self.sockets,
                "max_sockets": MAX_SOCKETS,
                "sockets_refused": self.sockets_refused,
            }
        )


class Limit(msgspec.Struct, frozen=True):
    """One row of the table."""

    what: str
    name: str
    value: int
    answer: str
    counter: str
    """The field of `BusUse` that counts the times."""


LIMITS: Final = (
    Limit("channels with an ID", "MAX_CHANNELS", MAX_CHANNELS, "the host offers no more until one is released", "-"),
    Limit("GPADLs", "MAX_GPADLS", MAX_GPADLS, "GPADL_CREATED, status 0x8000FFFF", "gpadls_over_limit"),
    Limit("words of all GPADLs", "MAX_GPADL_WORDS", MAX_GPADL_WORDS, "the same", "gpadls_over_limit"),
    Limit(
        "breaks in the page lists of open rings",
        "MAX_SCATTERED_PAGES",
        MAX_SCATTERED_PAGES,
        "OPEN_CHANNEL_RESULT, status 0x8000FFFF",
        "opens_over_limit",
    ),
    Limit("messages that wait for the host", "INBOX_MESSAGES", INBOX_MESSAGES, "none: dropped", "messages_dropped"),
    Limit(
        "requests for sockets that are not answered",
        "MAX_CONNECT_REQUESTS",
        MAX_CONNECT_REQUESTS,
        "none: its messages wait until one is",
        "-",
    ),
    Limit(
        "Hyper-V sockets",
        "MAX_SOCKETS",
        MAX_SOCKETS,
        "TL_CONNECT_RESULT, status 0xC0000236; a program of the host's hears why",
        "sockets_refused",
    ),
    Limit(
        "message targets of reserved channels",
        "MAX_RESERVED_TARGETS",
        MAX_RESERVED_TARGETS,
        "none: the oldest is connected anew when it is used again",
        "-",
    ),
)


def limits_table() -> str:
    """The table as Markdown, for the documentation."""
    lines = ["| of a guest | limit | name | answer past it | counted in |", "|---|---|---|---|---|"]
    lines += [f"| {row.what} | {row.value} | `{row.name}` | {row.answer} | `{row.counter}` |" for row in LIMITS]
    return "\n".join(lines).replace("`-`", "-") + "\n"
