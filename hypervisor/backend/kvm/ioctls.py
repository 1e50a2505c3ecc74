"""KVM's ioctl numbers, structures and one call to reach them. Hypervisor.

Source: Linux Documentation/virt/kvm/api.rst. `fcntl.ioctl` refuses arguments above 2**31, which addresses of mappings
are, so the C library's ioctl is called; ctypes releases the interpreter lock around it, which is what lets a vCPU
thread sit in KVM_RUN for as long as it likes.
"""

from __future__ import annotations

import ctypes
import enum
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

Argument = int | bytearray | None


class KvmError(OSError):
    """KVM is not there, not permitted, or lacks something; the text names it and the remedy."""


def ioctl(fd: int, request: int, argument: Argument = None) -> int:
    """Call ioctl; a bytearray is passed by address and may be written to. Raises `OSError`."""
    if isinstance(argument, bytearray):
        pointer = ctypes.addressof((ctypes.c_char * len(argument)).from_buffer(argument))
    else:
        pointer = argument or 0
    result: int = _libc.ioctl(fd, request, pointer)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{Request(request).name}: {os.strerror(code)}")
    return result


def run(fd: int) -> int:
    """KVM_RUN, the hot one: 0 on an exit, a negative errno where it did not run."""
    return 0 if _libc.ioctl(fd, Request.RUN, None) == 0 else -ctypes.get_errno()


def _io(number: int) -> int:
    return 0xAE00 | number


def _iow(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | 0xAE00 | number


def _ior(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | 0xAE00 | number


def _iowr(number: int, size: int) -> int:
    return 3 << 30 | size << 16 | 0xAE00 | number


class Request(enum.IntEnum):
    """The ioctls that are used, on /dev/kvm, on a VM and on a vCPU."""

    GET_API_VERSION = _io(0x00)
    CREATE_VM = _io(0x01)
    CHECK_EXTENSION = _io(0x03)
    GET_VCPU_MMAP_SIZE = _io(0x04)
    GET_SUPPORTED_CPUID = _iowr(0x05, 8)

    CREATE_VCPU = _io(0x41)
    SET_USER_MEMORY_REGION = _iow(0x46, 32)
    SET_TSS_ADDR = _io(0x47)
    SET_IDENTITY_MAP_ADDR = _iow(0x48, 8)
    CREATE_IRQCHIP = _io(0x60)
    IRQ_LINE = _iow(0x61, 8)
    REGISTER_COALESCED_MMIO = _iow(0x67, 16)
    IOEVENTFD = _iow(0x79, 64)
    ENABLE_CAP = _iow(0xA3, 104)
    SIGNAL_MSI = _iow(0xA5, 32)
    X86_SET_MSR_FILTER = _iow(0xC6, 392)

    RUN = _io(0x80)
    GET_REGS = _ior(0x81, 144)
    SET_REGS = _iow(0x82, 144)
    GET_SREGS = _ior(0x83, 312)
    SET_SREGS = _iow(0x84, 312)
    SET_SIGNAL_MASK = _iow(0x8B, 4)
    SET_CPUID2 = _iow(0x90, 8)
    GET_MSRS = _iowr(0x88, 8)
    SET_MSRS = _iow(0x89, 8)
    GET_TSC_KHZ = _io(0xA3)
    SET_TSC_KHZ = _io(0xA2)


class Capability(enum.IntEnum):
    """What CHECK_EXTENSION is asked."""

    IRQCHIP = 0
    USER_MEMORY = 3
    COALESCED_MMIO = 15
    IOEVENTFD = 36
    SYNC_REGS = 74
    SIGNAL_MSI = 77
    COALESCED_PIO = 162
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189


class Exit(enum.IntEnum):
    """Why KVM_RUN came back: `exit_reason` of struct kvm_run."""

    UNKNOWN = 0
    IO = 2
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    X86_RDMSR = 29
    X86_WRMSR = 30


MEMORY_REGION = struct.Struct("<IIQQQ")
"""slot, flags, guest_phys_addr, memory_size, userspace_addr."""

MSI = struct.Struct("<IIIII12x")
"""address_lo, address_hi, data, flags, devid."""

IRQ_LEVEL = struct.Struct("<II")
"""irq, level."""

IOEVENTFD = struct.Struct("<QQIiI36x")
"""datamatch, addr, len, fd, flags."""
IOEVENTFD_DATAMATCH = 1 << 0
IOEVENTFD_PIO = 1 << 1
IOEVENTFD_DEASSIGN = 1 << 2

COALESCED_ZONE = struct.Struct("<QII")
"""addr, size, pio."""

ENABLE_CAP = struct.Struct("<II4Q64x")
"""cap, flags, args."""

REGISTERS = struct.Struct("<18Q")
"""rax rbx rcx rdx rsi rdi rsp rbp r8..r15 rip rflags."""
RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, R8 = range(9)
RIP, RFLAGS = 16, 17

CPUID_ENTRY = struct.Struct("<IIIIIII12x")
"""function, index, flags, eax, ebx, ecx, edx."""

# struct kvm_run, as far as it is read.
RUN_EXIT_REASON = 8
RUN_EXIT = 32
"""Where the union for the exit reason begins."""

IO_EXIT = struct.Struct("<BBHIQ")
"""direction, size, port, count, data offset from the start of kvm_run."""
IO_OUT = 1
MMIO_EXIT = struct.Struct("<Q8sIB")
"""address, data, length, is_write."""
MSR_EXIT = struct.Struct("<B7xIIQ")
"""error (written back), reason, index, data (written back for a read)."""

MSR_DATA = 16
"""Where in it `data` lies."""

SREGS_SIZE = 312
SREGS_GDT = 192
SREGS_CR0 = 224
"""struct kvm_sregs: eight segments, gdt and idt, then cr0, cr2, cr3, cr4, cr8, efer."""
SEGMENT = struct.Struct("<QIH10B")
"""base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding."""

MSR_EXIT_REASONS = 1 << 0 | 1 << 1 | 1 << 2
"""Unknown to KVM, invalid for KVM, and filtered: all come to us."""
