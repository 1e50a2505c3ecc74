"""The video VSP: one VM's screen on the bus. Root side.

`protocol.py` says what is answered and what stops the channel; `framebuffer` is what viewers and screenshots look at.

Concurrency: `serve` receives, in the bus's task; a task beside it tells the guest when viewers come and go. Both send,
one at a time, and both wait where the guest does not read: what it is to hear of viewers is made when it is sent, so
nothing piles up.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs
import trio

from hypervisor.inspect import Branch, Gone, counters
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Trace
from hypervisor.wire import WireError
from vmbus.bell import Bell
from vmbus.channel import Channel
from vmbus.pipe import frame, unframe
from vmbus.protocol.features import OfferFlag
from vmbus.server.offers import Offer
from vmbus.server.saved import CannotSave
from vsp_vsc.video.framebuffer import Framebuffer
from vsp_vsc.video.protocol import MESSAGE_PIPE, VIDEO_INSTANCE, VIDEO_INTERFACE, VRAM_MEGABYTES
from vsp_vsc.video.session import Counters, SavedScreen, State, VideoSession, load
from vsp_vsc.video.vram import Vram, VramWindow

if TYPE_CHECKING:
    from vmbus.server.opened import OpenedChannel


class VideoVsp:
    """A screen as `vmbus.server` takes it."""

    def __init__(
        self,
        width: int,
        height: int,
        trace: Trace,
        partition_id: int,
        name: str = "video",
        *,
        window: VramWindow | None = None,
    ) -> None:
        """The size is the one that the guest is asked to take; `window` is for guests that have none in their RAM."""
        self.offer = Offer(
            VIDEO_INTERFACE,
            VIDEO_INSTANCE,
            flags=int(OfferFlag.ENUMERATE_DEVICE_INTERFACE | OfferFlag.NAMED_PIPE_MODE),
            user_defined=struct.pack("<I116x", MESSAGE_PIPE),
            mmio_megabytes=VRAM_MEGABYTES,
            name=name,
        )
        self.framebuffer = Framebuffer(width, height)
        self.framebuffer.on_watched = self._watched
        self.counters = Counters()
        self._mode = width, height
        self._trace = trace
        self._partition_id = partition_id
        self._window = window
        self._link: _Link | None = None

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Answer the guest until the channel closes. Raises `WireError` where its mistake ends it."""
        vram = Vram(opened.memory, self._window)

        def refused(words: str) -> None:
            self._trace.warn(Layer.DEVICE, "video_refused", self._partition_id, words, channel=opened.channel_id)

        session = VideoSession(self.framebuffer, vram, self._mode, refused, self.counters)
        self._link = link = _Link(channel, opened.channel_id, session, vram)
        try:
            if isinstance(opened.restored, SavedScreen):
                session.restore(opened.restored)
            await self._run(link)
        except WireError as fault:
            self._trace.warn(Layer.DEVICE, "video_stopped", self._partition_id, str(fault), channel=opened.channel_id)
            raise
        finally:
            session.close()
            if self._link is link:
                self._link = None

    async def _run(self, link: _Link) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell_of_viewers, link, nursery.cancel_scope, name="video viewers")
            try:
                while True:
                    await self._take(link, unframe(await link.channel.receive()))
            except WireError as fault:
                link.fault = link.fault or fault
            except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
                pass  # the bus has closed it
            nursery.cancel_scope.cancel()
        if link.fault is not None:
            raise link.fault

    async def _take(self, link: _Link, untrusted: bytes) -> None:
        session, before = link.session, self._state(link)
        link.busy += 1
        try:
            answer = session.take(untrusted)
            if self._trace.on and (after := self._state(link)) != before:
                self._emit(TO_ROOT, after, link)
            if answer is not None:
                async with link.sending:
                    await link.channel.send(frame(answer))
        finally:
            link.busy -= 1
        if self.framebuffer.watched:
            link.viewers.ring()
        await trio.lowlevel.cancel_shielded_checkpoint()  # a message may cost a millisecond, and a ring holds hundreds

    async def _tell_of_viewers(self, link: _Link, scope: trio.CancelScope) -> None:
        try:
            while True:
                async with link.sending:
                    change = link.session.feature_change()
                    if change is not None:
                        if self._trace.on:
                            words = "somebody looks" if self.framebuffer.watched else "nobody looks any more"
                            self._emit(TO_CHILD, words, link)
                        link.busy += 1
                        try:
                            await link.channel.send(frame(change))
                        finally:
                            link.busy -= 1
                await link.viewers.wait()
        except WireError as fault:
            link.fault = link.fault or fault
            scope.cancel()
        except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # the receiver hears of it too

    def _watched(self, watched: bool) -> None:
        if self._link is not None:
            self._link.viewers.ring()

    def _state(self, link: _Link) -> str:
        """What of it people hear when it changes."""
        session, screen = link.session, self.framebuffer
        if session.state is State.NO_VERSION:
            return "no version"
        version = f"version {session.version[0]}.{session.version[1]}"
        return f"{version}, {screen.width}x{screen.height}" if screen.active else f"{version}, off"

    def _emit(self, direction: str, words: str, link: _Link) -> None:
        self._trace.emit(
            *(Layer.DEVICE, "video_screen", self._partition_id),
            direction=direction,
            channel=link.channel_id,
            words=words,
        )

    # --- saved and restored

    def save(self, channel_id: int) -> bytes | None:
        """The session, or None while something is unanswered. Raises `CannotSave` for memory that is not the VM's."""
        link = self._link
        if link is None or link.busy or link.channel.ahead:
            return None
        if link.vram.in_window:
            raise CannotSave("the screen's memory is not the VM's own, and not saved in this version")
        return link.session.save()

    def load(self, untrusted: bytes) -> SavedScreen:
        """What `serve` goes on with. Raises `WireError`."""
        return load(untrusted)

    # --- looking

    def inspect(self) -> Branch:
        """The screen and what was said of it."""
        return Branch({"screen": self.framebuffer.inspect, "counters": lambda: counters(attrs.asdict(self.counters))})

    def inspect_channel(self, channel_id: int) -> Branch:
        """The session on it."""
        if self._link is None or self._link.channel_id != channel_id:
            raise Gone
        return self._link.session.inspect()


@attrs.define(eq=False)
class _Link:
    """One opening of the channel."""

    channel: Channel
    channel_id: int
    session: VideoSession
    vram: Vram
    viewers: Bell = attrs.field(factory=Bell)
    """Rung when viewers have come or gone, or the guest can hear of them now."""
    sending: trio.Lock = attrs.field(factory=trio.Lock)
    busy: int = 0
    """Messages that are off the ring, with an answer that is not on it yet, or made and not sent."""
    fault: WireError | None = None
