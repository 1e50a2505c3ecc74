"""What storvsp and storvsc say to each other: packets, versions, limits, and which mistakes cost what. Both sides.

A packet is a 12-byte header and a body that depends on the operation. The guest asks, always with a completion wanted;
the host answers each transaction with one completion. Data never travels in the ring: a command that moves some is a
GPA-direct packet with exactly one range of guest pages.

Order: BEGIN_INITIALIZATION, QUERY_PROTOCOL_VERSION until one is accepted, QUERY_PROPERTIES, FCHBA_DATA where there is a
Fibre Channel adapter, END_INITIALIZATION; then SRBs and resets.

CREATE_SUB_CHANNELS, before or after END_INITIALIZATION, has the host offer further channels to the same disks. They
need no initialization: the primary channel's holds for them, and they carry nothing before its end. Each command is
answered on the channel that it came by. The number is that of all subchannels there are to be, so asking again adds
what is missing, and nothing takes any away but the end of the primary channel.

What the versions differ in, all of which are spoken here:

    2.0   Windows Server 2008: SRBs of 36 bytes, so packets of 48, with 18 bytes of sense; disks are fixed
    4.2   Windows Server 2008 R2: ENUMERATE_BUS, the word that disks came or went
    5.1   Windows Server 2012: SRBs of 52 bytes with tag, flags, timeout and sort key, packets of 64; 20 bytes of sense;
          subchannels, and the flag in the properties that says so
    6.0   Windows Server 2012 R2, 6.2 Windows Server 2016: the same packets

A RESET_LUN takes its unit from the address in an SRB behind the header, all zero where there is none; RESET_BUS and
RESET_ADAPTER are for all units. Commands under way, on whichever channel, end with SRB status BUS_RESET once the host's
storage has let go of their pages; the reset is answered after the last of them, and each unit then has a unit
attention. There is no abort of a single command: an SRB has no function, and the packets know no such operation.

When a disk is added, removed or has grown the host says ENUMERATE_BUS on the primary channel, from version 4.2 on and
unasked, so its transaction ID is 0 and nothing answers it. Other disks have the unit attention REPORTED LUNS DATA HAS
CHANGED, or the grown one CAPACITY DATA HAS CHANGED. Commands to a disk that has gone end with INVALID_LUN.

What a guest's mistake costs it:

    soft, a status in that completion
        an operation out of order, SRBs before the end of initialization included: INVALID_DEVICE_STATE, state kept
        a version that we do not speak: REVISION_MISMATCH, and the guest may ask for another
        more subchannels than the properties said, or any before version 5.1: INVALID_PARAMETER
        anything but SRBs and resets on a subchannel: INVALID_DEVICE_STATE
        more commands for one disk than `MAX_AT_DISK`: SRB status BUSY, SCSI status TASK SET FULL
        an SRB with a length, CDB length, sense length, transfer length or direction that cannot be, or with pages that
        are not the guest's memory: SRB status INVALID_REQUEST
        a path, target or LUN that is not there: SRB status INVALID_LUN (`target.py` has the exceptions)
        anything that the SCSI command set forbids: SRB status ERROR, CHECK CONDITION and sense data
    hard, the channel is served no more, nothing is answered and the guest has to close it
        a packet that is no in-band or GPA-direct packet, or that wants no completion
        an operation that does not exist or that only a host may send
        a packet shorter than its operation
        GPA ranges: none or several, fewer pages than the range needs, fewer bytes than the transfer, an offset past the
        first page; a transfer without a range
        a corrupt ring
    fatal for the VM
        nothing

Layouts after Linux 6.12 drivers/scsi/storvsc_drv.c; behaviour after openvmm storvsp.
"""

from __future__ import annotations

import enum

from hypervisor.wire import Guid, Wire, at, wire
from hypervisor.wire.scalars import bytes8, bytes20, u8, u16, u32, u64

STORAGE_INTERFACE = Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")
"""The interface a synthetic SCSI controller is offered under."""


class Operation(enum.IntEnum):
    """What a packet asks for or tells."""

    COMPLETE_IO = 1
    """Host to guest: the answer to whatever was asked."""
    REMOVE_DEVICE = 2
    EXECUTE_SRB = 3
    RESET_LUN = 4
    RESET_ADAPTER = 5
    RESET_BUS = 6
    BEGIN_INITIALIZATION = 7
    END_INITIALIZATION = 8
    QUERY_PROTOCOL_VERSION = 9
    QUERY_PROPERTIES = 10
    ENUMERATE_BUS = 11
    """Host to guest, unasked, without a completion: disks came or went, look again."""
    FCHBA_DATA = 12
    CREATE_SUB_CHANNELS = 13


class Version(enum.IntEnum):
    """Protocol versions, major in the high byte."""

    WIN6 = 0x0200
    WIN7 = 0x0402
    WIN8 = 0x0501
    WIN8_1 = 0x0600
    WIN10 = 0x0602


VERSIONS = (Version.WIN10, Version.WIN8_1, Version.WIN8, Version.WIN7, Version.WIN6)
"""What both of our sides speak, best first."""

