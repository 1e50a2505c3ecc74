"""A guest that does nothing: it boots, waits for the power button and leaves. Child side."""

from __future__ import annotations

import trio

from partitions.child.guest import Guest


async def main(guest: Guest) -> None:
    """Sleep until somebody turns the machine off; no timer, no wake-ups."""
    await trio.sleep_forever()
