"""One vCPU: the thread that sits in KVM_RUN, and the hand-over of its exits to the Trio thread. Hypervisor.

Concurrency: all hypervisor and bus state belongs to the Trio thread. The vCPU thread touches nothing but its own
kvm_run page and two locks. An exit is handed over by `run_sync_soon` and waited for; the Trio thread answers it through
the kvm_run page and releases the lock. So at any moment at most one of the two uses the page. What happens often must
not be an exit: doorbells leave by ioeventfd, interrupts enter by KVM_SIGNAL_MSI, HLT stays in the kernel.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from hypervisor.backend.kvm import ioctls
from hypervisor.backend.kvm.ioctls import Exit, Request

if TYPE_CHECKING:
    from hypervisor.backend.kvm.backend import GuestStart

KICK_SIGNAL = signal.SIGRTMIN + 3
"""Interrupts KVM_RUN; its handler does nothing, the system call's EINTR is the effect."""

_EXIT_REASON = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ONE_MSR = struct.Struct("<IIIIQ")
"""struct kvm_msrs with one entry: count, pad, index, reserved, data."""
_IA32_TSC = 0x10
_CR0 = 0x8005_0033
"""PG, AM, WP, NE, ET, MP, PE."""
_CR4_PAE = 1 << 5
_EFER_LONG_MODE = 1 << 8 | 1 << 10


