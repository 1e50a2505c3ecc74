"""The mouse VSC: what a guest program reads. Child side.

    mouse = await guest.mouse()
    async for report in mouse:
        x, y = report.at(screen.width, screen.height)

Nothing is read ahead: reports that the program does not read stay in the ring, and then with the host, which merges
them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio

from hypervisor.wire import BadValue
from vmbus.channel import Channel
from vmbus.client.platform import GuestPlatform
from vmbus.pipe import frame, unframe
from vsp_vsc.input_reader import received
from vsp_vsc.mouse.protocol import (
    MAX_POSITION,
    VERSION_2_0,
    Buttons,
    MouseInfo,
    MouseReport,
    MouseRequest,
    MouseResponse,
    MouseType,
    decode_device_info,
    decode_message,
    encode_message,
)


class Report(msgspec.Struct, frozen=True):
    """Where the pointer is, and what is down."""

    x: int
    y: int
    """0 to 32767 across the screen."""
    buttons: Buttons
    wheel: int
    """Steps away from the user since the last report."""

    def at(self, width: int, height: int) -> tuple[int, int]:
        """The pixel on a screen of that size."""
        return round(self.x * (width - 1) / MAX_POSITION), round(self.y * (height - 1) / MAX_POSITION)


class Mouse:
    """The mouse of this guest, for one task at a time."""

    def __init__(self, channel: Channel, info: MouseInfo, descriptor: bytes) -> None:
        self._channel = channel
        self.info = info
        """Vendor, product and version."""
        self.descriptor = descriptor
        """The HID report descriptor."""

    async def receive(self) -> Report:
        """The next report. Raises `trio.EndOfChannel` when the host takes the mouse away, `WireError` for nonsense."""
        body = await _expect(self._channel, MouseType.INPUT_REPORT)
        report = MouseReport.decode(body)
        wheel = report.wheel - 0x10000 if report.wheel & 0x8000 else report.wheel
        return Report(report.x, report.y, Buttons(report.buttons & 0x1F), wheel)

    def __aiter__(self) -> Mouse:
        """Every report from now on."""
        return self

    async def __anext__(self) -> Report:
        """The next; the end when the mouse is gone."""
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


async def _expect(channel: Channel, wanted: MouseType) -> bytes:
    """The body of the next message, which is of that type. Raises `WireError`, `trio.EndOfChannel`."""
    kind, body = decode_message(unframe(await received(channel)))
    if kind != wanted:
        raise BadValue(f"mouse message {kind} from the host, where {wanted.name} was due")
    return body


@asynccontextmanager
async def open_mouse(channel: Channel, platform: GuestPlatform) -> AsyncIterator[Mouse]:
    """Agree on version 2.0 and learn what it is. Raises `WireError`, `trio.EndOfChannel`."""
    await channel.send(frame(encode_message(MouseType.PROTOCOL_REQUEST, MouseRequest(VERSION_2_0).encode())))
    if not MouseResponse.decode(await _expect(channel, MouseType.PROTOCOL_RESPONSE)).approved:
        raise BadValue("the host refuses version 2.0 of the mouse")
    info, descriptor = decode_device_info(await _expect(channel, MouseType.INITIAL_DEVICE_INFO))
    await channel.send(frame(encode_message(MouseType.INITIAL_DEVICE_INFO_ACK, b"\0")))
    yield Mouse(channel, info, descriptor)
