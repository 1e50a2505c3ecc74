"""Inputs and outputs of the hypercalls on statistics. Both sides."""

from __future__ import annotations

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes16, u8, u16, u32, u64


@wire(size=8, spec="HvCallGetLogicalProcessorRunTime input")
class RunTimeInput(Wire):
    """Bytes 4 to 7 are padding."""

    lp_index: u32 = at(0x00)


@wire(size=32, spec="HvCallGetLogicalProcessorRunTime output")
class RunTimeOutput(Wire):
    """100 ns units."""

    global_time: u64 = at(0x00)
    local_run_time: u64 = at(0x08)
    reserved: u64 = at(0x10)
    hypervisor_time: u64 = at(0x18)


@wire(size=24, spec="HvCallMapStatsPage, HvCallUnmapStatsPage input")
class StatsPageInput(Wire):
    """Bytes 4 to 7 are padding."""

    object_type: u32 = at(0x00)
    identity: bytes16 = at(0x08)


@wire(size=8, spec="HvCallMapStatsPage output")
class StatsPageOutput(Wire):
    """A page number in the caller's GPA space."""

    map_location: u64 = at(0x00)


@wire(size=16, spec="HV_STATS_OBJECT_IDENTITY of a virtual processor")
class VpIdentity(Wire):
    """That of a partition has zeros from the VP index to the area, that of the hypervisor has nothing but an area."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    flags: u16 = at(0x0C)
    reserved: u8 = at(0x0E)
    area: u8 = at(0x0F)


@wire(size=16, spec="HV_STATS_OBJECT_IDENTITY of a logical processor")
class ProcessorIdentity(Wire):
    """Bytes 4 to 14 are zero."""

    lp_index: u32 = at(0x00)
    area: u8 = at(0x0F)
