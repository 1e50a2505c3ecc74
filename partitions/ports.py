"""I/O ports of the boot devices: the few intercepts that a child has besides hypercalls. Both sides.

    0x3F8..0x3FF  COM1, a 16550: bytes out at the transmit register, line status reads "ready"
    0x604         power: write 2 bytes 0x2000 to power off (ACPI S5); read 2 bytes, bit 8 = the power button was
                  pressed; write 2 bytes with bit 8 set to acknowledge the button
    0xCF9         reset: write 1 byte with bit 2 set (0x06 by custom)
    0x0E8         exit code of the guest's program, 4 bytes, written before power off; a model device, no PC has it

The power button also raises `POWER_BUTTON_VECTOR` in virtual processor 0. A guest that does not react is turned off
after a grace period, as a person would hold the button down.
"""

from __future__ import annotations

from typing import Final

COM1: Final = 0x3F8
"""Base of the first serial port; eight registers of one byte."""
COM1_LINE: Final = 4
"""Its interrupt line, for guests with an interrupt controller that has lines."""
COM1_TRANSMIT: Final = COM1
"""THR: a byte written here is printed."""
COM1_LINE_STATUS: Final = COM1 + 5
"""LSR: reads 0x60, transmitter and holding register empty."""
LINE_STATUS_IDLE: Final = 0x60

POWER: Final = 0x604
"""The control half of ACPI's PM1 block, two bytes; at the number that QEMU's PC made known."""
POWER_OFF: Final = 0x2000
"""Sleep enable (bit 13) with sleep type 0: soft off."""
POWER_BUTTON: Final = 0x0100
"""Bit 8, as in ACPI's power button status: reads 1 from the press until it is acknowledged by writing it back."""
POWER_BUTTON_VECTOR: Final = 0x20
"""Interrupt raised in virtual processor 0 by the power button."""

RESET: Final = 0xCF9
"""The chipset's reset control register, one byte."""
RESET_NOW: Final = 0x06
"""Full reset; bit 2 is the trigger."""
RESET_TRIGGER: Final = 0x04

EXIT_CODE: Final = 0x0E8
"""Four bytes: how the guest's program ended; 0 is success. Read by the host when the guest powers off."""
