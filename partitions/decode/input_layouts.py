"""Layouts of keyboard and mouse. Root side.

Facts: Linux 6.12 drivers/input/serio/hyperv-keyboard.c and drivers/hid/hid-hyperv.c; tests/spec/layouts/input.txt holds
them a second time.
"""

from __future__ import annotations

import enum
from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u8, u16, u32

_KEYBOARD = "Linux 6.12 drivers/input/serio/hyperv-keyboard.c"
_MOUSE = "Linux 6.12 drivers/hid/hid-hyperv.c"
bytes9 = Annotated[bytes, "9s"]
bytes22 = Annotated[bytes, "22s"]


class KeyboardType(enum.IntEnum):
    """What a keyboard message is."""

    PROTOCOL_REQUEST = 1
    PROTOCOL_RESPONSE = 2
    EVENT = 3
    LED_INDICATORS = 4


class KeyFlags(enum.IntFlag):
    """What a keystroke is."""

    UNICODE = 1
    BREAK = 2
    E0 = 4
    E1 = 8


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


class MouseType(enum.IntEnum):
    """What a mouse message is."""

    PROTOCOL_REQUEST = 0
    PROTOCOL_RESPONSE = 1
    INITIAL_DEVICE_INFO = 2
    INITIAL_DEVICE_INFO_ACK = 3
    INPUT_REPORT = 4


@wire(size=8, spec=f"{_MOUSE}, struct synthhid_msg_hdr")
class MouseHeader(Wire):
    """In front of every message, behind the pipe's header."""

    message_type: u32 = at(0, default=0)
    size: u32 = at(4, default=0)


@wire(size=4, spec=f"{_MOUSE}, struct synthhid_protocol_request")
class MouseRequest(Wire):
    """The guest asks for a version."""

    version: u32 = at(0, default=0)


@wire(size=5, spec=f"{_MOUSE}, struct synthhid_protocol_response")
class MouseResponse(Wire):
    """The host's answer."""

    version: u32 = at(0, default=0)
    approved: u8 = at(4, default=0)


@wire(size=41, spec=f"{_MOUSE}, struct synthhid_device_info after its header; the report descriptor follows")
class MouseInfo(Wire):
    """What the device is, in the terms of HID."""

    info_size: u32 = at(0, default=0)
    vendor: u16 = at(4, default=0)
    product: u16 = at(6, default=0)
    version: u16 = at(8, default=0)
    reserved: bytes22 = at(10, default=bytes(22))
    hid_descriptor: bytes9 = at(32, default=bytes(9))


@wire(size=7, spec="openvmm, mouse protocol: the report that Hyper-V's report descriptor declares")
class MouseReport(Wire):
    """Where the pointer is, and its buttons."""

    buttons: u8 = at(0, default=0)
    x: u16 = at(1, default=0)
    y: u16 = at(3, default=0)
    wheel: u16 = at(5, default=0)
