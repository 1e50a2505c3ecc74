"""Every hypercall that there is, one row each. Hypervisor.

Where a call is for parents only, its row asks for CREATE_PARTITIONS: who lacks it can be nobody's parent, and is
refused before anything in the answer could tell which partitions exist.
"""

from __future__ import annotations

from hypervisor.hypercall import (
    event_log_rows,
    memory,
    messaging,
    partitions,
    ports,
    processor_rows,
    processors,
    saving,
    statistics_rows,
    system_rows,
)
from hypervisor.hypercall import layouts as wire
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.call import ONLY_ACTIVE, Call, Who
from hypervisor.partition import PartitionState
from hypervisor.privileges import Privilege, privilege_names

_POOL = Privilege.ACCESS_MEMORY_POOL
_CREATE = Privilege.CREATE_PARTITIONS
_FINALIZE = frozenset({PartitionState.ACTIVE, PartitionState.FINALIZING})
_DELETE = frozenset({PartitionState.UNINITIALIZED, PartitionState.FINALIZED})
_UNINITIALIZED = frozenset({PartitionState.UNINITIALIZED})
_FILLABLE = frozenset({PartitionState.UNINITIALIZED, PartitionState.ACTIVE})
_ANY = frozenset(PartitionState)

_ROWS: tuple[Call, ...] = (
    Call(
        code=CallCode.NOTIFY_LONG_SPIN_WAIT,
        name="HvNotifyLongSpinWait",
        handler=messaging.notify_long_spin_wait,
        request=wire.LongSpinWaitInput,
        fast=True,
    ),
    Call(
        code=CallCode.CREATE_PARTITION,
        name="HvCreatePartition",
        handler=partitions.create_partition,
        privilege=_CREATE,
        request=wire.CreatePartitionInput,
        response=wire.PartitionOutput,
    ),
    Call(
        code=CallCode.INITIALIZE_PARTITION,
        name="HvInitializePartition",
        handler=partitions.initialize_partition,
        privilege=_CREATE,
        who=Who.PARENT,
        states=_UNINITIALIZED,
        request=wire.PartitionInput,
        fast=True,
    ),
    Call(
        code=CallCode.FINALIZE_PARTITION,
        name="HvFinalizePartition",
        handler=partitions.finalize_partition,
        privilege=_CREATE,
        who=Who.PARENT,
        states=_FINALIZE,
        request=wire.PartitionInput,
        fast=True,
        long_running=True,
    ),
    Call(
        code=CallCode.DELETE_PARTITION,
        name="HvDeletePartition",
        handler=partitions.delete_partition,
        privilege=_CREATE,
        who=Who.PARENT,
        states=_DELETE,
        request=wire.PartitionInput,
        fast=True,
    ),
    Call(
        code=CallCode.GET_PARTITION_PROPERTY,
        name="HvGetPartitionProperty",
        handler=partitions.get_partition_property,
        privilege=_CREATE,
        who=Who.PARENT_OR_ROOT_SELF,
        request=wire.GetPartitionPropertyInput,
        response=wire.PropertyOutput,
    ),
    Call(
        code=CallCode.SET_PARTITION_PROPERTY,
        name="HvSetPartitionProperty",
        handler=partitions.set_partition_property,
        privilege=_CREATE,
        who=Who.PARENT_OR_ROOT_SELF,
        request=wire.SetPartitionPropertyInput,
    ),
    Call(
        code=CallCode.GET_PARTITION_ID,
        name="HvGetPartitionId",
        handler=partitions.get_partition_id,
        privilege=Privilege.ACCESS_PARTITION_ID,
        response=wire.PartitionOutput,
    ),
    Call(
        code=CallCode.GET_NEXT_CHILD_PARTITION,
        name="HvGetNextChildPartition",
        handler=partitions.get_next_child_partition,
        privilege=_CREATE,
        who=Who.PARENT_OR_SELF,
        states=_ANY,
        request=wire.GetNextChildPartitionInput,
        response=wire.PartitionOutput,
    ),
    Call(
        code=CallCode.DEPOSIT_MEMORY,
        name="HvDepositMemory",
        handler=memory.deposit_memory,
        privilege=_POOL,
        who=Who.PARENT_OR_ROOT_SELF,
        states=_FILLABLE,
        request=wire.DepositMemoryInput,
        rep=True,
        element_in=8,
        reps_a_trip=512,
    ),
    Call(
        code=CallCode.WITHDRAW_MEMORY,
        name="HvWithdrawMemory",
        handler=memory.withdraw_memory,
        privilege=_POOL,
        who=Who.PARENT_OR_ROOT_SELF,
        states=_ANY,
        request=wire.WithdrawMemoryInput,
        rep=True,
        element_out=8,
        reps_a_trip=512,
    ),
    Call(
        code=CallCode.GET_MEMORY_BALANCE,
        name="HvGetMemoryBalance",
        handler=memory.get_memory_balance,
        privilege=_POOL,
        who=Who.PARENT_OR_ROOT_SELF,
        states=_ANY,
        request=wire.GetMemoryBalanceInput,
        response=wire.MemoryBalanceOutput,
    ),
    Call(
        code=CallCode.MAP_GPA_PAGES,
        name="HvMapGpaPages",
        handler=memory.map_gpa_pages,
        privilege=_CREATE,
        who=Who.PARENT_OR_ROOT_SELF,
        request=wire.MapGpaPagesInput,
        rep=True,
        element_in=8,
        reps_a_trip=512,
    ),
    Call(
        code=CallCode.UNMAP_GPA_PAGES,
        name="HvUnmapGpaPages",
        handler=memory.unmap_gpa_pages,
        privilege=_CREATE,
        who=Who.PARENT,
        request=wire.UnmapGpaPagesInput,
        rep=True,
        reps_a_trip=1024,
    ),
    Call(
        code=CallCode.CREATE_VP,
        name="HvCreateVp",
        handler=processors.create_vp,
        privilege=_CREATE,
        who=Who.PARENT,
        request=wire.CreateVpInput,
    ),
    Call(
        code=CallCode.DELETE_VP,
        name="HvDeleteVp",
        handler=processors.delete_vp,
        privilege=_CREATE,
        who=Who.PARENT,
        request=wire.VpInput,
        fast=True,
    ),
    Call(
        code=CallCode.GET_VP_REGISTERS,
        name="HvGetVpRegisters",
        handler=processors.get_vp_registers,
        who=Who.PARENT_OR_SELF,
        request=wire.VpInput,
        rep=True,
        element_in=4,
        element_out=16,
        reps_a_trip=16,
    ),
    Call(
        code=CallCode.SET_VP_REGISTERS,
        name="HvSetVpRegisters",
        handler=processors.set_vp_registers,
        privilege=_CREATE,
        who=Who.PARENT,
        request=wire.VpInput,
        rep=True,
        element_in=32,
        reps_a_trip=16,
    ),
    Call(
        code=CallCode.CREATE_PORT_2010,
        name="HvCreatePort (2010)",
        handler=ports.create_port_2010,
        privilege=Privilege.CREATE_PORT,
        who=Who.PARENT_OR_SELF,
        request=wire.CreatePort2010Input,
    ),
    Call(
        code=CallCode.DELETE_PORT,
        name="HvDeletePort",
        handler=ports.delete_port,
        privilege=Privilege.CREATE_PORT,
        who=Who.PARENT_OR_SELF,
        request=wire.DeletePortInput,
        fast=True,
    ),
    Call(
        code=CallCode.CONNECT_PORT_2010,
        name="HvConnectPort (2010)",
        handler=ports.connect_port_2010,
        privilege=Privilege.CONNECT_PORT,
        who=Who.PARENT_OR_SELF,
        request=wire.ConnectPort2010Input,
    ),
    Call(
        code=CallCode.GET_PORT_PROPERTY,
        name="HvGetPortProperty",
        handler=ports.get_port_property,
        privilege=Privilege.CREATE_PORT,
        who=Who.PARENT_OR_SELF,
        request=wire.GetPortPropertyInput,
        response=wire.PropertyOutput,
    ),
    Call(
        code=CallCode.DISCONNECT_PORT,
        name="HvDisconnectPort",
        handler=ports.disconnect_port,
        privilege=Privilege.CONNECT_PORT,
        who=Who.PARENT_OR_SELF,
        request=wire.DisconnectPortInput,
        fast=True,
    ),
    Call(
        code=CallCode.POST_MESSAGE,
        name="HvPostMessage",
        handler=messaging.post_message,
        privilege=Privilege.POST_MESSAGES,
        request=wire.PostMessageInput,
    ),
    Call(
        code=CallCode.SIGNAL_EVENT,
        name="HvSignalEvent",
        handler=messaging.signal_event,
        privilege=Privilege.SIGNAL_EVENTS,
        request=wire.SignalEventInput,
        fast=True,
    ),
    Call(
        code=CallCode.SAVE_PARTITION_STATE,
        name="HvSavePartitionState",
        handler=saving.save_partition_state,
        privilege=_CREATE,
        who=Who.PARENT,
        request=wire.SavePartitionStateInput,
        response=wire.SavePartitionStateOutput,
    ),
    Call(
        code=CallCode.RESTORE_PARTITION_STATE,
        name="HvRestorePartitionState",
        handler=saving.restore_partition_state,
        privilege=_CREATE,
        who=Who.PARENT,
        request=wire.RestorePartitionStateInput,
        response=wire.RestorePartitionStateOutput,
    ),
    Call(
        code=CallCode.MAP_SPARSE_GPA_PAGES,
        name="HvMapSparseGpaPages",
        handler=memory.map_sparse_gpa_pages,
        privilege=_CREATE,
        who=Who.PARENT_OR_ROOT_SELF,
        request=wire.MapSparseGpaPagesInput,
        rep=True,
        element_in=16,
        reps_a_trip=16,
    ),
    Call(
        code=CallCode.SET_PORT_PROPERTY,
        name="HvSetPortProperty",
        handler=ports.set_port_property,
        privilege=Privilege.CREATE_PORT,
        who=Who.PARENT_OR_SELF,
        request=wire.SetPortPropertyInput,
    ),
    Call(
        code=CallCode.CREATE_PORT,
        name="HvCreatePort",
        handler=ports.create_port,
        privilege=Privilege.CREATE_PORT,
        who=Who.PARENT_OR_SELF,
        request=wire.CreatePortInput,
    ),
    Call(
        code=CallCode.CONNECT_PORT,
        name="HvConnectPort",
        handler=ports.connect_port,
        privilege=Privilege.CONNECT_PORT,
        who=Who.PARENT_OR_SELF,
        request=wire.ConnectPortInput,
    ),
)

