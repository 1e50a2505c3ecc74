"""Rows of the hypercall table: the machine as a whole, and debugging. Hypervisor."""

from __future__ import annotations

from hypervisor.hypercall import debugging, system
from hypervisor.hypercall import system_layouts as wire
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.call import Call
from hypervisor.privileges import Privilege

ROWS: tuple[Call, ...] = (
    Call(
        code=CallCode.PARK_LOGICAL_PROCESSORS,
        name="HvParkLogicalProcessors",
        handler=system.park_logical_processors,
        privilege=Privilege.CPU_MANAGEMENT,
        request=wire.ParkInput,
        fast=True,
    ),
    Call(
        code=CallCode.POST_DEBUG_DATA,
        name="HvPostDebugData",
        handler=debugging.post_debug_data,
        privilege=Privilege.DEBUGGING,
        request=wire.PostDebugInput,
        response=wire.PostDebugOutput,
    ),
    Call(
        code=CallCode.RETRIEVE_DEBUG_DATA,
        name="HvRetrieveDebugData",
        handler=debugging.retrieve_debug_data,
        privilege=Privilege.DEBUGGING,
        request=wire.RetrieveDebugInput,
        response=wire.RetrieveDebugOutput,
    ),
    Call(
        code=CallCode.RESET_DEBUG_SESSION,
        name="HvResetDebugSession",
        handler=debugging.reset_debug_session,
        privilege=Privilege.DEBUGGING,
        request=wire.ResetDebugInput,
        fast=True,
    ),
    Call(
        code=CallCode.SET_SYSTEM_PROPERTY,
        name="HvSetSystemProperty",
        handler=system.set_system_property,
        privilege=Privilege.CONFIGURE_PROFILER,
        request=wire.SetSystemPropertyInput,
    ),
    Call(
        code=CallCode.NOTIFY_PARTITION_EVENT,
        name="HvNotifyPartitionEvent",
        handler=system.notify_partition_event,
        privilege=Privilege.CPU_MANAGEMENT,
        request=wire.PartitionEventInput,
        fast=True,
    ),
)