HEADER_SIZE = 12
SRB_SIZE = 52
SRB_SIZE_WIN7 = 36
"""Before Windows 8 an SRB ended after its CDB or sense data."""
PACKET_SIZE = HEADER_SIZE + SRB_SIZE
CDB_SIZE = 16
SENSE_SIZE = 20
"""Room for sense data in an SRB, in the place of the CDB and a little more."""
SENSE_SIZE_WIN7 = 18
"""How much of it guests ask for before Windows 8: sense data in fixed format and no more."""
MAX_TRANSFER = 0x40000
"""Bytes that one SRB may move; openvmm and Windows say the same."""
MAX_TRANSFER_PAGES = MAX_TRANSFER // 4096 + 1
"""A transfer of the largest size that begins within a page touches one page more."""
MAX_SUB_CHANNELS = 16
"""Beside the primary channel; more would cost the host more than they bring a guest."""
MAX_AT_CHANNEL = 256
"""Commands of one channel that are under way or whose answers wait for room; past it the guest's own ring fills."""
MAX_AT_DISK = 1024
"""Commands that one disk has under way at the host, from all channels; past it a command is told to come again."""

COMPLETION_WANTED = 1
"""The packet header's flag for it; Linux sets it, openvmm does not ask for it: the ring's own flag decides."""


def srb_size(version: int) -> int:
    """Bytes of an SRB in this version."""
    return SRB_SIZE if version >= Version.WIN8 else SRB_SIZE_WIN7


def sense_size(version: int) -> int:
    """Bytes of sense data that a guest asks for in this version."""
    return SENSE_SIZE if version >= Version.WIN8 else SENSE_SIZE_WIN7


class NtStatus(enum.IntEnum):
    """The status word of a completion."""

    SUCCESS = 0
    BUFFER_OVERFLOW = 0x8000_0005
    DEVICE_BUSY = 0x8000_0011
    UNSUCCESSFUL = 0xC000_0001
    INVALID_PARAMETER = 0xC000_000D
    INVALID_DEVICE_REQUEST = 0xC000_0010
    REVISION_MISMATCH = 0xC000_0059
    INSUFFICIENT_RESOURCES = 0xC000_009A
    DEVICE_NOT_CONNECTED = 0xC000_009D
    IO_TIMEOUT = 0xC000_00B5
    DEVICE_DOES_NOT_EXIST = 0xC000_00C0
    CANCELLED = 0xC000_0120
    INVALID_DEVICE_STATE = 0xC000_0184
    IO_DEVICE_ERROR = 0xC000_0185


class SrbStatus(enum.IntEnum):
    """How an SRB ended: the low six bits of its status byte."""

    SUCCESS = 0x01
    ABORTED = 0x02
    ERROR = 0x04
    BUSY = 0x05
    INVALID_REQUEST = 0x06
    NO_DEVICE = 0x08
    TIMEOUT = 0x09
    SELECTION_TIMEOUT = 0x0A
    BUS_RESET = 0x0E
    DATA_OVERRUN = 0x12
    INVALID_LUN = 0x20
    INVALID_TARGET = 0x21
    BAD_FUNCTION = 0x22
    INTERNAL_ERROR = 0x30


SRB_STATUS_MASK = 0x3F
SRB_QUEUE_FROZEN = 0x40
SRB_AUTOSENSE_VALID = 0x80
"""With it, the SRB carries sense data where the CDB was."""

NT_STATUS = {
    SrbStatus.SUCCESS: NtStatus.SUCCESS,
    SrbStatus.ABORTED: NtStatus.CANCELLED,
    SrbStatus.ERROR: NtStatus.IO_DEVICE_ERROR,
    SrbStatus.BUSY: NtStatus.DEVICE_BUSY,
    SrbStatus.INVALID_REQUEST: NtStatus.IO_DEVICE_ERROR,
    SrbStatus.NO_DEVICE: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.TIMEOUT: NtStatus.IO_TIMEOUT,
    SrbStatus.SELECTION_TIMEOUT: NtStatus.DEVICE_NOT_CONNECTED,
    SrbStatus.BUS_RESET: NtStatus.IO_DEVICE_ERROR,
    SrbStatus.DATA_OVERRUN: NtStatus.BUFFER_OVERFLOW,
    SrbStatus.INVALID_LUN: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.INVALID_TARGET: NtStatus.DEVICE_DOES_NOT_EXIST,
    SrbStatus.BAD_FUNCTION: NtStatus.INVALID_DEVICE_REQUEST,
    SrbStatus.INTERNAL_ERROR: NtStatus.IO_DEVICE_ERROR,
}
"""The packet's status that goes with each SRB status."""


class SrbFlags(enum.IntFlag):
    """The flags of an SRB that Linux sets; a host may ignore them."""

    QUEUE_ACTION_ENABLE = 0x2
    DISABLE_SYNCH_TRANSFER = 0x8
    DATA_IN = 0x40
    DATA_OUT = 0x80
    NO_QUEUE_FREEZE = 0x100


