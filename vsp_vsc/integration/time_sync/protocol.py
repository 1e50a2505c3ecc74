"""Time synchronization messages: the date, and when by the partition's clock it was that. Both sides.

Up to version 3.0 a message holds the date alone; 4.0 adds the reference time at which it was read, so that it does not
matter how long the message took. Layouts after Linux 6.12 include/linux/hyperv.h, struct ictimesync_ref_data and
struct ictimesync_data; the host's is two bytes longer than Linux's, in its reserved field (openvmm hyperv_ic_protocol).
"""

from __future__ import annotations

import datetime
import enum

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import bytes5, u8, u64
from vsp_vsc.integration.protocol import Version

REFERENCE_VERSION = Version(4, 0)
"""The first whose messages hold the reference time."""
EPOCH = datetime.datetime(1601, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


DRIFT_KEY = "ClockDrift"
"""The item of pool AUTO in which a model guest says how far its clock was off at the last sample, in microseconds."""


class SyncFlags(enum.IntFlag):
    """What the guest is to do with it."""

    PROBE = 0
    SYNC = 1
    """Set your clock."""
    SAMPLE = 2
    """Compare with your clock, and correct it in your own way."""


@wire(size=24, spec="Linux hyperv.h, struct ictimesync_ref_data")
class TimeReference(Wire):
    """Version 4.0."""

    parent_time: u64 = at(0)
    """100 ns units since the start of 1601, UTC."""
    reference_time: u64 = at(8)
    """The partition's reference time, in 100 ns units, when it was `parent_time`."""
    flags: u8 = at(16)
    leap_flags: u8 = at(17, default=0)
    stratum: u8 = at(18, default=0)
    reserved: bytes5 = at(19, default=bytes(5))


@wire(size=25, spec="Linux hyperv.h, struct ictimesync_data")
class TimeMessage(Wire):
    """Up to version 3.0."""

    parent_time: u64 = at(0)
    child_time: u64 = at(8, default=0)
    round_trip: u64 = at(16, default=0)
    flags: u8 = at(24, default=0)


def file_time(moment: datetime.datetime) -> int:
    """A date as 100 ns units since the start of 1601, UTC."""
    return (moment - EPOCH) // _MICROSECOND * 10


def moment_of(ticks: int) -> datetime.datetime:
    """The date of so many 100 ns units. Raises `OverflowError` past the year 9999."""
    return EPOCH + datetime.timedelta(microseconds=ticks // 10)


def describe(body: bytes) -> str:
    """The host's message in words: `SYNC`, `SAMPLE`. Any bytes are fine."""
    layout: type[TimeMessage | TimeReference] = TimeMessage if len(body) == TimeMessage.SIZE else TimeReference
    if len(body) < layout.SIZE:
        return "time"
    flags = layout.decode(body).flags
    return SyncFlags(flags).name or f"flags {flags:#x}"
