"""Every malformed input of the list gets the answer that answers.md promises, and the host is as before."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from hypervisor.synic.messages import SLOT_SIZE
from partitions.host import VmState
from partitions.topology_schema import DiskTable, Size
from tests.doubles.boundary_guest import MESSAGE_PAGE, SINT, BoundaryGuest, boundary_guest, run
from tests.doubles.root import topology, vm_table
from tests.hostile import cases_bus, cases_traps
from tests.hostile.case_table import CASES, ELSEWHERE, MEMORY, NOT_HERE, Case
from tests.hostile.cases_memory import MEMORY_CASES
from tests.hostile.invariants import (
    all_is_given_back,
    check,
    others,
    reset_clears,
    sibling,
    sibling_goes_on,
    slots_are_clean,
)

assert cases_bus, "these add to the table"
assert cases_traps

DOCUMENT = Path(__file__).with_name("answers.md")
ROOT = Path(__file__).parents[2]
BEAT = 60 * 10_000_000
"""A minute between two signs of life of the sibling: some cases last a day."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.number} {case.what}")
def test_answer(tmp_path: Path, case: Case) -> None:
    """The answer is the table's; after it the isolation promises hold, and the bus serves a new connection."""
    table = vm_table("evil", memory=Size(MEMORY), processors=2, disk=[DiskTable(path="d.img", size=Size(MEMORY))])

    async def session() -> None:
        machine = topology(table, vm_table("sibling"), folder=tmp_path)
        async with boundary_guest(machine, siblings={"sibling": partial(sibling, beat=BEAT)}) as guest:
            before = others(guest.host)
            await guest.boot()
            assert await case.act(guest) == case.answer
            assert others(guest.host) == before
            check(guest.host, bounded_queues=False)
            if not case.ends:
                slots_are_clean(await guest.read(MESSAGE_PAGE + SINT * SLOT_SIZE, SLOT_SIZE))
            await aftermath(guest, case.ends)
            await sibling_goes_on(guest, BEAT)
            if not case.ends:
                await reset_clears(guest, MEMORY)
            assert others(guest.host) == before
            check(guest.host)
            await all_is_given_back(guest.host)

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
    for entry in (*ELSEWHERE, *MEMORY_CASES):
        file, _, name = entry.test.partition("::")
        assert re.search(rf"def {name}\b", (ROOT / file).read_text()), entry.test


def test_no_case_is_missing() -> None:
    """Each of the 106, and of ours, has an answer, or a reason why it has none here; never both."""
    answered = {entry.number for entry in (*CASES, *ELSEWHERE, *MEMORY_CASES)}
    absent = [number for entry in NOT_HERE for number in range(entry.first, entry.last + 1)]
    assert sorted([*answered, *absent]) == list(range(1, 108))


def document() -> str:
    """answers.md."""
    rows: list[Sequence[object]] = [("case", "input", "answer", "test"), ("---:", "---", "---", "---")]
    here = "`test_answers.py`"
    lines: list[tuple[int, int, Sequence[object]]] = []
    for place, case in enumerate(CASES):
        answer = f"{case.answer}; the VM ends: {case.ends}" if case.ends else case.answer
        lines.append((case.number, place, (case.number, case.what, answer, here)))
    for place, other in enumerate((*ELSEWHERE, *MEMORY_CASES), len(CASES)):
        file, _, name = other.test.partition("::")
        test = f"`{file.partition('/')[2]}` {name}"
        lines.append((other.number, place, (other.number, other.what, other.answer, test)))
    for entry in NOT_HERE:
        numbers = str(entry.first) if entry.first == entry.last else f"{entry.first} to {entry.last}"
        lines.append((entry.first, len(lines), (numbers, entry.what, f"does not apply here: {entry.why}", "-")))
    rows += [row for _, _, row in sorted(lines, key=lambda line: line[:2])]
    table = "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
    return INTRODUCTION + table + "\n"


INTRODUCTION = """# What a malformed input is answered with

Numbers are those of the list of 106 malformed inputs that the host is held to. "No answer" is an answer: the protocol
has none for that message, and it is dropped, counted and warned of. "Stopped" means that the device serves the channel
no longer until the guest closes and opens it again. After each case the isolation promises are checked
(`invariants.py` says how), a sibling VM has gone on, and the bus takes a new connection. `test_answers.py` runs the
cases; this page is made from the same table. Case 107, dynamic memory, is not on that list.

"""
