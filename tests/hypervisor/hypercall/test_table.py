"""The table: one row a call, and the reference page made from it."""

from __future__ import annotations

import pytest

from hypervisor.hypercall import layouts, messaging
from hypervisor.hypercall.abi import CallCode
from hypervisor.hypercall.call import Call, Who
from hypervisor.hypercall.table import BY_CODE, CALLS, documentation
from hypervisor.privileges import Privilege


def test_every_code_has_one_row_in_order() -> None:
    codes = [call.code for call in CALLS]
    assert codes == sorted(set(CallCode))
    assert len({call.name for call in CALLS}) == len(CALLS)
    assert BY_CODE[0x5C].name == "HvPostMessage"


def test_who_may_change_partitions_must_be_able_to_have_them() -> None:
    """A row for parents only asks for a privilege, so a child without it cannot probe for IDs."""
    for call in CALLS:
        if call.who in (Who.PARENT, Who.PARENT_OR_ROOT_SELF):
            assert call.privilege, call.name


@pytest.mark.parametrize(
    "wrong",
    [
        {"fast": True, "request": layouts.PostMessageInput},
        {"fast": True, "request": layouts.VpInput, "response": layouts.PropertyOutput},
        {"rep": True},
        {"reps_a_trip": 5},
        {"element_in": 8},
        {"who": Who.PARENT},
        {"who": Who.PARENT, "request": layouts.SignalEventInput},
    ],
)
def test_a_row_that_contradicts_itself_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((AssertionError, IndexError)):
        Call(code=CallCode.SIGNAL_EVENT, name="x", handler=messaging.signal_event, **wrong)  # type: ignore[arg-type]


def test_the_reference_page_has_a_line_for_each_call() -> None:
    text = documentation()
    lines = text.splitlines()
    assert len(lines) == len(CALLS) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert (
        "| 0x005D | HvSignalEvent | simple, fast | 8 bytes | none | SIGNAL_EVENTS | no partition is named | active |"
        in lines
    )
    assert Privilege.POST_MESSAGES.name in text