CALLS: tuple[Call, ...] = tuple(
    sorted(
        (*_ROWS, *event_log_rows.ROWS, *processor_rows.ROWS, *statistics_rows.ROWS, *system_rows.ROWS),
        key=lambda call: call.code,
    )
)
"""In the order of call codes."""

BY_CODE: dict[int, Call] = {int(call.code): call for call in CALLS}


def documentation() -> str:
    """The table as Markdown, for the reference pages."""
    lines = [
        "| code | call | kind | input | output | privilege | may name | states |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for call in CALLS:
        kind = f"rep, {call.reps_a_trip} a trip" if call.rep else "simple"
        if call.fast:
            kind += ", fast"
        if call.long_running:
            kind += ", continued"
        taken = f"{call.input_size} bytes" if call.input_size else "none"
        if call.variable:
            taken += " + header"
        if call.element_in:
            taken += f" + {call.element_in} each"
        given = (
            f"{call.element_out} each" if call.element_out else f"{call.output_size} bytes" if call.response else "none"
        )
        if call.who is Who.NOBODY or call.states == ONLY_ACTIVE:
            states = "active"
        elif call.states == _ANY:
            states = "any"
        else:
            states = ", ".join(state.value for state in PartitionState if state in call.states)
        cells = (
            f"0x{call.code:04X}",
            call.name,
            kind,
            taken,
            given,
            privilege_names(int(call.privilege)),
            call.who.value,
            states,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
