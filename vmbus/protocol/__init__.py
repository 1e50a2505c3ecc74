"""What the two ends of VMBus say to each other: channel messages, versions, features, numbers. Both sides."""

from vmbus.protocol.features import Feature, OfferFlag
from vmbus.protocol.messages import Message, MessageType
from vmbus.protocol.table import Direction, decode_message, describe, event_name, message_table
from vmbus.protocol.versions import IMPLEMENTED, Version, version_text

__all__ = [
    "IMPLEMENTED",
    "Direction",
    "Feature",
    "Message",
    "MessageType",
    "OfferFlag",
    "Version",
    "decode_message",
    "describe",
    "event_name",
    "message_table",
    "version_text",
]
