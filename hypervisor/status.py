"""HV_STATUS: what a hypercall answers. Both sides."""

from __future__ import annotations

import enum


class HvStatus(enum.IntEnum):
    """Result codes (TLFS 2.0a appendix C; the later ones from Microsoft's and Linux's headers)."""

    SUCCESS = 0x0000
    INVALID_HYPERCALL_CODE = 0x0002
    INVALID_HYPERCALL_INPUT = 0x0003
    INVALID_ALIGNMENT = 0x0004
    INVALID_PARAMETER = 0x0005
    ACCESS_DENIED = 0x0006
    INVALID_PARTITION_STATE = 0x0007
    OPERATION_DENIED = 0x0008
    UNKNOWN_PROPERTY = 0x0009
    PROPERTY_VALUE_OUT_OF_RANGE = 0x000A
    INSUFFICIENT_MEMORY = 0x000B
    PARTITION_TOO_DEEP = 0x000C
    INVALID_PARTITION_ID = 0x000D
    INVALID_VP_INDEX = 0x000E
    NOT_FOUND = 0x0010
    INVALID_PORT_ID = 0x0011
    INVALID_CONNECTION_ID = 0x0012
    INSUFFICIENT_BUFFERS = 0x0013
    NOT_ACKNOWLEDGED = 0x0014
    INVALID_VP_STATE = 0x0015
    ACKNOWLEDGED = 0x0016
    INVALID_SAVE_RESTORE_STATE = 0x0017
    INVALID_SYNIC_STATE = 0x0018
    OBJECT_IN_USE = 0x0019
    INVALID_PROXIMITY_DOMAIN_INFO = 0x001A
    NO_DATA = 0x001B
    INACTIVE = 0x001C
    NO_RESOURCES = 0x001D
    FEATURE_UNAVAILABLE = 0x001E
    PARTIAL_PACKET = 0x001F
    INVALID_LP_INDEX = 0x0041
    INVALID_REGISTER_VALUE = 0x0050
    INVALID_CPU_GROUP_ID = 0x006F
    OPERATION_FAILED = 0x0071
    TIMEOUT = 0x0078
    CALL_PENDING = 0x0079
    UNKNOWN_REGISTER_NAME = 0x0087


class HvError(Exception):
    """A hypercall handler's refusal; dispatch turns it into the status. `completed` counts whole reps before it."""

    def __init__(self, status: HvStatus, completed: int = 0) -> None:
        super().__init__(status.name)
        self.status = status
        self.completed = completed
