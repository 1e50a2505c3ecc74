"""Tries, each in a process of its own, whether the kernel really grants something that only using it shows. Root side.

Run as a script with the name of a probe; it imports nothing of ours, so that it starts fast and can hang or die alone.
Exit 0 and silence: it works. Otherwise the reason is on standard output.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
import time

# ioctl numbers and layouts: Linux include/uapi/linux/kvm.h, x86.
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_RUN = 0xAE80
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_EXIT_HLT = 5
TUNSETIFF = 0x400454CA
IFF_TAP_NO_PI = 0x1002
CLONE_NEWUSER = 0x10000000
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
ROUNDS = 500_000
LOOP = b"\x66\xb9" + struct.pack("<I", ROUNDS) + b"\x66\x49\x75\xfc" + b"\xf4"
"""mov ecx, ROUNDS; dec ecx; jnz -4; hlt"""
EMULATED_SECONDS = 0.5
"""A processor does a round in a nanosecond or two, one that is itself emulated in twenty or so, and KVM's instruction
emulator in two microseconds or more: the loop takes a millisecond, ten, or a second."""


def kvm() -> str | None:
    """Run a short loop in real mode at address 0, see that the guest stops at its HLT, and how long it took.

    A /dev/kvm without virtualization in the processor may still be there: capabilities all shown, a lone HLT executed.
    Other instructions are emulated one by one, or not known, and no kernel gets far that way.
    """
    device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(device, KVM_GET_API_VERSION, 0)
    if version != 12:
        return f"the kernel speaks version {version} of KVM's interface, not 12"
    vm = fcntl.ioctl(device, KVM_CREATE_VM, 0)
    fcntl.ioctl(vm, KVM_SET_TSS_ADDR, 0x40000000)  # Intel processors want three free pages before the first VP
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory[: len(LOOP)] = LOOP
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, KVM_SET_USER_MEMORY_REGION, struct.pack("<IIQQQ", 0, 0, 0, mmap.PAGESIZE, address))
    vcpu = fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
    run = mmap.mmap(vcpu, fcntl.ioctl(device, KVM_GET_VCPU_MMAP_SIZE, 0))
    system = bytearray(0x138)
    fcntl.ioctl(vcpu, KVM_GET_SREGS, system)
    struct.pack_into("<Q4xH", system, 0, 0, 0)  # CS: base and selector 0
    fcntl.ioctl(vcpu, KVM_SET_SREGS, system)
    fcntl.ioctl(vcpu, KVM_SET_REGS, struct.pack("<16Q2Q", *[0] * 16, 0, 2))  # RIP 0, RFLAGS bit 1 is always set
    started = time.perf_counter()
    fcntl.ioctl(vcpu, KVM_RUN, 0)
    spent = time.perf_counter() - started
    (reason,) = struct.unpack_from("<I", run, 8)
    bare = no_virtualization()
    if reason != KVM_EXIT_HLT:
        kind = "emulation only" if bare else "it does not work"
        return f"{kind}: a guest of four instructions left with exit reason {reason}, not {KVM_EXIT_HLT} (HLT){bare}"
    if spent > EMULATED_SECONDS:
        return f"emulation only: {spent / ROUNDS * 1e9:.0f} ns for each round of a loop that takes 1 to 20{bare}"
    return None


def no_virtualization() -> str:
    """What the processor's flags say about it, as words to add; nothing where they cannot be read."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:
            flags = next((line.split() for line in info if line.startswith("flags")), None)
    except OSError:
        return ""
    return "" if flags is None or {"vmx", "svm"} & set(flags) else "; the processor shows neither vmx nor svm"


def tap() -> str | None:
    """Make a TAP interface; it vanishes with its descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"partita%d", IFF_TAP_NO_PI))
    return None


def user_namespace() -> str | None:
    """Enter a new user namespace."""
    return _libc_call("unshare", CLONE_NEWUSER, fine=0)


def seccomp() -> str | None:
    """Offer a filter at address 0: a kernel with filters answers EFAULT, one without them EINVAL."""
    return _libc_call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0, 0, 0, fine=errno.EFAULT)


def _libc_call(name: str, *arguments: int, fine: int) -> str | None:
    libc = ctypes.CDLL(None, use_errno=True)
    result = getattr(libc, name)(*(ctypes.c_ulong(argument) for argument in arguments))
    code = ctypes.get_errno() if result else 0
    return None if code == fine else f"{name}: {os.strerror(code)}"


PROBES = {"kvm": kvm, "tap": tap, "user_namespace": user_namespace, "seccomp": seccomp}

if __name__ == "__main__":
    try:
        wrong = PROBES[sys.argv[1]]()
    except OSError as failure:
        wrong = f"{failure.filename}: {failure.strerror}" if failure.filename else str(failure.strerror)
    if wrong:
        print(wrong)
        sys.exit(1)
