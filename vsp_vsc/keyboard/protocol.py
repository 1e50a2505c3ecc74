"""Keyboard messages: layouts, numbers, and which mistakes cost what. Both sides.

Raw in-band packets without a pipe header. The guest asks for a version and the host accepts it or not; then the host
sends a message for each key that goes down or up, and the guest may say which lamps are on. Nothing is answered.

What a guest's mistake costs it:

    soft
        a version that is not 1.0: refused, and the host waits for another request
        lamps that there are not: their bits are not looked at
    hard, the channel is served no more
        a message before a version was agreed on, or a request after it
        a message of an unknown type, or one that only hosts send
        a message that is too short, or not in an in-band packet
        a corrupt ring
    fatal for the VM
        nothing

A guest that does not read its keys costs the host nothing: see `session.py` for what becomes of them.

Layouts: Linux 6.12 drivers/input/serio/hyperv-keyboard.c; behaviour after openvmm, uidevices. The file
tests/spec/layouts/input.txt holds the layouts a second time.
"""

from __future__ import annotations

import enum
from typing import Final

from hypervisor.wire import BadValue, Guid, Wire, at, wire
from hypervisor.wire.scalars import u16, u32
from vmbus.ring import Packet, PacketType

_KEYBOARD = "Linux 6.12 drivers/input/serio/hyperv-keyboard.c"

KEYBOARD_INTERFACE: Final = Guid("f912ad6d-2b17-48ea-bd65-f927a61c7684")
KEYBOARD_INSTANCE: Final = Guid("d34b2567-b9b6-42b9-8778-0a4ec0b955bf")
"""The same in every VM."""
VERSION_1_0: Final = 0x0001_0000
RING_BYTES: Final = 36 * 1024
"""Each way, with the control page: what Linux opens it with."""


class KeyboardType(enum.IntEnum):
    """What a keyboard message is."""

    PROTOCOL_REQUEST = 1
    PROTOCOL_RESPONSE = 2
    EVENT = 3
    LED_INDICATORS = 4


class KeyFlags(enum.IntFlag):
    """What a keystroke is."""

    UNICODE = 1
    """The make code is a UTF-16 code unit."""
    BREAK = 2
    """The key went up."""
    E0 = 4
    E1 = 8
    """The prefix that the code has on a real keyboard."""


class Leds(enum.IntFlag):
    """A keyboard's lamps."""

    SCROLL_LOCK = 1
    NUM_LOCK = 2
    CAPS_LOCK = 4


@wire(size=4, spec=f"{_KEYBOARD}, struct synth_kbd_msg_hdr")
class KeyboardHeader(Wire):
    """In front of every message."""

    message_type: u32 = at(0, default=0)


@wire(size=4, spec=f"{_KEYBOARD}, struct synth_kbd_protocol_request")
class KeyboardRequest(Wire):
    """The guest asks for a version."""

    version: u32 = at(0, default=0)


@wire(size=4, spec=f"{_KEYBOARD}, struct synth_kbd_protocol_response")
class KeyboardResponse(Wire):
    """Bit 0: accepted."""

    status: u32 = at(0, default=0)


@wire(size=8, spec=f"{_KEYBOARD}, struct synth_kbd_keystroke")
class Keystroke(Wire):
    """A key went down or up."""

    make_code: u16 = at(0, default=0)
    reserved: u16 = at(2, default=0)
    flags: u32 = at(4, default=0)


@wire(size=4, spec="openvmm, keyboard protocol")
class LedIndicators(Wire):
    """The guest sets the lamps."""

    leds: u16 = at(0, default=0)
    reserved: u16 = at(2, default=0)


def encode_message(kind: KeyboardType, body: Wire) -> Packet:
    """A packet with a message in it; nobody completes it."""
    return Packet(PacketType.INBAND, 0, 0, 0, KeyboardHeader(kind).encode() + body.encode())


def decode_message(untrusted: Packet) -> tuple[int, bytes]:
    """A packet's message: its type and what follows. Raises `WireError`."""
    if untrusted.type != PacketType.INBAND:
        raise BadValue(f"a packet of type {untrusted.type}, where keyboards speak in-band")
    payload = untrusted.payload
    return KeyboardHeader.decode(payload).message_type, payload[KeyboardHeader.SIZE :]
