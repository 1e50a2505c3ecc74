"""The video VSC: a guest program's screen. Child side.

The frame buffer is in pages of the guest's own, adjacent ones. Drawing goes there at once and costs no message;
`flush` tells the host what has changed, if it wants to know: while nobody looks it does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from hypervisor.pages import PAGE_SHIFT, pages_for
from hypervisor.wire import BadValue
from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vmbus.pipe import frame, unframe
from vsp_vsc.video.canvas import Canvas
from vsp_vsc.video.protocol import (
    LAST_PART,
    MAX_POINTER,
    MAX_RESOLUTIONS,
    POINTER_PART_BYTES,
    RESOLUTIONS_SINCE,
    VERSIONS,
    FeatureChange,
    PointerPosition,
    PointerShape,
    ResolutionRequest,
    SituationUpdate,
    VideoAck,
    VideoType,
    VideoVersionRequest,
    VideoVersionResponse,
    VramLocation,
    decode_message,
    decode_resolutions,
    encode_dirt,
    encode_message,
    pack_version,
)

ANSWER_SECONDS: Final = 10.0
"""How long an answer may take; what Linux waits."""
DEFAULT_MODE: Final = (1024, 768)
"""With a host that names none."""


class ModeRefused(ValueError):
    """The host does not take this mode, or the guest has no memory for it; the screen is as it was."""


class Screen(Canvas):
    """The guest's screen: what `guest.screen()` gives. Drawing is `Canvas`'s."""

    def __init__(self, channel: Channel, platform: GuestPlatform) -> None:
        super().__init__(memoryview(b""), 0, 0)
        self.version = (0, 0)
        """Of the protocol, as agreed."""
        self.resolutions: list[tuple[int, int]] = []
        """Sizes that the host proposes, its own choice first."""
        self.watched = False
        """Whether the host wants to hear what changes: somebody looks."""
        self._channel = channel
        self._platform = platform
        self._pages = (0, 0)
        """First page and count of the frame buffer."""
        self._sending = trio.Lock()
        self._asking = trio.Lock()
        self._expected: VideoType | None = None
        self._answer, self._answers = trio.open_memory_channel[bytes](1)
        self._context = 0

    # --- what programs call

    async def flush(self) -> None:
        """Tell the host what was drawn since the last time."""
        changes = self.take_changes()
        if changes and self.watched:
            await self._send(encode_dirt(changes))
        else:
            await trio.lowlevel.checkpoint()

    async def set_mode(self, width: int, height: int, *, depth: int = 32) -> None:
        """Another size; the screen is black then. Raises `ModeRefused`."""
        length = width * height * depth // 8
        async with self._asking:
            old = self._pages
            count = pages_for(length)
            moves = count > old[1]
            if moves:
                try:
                    self._pages = (self._platform.allocate_pages(count), count)
                except MemoryError as error:
                    raise ModeRefused(f"{width}x{height}: {error}") from None
            first, count = self._pages
            try:
                if moves:
                    await self._locate(first << PAGE_SHIFT)
                await self._situate(width, height, depth)
            except BaseException:
                await self._go_back(old)
                raise
            if moves and old[1]:
                self._platform.free_pages(*old)
            memory = self._platform.memory[first << PAGE_SHIFT : (first + count) << PAGE_SHIFT]
            self.attach(memory, width, height, depth)
            self.fill(0, 0, width, height, 0)
        await self.flush()

    async def move_pointer(self, x: int, y: int, *, visible: bool = True) -> None:
        """Where the host shall show the pointer that `set_pointer` has described, if it shows one."""
        await self._send(encode_message(VideoType.POINTER_POSITION, PointerPosition(visible, 0, x, y)))

    async def set_pointer(self, width: int, height: int, pixels: bytes, *, hot: tuple[int, int] = (0, 0)) -> None:
        """The pointer's picture, up to 96 pixels a side: B, G, R, A for each. ValueError for what is none."""
        if not (0 < width <= MAX_POINTER and 0 < height <= MAX_POINTER) or len(pixels) != width * height * 4:
            raise ValueError(f"a pointer of {width}x{height} pixels in {len(pixels)} bytes")
        parts = [pixels[at : at + POINTER_PART_BYTES] for at in range(0, len(pixels), POINTER_PART_BYTES)]
        for number, part in enumerate(parts):
            place = LAST_PART if number == len(parts) - 1 else number
            shape = PointerShape(place, 1, width, height, *hot)
            await self._send(encode_message(VideoType.POINTER_SHAPE, shape, part))

    # --- the driver

    async def start(self) -> None:
        """Agree on a version, and come up in the mode that the host proposes. Raises `WireError`, `ModeRefused`."""
        for version in VERSIONS:
            request = VideoVersionRequest(pack_version(version))
            answer = await self._ask(VideoType.VERSION_RESPONSE, encode_message(VideoType.VERSION_REQUEST, request))
            if VideoVersionResponse.decode(answer).accepted:
                self.version = version
                break
        else:
            raise BadValue("the host speaks no version of synthetic video that this driver does")
        if self.version >= RESOLUTIONS_SINCE:
            request_list = encode_message(VideoType.RESOLUTION_REQUEST, ResolutionRequest(MAX_RESOLUTIONS))
            modes, default = decode_resolutions(await self._ask(VideoType.RESOLUTION_RESPONSE, request_list))
            self.resolutions = modes[default : default + 1] + modes[:default] + modes[default + 1 :]
        await self.set_mode(*(self.resolutions[0] if self.resolutions else DEFAULT_MODE))

    async def listen(self) -> None:
        """Task: what the host says, until the channel closes."""
        while True:
            kind, body = decode_message(unframe(await self._channel.receive()))
            if kind is VideoType.FEATURE_CHANGE:
                await self._features(FeatureChange.decode(body))
            elif kind is self._expected:
                with contextlib.suppress(trio.WouldBlock):  # a second answer to one question
                    self._answer.send_nowait(body)

    def end(self) -> None:
        """The host looks at it no longer: its pages go back."""
        self.close()
        if self._pages[1]:
            self._platform.free_pages(*self._pages)
            self._pages = (0, 0)

    # --- inside

    async def _features(self, change: FeatureChange) -> None:
        """Bring the host up to date with what it wants to be told from now on."""
        began = bool(change.dirt_needed) and not self.watched
        self.watched = bool(change.dirt_needed)
        if began:
            self.touch()
            await self.flush()

    async def _locate(self, gpa: int) -> None:
        self._context += 1
        location = encode_message(VideoType.VRAM_LOCATION, VramLocation(self._context, 1, gpa))
        if VideoAck.decode(await self._ask(VideoType.VRAM_LOCATION_ACK, location)).user_context != self._context:
            raise BadValue("the host confirms another frame buffer")

    async def _situate(self, width: int, height: int, depth: int) -> None:
        self._context += 1
        situation = SituationUpdate(self._context, 1, 1, 0, depth, width, height, width * depth // 8)
        message = encode_message(VideoType.SITUATION_UPDATE, situation)
        if VideoAck.decode(await self._ask(VideoType.SITUATION_UPDATE_ACK, message)).user_context != self._context:
            raise BadValue("the host confirms another mode")

    async def _go_back(self, old: tuple[int, int]) -> None:
        """After a refusal: the frame buffer where it was, and the new pages free again."""
        refused, self._pages = self._pages, old
        if refused == old:
            return
        try:
            if old[1]:
                with contextlib.suppress(ModeRefused):
                    await self._locate(old[0] << PAGE_SHIFT)
        finally:
            self._platform.free_pages(*refused)

    async def _ask(self, expected: VideoType, message: bytes) -> bytes:
        """The body of the answer. `ModeRefused` where none comes: hosts are silent on what they do not take."""
        answer: bytes | None = None
        with contextlib.suppress(trio.WouldBlock):
            self._answers.receive_nowait()  # one that came when nobody waited for it any more
        self._expected = expected
        try:
            await self._send(message)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._lose_patience, nursery.cancel_scope)
                answer = await self._answers.receive()
                nursery.cancel_scope.cancel()
        finally:
            self._expected = None
        if answer is None:
            raise ModeRefused(f"the host has not answered with {expected.name} within {ANSWER_SECONDS:g} s")
        return answer

    async def _lose_patience(self, scope: trio.CancelScope) -> None:
        await self._platform.sleep(ANSWER_SECONDS)
        scope.cancel()

    async def _send(self, message: bytes) -> None:
        async with self._sending:
            await self._channel.send(frame(message))


@asynccontextmanager
async def open_video(channel: Channel, platform: GuestPlatform) -> AsyncIterator[Screen]:
    """A screen in the host's mode. What ends the listening ends the block: `WireError`, `trio.EndOfChannel`."""
    screen = Screen(channel, platform)

    async def listen() -> None:
        with contextlib.suppress(trio.ClosedResourceError):  # closed at our own end: the driver is being stopped
            await screen.listen()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, name="video driver")
            try:
                await screen.start()
            except ModeRefused as refused:
                raise BadValue(str(refused)) from None
            yield screen
            nursery.cancel_scope.cancel()
    finally:
        screen.end()
