"""Rows of the hypercall table: the hypervisor's event log. Hypervisor."""

from __future__ import annotations

from hypervisor.hypercall import event_log_layouts as wire
from hypervisor.hypercall import event_logs
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.call import Call
from hypervisor.privileges import Privilege

_ROOT = Privilege.CPU_MANAGEMENT
"""The one privilege that no child can have; the handlers ask for the root all the same."""

ROWS: tuple[Call, ...] = (
    Call(
        code=CallCode.INITIALIZE_EVENT_LOG_BUFFER_GROUP,
        name="HvInitializeEventLogBufferGroup",
        handler=event_logs.initialize_group,
        privilege=_ROOT,
        request=wire.EventLogGroupInput,
    ),
    Call(
        code=CallCode.FINALIZE_EVENT_LOG_BUFFER_GROUP,
        name="HvFinalizeEventLogBufferGroup",
        handler=event_logs.finalize_group,
        privilege=_ROOT,
        request=wire.EventLogInput,
        fast=True,
    ),
    Call(
        code=CallCode.CREATE_EVENT_LOG_BUFFER,
        name="HvCreateEventLogBuffer",
        handler=event_logs.create_buffer,
        privilege=_ROOT,
        request=wire.CreateEventLogBufferInput,
        fast=True,
    ),
    Call(
        code=CallCode.DELETE_EVENT_LOG_BUFFER,
        name="HvDeleteEventLogBuffer",
        handler=event_logs.delete_buffer,
        privilege=_ROOT,
        request=wire.EventLogBufferInput,
        fast=True,
    ),
    Call(
        code=CallCode.MAP_EVENT_LOG_BUFFER,
        name="HvMapEventLogBuffer",
        handler=event_logs.map_buffer,
        privilege=_ROOT,
        request=wire.EventLogBufferInput,
        response=wire.MapEventLogBufferOutput,
    ),
    Call(
        code=CallCode.UNMAP_EVENT_LOG_BUFFER,
        name="HvUnmapEventLogBuffer",
        handler=event_logs.unmap_buffer,
        privilege=_ROOT,
        request=wire.EventLogBufferInput,
        fast=True,
    ),
    Call(
        code=CallCode.SET_EVENT_LOG_GROUP_SOURCES,
        name="HvSetEventLogGroupSources",
        handler=event_logs.set_sources,
        privilege=_ROOT,
        request=wire.EventLogSourcesInput,
        fast=True,
    ),
    Call(
        code=CallCode.RELEASE_EVENT_LOG_BUFFER,
        name="HvReleaseEventLogBuffer",
        handler=event_logs.release_buffer,
        privilege=_ROOT,
        request=wire.EventLogBufferInput,
        fast=True,
    ),
    Call(
        code=CallCode.FLUSH_EVENT_LOG_BUFFER,
        name="HvFlushEventLogBuffer",
        handler=event_logs.flush_buffer,
        privilege=_ROOT,
        request=wire.EventLogBufferInput,
        fast=True,
    ),
)
