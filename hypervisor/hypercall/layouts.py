"""Inputs and outputs of hypercalls, at their offsets from the start of the input or output block. Both sides.

The 2010 layouts (TLFS 2.0a) unless a class says otherwise. Later versions append fields to some of them; a caller that
passes those is served too, since the bytes behind a layout are not looked at.
"""

from __future__ import annotations

from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes16, bytes240, u8, u16, u32, u64

bytes24 = Annotated[bytes, "24s"]
STATE_CHUNK = 4080
"""Bytes of a saved state that one call carries at most."""
bytes4080 = Annotated[bytes, "4080s"]

# HV_PROXIMITY_DOMAIN_INFO, the fields called `proximity`: a memory node in bits 31..0, and flags in 63..32.
PROXIMITY_VALID = 1 << 31
PROXIMITY_PREFERRED = 1 << 0

# HV_INPUT_VTL, the field called `target_vtl` of register calls.
TARGET_VTL, USE_TARGET_VTL = 0xF, 1 << 4


@wire(size=0, spec="calls without input")
class NoInput(Wire):
    """The input address of such a call is ignored."""


# --- partitions


@wire(size=16, spec="HvCallCreatePartition input")
class CreatePartitionInput(Wire):
    """All flags are reserved in 2010."""

    flags: u64 = at(0x00, default=0)
    proximity: u64 = at(0x08, default=0)


@wire(size=8, spec="HvCallInitializePartition, HvCallFinalizePartition, HvCallDeletePartition input")
class PartitionInput(Wire):
    """A call that names a partition and nothing else."""

    partition_id: u64 = at(0x00)


@wire(size=8, spec="HvCallCreatePartition, HvCallGetPartitionId, HvCallGetNextChildPartition output")
class PartitionOutput(Wire):
    """A call that answers with a partition."""

    partition_id: u64 = at(0x00)


@wire(size=16, spec="HvCallGetPartitionProperty input")
class GetPartitionPropertyInput(Wire):
    """Bytes 12 to 15 are padding."""

    partition_id: u64 = at(0x00)
    code: u32 = at(0x08)


@wire(size=8, spec="HvCallGetPartitionProperty, HvCallGetPortProperty output")
class PropertyOutput(Wire):
    """A property's value."""

    value: u64 = at(0x00)


@wire(size=24, spec="HvCallSetPartitionProperty input")
class SetPartitionPropertyInput(Wire):
    """Bytes 12 to 15 are padding."""

    partition_id: u64 = at(0x00)
    code: u32 = at(0x08)
    value: u64 = at(0x10)


@wire(size=16, spec="HvCallGetNextChildPartition input")
class GetNextChildPartitionInput(Wire):
    """`previous_id` 0 starts the enumeration."""

    partition_id: u64 = at(0x00)
    previous_id: u64 = at(0x08)


# --- memory


@wire(size=8, spec="HvCallDepositMemory input; a list of GPA page numbers follows")
class DepositMemoryInput(Wire):
    """Each element is a page of the caller's GPA space."""

    partition_id: u64 = at(0x00)


@wire(size=16, spec="HvCallWithdrawMemory input; the output is a list of GPA page numbers")
class WithdrawMemoryInput(Wire):
    """Pages come back to the caller's GPA space."""

    partition_id: u64 = at(0x00)
    proximity: u64 = at(0x08, default=0)


@wire(size=16, spec="HvCallGetMemoryBalance input")
class GetMemoryBalanceInput(Wire):
    """How a pool stands."""

    partition_id: u64 = at(0x00)
    proximity: u64 = at(0x08, default=0)


@wire(size=16, spec="HvCallGetMemoryBalance output")
class MemoryBalanceOutput(Wire):
    """Pages of a pool."""

    available: u64 = at(0x00)
    in_use: u64 = at(0x08)


@wire(size=24, spec="HvCallMapGpaPages input; a list of source page numbers follows")
class MapGpaPagesInput(Wire):
    """Flags: 1 read, 2 write, 4 execute (0xC in the current TLFS). Bytes 20 to 23 are padding."""

    partition_id: u64 = at(0x00)
    gpa_base: u64 = at(0x08)
    flags: u32 = at(0x10)


@wire(size=16, spec="HvCallMapSparseGpaPages input; a list of SparsePage follows")
class MapSparseGpaPagesInput(Wire):
    """Flags as of MapGpaPagesInput. Bytes 12 to 15 are padding."""

    partition_id: u64 = at(0x00)
    flags: u32 = at(0x08)


@wire(size=16, spec="HvCallUnmapGpaPages input; the rep count is the number of pages, there is no list")
class UnmapGpaPagesInput(Wire):
    """The current TLFS appends flags, which only hint at large pages."""

    partition_id: u64 = at(0x00)
    gpa_base: u64 = at(0x08)


# --- virtual processors


@wire(size=32, spec="HvCallCreateVp input")
class CreateVpInput(Wire):
    """All flags are reserved. Bytes 12 to 15 are padding."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    proximity: u64 = at(0x10, default=0)
    flags: u64 = at(0x18, default=0)


@wire(size=16, spec="HvCallDeleteVp input; HvCallGetVpRegisters and HvCallSetVpRegisters input header")
class VpInput(Wire):
    """Bytes 13 to 15 are padding; byte 12 is too in 2010, and where `USE_TARGET_VTL` is not set in it."""

    partition_id: u64 = at(0x00)
    vp_index: u32 = at(0x08)
    target_vtl: u8 = at(0x0C, default=0)


@wire(size=32, spec="HvCallSetVpRegisters list element")
class RegisterAssociation(Wire):
    """A register's name and its 128-bit value. Bytes 4 to 15 are padding."""

    name: u32 = at(0x00)
    value: bytes16 = at(0x10)