class Vcpu:
    """A vCPU of KVM and its thread. Everything but `_thread_main` runs on the Trio thread."""

    def __init__(self, vm_fd: int, index: int, run_size: int, on_exit: Callable[[Vcpu], None]) -> None:
        self.index = index
        self.fd = ioctls.ioctl(vm_fd, Request.CREATE_VCPU, index)
        self.run = mmap.mmap(self.fd, run_size)
        self.exits: Counter[str] = Counter()
        """Exits to user space, by reason."""
        self.ended = trio.Event()
        self.error = 0
        """The errno with which KVM_RUN failed, 0 while it does not."""
        self._on_exit = on_exit
        self._answered = threading.Lock()
        self._answered.acquire()
        self._stopping = False
        self._paused = False
        self._resumed = threading.Event()
        self._resumed.set()
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def start(self) -> None:
        """Start the thread; `ended` is set after it has left."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._thread_main, name=f"vcpu {self.index}", daemon=True)
        self._thread.start()

    def pause(self, paused: bool) -> None:
        """Keep the thread out of KVM_RUN, or let it in again."""
        self._paused = paused
        if paused:
            self._resumed.clear()
            self._kick()
        else:
            self.run[ioctls.RUN_IMMEDIATE_EXIT] = 0
            self._resumed.set()

    async def stop(self) -> None:
        """Make the thread leave and wait for it; then KVM's descriptor and page are given back."""
        self._stopping = True
        if self._thread is not None:
            self._kick()
            self._resumed.set()
            if self._answered.locked():
                self._answered.release()
            with trio.CancelScope(shield=True):
                await self.ended.wait()
            self._thread.join()
        self.run.close()
        os.close(self.fd)

    def _kick(self) -> None:
        # immediate_exit covers the moment before KVM_RUN is entered, the signal the time after.
        self.run[ioctls.RUN_IMMEDIATE_EXIT] = 1
        thread = self._thread
        if thread is not None and thread.ident is not None and thread.is_alive():
            signal.pthread_kill(thread.ident, KICK_SIGNAL)

    def answer(self) -> None:
        """The exit has been dealt with; the thread goes on."""
        if not self._stopping:
            self._answered.release()

    # --- what the Trio thread does with a vCPU that waits for it, or has not started

    def exit_reason(self) -> Exit:
        """Why KVM_RUN came back."""
        try:
            return Exit(_EXIT_REASON.unpack_from(self.run, ioctls.RUN_EXIT_REASON)[0])
        except ValueError:
            return Exit.UNKNOWN

    def failure(self) -> str:
        """The numbers that go with FAIL_ENTRY and INTERNAL_ERROR."""
        return f"{self.exit_reason().name} {self.run[ioctls.RUN_EXIT : ioctls.RUN_EXIT + 16].hex()}"

    def registers(self) -> list[int]:
        """RAX, RBX and so on; `ioctls` has the positions."""
        buffer = bytearray(ioctls.REGISTERS.size)
        ioctls.ioctl(self.fd, Request.GET_REGS, buffer)
        return list(ioctls.REGISTERS.unpack(buffer))

    def set_registers(self, registers: list[int]) -> None:
        """All general registers."""
        ioctls.ioctl(self.fd, Request.SET_REGS, bytearray(ioctls.REGISTERS.pack(*registers)))

    def answer_msr(self, value: int) -> None:
        """The value that RDMSR returns."""
        _U64.pack_into(self.run, ioctls.RUN_EXIT + ioctls.MSR_DATA, value & (1 << 64) - 1)
        self.run[ioctls.RUN_EXIT] = 0

    def refuse_msr(self) -> None:
        """#GP for RDMSR or WRMSR."""
        self.run[ioctls.RUN_EXIT] = 1

    def answer_mmio(self) -> None:
        """All ones to a read."""
        _, _, length, is_write = ioctls.MMIO_EXIT.unpack_from(self.run, ioctls.RUN_EXIT)
        if not is_write:
            start = ioctls.RUN_EXIT + 8
            self.run[start : start + length] = b"\xff" * length

    def tsc_khz(self) -> int:
        """How fast the guest's TSC counts."""
        return ioctls.ioctl(self.fd, Request.GET_TSC_KHZ)

    def read_tsc(self) -> int:
        """The guest's TSC now."""
        buffer = bytearray(_ONE_MSR.pack(1, 0, _IA32_TSC, 0, 0))
        ioctls.ioctl(self.fd, Request.GET_MSRS, buffer)
        return int(_ONE_MSR.unpack(buffer)[4])

    def set_cpuid(self, entries: bytes) -> None:
        """struct kvm_cpuid2."""
        ioctls.ioctl(self.fd, Request.SET_CPUID2, bytearray(entries))

    def set_start(self, start: GuestStart) -> None:
        """Long mode with paging, flat segments, and the registers of Linux's 64-bit boot protocol."""
        special = bytearray(ioctls.SREGS_SIZE)
        ioctls.ioctl(self.fd, Request.GET_SREGS, special)
        code = ioctls.SEGMENT.pack(0, 0xFFFFFFFF, 0x10, 0xB, 1, 0, 0, 1, 1, 1, 0, 0, 0)
        data = ioctls.SEGMENT.pack(0, 0xFFFFFFFF, 0x18, 0x3, 1, 0, 1, 1, 0, 1, 0, 0, 0)
        special[: 6 * len(code)] = code + 5 * data  # cs, ds, es, fs, gs, ss
        struct.pack_into("<QH", special, ioctls.SREGS_GDT, start.gdt, start.gdt_limit)
        struct.pack_into("<6Q", special, ioctls.SREGS_CR0, _CR0, 0, start.page_table, _CR4_PAE, 0, _EFER_LONG_MODE)
        ioctls.ioctl(self.fd, Request.SET_SREGS, special)
        registers = [0] * 18
        registers[ioctls.RSI] = start.zero_page
        registers[ioctls.RSP] = start.stack
        registers[ioctls.RIP] = start.entry
        registers[ioctls.RFLAGS] = 1 << 1  # the bit that is always one; interrupts off
        self.set_registers(registers)

    # --- the vCPU thread

    def _may_run(self) -> bool:
        self._resumed.wait()
        return not self._stopping

    def _thread_main(self) -> None:
        token, run = self._token, self.run
        assert token is not None
        try:
            while self._may_run():
                result = ioctls.run(self.fd)
                if result in (-errno.EINTR, -errno.EAGAIN):
                    continue
                if result < 0:
                    self.error = -result
                elif _EXIT_REASON.unpack_from(run, ioctls.RUN_EXIT_REASON)[0] == Exit.INTR:
                    continue
                token.run_sync_soon(self._on_exit, self)
                self._answered.acquire()
        finally:
            try:
                token.run_sync_soon(self.ended.set)
            except trio.RunFinishedError:
                pass
