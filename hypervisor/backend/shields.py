"""What a cut of power does to a cooperative guest's cancel scopes: their shields go. Hypervisor.

A model guest is a task, and a task may shield itself from cancellation. A machine may not: without power it stands
still, wherever it was. Trio has no public way to say so from outside, so this reads two of its private attributes. It
is the one place that does; where a version of Trio has dropped them, `drop_shields` does nothing, and a guest that
hides behind a shield is waited for and named (`TaskBackend.run`).
"""

from __future__ import annotations

from typing import Any

import trio


def drop_shields(nursery: trio.Nursery, *, keep: trio.CancelScope) -> int:
    """Unshield every cancel scope that tasks of this nursery are in, but for `keep`; returns how many had a shield."""
    dropped = 0
    waiting: list[Any] = [getattr(nursery, "_cancel_status", None)]
    while waiting:
        status = waiting.pop()
        scope = getattr(status, "_scope", None)
        if scope is None or scope is keep:
            continue
        if scope.shield and scope is not nursery.cancel_scope:
            scope.shield = False
            dropped += 1
        waiting.extend(status.children)
    return dropped
