"""COM1: as much of a 16550 as an operating system's console driver asks for. Root side.

Output is never slow here, so the transmitter is always empty; received bytes wait in a bounded queue. Drivers probe
the scratch register, the FIFO bits of IIR and the loopback of MCR, so these work. The interrupt line follows IER and
the two causes that exist; a driver that never enables it, as a kernel printing its messages, polls LSR.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from partitions.ports import COM1, LINE_STATUS_IDLE
from partitions.root.saving_records import SavedCom1

# Offsets from the base; the first two are the divisor while LCR has DLAB.
_DATA, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCRATCH = range(8)
_DLAB: Final = 0x80
_LOOPBACK: Final = 0x10
_IER_RECEIVED: Final = 0x01
_IER_TRANSMITTER: Final = 0x02
_IIR_NONE: Final = 0x01
_IIR_TRANSMITTER_EMPTY: Final = 0x02
_IIR_RECEIVED: Final = 0x04
_IIR_FIFOS: Final = 0xC0
_FCR_ENABLE: Final = 0x01
_FCR_CLEAR_RECEIVER: Final = 0x02
_LSR_DATA_READY: Final = 0x01
_MSR_READY: Final = 0xB0
"""Carrier, data set ready, clear to send: somebody listens."""
_DIVISOR_115200: Final = 1
RECEIVE_QUEUE: Final = 4096
"""Bytes typed ahead that are kept; a person's paste fits, and the guest decides when it reads."""


def _no_line(high: bool) -> None:
    """A machine whose backend has no interrupt controller for boot devices."""


class Com1:
    """The serial port at 0x3F8; `transmit` gets each byte, `set_line` the level of interrupt line 4."""

    ports = range(COM1, COM1 + 8)
    width = 1

    def __init__(self, transmit: Callable[[int], None], set_line: Callable[[bool], None] = _no_line) -> None:
        self._transmit = transmit
        self.set_line = set_line
        self._received: deque[int] = deque()
        self._high = False
        self.reset()

    def reset(self) -> None:
        """Power-on values, the divisor at 115200 baud."""
        self._divisor = _DIVISOR_115200
        self._ier = self._lcr = self._mcr = self._scratch = 0
        self._fifos = False
        self._transmitter_interrupt = False
        self._received.clear()
        self._update_line()

    def save(self) -> SavedCom1:
        """Registers, and what the guest has not read."""
        return SavedCom1(
            divisor=self._divisor,
            interrupts=self._ier,
            line_control=self._lcr,
            modem_control=self._mcr,
            scratch=self._scratch,
            fifos=self._fifos,
            transmitter_interrupt=self._transmitter_interrupt,
            received=bytes(self._received),
        )

    def load(self, saved: SavedCom1) -> None:
        """Go on as it was saved. Raises ValueError for what no port can be."""
        if not 0 <= saved.divisor < 1 << 16 or len(saved.received) > RECEIVE_QUEUE:
            raise ValueError("a divisor or a queue that cannot be")
        registers = (saved.interrupts, saved.line_control, saved.modem_control, saved.scratch)
        if not all(0 <= value < 256 for value in registers):
            raise ValueError("registers of more than eight bits")
        self._divisor = saved.divisor
        self._ier, self._lcr, self._mcr, self._scratch = registers
        self._fifos, self._transmitter_interrupt = saved.fifos, saved.transmitter_interrupt
        self._received = deque(saved.received)
        self._update_line()

    def receive(self, data: bytes) -> int:
        """Bytes typed by a person; returns how many there was room for."""
        taken = data[: RECEIVE_QUEUE - len(self._received)]
        self._received.extend(taken)
        self._update_line()
        return len(taken)

    def write(self, port: int, size: int, value: int) -> None:
        """OUT to a register."""
        match port - COM1:
            case 0:
                if self._lcr & _DLAB:
                    self._divisor = self._divisor & 0xFF00 | value
                elif self._mcr & _LOOPBACK:
                    self.receive(bytes([value]))
                else:
                    self._transmit(value)
                    self._transmitter_interrupt = True
            case 1:
                if self._lcr & _DLAB:
                    self._divisor = self._divisor & 0x00FF | value << 8
                else:
                    self._transmitter_interrupt |= bool(value & ~self._ier & _IER_TRANSMITTER)
                    self._ier = value & 0x0F
            case 2:
                self._fifos = bool(value & _FCR_ENABLE)
                if value & _FCR_CLEAR_RECEIVER:
                    self._received.clear()
            case 3:
                self._lcr = value
            case 4:
                self._mcr = value & 0x1F
            case 7:
                self._scratch = value
            case _:
                pass  # LSR and MSR are read-only
        self._update_line()

    def read(self, port: int, size: int) -> int:
        """IN from a register."""
        match port - COM1:
            case 0:
                if self._lcr & _DLAB:
                    return self._divisor & 0xFF
                value = self._received.popleft() if self._received else 0
            case 1:
                return self._divisor >> 8 if self._lcr & _DLAB else self._ier
            case 2:
                value = self._cause()
                if value == _IIR_TRANSMITTER_EMPTY:
                    self._transmitter_interrupt = False  # naming this cause ends it
                value |= _IIR_FIFOS if self._fifos else 0
            case 3:
                return self._lcr
            case 4:
                return self._mcr
            case 5:
                return LINE_STATUS_IDLE | (_LSR_DATA_READY if self._received else 0)
            case 6:
                if not self._mcr & _LOOPBACK:
                    return _MSR_READY
                # Looped back: DTR->DSR, RTS->CTS, OUT1->RI, OUT2->DCD; Linux's autoconfig checks this.
                mcr = self._mcr
                return (mcr & 0x01) << 5 | (mcr & 0x02) << 3 | (mcr & 0x04) << 4 | (mcr & 0x08) << 4
            case _:
                return self._scratch
        self._update_line()
        return value

    def _cause(self) -> int:
        """The most urgent enabled cause, as IIR codes it."""
        if self._ier & _IER_RECEIVED and self._received:
            return _IIR_RECEIVED
        if self._ier & _IER_TRANSMITTER and self._transmitter_interrupt:
            return _IIR_TRANSMITTER_EMPTY
        return _IIR_NONE

    def _update_line(self) -> None:
        high = self._cause() != _IIR_NONE
        if high != self._high:
            self._high = high
            self.set_line(high)
