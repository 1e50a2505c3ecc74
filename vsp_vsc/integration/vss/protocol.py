"""Volume snapshot messages: the host has the guest freeze its file systems and thaw them. Both sides.

The answer's status is what counts; the body comes back. A guest's mistake has no place in it: what it says besides the
status is shown and not obeyed. Layouts after Linux 6.12 include/uapi/linux/hyperv.h, struct hv_vss_msg, and for version
6.0 and later openvmm hyperv_ic_protocol.
"""

from __future__ import annotations

import enum
from typing import Annotated

from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u8, u32
from vsp_vsc.integration.protocol import Version

_SPEC = "Linux 6.12 include/uapi/linux/hyperv.h"
bytes7 = Annotated[bytes, "7s"]
luns = Annotated[bytes, "6240s"]

FREEZE_VERSION = Version(5, 0)
"""The first in which file systems can be frozen; 4.0 makes snapshots inside the guest only."""
NO_AUTO_RECOVERY = 0x5
"""In the answer to HOT_BACKUP, of a guest whose frozen disks need no repair: all that Linux says."""


class VssOperation(enum.IntEnum):
    """What the host wants of the guest's snapshots (enum hv_vss_op)."""

    CREATE = 0
    DELETE = 1
    HOT_BACKUP = 2
    """Can it be backed up while it runs?"""
    GET_DM_INFO = 3
    """Has it disks that the host cannot copy?"""
    BU_COMPLETE = 4
    FREEZE = 5
    THAW = 6
    AUTO_RECOVER = 7
    QUERY_CLUSTER = 8


@wire(size=8, spec=f"{_SPEC}, struct hv_vss_hdr")
class VssHeader(Wire):
    """In front of a snapshot message."""

    operation: u8 = at(0, default=0)
    reserved: bytes7 = at(1, default=bytes(7))


@wire(size=4, spec=f"{_SPEC}, struct hv_vss_check_feature, struct hv_vss_check_dm_info")
class VssFlags(Wire):
    """The body of HOT_BACKUP and GET_DM_INFO; of THAW too, where it says nothing."""

    flags: u32 = at(0, default=0)


@wire(size=12 + 260 * 24, spec="openvmm hyperv_ic_protocol, Message2")
class VssFreeze(Wire):
    """The body of FREEZE: which disks of the guest's are meant, all if none is named. Linux reads none of it."""

    backup_type: u32 = at(0, default=0)
    flags: u32 = at(4, default=0)
    lun_count: u32 = at(8, default=0)
    luns: luns = at(12, default=b"")


def encode_vss(operation: VssOperation, flags: int = 0) -> bytes:
    """A whole message."""
    body = VssFreeze() if operation is VssOperation.FREEZE else VssFlags(flags)
    return VssHeader(operation).encode() + body.encode()


def describe(body: bytes) -> str:
    """The host's message in words: `freeze`. Any bytes are fine."""
    if not body:
        return "snapshot"
    try:
        return VssOperation(body[0]).name.lower().replace("_", " ")
    except ValueError:
        return f"snapshot operation {body[0]}"
