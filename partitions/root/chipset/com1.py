"""COM1: as much of a 16550 as an operating system's console driver asks for. Root side.

Output is never slow here, so the transmitter is always empty and there is no FIFO to model; nothing is received.
Drivers probe the scratch register, the FIFO bits of IIR and the loopback of MCR, so these work. Interrupts are not
raised: with IER's THRE interrupt enabled, IIR says "transmitter empty" once, which is enough for a polling console.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from partitions.ports import COM1, LINE_STATUS_IDLE

# Offsets from the base; the first two are the divisor while LCR has DLAB.
_DATA, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCRATCH = range(8)
_DLAB: Final = 0x80
_LOOPBACK: Final = 0x10
_IIR_NONE: Final = 0x01
_IIR_TRANSMITTER_EMPTY: Final = 0x02
_IIR_FIFOS: Final = 0xC0
_MSR_READY: Final = 0xB0
"""Carrier, data set ready, clear to send: somebody listens."""
_DIVISOR_115200: Final = 1


class Com1:
    """The serial port at 0x3F8; `transmit` gets each byte."""

    ports = range(COM1, COM1 + 8)
    width = 1

    def __init__(self, transmit: Callable[[int], None]) -> None:
        self._transmit = transmit
        self.reset()

    def reset(self) -> None:
        """Power-on values, the divisor at 115200 baud."""
        self._divisor = _DIVISOR_115200
        self._ier = self._lcr = self._mcr = self._scratch = 0
        self._fifos = False
        self._transmitter_interrupt = False
        self._looped: int | None = None

    def write(self, port: int, size: int, value: int) -> None:
        """OUT to a register."""
        match port - COM1:
            case 0:
                if self._lcr & _DLAB:
                    self._divisor = self._divisor & 0xFF00 | value
                elif self._mcr & _LOOPBACK:
                    self._looped = value
                else:
                    self._transmit(value)
                    self._transmitter_interrupt = True
            case 1:
                if self._lcr & _DLAB:
                    self._divisor = self._divisor & 0x00FF | value << 8
                else:
                    self._transmitter_interrupt |= bool(value & ~self._ier & 0x02)
                    self._ier = value & 0x0F
            case 2:
                self._fifos = bool(value & 0x01)
            case 3:
                self._lcr = value
            case 4:
                self._mcr = value & 0x1F
                if not value & _LOOPBACK:
                    self._looped = None
            case 7:
                self._scratch = value
            case _:
                pass  # LSR and MSR are read-only

    def read(self, port: int, size: int) -> int:
        """IN from a register."""
        match port - COM1:
            case 0:
                if self._lcr & _DLAB:
                    return self._divisor & 0xFF
                looped, self._looped = self._looped, None
                return looped or 0
            case 1:
                return self._divisor >> 8 if self._lcr & _DLAB else self._ier
            case 2:
                cause = _IIR_NONE
                if self._transmitter_interrupt and self._ier & 0x02:
                    self._transmitter_interrupt = False
                    cause = _IIR_TRANSMITTER_EMPTY
                return cause | (_IIR_FIFOS if self._fifos else 0)
            case 3:
                return self._lcr
            case 4:
                return self._mcr
            case 5:
                return LINE_STATUS_IDLE | (self._looped is not None)
            case 6:
                if not self._mcr & _LOOPBACK:
                    return _MSR_READY
                # Looped back: DTR->DSR, RTS->CTS, OUT1->RI, OUT2->DCD; Linux's autoconfig checks this.
                mcr = self._mcr
                return (mcr & 0x01) << 5 | (mcr & 0x02) << 3 | (mcr & 0x04) << 4 | (mcr & 0x08) << 4
            case _:
                return self._scratch
