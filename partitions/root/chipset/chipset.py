"""The sink of a VM's port intercepts: which device has which port. Root side.

Ports and values come from the guest. A port that nobody has reads all ones and swallows writes, as on a PC's bus; an
access wider than a device's registers is split into bytes for consecutive ports.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from hypervisor.trace import Layer, Trace


class PortDevice(Protocol):
    """A device on the port bus. `port` is always one of `ports`, `value` fits `size` bytes."""

    @property
    def ports(self) -> range:
        """The ports it answers at."""

    @property
    def width(self) -> int:
        """Bytes of its registers: 1, 2 or 4. Wider accesses are split; narrower ones are passed on as they are."""

    def read(self, port: int, size: int) -> int:
        """IN; any value is masked to `size`."""

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""

    def reset(self) -> None:
        """Back to power-on values."""


class Chipset:
    """Implements the hypervisor's `InterceptSink` for one VM."""

    def __init__(self, devices: Iterable[PortDevice], trace: Trace, partition_id: int) -> None:
        self._devices = tuple(devices)
        self._trace = trace
        self._partition_id = partition_id
        self._at: dict[int, PortDevice] = {}
        for device in self._devices:
            for port in device.ports:
                assert port not in self._at, f"port {port:#x} has two devices"
                self._at[port] = device

    def port_read(self, vp_index: int, port: int, size: int) -> int:
        """What the guest's IN sees."""
        device = self._at.get(port)
        if device is None:
            self._trace.warn(Layer.PORT, "unknown_port", self._partition_id, f"IN {port:#x}", port=port)
            return (1 << 8 * size) - 1
        if size <= device.width:
            return device.read(port, size) & ((1 << 8 * size) - 1)
        value = 0
        for index in range(size):
            byte_port = (port + index) & 0xFFFF
            at = self._at.get(byte_port)
            value |= (0xFF if at is None else at.read(byte_port, 1) & 0xFF) << 8 * index
        return value

    def port_write(self, vp_index: int, port: int, size: int, value: int) -> None:
        """The guest's OUT."""
        device = self._at.get(port)
        if device is None:
            self._trace.warn(Layer.PORT, "unknown_port", self._partition_id, f"OUT {port:#x}", port=port)
            return
        value &= (1 << 8 * size) - 1
        if size <= device.width:
            device.write(port, size, value)
            return
        for index in range(size):
            byte_port = (port + index) & 0xFFFF
            at = self._at.get(byte_port)
            if at is not None:
                at.write(byte_port, 1, value >> 8 * index & 0xFF)

    def reset(self) -> None:
        """VM reset: every device back to power-on values."""
        for device in self._devices:
            device.reset()
