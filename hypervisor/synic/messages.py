"""Message slots, event flags and synthetic interrupt sources as they lie in memory and registers. Both sides."""

from __future__ import annotations

import enum

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u8, u16, u32, u64

SINT_COUNT = 16
"""Synthetic interrupt sources of a virtual processor."""
INTERCEPT_SINT = 0
"""Where the hypervisor's own messages arrive; ports may use 1 to 15."""

SLOT_SIZE = 256
"""A message slot: header and payload. The SIM page has one for each SINT."""
HEADER_SIZE = 16
PAYLOAD_MAX = SLOT_SIZE - HEADER_SIZE
"""240 bytes are the most that a message carries."""

"""Of the message type in a slot; 0 there means that the slot is empty."""
FLAGS_OFFSET = 5
"""Of the message flags in a slot."""
MESSAGE_PENDING = 0x01
"""Message flag: another message waits, so write EOM after emptying the slot."""

EVENT_FLAGS = 2048
"""Event flags of one SINT, 256 bytes of the SIEF page."""
EVENT_FLAGS_SIZE = EVENT_FLAGS // 8

ANY_VP = 0xFFFFFFFF
"""HV_ANY_VP: the hypervisor chooses a processor."""
PORT_BUFFERS = 16
"""Messages that one port holds while their slot is occupied (TLFS 2.0a, 14.3)."""


class MessageType(enum.IntEnum):
    """What a message says; the high bit is the hypervisor's own (TLFS 2.0a, 14.8.2)."""

    NONE = 0
    UNMAPPED_GPA = 0x80000000
    GPA_INTERCEPT = 0x80000001
    TIMER_EXPIRED = 0x80000010
    INVALID_VP_REGISTER_VALUE = 0x80000020
    UNRECOVERABLE_EXCEPTION = 0x80000021
    UNSUPPORTED_FEATURE = 0x80000022
    APIC_EOI = 0x80000030
    FERR_ASSERTED = 0x80000031
    EVENT_LOG_BUFFER_COMPLETE = 0x80000040
    IO_PORT_INTERCEPT = 0x80010000
    MSR_INTERCEPT = 0x80010001
    CPUID_INTERCEPT = 0x80010002
    EXCEPTION_INTERCEPT = 0x80010003


HYPERVISOR_MESSAGE = 0x80000000
"""The bit of a message type that a partition may not send."""


class Sint(enum.IntFlag):
    """Fields of a SINT register; all other bits are kept as written (TLFS 2.0a, 14.8.1)."""

    VECTOR = 0xFF
    MASKED = 1 << 16
    AUTO_EOI = 1 << 17
    POLLING = 1 << 18
    """Unmasked, yet no interrupt comes."""
    AS_INTERCEPT = 1 << 19


LEAST_VECTOR = 16
"""Vectors below belong to the processor."""
SINT_RESET = int(Sint.MASKED)


@wire(size=HEADER_SIZE, spec="HV_MESSAGE_HEADER, hvgdk.h of 2010 (the order printed in TLFS 2.0a 14.8.4 is wrong)")
class MessageHeader(Wire):
    """The first 16 bytes of a slot."""

    message_type: u32 = at(0x00)
    payload_size: u8 = at(0x04, default=0)
    flags: u8 = at(0x05, default=0)
    reserved: u16 = at(0x06, default=0)
    origination_id: u64 = at(0x08, default=0)
    """Port ID for a partition's messages, partition ID for intercepts, 0 for timers."""


@wire(size=40, spec="HV_X64_INTERCEPT_MESSAGE_HEADER, TLFS 2.0a 14.9")
class InterceptHeader(Wire):
    """What every intercept message begins with; a model guest has no instruction pointer to report."""

    vp_index: u32 = at(0x00)
    instruction_length: u8 = at(0x04, default=0)
    access_type: u8 = at(0x05, default=0)
    execution_state: u16 = at(0x06, default=0)
    cs_base: u64 = at(0x08, default=0)
    cs_limit: u32 = at(0x10, default=0)
    cs_selector: u16 = at(0x14, default=0)
    cs_attributes: u16 = at(0x16, default=0)
    rip: u64 = at(0x18, default=0)
    rflags: u64 = at(0x20, default=0)
