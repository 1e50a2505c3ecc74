"""Guests of a few instructions for a real /dev/kvm, even one that only emulates, and a host that runs them.

Each function gives machine code of a 64-bit guest that starts in long mode with the first 4 GiB mapped to themselves.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

import partitions
from hypervisor.backend.kvm import machine
from hypervisor.backend.kvm.backend import KvmBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.memory import GuestMemory
from partitions import ports
from partitions.host import Host
from partitions.root.chipset import linux_boot
from partitions.topology_controls import CpuTable
from partitions.topology_schema import Backend, HostTable, Size, Topology, VmTable

CODE_GPA = 0x10000
NAME = "tiny"

needs_kvm = pytest.mark.skipif(not os.access(machine.DEVICE, os.R_OK | os.W_OK), reason="no /dev/kvm to be opened")


def out8(port: int, value: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb0" + bytes([value]) + b"\xee"  # mov dx; mov al; out dx, al


def out16(port: int, value: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port) + b"\x66\xb8" + struct.pack("<H", value) + b"\x66\xef"


def out32(port: int, value: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port) + b"\xb8" + struct.pack("<I", value) + b"\xef"


def in8(port: int) -> bytes:
    return b"\x66\xba" + struct.pack("<H", port) + b"\xec"


def say(text: str) -> bytes:
    return b"".join(out8(ports.COM1, byte) for byte in text.encode())


def say_al() -> bytes:
    """Print AL's low digit."""
    return b"\x04\x30\x66\xba" + struct.pack("<H", ports.COM1) + b"\xee"  # add al, '0'; mov dx; out dx, al


def read_msr(msr: int) -> bytes:
    return b"\xb9" + struct.pack("<I", msr) + b"\x0f\x32"


def write_msr(msr: int, value: int) -> bytes:
    low, high = value & 0xFFFFFFFF, value >> 32
    return struct.pack("<BIBIBI", 0xB9, msr, 0xB8, low, 0xBA, high) + b"\x0f\x30"


def repeat(count: int, body: bytes) -> bytes:
    """R15 counts."""
    back = len(body) + 3 + 6
    return b"\x49\xc7\xc7" + struct.pack("<I", count) + body + b"\x49\xff\xcf\x0f\x85" + struct.pack("<i", -back)


def timed(table: int, body: bytes) -> bytes:
    """Append the TSC's ticks for `body` to an array of 32-bit words at `table`; RDI counts them."""
    before = b"\x0f\x31\x89\xc3"  # rdtsc; mov ebx, eax
    after = b"\x0f\x31\x29\xd8\x89\x04\xbd" + struct.pack("<I", table) + b"\xff\xc7"  # rdtsc; sub; mov [rdi*4+t]; inc
    return before + body + after


def call(address: int, *, rcx: int, rdx: int, r8: int) -> bytes:
    """A hypercall: the page at `address`, with the three registers that it takes."""
    values = b"\x48\xb9" + struct.pack("<Q", rcx) + b"\x48\xba" + struct.pack("<Q", rdx)
    return values + b"\x49\xb8" + struct.pack("<Q", r8) + b"\xb8" + struct.pack("<I", address) + b"\xff\xd0"


HALT = b"\xf4\xeb\xfd"
SPIN = b"\xeb\xfe"
POWER_OFF = out16(ports.POWER, ports.POWER_OFF) + HALT
TRIPLE_FAULT = b"\x0f\x01\x1c\x25" + struct.pack("<I", 0x400) + b"\x0f\x0b"  # lidt of zeros; ud2


def backend(hypervisor: Hypervisor, code: bytes) -> KvmBackend:
    """What runs `code` on processor 0."""

    def load(memory: GuestMemory) -> linux_boot.ProcessorStart:
        gdt = struct.pack("<4Q", 0, 0, 0x00AF9B00_0000FFFF, 0x00CF9300_0000FFFF)
        memory.write(linux_boot.GDT_GPA, gdt)
        linux_boot._write_page_tables(memory)
        memory.write(CODE_GPA, code)
        return linux_boot.ProcessorStart(
            CODE_GPA, 0, linux_boot.STACK_GPA, linux_boot.PAGE_TABLES_GPA, linux_boot.GDT_GPA, len(gdt) - 1
        )

    return KvmBackend(hypervisor, load, posted_ports=(ports.COM1_TRANSMIT,))


def host_of(
    codes: Sequence[bytes],
    made: list[KvmBackend] | None = None,
    *,
    cpus: Sequence[CpuTable | None] = (),
    logical_processors: int = 4,
) -> AbstractAsyncContextManager[Host]:
    """A host with VMs tiny0, tiny1 and so on, each running its code; `made` collects the backends.

    `cpus` are their processors' controls.
    """

    def make(hypervisor: Hypervisor, vm: VmTable) -> KvmBackend:
        new = backend(hypervisor, codes[int(vm.name.removeprefix(NAME))])
        if made is not None:
            made.append(new)
        return new

    vms = [
        VmTable(
            name=f"{NAME}{n}",
            backend=Backend.KVM,
            kernel="none",
            memory=Size(16 << 20),
            cpu=cpus[n] if cpus else None,
        )
        for n in range(len(codes))
    ]
    host = HostTable(logical_processors=logical_processors)
    return partitions.open_host(Topology(host=host, vm=vms, folder=Path("/nowhere")), backends=make)
