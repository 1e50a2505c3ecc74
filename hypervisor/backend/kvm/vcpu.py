"""One vCPU: the thread that sits in KVM_RUN, and the hand-over of its exits to the Trio thread. Hypervisor.

All hypervisor and bus state belongs to the Trio thread. What happens often must not be an exit: doorbells leave by
ioeventfd, interrupts enter by KVM_SIGNAL_MSI, HLT stays in the kernel. The rest is handed over, one exit at a time:

    vCPU thread                                   Trio thread
    KVM_RUN returns with an exit
    run_sync_soon(on_exit)            ----->      reads and writes the kvm_run page, reads and sets registers
    waits for `_answered`             <-----      answer(): releases `_answered`
    waits while it is paused
    leaves, if it is to stop; else KVM_RUN

Why no interleaving breaks it:

- The kvm_run page, and ioctls on the vCPU, are the Trio thread's from `run_sync_soon` to `answer`, and the vCPU
  thread's at all other times. Both hand-overs are locks, which order memory. KVM locks a vCPU while it runs, so an
  ioctl at the wrong moment would wait for the guest, for ever if that has nothing to do. Within `outside` it does not:
  the thread waits before KVM_RUN, and not only comes out of it for a moment.
- Pausing and stopping change a flag first and then send `KICK_SIGNAL`. The thread has that signal blocked everywhere
  but inside KVM_RUN (KVM_SET_SIGNAL_MASK), so a kick at any other moment stays pending and makes the next KVM_RUN
  return -EINTR before the guest executes anything. The thread then takes the signal out, and only after that looks at
  the flags. A flag set before it looks is seen; a flag set after comes with a signal of its own. So there is nothing
  to clear after a pause, and the one harmless surprise is an -EINTR too many.
- Two may want the thread out of KVM_RUN: the root (`pause`) and the scheduler (`hold`, see `gating`). Each has a
  flag of its own, and the thread goes back only when neither is set; the Trio thread alone sets and clears them.
- KVM finishes the last exit (the value of an IN, the end of a WRMSR) at the start of the next KVM_RUN, kicked or not.
  An exit that is never run again, as after a reset, is never finished, and none is finished twice.
- Paused while an exit is on its way: it is answered as ever, and the thread waits after the answer.
- Stopping releases `_answered` in the exit's stead, so the thread never waits for a Trio thread that waits for it;
  three cases. It waits for an answer: it gets this one. It has been answered and not yet awoken: the lock is open and
  left so. It runs: the kick brings it back, and if it had an exit at that moment, it finds the lock open. Its call of
  `on_exit` may not have run by then: `on_exit` asks `stopping` first and touches nothing. It does come before
  `ended`, because Trio runs such calls in order, and the vCPU is closed after `ended` only.
- Trio is over (it crashed, or nobody stopped this vCPU): `run_sync_soon` raises, and the thread leaves.
- Signals for people (SIGINT) may land in this thread: KVM_RUN returns -EINTR, Python notes the signal for its main
  thread, and the guest goes on.

Latency. The thread needs the interpreter lock twice an exit: after KVM_RUN, and after the answer. Beside Python code
that does not let go, each of them takes a whole switch interval, 5 ms by default; `switching.py` has the figures.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import clock_gettime_ns, perf_counter_ns, pthread_getcpuclockid
from typing import TYPE_CHECKING

import trio

from hypervisor.backend.kvm import ioctls
from hypervisor.backend.kvm.ioctls import Exit, Request
from hypervisor.inspect import Branch, Log2Counts, counters

if TYPE_CHECKING:
    from hypervisor.backend.kvm.backend import GuestStart

KICK_SIGNAL = signal.SIGRTMIN + 3
"""Interrupts KVM_RUN. It is never delivered, so it needs no handler and disturbs nobody's."""
LATENCIES_KEPT = 4096

