from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.trace import Trace
from partitions import ports
from partitions.root.chipset.chipset import Chipset
from partitions.root.chipset.com1 import Com1
from partitions.root.chipset.power import ExitCode, PowerControl, ResetControl

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH = (ports.COM1 + offset for offset in range(8))


class Board:
    """A chipset whose happenings are kept in lists."""

    def __init__(self) -> None:
        self.printed = bytearray()
        self.happened: list[str] = []
        self.power = PowerControl(lambda: self.happened.append("off"))
        self.exit_code = ExitCode()
        self.trace = Trace(lambda: 0)
        reset = ResetControl(lambda: self.happened.append("reset"))
        devices = (Com1(self.printed.append), self.power, reset, self.exit_code)
        self.chipset = Chipset(devices, self.trace, 2)

    def read(self, port: int, size: int = 1) -> int:
        return self.chipset.port_read(0, port, size)

    def write(self, port: int, value: int, size: int = 1) -> None:
        self.chipset.port_write(0, port, size, value)


@pytest.fixture
def board() -> Board:
    return Board()


@pytest.mark.parametrize(("size", "ones"), [(1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)])
def test_a_port_that_nobody_has(board: Board, size: int, ones: int) -> None:
    """Reads all ones, swallows writes, and is counted as the guest's mistake."""
    assert board.read(0x1234, size) == ones
    board.write(0x1234, 5, size)
    assert board.trace.warnings[2, "unknown_port"] == 2
    assert (board.printed, board.happened) == (b"", [])


@given(st.integers(0, 0xFFFF), st.sampled_from([1, 2, 4]), st.integers(0, (1 << 64) - 1))
def test_no_access_fails(port: int, size: int, value: int) -> None:
    """Whatever a guest reads or writes anywhere, the answer fits the access and nothing is raised."""
    board = Board()
    board.write(port, value, size)
    assert 0 <= board.read(port, size) < 1 << 8 * size


def test_com1_prints_and_is_always_ready(board: Board) -> None:
    """A polling driver finds the transmitter empty before each byte."""
    for byte in b"ok\n":
        assert board.read(LSR) == ports.LINE_STATUS_IDLE == 0x60
        board.write(DATA, byte)
    assert board.printed == b"ok\n"


def test_com1_divisor_is_not_printed(board: Board) -> None:
    """With DLAB the data port is the divisor's low byte."""
    board.write(LCR, 0x83)
    board.write(DATA, 0x01)
    board.write(IER, 0x02)
    assert (board.read(DATA), board.read(IER)) == (0x01, 0x02)
    board.write(LCR, 0x03)
    assert (board.printed, board.read(IER)) == (b"", 0)


def test_com1_as_a_driver_probes_it(board: Board) -> None:
    """As Linux does: scratch keeps its value, IIR shows FIFOs once enabled, loopback mirrors MCR and returns data."""
    board.write(SCRATCH, 0x5A)
    assert board.read(SCRATCH) == 0x5A
    assert board.read(IIR) == 0x01
    board.write(IIR, 0x01)
    assert board.read(IIR) == 0xC1
    board.write(MCR, 0x1A)  # loopback, RTS, OUT2
    assert board.read(MSR) & 0xF0 == 0x90
    board.write(DATA, 0x77)
    assert (board.read(LSR) & 1, board.read(DATA), board.read(LSR) & 1) == (1, 0x77, 0)
    assert board.printed == b""


def test_com1_transmitter_empty_is_said_once(board: Board) -> None:
    """With the interrupt enabled, IIR names the cause until it was read."""
    board.write(IER, 0x02)
    assert (board.read(IIR), board.read(IIR)) == (0x02, 0x01)


def test_wide_access_to_byte_registers(board: Board) -> None:
    """A word is two bytes for two ports, as on the bus."""
    board.write(DATA, 0x0341, 2)
    assert (board.printed, board.read(IER)) == (b"A", 3)
    assert board.read(LSR, 2) == 0xB060


def test_power_off(board: Board) -> None:
    """The sleep enable bit, in a word or in its own byte; the exit code stays readable for the host."""
    board.write(ports.EXIT_CODE, 7, 4)
    board.write(ports.POWER, ports.POWER_OFF, 2)
    board.write(ports.POWER + 1, ports.POWER_OFF >> 8, 1)
    assert (board.happened, board.exit_code.value) == (["off", "off"], 7)


def test_power_button(board: Board) -> None:
    """Bit 8 from the press until it is acknowledged; other writes do not."""
    assert board.read(ports.POWER, 2) == 0
    board.power.press_button()
    board.write(ports.POWER, 0x0001, 2)
    assert board.read(ports.POWER, 2) == ports.POWER_BUTTON
    assert board.read(ports.POWER + 1, 1) == 1
    board.write(ports.POWER, ports.POWER_BUTTON, 2)
    assert (board.read(ports.POWER, 2), board.happened) == (0, [])


def test_reset_port(board: Board) -> None:
    """Bit 2 is the trigger; choosing a kind of reset alone does nothing."""
    board.write(ports.RESET, 0x02)
    assert (board.read(ports.RESET), board.happened) == (2, [])
    board.write(ports.RESET, ports.RESET_NOW)
    assert board.happened == ["reset"]


def test_chipset_reset(board: Board) -> None:
    """Back to power on: no button, no exit code, no scratch."""
    board.power.press_button()
    board.write(SCRATCH, 1)
    board.write(ports.EXIT_CODE, 3, 4)
    board.chipset.reset()
    assert (board.read(ports.POWER, 2), board.read(SCRATCH), board.exit_code.value) == (0, 0, None)
