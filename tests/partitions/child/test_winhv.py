"""The hypercall shim."""

from __future__ import annotations

import pytest

from hypervisor.pages import PAGE_SIZE
from hypervisor.status import HvStatus
from partitions.child.winhv import WinHv
from tests.doubles.machine import FakeMachine


def test_a_message_is_posted_slow_with_its_exact_length() -> None:
    """0x5C with an input page: connection, type 1, size, payload (Linux posts exact lengths, not 240)."""
    machine = FakeMachine()
    posted: list[tuple[int, bytes]] = []
    machine.on_post = lambda connection, payload: posted.append((connection, payload)) or HvStatus.SUCCESS  # type: ignore[func-returns-value]
    assert WinHv(machine, 0x200).post_message(4, b"12345678") is HvStatus.SUCCESS
    assert posted == [(4, b"12345678")]
    assert machine.calls == [(0x5C, 0x200 * PAGE_SIZE, 0)]
    header = bytes(machine.memory[0x200 * PAGE_SIZE : 0x200 * PAGE_SIZE + 16])
    assert header == bytes.fromhex("04000000 00000000 01000000 08000000")


def test_an_event_is_signalled_fast() -> None:
    """0x1005D: connection ID in the second register, flag 0, no memory touched."""
    machine = FakeMachine()
    machine.on_signal = lambda connection: HvStatus.INVALID_CONNECTION_ID
    assert WinHv(machine, 0x200).signal_event(0x2001) is HvStatus.INVALID_CONNECTION_ID
    assert machine.calls == [(0x1005D, 0x2001, 0)]


def test_what_no_message_carries_is_our_own_mistake() -> None:
    """241 bytes would be cut off or refused; the caller hears it before the hypervisor does."""
    machine = FakeMachine()
    with pytest.raises(ValueError, match="240 bytes, not 241"):
        WinHv(machine, 0x200).post_message(1, bytes(241))
    assert machine.calls == []


class AnsweringMachine(FakeMachine):
    def hypercall(self, control: int, input_gpa: int = 0, output_gpa: int = 0) -> int:
        self.memory[output_gpa : output_gpa + 4] = self.memory[input_gpa : input_gpa + 4]
        return control


def test_any_result_is_taken_apart() -> None:
    """Status in 15:0, completed reps in 43:32, all else ignored; a status without a name stays a number."""
    winhv = WinHv(AnsweringMachine(), 0x200)
    result = winhv.hypercall(0xF123_4567_FFFF_0005 & (1 << 64) - 1, b"data", 4)
    assert (result.status, result.reps, result.output) == (HvStatus.INVALID_PARAMETER, 0x567, b"data")
    assert winhv.hypercall(0x7777).status == 0x7777
    with pytest.raises(ValueError, match="one page"):
        winhv.hypercall(1, b"", 4097)
