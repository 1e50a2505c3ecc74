"""The hypercall calling convention: control word, result value, call codes. Both sides.

RCX holds the control word; RDX and R8 the guest physical addresses of input and output, or, for a fast call, the first
16 bytes of input themselves. RAX returns the result value. (TLFS 2.0a, 4; the later bits from the current TLFS.)
"""

from __future__ import annotations

import enum
import struct

import msgspec

from hypervisor.status import HvStatus

FAST_BYTES = 16
"""What RDX and R8 carry. XMM registers are not offered as input (CPUID 0x40000003 EDX bit 4 is clear)."""
MAX_REPS = 0xFFF

FAST = 1 << 16
NESTED = 1 << 31
_HEADER_SHIFT, _HEADER_MASK = 17, 0x3FF
_COUNT_SHIFT, _START_SHIFT = 32, 48
_RESERVED = 0xF000_F000_7800_0000
"""Bits 30:27, 47:44 and 63:60."""

FAST_INPUT = struct.Struct("<QQ")

PARTITION_ID_SELF = (1 << 64) - 1
"""HV_PARTITION_ID_SELF of the current TLFS: the caller's own partition."""
VP_INDEX_SELF = 0xFFFFFFFE
"""HV_VP_INDEX_SELF: the calling virtual processor."""
ANY_VP = 0xFFFFFFFF
"""HV_ANY_VP: the hypervisor chooses."""


class CallCode(enum.IntEnum):
    """Bits 15:0 of the control word. Three calls moved after 2010; the first codes keep the 2010 layouts."""

    SWITCH_VIRTUAL_ADDRESS_SPACE = 0x0001
    FLUSH_VIRTUAL_ADDRESS_SPACE = 0x0002
    FLUSH_VIRTUAL_ADDRESS_LIST = 0x0003
    GET_LOGICAL_PROCESSOR_RUN_TIME = 0x0004
    NOTIFY_LONG_SPIN_WAIT = 0x0008
    PARK_LOGICAL_PROCESSORS = 0x0009
    SEND_SYNTHETIC_CLUSTER_IPI = 0x000B
    FLUSH_VIRTUAL_ADDRESS_SPACE_EX = 0x0013
    FLUSH_VIRTUAL_ADDRESS_LIST_EX = 0x0014
    SEND_SYNTHETIC_CLUSTER_IPI_EX = 0x0015
    CREATE_PARTITION = 0x0040
    INITIALIZE_PARTITION = 0x0041
    FINALIZE_PARTITION = 0x0042
    DELETE_PARTITION = 0x0043
    GET_PARTITION_PROPERTY = 0x0044
    SET_PARTITION_PROPERTY = 0x0045
    GET_PARTITION_ID = 0x0046
    GET_NEXT_CHILD_PARTITION = 0x0047
    DEPOSIT_MEMORY = 0x0048
    WITHDRAW_MEMORY = 0x0049
    GET_MEMORY_BALANCE = 0x004A
    MAP_GPA_PAGES = 0x004B
    UNMAP_GPA_PAGES = 0x004C
    INSTALL_INTERCEPT = 0x004D
    CREATE_VP = 0x004E
    DELETE_VP = 0x004F
    GET_VP_REGISTERS = 0x0050
    SET_VP_REGISTERS = 0x0051
    TRANSLATE_VIRTUAL_ADDRESS = 0x0052
    READ_GPA = 0x0053
    WRITE_GPA = 0x0054
    ASSERT_VIRTUAL_INTERRUPT_2010 = 0x0055
    CLEAR_VIRTUAL_INTERRUPT = 0x0056
    CREATE_PORT_2010 = 0x0057
    DELETE_PORT = 0x0058
    CONNECT_PORT_2010 = 0x0059
    GET_PORT_PROPERTY = 0x005A
    DISCONNECT_PORT = 0x005B
    POST_MESSAGE = 0x005C
    SIGNAL_EVENT = 0x005D
    SAVE_PARTITION_STATE = 0x005E
    RESTORE_PARTITION_STATE = 0x005F
    INITIALIZE_EVENT_LOG_BUFFER_GROUP = 0x0060
    FINALIZE_EVENT_LOG_BUFFER_GROUP = 0x0061
    CREATE_EVENT_LOG_BUFFER = 0x0062
    DELETE_EVENT_LOG_BUFFER = 0x0063
    MAP_EVENT_LOG_BUFFER = 0x0064
    UNMAP_EVENT_LOG_BUFFER = 0x0065
    SET_EVENT_LOG_GROUP_SOURCES = 0x0066
    RELEASE_EVENT_LOG_BUFFER = 0x0067
    FLUSH_EVENT_LOG_BUFFER = 0x0068
    POST_DEBUG_DATA = 0x0069
    RETRIEVE_DEBUG_DATA = 0x006A
    RESET_DEBUG_SESSION = 0x006B
    MAP_STATS_PAGE = 0x006C
    UNMAP_STATS_PAGE = 0x006D
    MAP_SPARSE_GPA_PAGES = 0x006E
    SET_SYSTEM_PROPERTY = 0x006F
    SET_PORT_PROPERTY = 0x0070
    NOTIFY_PARTITION_EVENT = 0x0087
    ASSERT_VIRTUAL_INTERRUPT = 0x0094
    CREATE_PORT = 0x0095
    CONNECT_PORT = 0x0096
    START_VIRTUAL_PROCESSOR = 0x0099
    GET_VP_INDEX_FROM_APIC_ID = 0x009A
    SIGNAL_EVENT_DIRECT = 0x00C0
    POST_MESSAGE_DIRECT = 0x00C1


class ControlWord(msgspec.Struct, frozen=True, gc=False):
    """The fields of RCX at a hypercall."""

    code: int
    fast: bool = False
    header_qwords: int = 0
    """Size of a variable header in units of 8 bytes, for the calls that take one."""
    nested: bool = False
    """Meant for the hypervisor below a nested one; there is none here."""
    count: int = 0
    """How many list elements a rep call has, 1 to 4095; 0 for a simple call."""
    start: int = 0
    """The first element not done yet."""

    @classmethod
    def decode(cls, value: int) -> ControlWord | None:
        """Take a 64-bit value apart; None where a reserved bit is set."""
        if value & _RESERVED:
            return None
        return cls(
            value & 0xFFFF,
            bool(value & FAST),
            value >> _HEADER_SHIFT & _HEADER_MASK,
            bool(value & NESTED),
            value >> _COUNT_SHIFT & MAX_REPS,
            value >> _START_SHIFT & MAX_REPS,
        )

    def encode(self) -> int:
        """The value of RCX."""
        return (
            self.code
            | self.fast * FAST
            | self.header_qwords << _HEADER_SHIFT
            | self.nested * NESTED
            | self.count << _COUNT_SHIFT
            | self.start << _START_SHIFT
        )


def control_word(code: int, *, fast: bool = False, count: int = 0, start: int = 0, header_qwords: int = 0) -> int:
    """RCX for a call."""
    return code | fast * FAST | header_qwords << _HEADER_SHIFT | count << _COUNT_SHIFT | start << _START_SHIFT


def result_value(status: int, completed: int = 0) -> int:
    """RAX: the status, and for rep calls how many elements are done in all, those of earlier trips included."""
    return status | completed << _COUNT_SHIFT


def result_status(value: int) -> HvStatus:
    """The status in RAX."""
    return HvStatus(value & 0xFFFF)


def result_completed(value: int) -> int:
    """The number of completed elements in RAX."""
    return value >> _COUNT_SHIFT & MAX_REPS
