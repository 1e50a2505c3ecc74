"""Inputs and outputs of the hypercalls on the machine as a whole, and on debugging. Both sides."""

from __future__ import annotations

from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes8, u8, u16, u32, u64

DEBUG_BYTES = 4088
"""HV_DEBUG_MAXIMUM_DATA_SIZE: what one call carries at most."""
bytes4088 = Annotated[bytes, "4088s"]


@wire(size=8, spec="HvCallParkLogicalProcessors input")
class ParkInput(Wire):
    """Bit n of the mask is logical processor n; the others are not parked."""

    processor_mask: u64 = at(0x00)


@wire(size=24, spec="HvCallSetSystemProperty input; what is in `value` depends on the property")
class SetSystemPropertyInput(Wire):
    """Bytes 4 to 7 are padding. Later versions pass more, which no property here looks at."""

    property_id: u32 = at(0x00)
    value: bytes8 = at(0x08)
    period: u64 = at(0x10, default=0)
    """Of a performance counter."""


@wire(size=8, spec="HV_SLEEP_STATE_INFO, in SetSystemPropertyInput.value")
class SleepState(Wire):
    """What the root will write to enter a sleep state. Bytes 6 and 7 are padding."""

    state: u32 = at(0x00)
    pm1a: u8 = at(0x04)
    pm1b: u8 = at(0x05)


@wire(size=8, spec="SetPerfCounter, in SetSystemPropertyInput.value")
class PerformanceCounter(Wire):
    """Which event to count; its period follows."""

    event: u16 = at(0x00)
    reserved_0: u16 = at(0x02, default=0)
    reserved_1: u32 = at(0x04, default=0)


@wire(size=8, spec="HvCallNotifyPartitionEvent input")
class PartitionEventInput(Wire):
    """`argument` is the crash dump's action."""

    event: u32 = at(0x00)
    argument: u32 = at(0x04, default=0)


@wire(size=4096, spec="HvCallPostDebugData input")
class PostDebugInput(Wire):
    """As many bytes of `data` as `count` says."""

    count: u32 = at(0x00)
    options: u32 = at(0x04, default=0)
    data: bytes4088 = at(0x08, default=bytes(DEBUG_BYTES))


@wire(size=8, spec="HvCallPostDebugData output")
class PostDebugOutput(Wire):
    """Bytes that found no room."""

    pending: u32 = at(0x00)


@wire(size=16, spec="HvCallRetrieveDebugData input")
class RetrieveDebugInput(Wire):
    """`timeout` in 100 ns."""

    count: u32 = at(0x00)
    options: u32 = at(0x04, default=0)
    timeout: u64 = at(0x08, default=0)


@wire(size=4096, spec="HvCallRetrieveDebugData output")
class RetrieveDebugOutput(Wire):
    """`remaining` bytes wait for the next call."""

    retrieved: u32 = at(0x00)
    remaining: u32 = at(0x04)
    data: bytes4088 = at(0x08)


@wire(size=8, spec="HvCallResetDebugSession input")
class ResetDebugInput(Wire):
    """1 drops what came in, 2 what is to go out."""

    options: u32 = at(0x00)
