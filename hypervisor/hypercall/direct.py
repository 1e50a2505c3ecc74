"""Messages and events to a child's processor without port or connection: for its parent alone. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.hypercall.processor_layouts import (
    PostMessageDirectInput,
    SignalEventDirectInput,
    SignalEventDirectOutput,
)
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.messages import EVENT_FLAGS, HEADER_SIZE, PAYLOAD_MAX, SINT_COUNT, MessageHeader, MessageType
from hypervisor.synic.synic import Message

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor


def _named(target: Partition, vp_index: int, vtl: int, sint: int) -> VirtualProcessor:
    named = target.vps.get(vp_index)
    if named is None:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    if vtl or sint >= SINT_COUNT:
        raise HvError(HvStatus.INVALID_PARAMETER)
    return named


def signal_event_direct(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SignalEventDirectInput
) -> bytes:
    """Set a flag by its number; says whether it was clear."""
    named = _named(target, request.vp_index, request.target_vtl, request.sint)
    if request.flag_number >= EVENT_FLAGS:
        raise HvError(HvStatus.INVALID_PARAMETER)
    if not named.synic.takes_events(request.sint):
        raise HvError(HvStatus.INVALID_SYNIC_STATE)
    return SignalEventDirectOutput(named.synic.set_flag(request.sint, request.flag_number)).encode()


def post_message_direct(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: PostMessageDirectInput
) -> None:
    """Fill a slot with a message that is whole, its header's type and origin included.

    There is no port, hence no buffer: where something is in the slot or waits for it, OBJECT_IN_USE.
    """
    named = _named(target, request.vp_index, request.target_vtl, request.sint)
    header = MessageHeader.decode(request.message[:HEADER_SIZE])
    size = header.payload_size
    if header.message_type == MessageType.NONE or size > PAYLOAD_MAX:
        raise HvError(HvStatus.INVALID_PARAMETER)
    synic = named.synic
    if not synic.takes_messages:
        raise HvError(HvStatus.INVALID_SYNIC_STATE)
    synic.deliver_waiting()
    if not synic.slot_free(request.sint):
        raise HvError(HvStatus.OBJECT_IN_USE)
    payload = request.message[HEADER_SIZE : HEADER_SIZE + size]
    synic.post(request.sint, Message(header.message_type, payload, header.origination_id))
