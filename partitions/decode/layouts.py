"""Layouts of rings and pages that the running system reads by views and masks, declared for people to see. Root side.

tests/partitions/decode/test_layouts.py holds them against what the running system writes.
"""

from __future__ import annotations

from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import i64, u8, u16, u32, u64

_SPEC = "Linux 6.12 include/linux/hyperv.h"

_reserved1 = Annotated[bytes, "48s"]
_reserved2 = Annotated[bytes, "4028s"]


@wire(size=16, spec=f"{_SPEC}, struct vmpacket_descriptor")
class PacketDescriptor(Wire):
    """The first bytes of each packet in a ring."""

    type: u16 = at(0)
    offset8: u16 = at(2, default=2)
    """Where the payload begins, from the descriptor's first byte, in units of 8 bytes."""
    length8: u16 = at(4, default=2)
    """Where it ends, likewise; the trailer of 8 bytes does not count."""
    flags: u16 = at(6, default=0)
    transaction_id: u64 = at(8, default=0)


@wire(size=8, spec=f"{_SPEC}, struct vmdata_gpa_direct after its descriptor")
class RangeList(Wire):
    """In front of the ranges of a GPA-direct packet."""

    reserved: u32 = at(0, default=0)
    range_count: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}, struct gpa_range, struct vmtransfer_page_range")
class ByteRange(Wire):
    """A range; in GPADLs and GPA-direct packets page numbers follow it."""

    byte_count: u32 = at(0, default=0)
    byte_offset: u32 = at(4, default=0)
    """Into the first page, or into the transfer pages."""


@wire(size=8, spec=f"{_SPEC}, struct vmtransfer_page_packet_header after its descriptor")
class TransferPages(Wire):
    """In front of the ranges of a transfer-page packet."""

    pageset_id: u16 = at(0, default=0)
    sender_owns_set: u8 = at(2, default=0)
    reserved: u8 = at(3, default=0)
    range_count: u32 = at(4, default=0)


@wire(size=8, spec=f"{_SPEC}; Linux drivers/hv/ring_buffer.c")
class PacketTrailer(Wire):
    """Behind each packet."""

    reserved: u32 = at(0, default=0)
    packet_start: u32 = at(4, default=0)
    """Where in the ring its descriptor begins."""


@wire(size=4096, spec=f"{_SPEC}, struct hv_ring_buffer")
class RingControl(Wire):
    """The control page of a ring."""

    write_index: u32 = at(0, default=0)
    read_index: u32 = at(4, default=0)
    interrupt_mask: u32 = at(8, default=0)
    pending_send_size: u32 = at(12, default=0)
    reserved1: _reserved1 = at(16, default=b"")
    feature_bits: u32 = at(64, default=0)
    reserved2: _reserved2 = at(68, default=b"")


@wire(size=8, spec=f"{_SPEC}, struct vmbuspipe_hdr")
class PipeHeader(Wire):
    """In front of the data of a pipe packet."""

    type: u32 = at(0, default=0)
    length: u32 = at(4, default=0)


@wire(size=24, spec="HV_REFERENCE_TSC_PAGE, current TLFS")
class ReferenceTscPage(Wire):
    """The first bytes of the reference TSC page: time = (tsc * scale >> 64) + offset."""

    sequence: u32 = at(0, default=0)
    reserved: u32 = at(4, default=0)
    scale: u64 = at(8, default=0)
    offset: i64 = at(16, default=0)