# --- ports and connections


@wire(size=48, spec="HvCallCreatePort input, 2010 (call 0x0057)")
class CreatePort2010Input(Wire):
    """Bytes 12 to 15 are padding. `port_info` is HV_PORT_INFO."""

    port_partition_id: u64 = at(0x00)
    port_id: u32 = at(0x08)
    connection_partition_id: u64 = at(0x10)
    port_info: bytes24 = at(0x18)


@wire(size=56, spec="HvCallCreatePort input, current (call 0x0095)")
class CreatePortInput(Wire):
    """Bytes 14 to 15 are padding."""

    port_partition_id: u64 = at(0x00)
    port_id: u32 = at(0x08)
    port_vtl: u8 = at(0x0C)
    min_connection_vtl: u8 = at(0x0D)
    connection_partition_id: u64 = at(0x10)
    port_info: bytes24 = at(0x18)
    proximity: u64 = at(0x30, default=0)


@wire(size=16, spec="HvCallDeletePort input")
class DeletePortInput(Wire):
    """Bytes 12 to 15 are padding."""

    port_partition_id: u64 = at(0x00)
    port_id: u32 = at(0x08)


@wire(size=48, spec="HvCallConnectPort input, 2010 (call 0x0059)")
class ConnectPort2010Input(Wire):
    """Bytes 12 to 15 and 28 to 31 are padding. `connection_info` is HV_CONNECTION_INFO."""

    connection_partition_id: u64 = at(0x00)
    connection_id: u32 = at(0x08)
    port_partition_id: u64 = at(0x10)
    port_id: u32 = at(0x18)
    connection_info: bytes16 = at(0x20)


@wire(size=72, spec="HvCallConnectPort input, current (call 0x0096)")
class ConnectPortInput(Wire):
    """HV_CONNECTION_INFO has grown to 32 bytes for doorbells; all other ports use its first 16."""

    connection_partition_id: u64 = at(0x00)
    connection_id: u32 = at(0x08)
    connection_vtl: u8 = at(0x0C)
    reserved_0: u8 = at(0x0D)
    reserved_1: u16 = at(0x0E)
    port_partition_id: u64 = at(0x10)
    port_id: u32 = at(0x18)
    connection_info: bytes16 = at(0x20)
    doorbell_info: bytes16 = at(0x30, default=bytes(16))
    proximity: u64 = at(0x40, default=0)


@wire(size=16, spec="HvCallDisconnectPort input")
class DisconnectPortInput(Wire):
    """Bytes 12 to 15 are padding."""

    connection_partition_id: u64 = at(0x00)
    connection_id: u32 = at(0x08)


@wire(size=24, spec="HvCallGetPortProperty input")
class GetPortPropertyInput(Wire):
    """Bytes 12 to 15 and 20 to 23 are padding."""

    port_partition_id: u64 = at(0x00)
    port_id: u32 = at(0x08)
    code: u32 = at(0x10)


@wire(size=32, spec="HvCallSetPortProperty input")
class SetPortPropertyInput(Wire):
    """Bytes 12 to 15 and 20 to 23 are padding."""

    port_partition_id: u64 = at(0x00)
    port_id: u32 = at(0x08)
    code: u32 = at(0x10)
    value: u64 = at(0x18)


# --- saved state


@wire(size=16, spec="HvCallSavePartitionState input")
class SavePartitionStateInput(Wire):
    """Bytes 12 to 15 are padding."""

    partition_id: u64 = at(0x00)
    flags: u32 = at(0x08)


@wire(size=4088, spec="HvCallSavePartitionState output")
class SavePartitionStateOutput(Wire):
    """`count` bytes of `data` are the stream's."""

    state: u32 = at(0x00)
    count: u32 = at(0x04)
    data: bytes4080 = at(0x08)


@wire(size=4096, spec="HvCallRestorePartitionState input")
class RestorePartitionStateInput(Wire):
    """As many bytes of `data` as `count` says."""

    partition_id: u64 = at(0x00)
    flags: u32 = at(0x08)
    count: u32 = at(0x0C)
    data: bytes4080 = at(0x10)


@wire(size=8, spec="HvCallRestorePartitionState output")
class RestorePartitionStateOutput(Wire):
    """How far it is, and how many bytes were taken."""

    state: u32 = at(0x00)
    consumed: u32 = at(0x04)


# --- messages, events, hints


@wire(size=256, spec="HvCallPostMessage input")
class PostMessageInput(Wire):
    """A connection ID is all that a sender knows of the other end. Bytes 4 to 7 are padding."""

    connection_id: u32 = at(0x00)
    message_type: u32 = at(0x08)
    payload_size: u32 = at(0x0C)
    payload: bytes240 = at(0x10)


@wire(size=8, spec="HvCallSignalEvent input")
class SignalEventInput(Wire):
    """The flag is counted from the port's base flag."""

    connection_id: u32 = at(0x00)
    flag_number: u16 = at(0x04, default=0)
    reserved: u16 = at(0x06, default=0)


@wire(size=8, spec="HvCallNotifyLongSpinWait input")
class LongSpinWaitInput(Wire):
    """A hint that a spin lock takes long. Bytes 4 to 7 are padding."""

    spin_count: u32 = at(0x00)
