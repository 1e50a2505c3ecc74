"""Hypercalls between a guest and its debugger. Hypervisor.

Without a channel (`Property.DEBUG_CHANNEL_ID` is 0) they are INACTIVE. A call is a trap and cannot wait, so a timeout
is one of nothing: NO_DATA comes at once, and the guest asks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.debug_port import DebugPort
from hypervisor.hypercall.system_layouts import (
    DEBUG_BYTES,
    PostDebugInput,
    PostDebugOutput,
    ResetDebugInput,
    RetrieveDebugInput,
    RetrieveDebugOutput,
)
from hypervisor.properties import Property
from hypervisor.status import HvError, HvStatus

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

_POST_OPTIONS, _RETRIEVE_OPTIONS, _RESET_OPTIONS = 0x1, 0x3, 0x3
"""Loop; loop and test for activity; purge incoming and outgoing."""
_PURGE_INCOMING, _PURGE_OUTGOING = 1 << 0, 1 << 1


def _port(partition: Partition, untrusted_options: int, known: int) -> DebugPort:
    if untrusted_options & ~known:
        raise HvError(HvStatus.INVALID_PARAMETER)
    if not partition.properties[Property.DEBUG_CHANNEL_ID]:
        raise HvError(HvStatus.INACTIVE)
    if partition.debug_port is None:
        partition.debug_port = DebugPort()
    return partition.debug_port


def post_debug_data(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: PostDebugInput) -> bytes:
    """Bytes for the debugger; INSUFFICIENT_BUFFERS where not one of them finds room."""
    if request.count > DEBUG_BYTES:
        raise HvError(HvStatus.INVALID_PARAMETER)
    port = _port(target, request.options, _POST_OPTIONS)
    taken = port.post(request.data[: request.count])
    if request.count and not taken:
        raise HvError(HvStatus.INSUFFICIENT_BUFFERS)
    return PostDebugOutput(request.count - taken).encode()


def retrieve_debug_data(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: RetrieveDebugInput
) -> bytes:
    """The debugger's next packet; PARTIAL_PACKET where the caller has not room for all of it, and it stays."""
    if request.count > DEBUG_BYTES:
        raise HvError(HvStatus.INVALID_PARAMETER)
    port = _port(target, request.options, _RETRIEVE_OPTIONS)
    if not port.incoming:
        raise HvError(HvStatus.NO_DATA)
    if len(port.incoming[0]) > request.count:
        raise HvError(HvStatus.PARTIAL_PACKET)
    packet = port.retrieve()
    return RetrieveDebugOutput(len(packet), port.incoming_bytes, packet.ljust(DEBUG_BYTES, b"\0")).encode()


def reset_debug_session(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: ResetDebugInput
) -> None:
    """Drop what waits in one direction or both."""
    options = request.options
    port = _port(target, options, _RESET_OPTIONS)
    port.purge(incoming=bool(options & _PURGE_INCOMING), outgoing=bool(options & _PURGE_OUTGOING))
