"""Hyper-V sockets: streams between a guest and its host, found by the GUID of a service. Both sides.

A connection is a channel of its own, opened and gone with it. Its offer has the service as its interface and the
endpoint as its instance, and says who asked for it:

    the guest connects     TL_CONNECT_REQUEST names endpoint and service; somebody listens: the host offers the channel
                           and the guest opens it. Nobody does: TL_CONNECT_RESULT, below 4.1 silence.
    the host connects      The host offers a channel with an endpoint of its own making and `is_for_guest_accept`; a
                           guest with a listener opens it, one without does not care.

What goes over the channel is a stream in pipe packets (`vmbus.pipe`). An empty packet is the end of one direction. Once
both have ended, and what was sent is taken, the host withdraws the offer and the guest gives the channel back.

What a guest's mistake costs it:

    soft, the host goes on as if nothing had come
        a request for a service that nobody listens on, whose endpoint is taken by another device or connection, or past
        a limit: TL_CONNECT_RESULT 0xC0000236 where the version has that
        bytes after the end of its stream: dropped and counted
    an end to this connection, whose offer is withdrawn
        a channel that is not opened in time
        a packet that is no pipe packet, or whose length is not true; a corrupt ring
    fatal for the VM
        nothing

Facts: openvmm vmbus_core protocol.rs and vmbus_server hvsock.rs; Linux net/vmw_vsock/hyperv_transport.c.
"""

from __future__ import annotations

from typing import Final

from hypervisor.pages import PAGE_SIZE
from hypervisor.wire import Guid, Wire, at, wire
from hypervisor.wire.scalars import guid, u8, u32
from vmbus.protocol.features import OfferFlag

_TEMPLATE: Final = bytes(Guid("00000000-facb-11e6-bd58-64006a7986d3"))
_PORT_BYTES: Final = 4
LARGEST_PORT: Final = 0xFFFF_FFFF

OFFER_FLAGS: Final = int(OfferFlag.ENUMERATE_DEVICE_INTERFACE | OfferFlag.NAMED_PIPE_MODE | OfferFlag.TLNPI_PROVIDER)
"""Of each socket's offer."""
BYTE_PIPE: Final = 0
"""The pipe type of a stream."""
PARAMETERS_VERSION: Final = 1
"""Says that the silo in an offer's parameters counts (Windows 10 RS5); before it there was none, and 0 here."""

GUEST_OPENS_WITHIN: Final = 5.0
"""Seconds that a guest has to open a channel it asked for."""
GUEST_ACCEPTS_WITHIN: Final = 2.0
"""Seconds that a guest has to open a channel that the host asked for; one that has no listener never does."""
MAX_CONNECT_REQUESTS: Final = 16
"""Requests of a guest that are not answered yet, by an offer or a refusal. Meanwhile none of its messages is read."""
MAX_SOCKETS: Final = 1024
"""Connections of a guest at a time, those included that are being made: half of the channels that it can have."""

LEAST_RING_BYTES: Final = 6 * PAGE_SIZE
"""Each way, with the control page: what Linux opens a socket with at least."""
MOST_RING_BYTES: Final = 64 * PAGE_SIZE
"""What it opens one with at most, where the program asked for larger buffers."""
LARGEST_PACKET: Final = 16384
"""Bytes of stream in a packet that a peer of any make takes."""


@wire(size=28, spec="openvmm vmbus_core, HvsockUserDefinedParameters")
class SocketParameters(Wire):
    """How the user-defined bytes of a socket's offer begin. Two of the fields are not aligned."""

    pipe_type: u32 = at(0, default=BYTE_PIPE)
    is_for_guest_accept: u8 = at(4, default=0)
    """1: the host connects, and the guest is to have a listener. Linux looks at no more than this."""
    is_for_guest_container: u8 = at(5, default=0)
    version: u32 = at(6, default=PARAMETERS_VERSION)
    silo: guid = at(10, default=Guid())


def user_defined(*, is_for_guest_accept: bool) -> bytes:
    """The 120 user-defined bytes of a socket's offer."""
    return SocketParameters(is_for_guest_accept=int(is_for_guest_accept)).encode().ljust(120, b"\0")


def is_socket(flags: int) -> bool:
    """Whether an offer with these flags is a Hyper-V socket."""
    return bool(flags & OfferFlag.TLNPI_PROVIDER)


def service_of(port: int) -> Guid:
    """The service that a vsock port is. ValueError for no port."""
    if not 0 <= port <= LARGEST_PORT:
        raise ValueError(f"{port} is no port: 0 to {LARGEST_PORT} are")
    return Guid(port.to_bytes(_PORT_BYTES, "little") + _TEMPLATE[_PORT_BYTES:])


def port_of(service: Guid) -> int | None:
    """The vsock port that a service or an endpoint is; None for one that is a GUID of its own."""
    if service[_PORT_BYTES:] != _TEMPLATE[_PORT_BYTES:]:
        return None
    return int.from_bytes(service[:_PORT_BYTES], "little")


def parse_service(text: str) -> Guid:
    """A port in decimal, or the GUID of a service in its usual form. ValueError for anything else."""
    if text.isascii() and text.isdigit():
        return service_of(int(text))
    if len(text) != len(str(Guid())):
        raise ValueError(f"{text!r} is neither a port nor the GUID of a service")
    try:
        return Guid(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither a port nor the GUID of a service") from None


def service_words(service: Guid) -> str:
    """A service for people: `port 80`, or its GUID."""
    port = port_of(service)
    return str(service) if port is None else f"port {port}"
