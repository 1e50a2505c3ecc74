"""How byte layouts are declared, read and written. Both sides."""

from hypervisor.wire.codec import Buffer, Field, Wire, at, wire
from hypervisor.wire.cursor import Cursor
from hypervisor.wire.errors import BadValue, ShortMessage, TooMany, WireError
from hypervisor.wire.scalars import Guid

__all__ = [
    "BadValue",
    "Buffer",
    "Cursor",
    "Field",
    "Guid",
    "ShortMessage",
    "TooMany",
    "Wire",
    "WireError",
    "at",
    "wire",
]
