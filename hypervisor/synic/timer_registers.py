"""Synthetic timers as they lie in registers and messages: bits, and the message of an expiration. Both sides."""

from __future__ import annotations

import enum

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u32, u64

TIMER_COUNT = 4
"""Synthetic timers of a virtual processor."""


class TimerConfig(enum.IntFlag):
    """Fields of HV_X64_MSR_STIMERn_CONFIG (current TLFS, Synthetic Timer Configuration Register)."""

    ENABLE = 1 << 0
    PERIODIC = 1 << 1
    LAZY = 1 << 2
    """Expirations that a processor could not take are skipped, not made up for."""
    AUTO_ENABLE = 1 << 3
    """Writing a count that is not zero enables the timer."""
    DIRECT = 1 << 12
    """An interrupt with the vector in bits 11:4, in place of a message to the SINT in bits 19:16."""


VECTOR_SHIFT = 4
SINT_SHIFT = 16
CONFIG_BITS = 0xF_1FFF
"""All others are reserved and zero."""


def message_timer(sint: int, *, periodic: bool = False, lazy: bool = False, auto_enable: bool = False) -> int:
    """The configuration of a timer that sends messages, not enabled unless by its count."""
    flags = TimerConfig.PERIODIC * periodic | TimerConfig.LAZY * lazy | TimerConfig.AUTO_ENABLE * auto_enable
    return sint << SINT_SHIFT | flags


def direct_timer(vector: int, *, periodic: bool = False, lazy: bool = False, auto_enable: bool = False) -> int:
    """The configuration of a timer that interrupts, not enabled unless by its count."""
    return message_timer(0, periodic=periodic, lazy=lazy, auto_enable=auto_enable) | (
        TimerConfig.DIRECT | vector << VECTOR_SHIFT
    )


@wire(size=24, spec="HV_TIMER_MESSAGE_PAYLOAD, TLFS 2.0a 15.3.4; current TLFS")
class TimerMessage(Wire):
    """The payload of message type TIMER_EXPIRED; times are the partition's reference time."""

    timer_index: u32 = at(0x00)
    reserved: u32 = at(0x04)
    expiration_time: u64 = at(0x08)
    """When it was due."""
    delivery_time: u64 = at(0x10)
    """When the message went into its slot."""
