"""Rows of the hypercall table: statistics. Hypervisor."""

from __future__ import annotations

from hypervisor.hypercall import statistics
from hypervisor.hypercall import statistics_layouts as wire
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.call import Call
from hypervisor.privileges import Privilege

ROWS: tuple[Call, ...] = (
    Call(
        code=CallCode.GET_LOGICAL_PROCESSOR_RUN_TIME,
        name="HvGetLogicalProcessorRunTime",
        handler=statistics.get_logical_processor_run_time,
        privilege=Privilege.CPU_MANAGEMENT,
        request=wire.RunTimeInput,
        response=wire.RunTimeOutput,
    ),
    Call(
        code=CallCode.MAP_STATS_PAGE,
        name="HvMapStatsPage",
        handler=statistics.map_stats_page,
        privilege=Privilege.ACCESS_STATS,
        request=wire.StatsPageInput,
        response=wire.StatsPageOutput,
    ),
    Call(
        code=CallCode.UNMAP_STATS_PAGE,
        name="HvUnmapStatsPage",
        handler=statistics.unmap_stats_page,
        privilege=Privilege.ACCESS_STATS,
        request=wire.StatsPageInput,
    ),
)
