"""The power ports: power off, reset, the power button and the exit code. Root side."""

from __future__ import annotations

from collections.abc import Callable

from partitions import ports


class PowerControl:
    """0x604: soft off, and the power button's status bit."""

    ports = range(ports.POWER, ports.POWER + 2)
    width = 2

    def __init__(self, power_off: Callable[[], None]) -> None:
        self._power_off = power_off
        self.button = False

    def press_button(self) -> None:
        """Sets the status bit; whoever presses raises the interrupt."""
        self.button = True

    def read(self, port: int, size: int) -> int:
        """IN: the button's bit and zeros."""
        register = ports.POWER_BUTTON if self.button else 0
        return register >> 8 * (port - ports.POWER)

    def write(self, port: int, size: int, value: int) -> None:
        """OUT: acknowledge the button, power off."""
        value <<= 8 * (port - ports.POWER)
        if value & ports.POWER_BUTTON:
            self.button = False
        if value & ports.POWER_OFF:
            self._power_off()

    def reset(self) -> None:
        """Nobody has pressed."""
        self.button = False


class ResetControl:
    """0xCF9: bit 2 resets the VM."""

    ports = range(ports.RESET, ports.RESET + 1)
    width = 1

    def __init__(self, request_reset: Callable[[], None]) -> None:
        self._request_reset = request_reset
        self._value = 0

    def read(self, port: int, size: int) -> int:
        """IN: what was written, without the trigger."""
        return self._value

    def write(self, port: int, size: int, value: int) -> None:
        """OUT: kinds of reset are all one here."""
        self._value = value & ~ports.RESET_TRIGGER
        if value & ports.RESET_TRIGGER:
            self._request_reset()

    def reset(self) -> None:
        """Power-on value."""
        self._value = 0


class ExitCode:
    """0x0E8: how the guest's program ended, told before power off."""

    ports = range(ports.EXIT_CODE, ports.EXIT_CODE + 4)
    width = 4

    def __init__(self) -> None:
        self.value: int | None = None
        """None until the guest has told."""

    def read(self, port: int, size: int) -> int:
        """IN: write-only, zeros."""
        return 0

    def write(self, port: int, size: int, value: int) -> None:
        """OUT at the first port sets the code; further ports alone mean nothing."""
        if port == ports.EXIT_CODE:
            self.value = value

    def reset(self) -> None:
        """Not told."""
        self.value = None
