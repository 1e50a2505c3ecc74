"""Mouse messages (synthhid): layouts, the HID descriptors, and which mistakes cost what. Both sides.

Message pipe packets. The guest asks for a version; the host accepts it, and tells at once what kind of HID device it
is; the guest acknowledges that. Then the host sends HID input reports, unasked and unanswered.

What a guest's mistake costs it:

    soft
        a version that is not 2.0: refused, and the host waits for another request
    hard, the channel is served no more
        any message that is not due: a second request, an acknowledgement of nothing, anything once reports flow
        a message of an unknown type, too short, or not in a pipe packet
        a corrupt ring
    fatal for the VM
        nothing

Layouts: Linux 6.12 drivers/hid/hid-hyperv.c; behaviour after openvmm, uidevices. tests/spec/layouts/input.txt holds the
layouts a second time. Descriptors: Device Class Definition for HID 1.11, 6.2.1 and 6.2.2.
"""

from __future__ import annotations

import enum
import struct
from typing import Annotated, Final

from hypervisor.wire import Guid, ShortMessage, Wire, at, wire
from hypervisor.wire.scalars import u8, u16, u32

_MOUSE = "Linux 6.12 drivers/hid/hid-hyperv.c"
bytes9 = Annotated[bytes, "9s"]
bytes22 = Annotated[bytes, "22s"]

MOUSE_INTERFACE: Final = Guid("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a")
MOUSE_INSTANCE: Final = Guid("58f75a6d-d949-4320-99e1-a2a2576d581c")
"""The same in every VM."""
VERSION_2_0: Final = 0x0002_0000
RING_BYTES: Final = 40 * 1024
"""Each way, with the control page: what Linux opens it with."""
MAX_POSITION: Final = 32767
"""Of the right and the lower edge of the screen, whatever its size; 0 is the left and the upper one."""


class MouseType(enum.IntEnum):
    """What a mouse message is."""

    PROTOCOL_REQUEST = 0
    PROTOCOL_RESPONSE = 1
    INITIAL_DEVICE_INFO = 2
    INITIAL_DEVICE_INFO_ACK = 3
    INPUT_REPORT = 4


class Buttons(enum.IntFlag):
    """A mouse's buttons, as a report has them."""

    LEFT = 1
    RIGHT = 2
    MIDDLE = 4
    BACK = 8
    FORWARD = 16


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
    """Signed: steps away from the user since the last report."""


REPORT_DESCRIPTOR: Final = bytes.fromhex(
    # Usage page Generic Desktop, usage Mouse, collection Application, usage Pointer, collection Physical
    "0501 0902 a101 0901 a100"
    # Usage page Button, usages 1 to 5, logical 0 to 1, five of one bit, input variable; three bits of nothing
    "0509 1901 2905 1500 2501 9505 7501 8102 9501 7503 8103"
    # Usage page Generic Desktop, usages X and Y, logical 0 to 32767, physical from 0, two of 16 bits, input absolute
    "0501 0930 0931 1500 26ff7f 3500 7510 9502 8102"
    # Usage Wheel, logical -32767 to 32767, one of 16 bits, input relative; end of both collections
    "0938 160180 26ff7f 7510 9501 8106 c0c0"
)
"""Of a mouse with five buttons, an absolute pointer and a wheel: 67 bytes."""
_HID_1_11, _HID, _REPORT = 0x0111, 0x21, 0x22
_DESCRIPTOR: Final = struct.Struct("<BBHBBBH")
HID_DESCRIPTOR: Final = _DESCRIPTOR.pack(_DESCRIPTOR.size, _HID, _HID_1_11, 0, 1, _REPORT, len(REPORT_DESCRIPTOR))
"""One report descriptor follows, of that length; no country."""
VENDOR, PRODUCT, DEVICE_VERSION = 0x045E, 0x0621, 1
_INFO_SIZE: Final = 32
REPORT_FIELD: Final = 128
"""Bytes that a message has for the report descriptor; the header's size does not count those behind it."""


def encode_message(kind: MouseType, body: bytes) -> bytes:
    """A message, for a pipe."""
    return MouseHeader(kind, len(body)).encode() + body


def decode_message(untrusted: bytes) -> tuple[int, bytes]:
    """Type and body. Raises `WireError`."""
    header = MouseHeader.decode(untrusted)
    end = MouseHeader.SIZE + header.size
    if end > len(untrusted):
        raise ShortMessage("mouse message", end, len(untrusted))
    return header.message_type, untrusted[MouseHeader.SIZE : end]


def encode_device_info() -> bytes:
    """What the device is, as a whole message."""
    info = MouseInfo(_INFO_SIZE, VENDOR, PRODUCT, DEVICE_VERSION, bytes(22), HID_DESCRIPTOR).encode()
    padding = bytes(REPORT_FIELD - len(REPORT_DESCRIPTOR))
    return encode_message(MouseType.INITIAL_DEVICE_INFO, info + REPORT_DESCRIPTOR) + padding


def decode_device_info(body: bytes) -> tuple[MouseInfo, bytes]:
    """What a host says of the device, and its report descriptor. Raises `WireError`."""
    info = MouseInfo.decode(body)
    length = _DESCRIPTOR.unpack(info.hid_descriptor)[-1]
    if MouseInfo.SIZE + length > len(body):
        raise ShortMessage("report descriptor", MouseInfo.SIZE + length, len(body))
    return info, body[MouseInfo.SIZE : MouseInfo.SIZE + length]
