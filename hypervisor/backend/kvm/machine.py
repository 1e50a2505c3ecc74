"""One VM of KVM: memory slots, interrupt controllers, CPUID, the MSR filter, doorbells. Hypervisor.

Some machines have a /dev/kvm behind which nothing but an instruction emulator works: all capabilities are there, a few
instructions run, and a kernel stops at the first one that the emulator does not know. The processor's flags tell: with
neither `vmx` nor `svm` in /proc/cpuinfo there is no hardware for KVM to use. `ANYWAY` tries it all the same.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hypervisor.backend.kvm import ioctls
from hypervisor.backend.kvm.ioctls import Capability, KvmError, Request

NEEDED = {
    Capability.USER_MEMORY: "guest memory from this process",
    Capability.IRQCHIP: "interrupt controllers in the kernel",
    Capability.IOEVENTFD: "doorbells without an exit",
    Capability.SIGNAL_MSI: "interrupts by vector",
    Capability.X86_USER_SPACE_MSR: "synthetic MSRs in this process",
    Capability.X86_MSR_FILTER: "synthetic MSRs kept from KVM's own Hyper-V emulation",
}
SYNTHETIC_MSRS = 0x4000_0000
SYNTHETIC_MSR_COUNT = 0x1000
TSS_GPA = 0xFFFB_D000
IDENTITY_MAP_GPA = 0xFFFB_C000
LOCAL_APIC_MSI = 0xFEE0_0000
API_VERSION = 12
"""The only one there has been since 2007."""

DEVICE = "/dev/kvm"
CPU_INFO = Path("/proc/cpuinfo")
ANYWAY = "PARTITA_KVM_ANYWAY"
"""Environment variable: 1 uses a KVM without hardware behind it."""


def has_hardware() -> bool:
    """Whether the processor has virtualization for KVM to use; true where that cannot be found out."""
    try:
        text = CPU_INFO.read_text()
    except OSError:
        return True
    flags = [line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith("flags")]
    return not flags or "vmx" in flags[0] or "svm" in flags[0]


def check_kvm() -> None:
    """Raise `KvmError`, with the remedy, where a kernel cannot be run; costs a millisecond."""
    fd = open_kvm()
    os.close(fd)
    if not has_hardware() and os.environ.get(ANYWAY) != "1":
        raise KvmError(
            f"{DEVICE} is there, but the processor shows neither vmx nor svm: this KVM only emulates, and a kernel "
            "does not get far on it. Turn on (nested) virtualization for this machine; "
            f"{ANYWAY}=1 tries it all the same"
        )


def open_kvm() -> int:
    """A descriptor of /dev/kvm that has all we need. Raises `KvmError` with the remedy."""
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise KvmError(
            f"there is no {DEVICE}: load kvm-intel or kvm-amd, or turn on virtualization in the firmware"
        ) from None
    except PermissionError:
        raise KvmError(f"no permission for {DEVICE}: join the group kvm, or run as root") from None
    except OSError as error:
        raise KvmError(f"{DEVICE}: {error.strerror}") from error
    try:
        try:
            version = ioctls.ioctl(fd, Request.GET_API_VERSION)
        except OSError as error:
            raise KvmError(f"{DEVICE} does not answer as KVM does: {error.strerror}") from error
        if version != API_VERSION:
            raise KvmError(f"{DEVICE} speaks version {version} of KVM's interface, not {API_VERSION}")
        for capability, purpose in NEEDED.items():
            if ioctls.ioctl(fd, Request.CHECK_EXTENSION, int(capability)) == 0:
                raise KvmError(f"this KVM lacks KVM_CAP_{capability.name} ({purpose}): a newer kernel has it")
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Place(NamedTuple):
    """A run of guest memory."""

    gpa: int
    length: int
    address: int
    """Of the host's."""


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class KvmMachine:
    """One VM of KVM. Close it after its vCPUs."""

    def __init__(self) -> None:
        self.kvm_fd = open_kvm()
        self.fd = -1
        try:
            self.fd = ioctls.ioctl(self.kvm_fd, Request.CREATE_VM, 0)
            ioctls.ioctl(self.fd, Request.SET_TSS_ADDR, TSS_GPA)
            ioctls.ioctl(self.fd, Request.SET_IDENTITY_MAP_ADDR, bytearray(struct.pack("<Q", IDENTITY_MAP_GPA)))
            ioctls.ioctl(self.fd, Request.CREATE_IRQCHIP)
            self._take_synthetic_msrs()
        except BaseException:
            self.close()
            raise
        self.run_size = ioctls.ioctl(self.kvm_fd, Request.GET_VCPU_MMAP_SIZE)
        page = ioctls.ioctl(self.kvm_fd, Request.CHECK_EXTENSION, Capability.COALESCED_MMIO)
        self.posted_offset = page * mmap.PAGESIZE
        """Where in a vCPU's mapping the ring of posted writes lies; 0 where there is none."""
        self._slots: dict[_Place, tuple[int, memoryview]] = {}
        """By place, the number of KVM's slot, and what keeps the memory there alive."""
        self._interrupts: dict[int, bytes] = {}

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in (self.fd, self.kvm_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.kvm_fd = -1
        self._slots.clear()

    def show(self, mappings: Sequence[tuple[int, memoryview]]) -> None:
        """Make these (GPA, host memory) all of guest memory, while processors run or before; what stays is not touched.

        Raises OSError where KVM refuses one. The views are kept for as long as KVM has them.
        """
        wanted = {_Place(gpa, len(view), _address(view)): view for gpa, view in mappings}
        for place in self._slots.keys() - wanted.keys():  # first, since slots may not overlap
            self._set_slot(self._slots[place][0], place, 0)
            del self._slots[place]
        taken = {slot for slot, _ in self._slots.values()}
        free = (slot for slot in itertools.count() if slot not in taken)
        for place, view in wanted.items():
            if place not in self._slots:
                slot = next(free)
                self._set_slot(slot, place, place.length)
                self._slots[place] = slot, view

    def _set_slot(self, slot: int, place: _Place, length: int) -> None:
        """A length of 0 takes it away."""
        region = ioctls.MEMORY_REGION.pack(slot, 0, place.gpa, length, place.address)
        ioctls.ioctl(self.fd, Request.SET_USER_MEMORY_REGION, bytearray(region))

    def interrupt(self, apic_id: int, vector: int) -> None:
        """Raise an edge interrupt with this vector at one local APIC."""
        key = apic_id << 8 | vector
        message = self._interrupts.get(key)
        if message is None:
            message = self._interrupts[key] = ioctls.MSI.pack(LOCAL_APIC_MSI | apic_id << 12, 0, vector, 0, 0)
        try:
            fcntl.ioctl(self.fd, Request.SIGNAL_MSI, message)
        except PermissionError:
            pass  # KVM's -1: the guest has turned this local APIC off, so the interrupt is lost, as it would be there

    def set_line(self, line: int, high: bool) -> None:
        """Drive an input of the interrupt controllers: COM1 is on line 4."""
        ioctls.ioctl(self.fd, Request.IRQ_LINE, bytearray(ioctls.IRQ_LEVEL.pack(line, high)))

    def doorbell(self, port: int, value: int, event_fd: int, *, attach: bool) -> None:
        """Count a 4-byte OUT of `value` to `port` on an eventfd, without an exit; or no longer."""
        flags = ioctls.IOEVENTFD_PIO | ioctls.IOEVENTFD_DATAMATCH | (0 if attach else ioctls.IOEVENTFD_DEASSIGN)
        ioctls.ioctl(self.fd, Request.IOEVENTFD, bytearray(ioctls.IOEVENTFD.pack(value, port, 4, event_fd, flags)))

    def post_writes(self, port: int) -> bool:
        """Collect one-byte OUTs to `port` in the ring of posted writes; False where this KVM does not."""
        if not self.posted_offset or not ioctls.ioctl(
            self.kvm_fd, Request.CHECK_EXTENSION, int(Capability.COALESCED_PIO)
        ):
            return False
        ioctls.ioctl(self.fd, Request.REGISTER_COALESCED_MMIO, bytearray(ioctls.COALESCED_ZONE.pack(port, 1, 1)))
        return True

    def supported_cpuid(self) -> list[tuple[int, ...]]:
        """(function, index, flags, eax, ebx, ecx, edx) of what KVM can show, without its own hypervisor leaves."""
        count = 128
        buffer = bytearray(8 + count * ioctls.CPUID_ENTRY.size)
        struct.pack_into("<I", buffer, 0, count)
        ioctls.ioctl(self.kvm_fd, Request.GET_SUPPORTED_CPUID, buffer)
        (found,) = struct.unpack_from("<I", buffer)
        entries = [ioctls.CPUID_ENTRY.unpack_from(buffer, 8 + i * ioctls.CPUID_ENTRY.size) for i in range(found)]
        return [entry for entry in entries if entry[0] >> 8 != 0x400000]

    def _take_synthetic_msrs(self) -> None:
        enable = ioctls.ENABLE_CAP.pack(Capability.X86_USER_SPACE_MSR, 0, ioctls.MSR_EXIT_REASONS, 0, 0, 0)
        ioctls.ioctl(self.fd, Request.ENABLE_CAP, bytearray(enable))
        # struct kvm_msr_filter: default allow; one range, reads and writes, whose bitmap of zeros denies all of it.
        bitmap = bytearray(SYNTHETIC_MSR_COUNT // 8)
        address = ctypes.addressof((ctypes.c_char * len(bitmap)).from_buffer(bitmap))
        ranges = struct.pack("<IIIIQ", 3, SYNTHETIC_MSR_COUNT, SYNTHETIC_MSRS, 0, address)
        ioctls.ioctl(
            self.fd, Request.X86_SET_MSR_FILTER, bytearray(struct.pack("<II", 0, 0) + ranges.ljust(384, b"\0"))
        )
