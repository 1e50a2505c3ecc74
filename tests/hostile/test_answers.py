"""Every malformed input of the list gets the answer that answers.md promises, and the host is as before."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from partitions.host import VmState
from partitions.topology_schema import DiskTable, Size
from tests.doubles.boundary_guest import BoundaryGuest, boundary_guest, run
from tests.doubles.root import held, topology, vm_table
from tests.hostile import cases_bus, cases_traps
from tests.hostile.case_table import CASES, ELSEWHERE, MEMORY, Case

assert cases_bus, "these add to the table"
assert cases_traps

DOCUMENT = Path(__file__).with_name("answers.md")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number} {case.what}")
def test_answer(tmp_path: Path, case: Case) -> None:
    """The answer is the table's; after it the bus serves a new connection, and the VM's end gives all back."""
    table = vm_table("evil", memory=Size(MEMORY), processors=2, disk=[DiskTable(path="d.img", size=Size(MEMORY))])

    async def session() -> None:
        async with boundary_guest(topology(table, folder=tmp_path)) as guest:
            await guest.boot()
            assert await case.act(guest) == case.answer
            await aftermath(guest, case.ends)
            vm = guest.host["evil"]
            if vm.state is not VmState.OFF:
                await vm.turn_off()
            left = held(guest.host)
            assert (left.partitions, left.root_ports, left.root_connections, left.handlers) == (1, 0, 0, 0)

    run(session)


async def aftermath(guest: BoundaryGuest, ends: str) -> None:
    """The VM is off for the reason that the table gives, or on; then it can boot and connect again."""
    vm = guest.host["evil"]
    if ends:
        assert vm.state is VmState.OFF
        assert vm.exit is not None
        assert vm.exit.reason.value == ends
        return
    assert vm.state is VmState.RUNNING
    await guest.boot()
    await guest.messages()
    (offer,) = await guest.connect()
    assert len(offer) == 196


def test_the_table_is_the_document() -> None:
    """answers.md is made from the cases. With UPDATE_DOCS set in the environment it is written."""
    made = document()
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(made)
    assert DOCUMENT.read_text() == made


def test_the_tests_that_the_table_names_exist() -> None:
    for entry in ELSEWHERE:
        file, _, name = entry.test.partition("::")
        assert re.search(rf"def {name}\b", (ROOT / file).read_text()), entry.test


def test_no_case_is_missing() -> None:
    """1 to 63 and 81 to 92, but for 13: privilege levels are a processor's, and a guest at the boundary has none."""
    assert {*range(1, 64), *range(81, 93)} - {entry.number for entry in (*CASES, *ELSEWHERE)} == {13}


def document() -> str:
    """answers.md."""
    rows: list[Sequence[object]] = [("case", "input", "answer", "test"), ("---:", "---", "---", "---")]
    here = "`test_answers.py`"
    lines: list[tuple[int, int, Sequence[object]]] = []
    for place, case in enumerate(CASES):
        answer = f"{case.answer}; the VM ends: {case.ends}" if case.ends else case.answer
        lines.append((case.number, place, (case.number, case.what, answer, here)))
    for place, entry in enumerate(ELSEWHERE, len(CASES)):
        file, _, name = entry.test.partition("::")
        lines.append(
            (entry.number, place, (entry.number, entry.what, entry.answer, f"`{file.partition('/')[2]}` {name}"))
        )
    rows += [row for _, _, row in sorted(lines, key=lambda line: line[:2])]
    table = "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
    return INTRODUCTION + table + "\n"


INTRODUCTION = """# What a malformed input is answered with

Numbers are those of the list of malformed inputs that the host is held to, as far as they concern the hypervisor, the
bus and storage. "No answer" is an answer: the protocol has none for that message, and it is dropped, counted and warned
of. "Stopped" means that the device serves the channel no longer until the guest closes and opens it again. After each
case the bus takes a new connection. `test_answers.py` runs the cases; this page is made from the same table.

"""
