"""Hypercalls that guests make all the time: messages, events, and the hint that a lock takes long. Hypervisor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor.hypercall.layouts import LongSpinWaitInput, PostMessageInput, SignalEventInput
from hypervisor.synic import ports
from hypervisor.synic.messages import PAYLOAD_MAX

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor

_TOO_LONG = bytes(PAYLOAD_MAX + 1)


def post_message(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: PostMessageInput) -> None:
    """Send up to 240 bytes. A longer size is refused after the connection was looked up: object IDs come first."""
    size = request.payload_size
    payload = request.payload[:size] if size <= PAYLOAD_MAX else _TOO_LONG
    ports.post_message(hypervisor, target, request.connection_id, request.message_type, payload)


def signal_event(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SignalEventInput) -> None:
    """Set an event flag. Reserved bits count as high bits of the flag number, which no port has flags for."""
    flag = request.flag_number | request.reserved << 16
    ports.signal_event(hypervisor, target, request.connection_id, flag)


def notify_long_spin_wait(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: LongSpinWaitInput
) -> None:
    """Advice on scheduling, counted; taking none is correct."""
    target.counters["long_spin_waits"] += 1
