"""A guest's interrupt handler in machine code, on a thread of its own: the other half of every race with a real guest.

It runs without the interpreter's lock, so it is truly beside the host, and it clears event flags by one atomic
instruction, as Linux does (vmbus_chan_sched). Host and guest keep to a processor each, else a
scheduler may have them take turns on one. Assembly of `FLAG_CODE`; RDI is the control page, RSI the first flag byte:

    again:  xor eax, eax                        take the interrupt, if there is one
            xchg [rdi], eax
            test eax, eax / jnz awake
            cmp dword [rdi+4], 0 / jne over     told to stop
            pause / jmp again
    awake:  inc qword [rdi+8]                   interrupts taken
            xor ecx, ecx / xor r8d, r8d
    flag:   lock btr [rsi], ecx                 test and clear flag ECX
            jnc next
            inc r8d
            mov rax, [rdi+64+rcx*8]             its work counter, written before the flag
            cmp rax, [rdi+128+rcx*8]
            jne work
            inc qword [rdi+24]                  a flag without news
            jmp next
    work:   inc qword [rdi+32]
            mov [rdi+128+rcx*8], rax            seen so far
    next:   inc ecx / cmp ecx, 8 / jb flag
            test r8d, r8d / jnz again
            inc qword [rdi+16]                  an interrupt without any flag
            jmp again
    over:   ret

`MESSAGE_CODE` is the same loop around a message slot at RSI: it counts a message whose number does not follow the last
one, frees the slot with `xchg`, and then looks at MessagePending, which makes it ask for EOM:

    awake:  inc qword [rdi+8]
            cmp dword [rsi], 0 / je empty       the slot's message type
            mov rax, [rsi+16]                   the number in the payload
            mov rdx, [rdi+32] / inc rdx
            cmp rdx, rax / je good
            inc qword [rdi+24]                  out of order, twice, or lost
    good:   mov [rdi+32], rax
            and eax, 63
    work:   pause / dec eax / jns work          handle it, for a while that changes
            xor eax, eax / xchg [rsi], eax
            test byte [rsi+5], 1 / jz again
            lock inc qword [rdi+40]             EOM, please
            jmp again
    empty:  inc qword [rdi+16]
            jmp again
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Self

import attrs

from hypervisor.blocks import MemoryBlock
from hypervisor.memory import GuestMemory
from hypervisor.overlay import OverlayMap
from hypervisor.pages import PAGE_SIZE, Access
from hypervisor.synic.synic import ENABLED, Message, Synic

WORKS_HERE = sys.platform == "linux" and platform.machine() == "x86_64"
SINT, VECTOR, FLAGS = 2, 0xF3, 8
FLAG_CODE = bytes.fromhex(
    "31c0870785c0750a837f04007549f390ebee48ff470831c94531c0f00fb3"
    "0e732441ffc0488b44cf40483b84cf80000000750648ff4718eb0c48ff47"
    "20488984cf80000000ffc183f90872cf4585c075af48ff4710eba9c3"
)
MESSAGE_CODE = bytes.fromhex(
    "31c0870785c0750a837f04007545f390ebee48ff4708833e007432488b46"
    "10488b572048ffc24839c2740448ff47184889472083e03ff390ffc879fa"
    "31c08706f646050174baf048ff4728ebb348ff4710ebadc3"
)
_IRR, _STOP = 0, 1  # words of four bytes
_TAKEN, _EMPTY, _STALE, _HANDLED, _EOM, _WORK, _SEEN = 1, 2, 3, 4, 5, 8, 16  # words of eight
PATIENCE = 10.0
"""Seconds without a wake-up that mean that it is lost; a busy machine may starve the guest's thread for a while."""


class WakeUpLost(Exception):
    """A flag's work was never seen."""


@attrs.frozen
class FlagOutcome:
    """What a campaign counted."""

    signals: int
    stored: int
    """Flags that were clear and were set."""
    interrupts: int
    """Raised by the host."""
    taken: int
    """By the guest; several that come at once are one, as in a local APIC."""
    handled: int
    """Flags with news."""
    stale: int
    """Flags that a neighbour's store has set again."""
    empty: int
    """Interrupts whose flags an earlier one had seen."""


@attrs.frozen
class MessageOutcome:
    """What a campaign counted."""

    messages: int
    interrupts: int
    taken: int
    misplaced: int
    """Messages whose number did not follow the last one."""
    empty: int
    eoms: int
    """How often MessagePending was found."""


