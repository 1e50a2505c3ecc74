"""The field types of wire layouts: integers, fixed bytes and GUIDs. Both sides.

Each is an `Annotated` alias whose metadata is a `struct` code: a declaration reads `flags: u32 = at(0x04)`, and a type
checker sees a plain `int`.
"""

from __future__ import annotations

import uuid
from typing import Annotated

u8 = Annotated[int, "B"]
u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]
i32 = Annotated[int, "i"]
i64 = Annotated[int, "q"]


class Guid(bytes):
    """A GUID as its 16 bytes on the wire (first three groups little-endian); text is made on demand."""

    __slots__ = ()

    def __new__(cls, value: bytes | str = bytes(16)) -> Guid:
        """Take the 16 wire bytes, or the usual text form."""
        raw = uuid.UUID(value).bytes_le if isinstance(value, str) else value
        if len(raw) != 16:
            raise ValueError(f"a GUID has 16 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    def __str__(self) -> str:
        return str(uuid.UUID(bytes_le=bytes(self)))

    def __repr__(self) -> str:
        return f"Guid({str(self)!r})"


guid = Annotated[Guid, "16s"]

# Fixed byte arrays; `bytes_of(n)` gives mypy nothing to hold on to, so the sizes in use are spelled out.
bytes4 = Annotated[bytes, "4s"]
bytes5 = Annotated[bytes, "5s"]
bytes8 = Annotated[bytes, "8s"]
bytes16 = Annotated[bytes, "16s"]
bytes20 = Annotated[bytes, "20s"]
bytes120 = Annotated[bytes, "120s"]
bytes240 = Annotated[bytes, "240s"]
