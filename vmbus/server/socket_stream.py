"""The host's end of a Hyper-V socket: a stream that outlives its close until the guest has taken all. Root side."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from hypervisor.wire import WireError
from vmbus.pipe import BytePipe

if TYPE_CHECKING:
    from hypervisor.wire import Guid
    from vmbus.channel import Channel

STALLED_AFTER: Final = 5.0
"""Seconds in which a guest takes nothing of what was sent before the close: then it does not want it."""
LATE_BYTES: Final = 1 << 20
"""What a guest has sent before it closed the channel is received up to this many bytes of its ring."""


class SocketState(enum.Enum):
    """How far a connection is."""

    OFFERED = "offered"
    """The guest is to open it."""
    REACHING = "reaching"
    """The guest opens it; the listener in the host is being reached."""
    OPEN = "open"
    CLOSING = "closing"
    """The host is done with it; the guest has yet to take the rest."""
    ENDED = "ended"


class HostSocket(BytePipe):
    """A stream to a guest. One task may send and one receive at a time.

    `aclose` returns at once: what was sent is still delivered, as by a socket of the system. Whatever the guest does
    comes as an end of the stream, or as `trio.BrokenResourceError`.
    """

    def __init__(self, channel: Channel, *, service: Guid, endpoint: Guid, broken: Callable[[str], None]) -> None:
        """`broken` hears what is wrong with the guest's packets."""
        super().__init__(channel)
        self.service = service
        self.endpoint = endpoint
        self.closing = trio.Event()
        """The host's user has closed it."""
        self.gone = trio.Event()
        """The channel has ended; what the guest had sent may still be there to be received."""
        self._broken = broken
        self._nonsensical = False

    def close(self) -> None:
        """`aclose` without its checkpoint. Tasks that wait for the stream hear of it."""
        if not self._shut:
            self._shut = True
            self.channel.stir()
            self.closing.set()

    async def aclose(self) -> None:
        """No more from this end: the guest gets what was sent, and the end of the stream."""
        self.close()
        await trio.lowlevel.checkpoint()

    async def finish(self) -> None:
        """After the close: the end of the stream if it was not sent, and then until the guest has taken all.

        Or until it has taken nothing for `STALLED_AFTER` seconds. Never raises over what the guest does.
        """
        if self._nonsensical:
            return  # it does not speak our language
        await self._rest()
        try:
            if not self._eof_sent:
                with trio.fail_after(STALLED_AFTER):
                    await self._send_end()
            await self._until_taken()
        except (trio.BrokenResourceError, trio.ClosedResourceError, WireError):
            pass  # nobody is there to take it
        except trio.TooSlowError:
            pass

    async def _until_taken(self) -> None:
        while True:
            left = self.channel.unsent
            with trio.move_on_after(STALLED_AFTER):
                await self.channel.wait_taken()
                return
            if self.channel.unsent == left:
                return

    def guest_is_gone(self) -> None:
        """The channel ends: receivers get what the guest had sent, and then the end."""
        self.channel.close(by_peer=True, keep=LATE_BYTES)
        self.gone.set()

    def _fault(self, error: WireError) -> Exception:
        self._nonsensical = True
        self._broken(str(error))
        return trio.BrokenResourceError(f"the guest's end of this stream: {error}")