_EXIT_REASON = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_ONE_MSR = struct.Struct("<IIIIQ")
"""struct kvm_msrs with one entry: count, pad, index, reserved, data."""
_SIGNAL_MASK = struct.Struct("<IQ")
"""struct kvm_signal_mask: the size of a set, and the set."""
_KVM_RUN = f" {Request.RUN:#x} ".encode()
"""The second argument of an ioctl, as /proc shows it."""
_IA32_TSC = 0x10
_CR0 = 0x8005_0033
"""PG, AM, WP, NE, ET, MP, PE."""
_CR4_PAE = 1 << 5
_EFER_LONG_MODE = 1 << 8 | 1 << 10


class Vcpu:
    """A vCPU of KVM and its thread. Everything but `_thread_main` runs on the Trio thread."""

    def __init__(self, vm_fd: int, index: int, run_size: int, on_exit: Callable[[Vcpu], None]) -> None:
        """`on_exit` is called in the Trio thread; it must not raise, and `answer` unless the vCPU is `stopping`."""
        self.index = index
        self.fd = ioctls.ioctl(vm_fd, Request.CREATE_VCPU, index)
        try:
            self.run = mmap.mmap(self.fd, run_size)
        except BaseException:
            os.close(self.fd)
            raise
        self.exits: Counter[str] = Counter()
        """Exits to user space, by reason."""
        self.latencies: deque[int] = deque(maxlen=LATENCIES_KEPT)
        """Nanoseconds that the last exits took, from when the thread had the interpreter to its next KVM_RUN."""
        self.ended = trio.Event()
        self.error = 0
        """The errno with which KVM_RUN failed, 0 while it does not."""
        self.handed_over = False
        """True while the Trio thread deals with an exit."""
        self.paused = False
        self.held = False
        """The scheduler keeps it out of KVM_RUN."""
        self.kicks = 0
        """How often the scheduler has brought it out."""
        self.stopping = False
        self._on_exit = on_exit
        self._answered = threading.Lock()
        self._answered.acquire()
        self._resumed = threading.Event()
        self._resumed.set()
        self._run_time = 0
        self._syscall_fd = -1
        self._thread: threading.Thread | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    def start(self) -> None:
        """Start the thread; `ended` is set after it has left."""
        ioctls.ioctl(self.fd, Request.SET_SIGNAL_MASK, bytearray(_SIGNAL_MASK.pack(8, 0)))
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._thread_main, name=f"vcpu {self.index}", daemon=True)
        # A thread begins with its parent's mask: there is no moment at which a kick would end the process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (KICK_SIGNAL,))
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def inspect(self) -> Branch:
        """What its thread is at, and the exits that it made."""
        return Branch(
            {
                "kind": "kvm",
                "thread_runs": self._thread is not None and not self.ended.is_set(),
                "paused": self.paused,
                "held": self.held,
                "kicks": self.kicks,
                "exit_handed_over": self.handed_over,
                "stopping": self.stopping,
                "errno": self.error,
                "exits": lambda: counters(self.exits),
                "exit_latency": self._exit_latency,
            }
        )

    def _exit_latency(self) -> Branch:
        counts = Log2Counts()
        for nanoseconds in list(self.latencies):
            counts.add(nanoseconds // 1000)
        return Branch({"last_exits": len(self.latencies), "took": counts.histogram("us")})

    def pause(self, paused: bool) -> None:
        """Keep the thread out of KVM_RUN, or let it in again. It leaves soon after, not before this returns."""
        self.paused = paused
        if paused:
            self._resumed.clear()
            self.kick()
        else:
            self._let_in()

    def hold(self, held: bool) -> None:
        """As `pause`, on the scheduler's word; a thread that is held and paused runs when it is neither."""
        if held == self.held:
            return
        self.held = held
        if held:
            self.kicks += 1
            self._resumed.clear()
            self.kick()
        else:
            self._let_in()

    def _let_in(self) -> None:
        if not self.paused and not self.held:
            self._resumed.set()

    def ask_to_stop(self) -> None:
        """Make the thread leave for good; harmless when repeated."""
        if self.stopping:
            return
        self.stopping = True
        self._resumed.set()
        if self._answered.locked():
            self._answered.release()
        self.kick()

    async def ended_or_never_started(self) -> None:
        """Wait for the thread's end, after `ask_to_stop`."""
        if self._thread is not None:
            await self.ended.wait()
            self._thread.join()

    def close(self) -> None:
        """Give KVM's descriptor and page back, once the thread has ended."""
        if self._syscall_fd >= 0:
            os.close(self._syscall_fd)
            self._syscall_fd = -1
        self.run.close()
        os.close(self.fd)

    def kick(self) -> None:
        """Bring the thread out of KVM_RUN, if only for a moment."""
        thread = self._thread
        if thread is not None and thread.ident is not None and thread.is_alive():
            signal.pthread_kill(thread.ident, KICK_SIGNAL)

    def answer(self) -> None:
        """The exit has been dealt with; the thread goes on."""
        self.handed_over = False
        if not self.stopping:
            self._answered.release()

    def cpu_time(self) -> int:
        """Nanoseconds of CPU time that the thread has taken: the guest's, and what KVM and we did for it."""
        thread = self._thread
        # The thread cannot end while we hold the interpreter, so what is alive here has a clock.
        if thread is not None and thread.ident is not None and thread.is_alive():
            self._run_time = clock_gettime_ns(pthread_getcpuclockid(thread.ident))
        return self._run_time

    def run_time(self) -> int:
        """The same in 100 ns units."""
        return self.cpu_time() // 100

    def sleeps(self) -> bool:
        """Whether the thread sleeps inside KVM_RUN: its guest has halted, or waits to be started.

        Source: Linux Documentation/filesystems/proc.rst, /proc/PID/syscall: the word "running", or the number and the
        arguments of the system call in which the thread is blocked. A thread that waits for the interpreter or for one
        of our locks is blocked in another call, and one that the host has taken the processor from is "running".
        """
        thread = self._thread
        if thread is None or not thread.is_alive():
            return True
        if self._syscall_fd < 0:
            path = f"/proc/self/task/{thread.native_id}/syscall"
            self._syscall_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return _KVM_RUN in os.pread(self._syscall_fd, 64, 0)

    # --- what the Trio thread does with a vCPU that waits for it, is `outside`, or has not started

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

    def special_registers(self) -> bytearray:
        """struct kvm_sregs."""
        buffer = bytearray(ioctls.SREGS_SIZE)
        ioctls.ioctl(self.fd, Request.GET_SREGS, buffer)
        return buffer

    def set_special_registers(self, special: bytearray) -> None:
        """All of struct kvm_sregs."""
        ioctls.ioctl(self.fd, Request.SET_SREGS, special)

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Keep the thread out of KVM_RUN as long as the block lasts; ioctls in it wait for a moment at most."""
        if self.handed_over or self.paused or self.held:
            yield
            return
        self._resumed.clear()
        self.kick()
        try:
            yield
        finally:
            self._let_in()

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
        with self.outside():
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
        return not self.stopping

    def _thread_main(self) -> None:
        token = self._token
        assert token is not None
        try:
            self._run_until_stopped(token)
        except trio.RunFinishedError:
            return  # nobody is left to hand anything to
        except BaseException:
            # A bug of ours: Python prints it, and the guest ends as if KVM had failed.
            self.error = errno.EFAULT
            self._hand_over(token)
            raise
        finally:
            try:
                token.run_sync_soon(self.ended.set)
            except trio.RunFinishedError:
                pass

    def _run_until_stopped(self, token: trio.lowlevel.TrioToken) -> None:
        run, answered, latencies = self.run, self._answered, self.latencies
        while self._may_run():
            result = ioctls.run(self.fd)
            if result in (-errno.EINTR, -errno.EAGAIN):
                while signal.sigtimedwait((KICK_SIGNAL,), 0) is not None:
                    pass
                continue
            if result < 0:
                self.error = -result
            elif _EXIT_REASON.unpack_from(run, ioctls.RUN_EXIT_REASON)[0] == Exit.INTR:
                continue
            began = perf_counter_ns()
            self._hand_over(token)
            answered.acquire()
            latencies.append(perf_counter_ns() - began)

    def _hand_over(self, token: trio.lowlevel.TrioToken) -> None:
        self.handed_over = True
        token.run_sync_soon(self._on_exit, self)
