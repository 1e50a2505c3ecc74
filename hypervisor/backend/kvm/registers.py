"""A vCPU's own registers under the names that hypercalls give them. Hypervisor.

General registers, segments, tables, control registers and EFER. The rest (x87 and XMM, debug registers, MSRs) is not
read out of KVM; of those the hypervisor keeps what a parent wrote, and the guest does not see it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypervisor.backend.kvm import ioctls
from hypervisor.processor_registers import ProcessorRegister

if TYPE_CHECKING:
    from hypervisor.backend.kvm.vcpu import Vcpu

_GENERAL = (
    *(ioctls.RAX, ioctls.RCX, ioctls.RDX, ioctls.RBX, ioctls.RSP, ioctls.RBP, ioctls.RSI, ioctls.RDI),
    *range(ioctls.R8, ioctls.RIP),
    *(ioctls.RIP, ioctls.RFLAGS),
)
"""Positions in struct kvm_regs, in the order of the names from RAX on."""
_SEGMENTS = (2, 0, 5, 1, 3, 4, 7, 6)
"""Positions in struct kvm_sregs of ES, CS, SS, DS, FS, GS, LDTR, TR."""
_CONTROL = {
    ProcessorRegister.CR0: 0,
    ProcessorRegister.CR2: 1,
    ProcessorRegister.CR3: 2,
    ProcessorRegister.CR4: 3,
    ProcessorRegister.CR8: 4,
    ProcessorRegister.EFER: 5,
}
"""Positions behind SREGS_CR0, eight bytes each."""
_TABLES = {
    ProcessorRegister.GDTR: ioctls.SREGS_GDT,
    ProcessorRegister.IDTR: ioctls.SREGS_GDT + 16,
}
_TABLE = struct.Struct("<QH")
"""struct kvm_dtable: base, limit."""
_NAMED_TABLE = struct.Struct("<6xHQ")
"""HV_X64_TABLE_REGISTER: limit, base."""
_NAMED_SEGMENT = struct.Struct("<QIHH")
"""HV_X64_SEGMENT_REGISTER: base, limit, selector, attributes."""
_U64 = struct.Struct("<Q")


def get_register(vcpu: Vcpu, name: int) -> int | None:
    """A register; None for one that is not read. Takes the vCPU out of KVM_RUN for a moment where it is there."""
    if ProcessorRegister.RAX <= name <= ProcessorRegister.RFLAGS:
        with vcpu.outside():
            general: int = vcpu.registers()[_GENERAL[name - ProcessorRegister.RAX]]
        return general
    if not _is_special(name):
        return None
    with vcpu.outside():
        special = vcpu.special_registers()
    if name in _CONTROL:
        return int(_U64.unpack_from(special, ioctls.SREGS_CR0 + 8 * _CONTROL[ProcessorRegister(name)])[0])
    if name in _TABLES:
        base, limit = _TABLE.unpack_from(special, _TABLES[ProcessorRegister(name)])
        return int.from_bytes(_NAMED_TABLE.pack(limit, base), "little")
    values = ioctls.SEGMENT.unpack_from(special, _segment_at(name))
    base, limit, selector, kind, present, dpl, big, system, long, granular, available = values[:11]
    attributes = (
        kind | system << 4 | dpl << 5 | present << 7 | available << 12 | long << 13 | big << 14 | granular << 15
    )
    return int.from_bytes(_NAMED_SEGMENT.pack(base, limit, selector, attributes), "little")


def put_register(vcpu: Vcpu, name: int, value: int) -> bool:
    """Write a register; False for one that is not written."""
    if ProcessorRegister.RAX <= name <= ProcessorRegister.RFLAGS:
        with vcpu.outside():
            registers = vcpu.registers()
            registers[_GENERAL[name - ProcessorRegister.RAX]] = value
            vcpu.set_registers(registers)
        return True
    if not _is_special(name):
        return False
    with vcpu.outside():
        special = vcpu.special_registers()
        _put_special(special, name, value)
        vcpu.set_special_registers(special)
    return True


def _put_special(special: bytearray, name: int, value: int) -> None:
    """Into struct kvm_sregs."""
    if name in _CONTROL:
        _U64.pack_into(special, ioctls.SREGS_CR0 + 8 * _CONTROL[ProcessorRegister(name)], value)
    elif name in _TABLES:
        limit, base = _NAMED_TABLE.unpack(value.to_bytes(16, "little"))
        _TABLE.pack_into(special, _TABLES[ProcessorRegister(name)], base, limit)
    else:
        base, limit, selector, bits = _NAMED_SEGMENT.unpack(value.to_bytes(16, "little"))
        present = bits >> 7 & 1
        ioctls.SEGMENT.pack_into(
            special,
            _segment_at(name),
            *(base, limit, selector, bits & 15, present, bits >> 5 & 3, bits >> 14 & 1, bits >> 4 & 1),
            *(bits >> 13 & 1, bits >> 15, bits >> 12 & 1, 1 - present, 0),
        )


def _is_special(name: int) -> bool:
    return name in _CONTROL or name in _TABLES or ProcessorRegister.ES <= name <= ProcessorRegister.TR


def _segment_at(name: int) -> int:
    return ioctls.SEGMENT.size * _SEGMENTS[name - ProcessorRegister.ES]
