"""The guest's console: text as bytes to the first serial port. Child side.

Nothing is buffered here: when `print` returns, the last byte has left through the port.
"""

from __future__ import annotations

import builtins
import sys
from typing import Any

from hypervisor.machine import Machine
from partitions.ports import COM1_LINE_STATUS, COM1_TRANSMIT

TRANSMIT_EMPTY = 0x20
"""Line status: the transmit holding register takes bytes."""
FIFO_BYTES = 16
"""What a 16550A takes after one look at its line status."""
_PATIENCE = 1000
"""Looks at a busy port before the rest of a line is dropped, so that a stuck host cannot hang a guest's print."""


class Console:
    """Writes to COM1 of virtual processor 0, the way a driver for the 16550A does."""

    __slots__ = ("_machine", "bytes_dropped")

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.bytes_dropped = 0
        """Bytes given up because the port stayed busy."""

    def write(self, text: str) -> None:
        """Send text as UTF-8; what UTF-8 cannot express is sent as backslash escapes."""
        data = text.encode("utf-8", "backslashreplace")
        put = self._machine.port_out
        for start in range(0, len(data), FIFO_BYTES):
            if not self._ready():
                self.bytes_dropped += len(data) - start
                return
            for byte in data[start : start + FIFO_BYTES]:
                put(COM1_TRANSMIT, 1, byte)

    def print(
        self, *values: object, sep: str | None = " ", end: str | None = "\n", file: Any = None, flush: bool = False
    ) -> None:
        """Python's `print` for guest programs; the host's standard streams are not theirs and mean the console too."""
        if file is not None and file not in (sys.stdout, sys.stderr):
            builtins.print(*values, sep=sep, end=end, file=file, flush=flush)
            return
        line = (" " if sep is None else sep).join(map(str, values))
        self.write(line + ("\n" if end is None else end))

    def _ready(self) -> bool:
        look = self._machine.port_in
        return any(look(COM1_LINE_STATUS, 1) & TRANSMIT_EMPTY for _ in range(_PATIENCE))
