"""Atomic operations on 32-bit words of memory that another processor writes too. Both sides.

A plain read-and-clear loses a bit that the other side sets in between, and with it a wake-up. `libatomic` of GCC's
runtime has the real thing. Where it is missing, `exchange` answers a word with all bits set: who takes flags looks at
everything then, which costs some looks for nothing and loses none, since the peer sets its bit after its data.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

ALL_BITS: Final = 0xFFFF_FFFF
_EXCHANGE, _FETCH_OR = "__atomic_exchange_4", "__atomic_fetch_or_4"
_SEQUENTIAL: Final = 5
"""__ATOMIC_SEQ_CST."""


def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libatomic.so.1")
        for name in (_EXCHANGE, _FETCH_OR):
            function = getattr(library, name)
            function.argtypes = (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int)
            function.restype = ctypes.c_uint32
    except (OSError, AttributeError):
        return None
    return library


_found = _library()
_Operation = Callable[[int, int, int], int]
_exchange: _Operation | None = getattr(_found, _EXCHANGE, None)
_fetch_or: _Operation | None = getattr(_found, _FETCH_OR, None)


def take_word(view: memoryview, offset: int) -> int:
    """The aligned word at `offset`, and zero in its place. `view` is writable; without a library, see above."""
    words = view[offset : offset + 4].cast("I")
    if not words[0]:
        return 0
    if _exchange is None:
        words[0] = 0
        return ALL_BITS
    return _exchange(ctypes.addressof(ctypes.c_uint32.from_buffer(words)), 0, _SEQUENTIAL)


def set_bits(view: memoryview, offset: int, bits: int) -> None:
    """Set bits of the aligned word at `offset`, and fence: what was stored before is seen before them."""
    words = view[offset : offset + 4].cast("I")
    if _fetch_or is None:
        words[0] |= bits
        return
    _fetch_or(ctypes.addressof(ctypes.c_uint32.from_buffer(words)), bits, _SEQUENTIAL)