class _Rig:
    """A SynIC whose interrupts a machine-code guest takes."""

    def __init__(self, code: bytes, page: int) -> None:
        """`page` is 1 for event flags, 2 for messages."""
        memory = GuestMemory()
        memory.map_block(0, MemoryBlock.allocate(4 * PAGE_SIZE, "parallel guest"), 0, 4, Access.ALL)
        self._control = mmap.mmap(-1, PAGE_SIZE)
        self._words = memoryview(self._control).cast("I")
        self.quads = memoryview(self._control).cast("Q")
        self.interrupts = 0
        self.synic = Synic(OverlayMap(memory), self._interrupt)
        self.synic.write_scontrol(ENABLED)
        self.synic.write_siefp(1 << 12 | ENABLED)
        self.synic.write_simp(2 << 12 | ENABLED)
        self.synic.sints[SINT] = VECTOR
        self._code = mmap.mmap(-1, PAGE_SIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code[: len(code)] = code
        run = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(_address(self._code))
        shared = _address(memory.view(page * PAGE_SIZE, PAGE_SIZE)) + SINT * 256
        self._processors = sorted(os.sched_getaffinity(0))
        arguments = (run, _address(self._control), shared)
        self._guest = threading.Thread(target=self._main, args=arguments, daemon=True)

    def _main(self, run: Callable[[int, int], None], control: int, shared: int) -> None:
        os.sched_setaffinity(0, self._processors[-1:])  # of this thread only
        run(control, shared)

    def _interrupt(self, vector: int) -> None:
        assert vector == VECTOR
        self.interrupts += 1
        self._words[_IRR] = 1

    def __enter__(self) -> Self:
        os.sched_setaffinity(0, self._processors[:1])
        self._guest.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._words[_STOP] = 1
        self._guest.join()
        os.sched_setaffinity(0, self._processors)


def signal_storm(signals: int, seed: int = 1) -> FlagOutcome:
    """Signal a guest that runs meanwhile, and wait after every burst until it has seen everything.

    Raises `WakeUpLost`. Waiting matters: the next signal would cover a wake-up that was lost, so there must be none.
    """
    bits = random.Random(seed).getrandbits
    stored = 0
    with _Rig(FLAG_CODE, 1) as rig:
        quads, set_flag = rig.quads, rig.synic.set_flag
        for number in range(1, signals + 1):
            dice = bits(8)
            flag = dice & 7
            quads[_WORK + flag] = number
            stored += set_flag(SINT, flag)
            if dice < 8 or number == signals:
                wanted = quads[_WORK : _WORK + FLAGS].tolist()
                _wait(lambda: quads[_SEEN : _SEEN + FLAGS].tolist() == wanted, "a flag's work was never seen")  # noqa: B023
    return FlagOutcome(signals, stored, rig.interrupts, *(quads[at] for at in (_TAKEN, _HANDLED, _STALE, _EMPTY)))


def message_storm(messages: int, seed: int = 1) -> MessageOutcome:
    """Post numbered messages to a guest that runs meanwhile, in bursts that the queue can hold. Raises `WakeUpLost`."""
    bits = random.Random(seed).getrandbits
    eoms = 0
    with _Rig(MESSAGE_CODE, 2) as rig:
        quads, synic = rig.quads, rig.synic

        def all_seen() -> bool:
            nonlocal eoms
            if quads[_EOM] != eoms:
                eoms = quads[_EOM]
                synic.deliver_waiting()
            return quads[_HANDLED] == posted

        posted = 0
        while posted < messages:
            for _ in range(min(bits(2) + 1, messages - posted)):
                posted += 1
                synic.post(SINT, Message(1, posted.to_bytes(8, "little")))
            _wait(all_seen, "a message was never seen")
    return MessageOutcome(messages, rig.interrupts, *(quads[at] for at in (_TAKEN, _STALE, _EMPTY, _EOM)))


def _wait(done: Callable[[], bool], otherwise: str) -> None:
    deadline = None
    while not done():
        if deadline is None:
            deadline = time.monotonic() + PATIENCE
        elif time.monotonic() > deadline:
            raise WakeUpLost(otherwise)
        time.sleep(0)


def _address(buffer: mmap.mmap | memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