SIMPLE_TAG = 0x20
"""The queue action of a command that the disk may reorder."""
NO_QUEUE_TAG = 0xFF


class ChannelFlags(enum.IntFlag):
    """Flags in the channel properties."""

    MULTI_CHANNEL = 1


@wire(size=12, spec="Linux 6.12 storvsc_drv.c struct vstor_packet")
class PacketHeader(Wire):
    """The first bytes of every packet, both ways."""

    operation: u32 = at(0)
    """An `Operation`, or anything else a peer may send."""
    flags: u32 = at(4, default=0)
    status: u32 = at(8, default=0)
    """An `NtStatus`, in completions."""


@wire(size=52, spec="Linux 6.12 storvsc_drv.c struct vmscsi_request")
class Srb(Wire):
    """A SCSI request block of Windows 8 and later; the completion has the same layout."""

    length: u16 = at(0, default=SRB_SIZE)
    srb_status: u8 = at(2, default=0)
    scsi_status: u8 = at(3, default=0)
    port: u8 = at(4, default=0)
    path: u8 = at(5, default=0)
    target: u8 = at(6, default=0)
    lun: u8 = at(7, default=0)
    cdb_length: u8 = at(8, default=CDB_SIZE)
    sense_length: u8 = at(9, default=SENSE_SIZE)
    data_in: u8 = at(10, default=0)
    """A `scsi.cdb.Direction`."""
    properties: u8 = at(11, default=0)
    data_transfer_length: u32 = at(12, default=0)
    """Bytes wanted, in a completion bytes moved."""
    cdb_or_sense: bytes20 = at(16, default=bytes(SENSE_SIZE))
    """16 bytes of CDB, or up to 20 of sense data in a completion with the autosense bit."""
    reserve: u16 = at(36, default=0)
    queue_tag: u8 = at(38, default=0)
    queue_action: u8 = at(39, default=0)
    srb_flags: u32 = at(40, default=0)
    timeout: u32 = at(44, default=0)
    """Seconds."""
    queue_sort_key: u32 = at(48, default=0)


@wire(size=36, spec="Linux 6.12 storvsc_drv.c struct vmscsi_request less the Windows 8 extension")
class SrbWin7(Wire):
    """A SCSI request block of versions 2.0 and 4.2."""

    length: u16 = at(0, default=SRB_SIZE_WIN7)
    srb_status: u8 = at(2, default=0)
    scsi_status: u8 = at(3, default=0)
    port: u8 = at(4, default=0)
    path: u8 = at(5, default=0)
    target: u8 = at(6, default=0)
    lun: u8 = at(7, default=0)
    cdb_length: u8 = at(8, default=CDB_SIZE)
    sense_length: u8 = at(9, default=SENSE_SIZE)
    data_in: u8 = at(10, default=0)
    properties: u8 = at(11, default=0)
    data_transfer_length: u32 = at(12, default=0)
    cdb_or_sense: bytes20 = at(16, default=bytes(SENSE_SIZE))


@wire(size=24, spec="Linux 6.12 storvsc_drv.c struct vmstorage_channel_properties")
class ChannelProperties(Wire):
    """The answer to QUERY_PROPERTIES."""

    reserved: u32 = at(0, default=0)
    max_channel_count: u16 = at(4, default=0)
    """Subchannels that the guest may ask for."""
    flags: u32 = at(8, default=0)
    """`ChannelFlags`."""
    max_transfer_bytes: u32 = at(12, default=MAX_TRANSFER)
    reserved2: u64 = at(16, default=0)


@wire(size=4, spec="Linux 6.12 storvsc_drv.c struct vmstorage_protocol_version")
class ProtocolVersion(Wire):
    """The body of QUERY_PROTOCOL_VERSION."""

    major_minor: u16 = at(0)
    revision: u16 = at(2, default=0)
    """Linux sends zero; nobody looks at it."""


@wire(size=36, spec="Linux 6.12 storvsc_drv.c struct hv_fc_wwn_packet")
class FcHbaData(Wire):
    """The answer to FCHBA_DATA; all zero where there is no Fibre Channel adapter."""

    primary_active: u8 = at(0, default=0)
    primary_port_wwn: bytes8 = at(4, default=bytes(8))
    primary_node_wwn: bytes8 = at(12, default=bytes(8))
    secondary_port_wwn: bytes8 = at(20, default=bytes(8))
    secondary_node_wwn: bytes8 = at(28, default=bytes(8))


@wire(size=2, spec="Linux 6.12 storvsc_drv.c struct vstor_packet, sub_channel_count")
class SubChannelCount(Wire):
    """The body of CREATE_SUB_CHANNELS."""

    count: u16 = at(0)


@wire(size=16, spec="Linux 6.12 hyperv.h struct vmdata_gpa_direct after its descriptor, struct gpa_range")
class GpaDirectHeader(Wire):
    """What precedes the page numbers in a GPA-direct packet with one range."""

    reserved: u32 = at(0)
    range_count: u32 = at(4)
    byte_count: u32 = at(8)
    byte_offset: u32 = at(12)
    """Into the first page."""
