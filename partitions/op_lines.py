"""What the control socket and the boundary driver tell of a line that is no request of theirs. Root side."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import msgspec

Id = int | str | None
"""Of a request: comes back in its answer."""


def unknown_op(written: str, operations: Sequence[str]) -> str:
    """Why an `op` is refused, with the nearest that there is."""
    near = difflib.get_close_matches(written, operations, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"known are {', '.join(operations)}"
    return f'Unknown op "{written[:40]}"; {hint}'


def id_of(line: bytes) -> Id:
    """The id of a line that is JSON but no request, so that the speaker can tell which it was."""
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    found = found.get("id") if isinstance(found, dict) else None
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None
