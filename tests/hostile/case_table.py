"""Malformed inputs by their number in the list that the host is held to: what a guest does, and the answer.

Each case runs in a session of its own at the boundary, on a VM with two processors and one disk, whose guest has booted
its SynIC and nothing more. What it returns is compared with `answer`, and answers.md is made from the same table.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import attrs

from hypervisor.wire import WireError
from tests.doubles.boundary_guest import (
    BoundaryGuest,
)
from vmbus.protocol.table import Direction, decode_message
from vmbus.protocol.versions import Version
from vsp_vsc.storage.protocol import NtStatus, SrbStatus
from vsp_vsc.storage.scsi.cdb import ScsiStatus

MEMORY: Final = 2 << 20
Act = Callable[[BoundaryGuest], Awaitable[str]]


@attrs.frozen
class Case:
    """One input and the answer it gets."""

    number: int
    what: str
    answer: str
    act: Act
    ends: str = ""
    """Why the VM is off afterwards, where it is."""


@attrs.frozen
class Elsewhere:
    """An input that a guest at the boundary cannot make, and the test that makes it."""

    number: int
    what: str
    answer: str
    test: str
    """File and function."""


CASES: list[Case] = []


def case(number: int, what: str, answer: str, *, ends: str = "") -> Callable[[Act], Act]:
    """Add the function to the table."""

    def add(act: Act) -> Act:
        CASES.append(Case(number, what, answer, act, ends))
        return act

    return add


# --- answers in words


def words(messages: Sequence[bytes]) -> str:
    """What the host said on the bus."""
    said = []
    for data in messages:
        try:
            message = decode_message(data, sender=Direction.TO_CHILD, version=Version.V5_3)
        except WireError as error:
            raise AssertionError(f"the host said {data.hex()}") from error
        status = getattr(message, "status", None)
        name = message.TYPE.name
        if name == "VERSION_RESPONSE":
            name += f" supported={getattr(message, 'supported')}"  # noqa: B009
            if getattr(message, "connection_state", 0):
                name += f" state={getattr(message, 'connection_state')}"  # noqa: B009
        said.append(name if status is None else f"{name} status={status:#x}")
    return ", ".join(said) or "no answer"


def completions(packets: Sequence[tuple[bytes, bytes]]) -> str:
    """What the storage controller said."""
    said = []
    for head, body in packets:
        assert head[:2] == b"\x0b\x00"
        (status,) = struct.unpack_from("<I", body, 8)
        srb, scsi = body[14], body[15]
        text = NtStatus(status).name
        if srb:
            text += f", SRB {SrbStatus(srb & 0x3F).name}"
        if scsi:
            text += f", {ScsiStatus(scsi).name}"
        said.append(text)
    return "; ".join(said) or "no completion"


async def connected(guest: BoundaryGuest) -> None:
    await guest.connect()


def gpadl_header(
    channel: int = 1, gpadl: int = 0x10, words: Sequence[int] = (4096, 0x20), *, ranges: int = 1, length: int = -1
) -> bytes:
    """GPADL_HEADER with whatever is said in it."""
    size = 8 * len(words) if length < 0 else length
    return struct.pack("<IIIIHH", 8, 0, channel, gpadl, size, ranges) + struct.pack(f"<{len(words)}Q", *words)


def u32s(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


CREATED, REFUSED = "GPADL_CREATED status=0x0", "GPADL_CREATED status=0x8000ffff"
OPENED, NOT_OPENED = "OPEN_CHANNEL_RESULT status=0x0", "OPEN_CHANNEL_RESULT status=0x8000ffff"

ELSEWHERE: Final = (
    Elsewhere(
        10,
        "parameters in memory that is not there (a VM's memory has no holes)",
        "intercept to the parent, the processor is suspended",
        "tests/hypervisor/hypercall/test_dispatch.py::test_parameters_in_missing_memory_stop_the_vp",
    ),
    Elsewhere(
        14,
        "hypercall before the page is enabled",
        "#UD",
        "tests/hypervisor/hypercall/test_dispatch.py::test_no_hypercall_before_the_page_is_enabled",
    ),
    Elsewhere(
        17,
        "unknown or deleted partition, from one that may be a parent",
        "INVALID_PARTITION_ID",
        "tests/hypervisor/hypercall/test_dispatch.py::test_a_parent_gets_invalid_partition_id",
    ),
    Elsewhere(
        20,
        "message to a deleted port",
        "INVALID_PORT_ID",
        "tests/hypervisor/synic/test_ports.py::test_using_the_wrong_kind_or_a_dead_end",
    ),
    Elsewhere(
        21,
        "17th message to a port whose owner takes none",
        "INSUFFICIENT_BUFFERS",
        "tests/hypervisor/hypercall/test_ports_and_messages.py::test_a_flood_stops_at_the_ports_buffers",
    ),
    Elsewhere(
        24,
        "port ID used again with messages of its past life waiting",
        "those are lost, the new port is another",
        "tests/hypervisor/synic/test_ports.py::test_a_reused_port_id_is_another_port",
    ),
    Elsewhere(
        35,
        "one page twice in a deposit",
        "OPERATION_DENIED after the first",
        "tests/hypervisor/hypercall/test_memory_calls.py::test_a_page_twice_in_one_list",
    ),
    Elsewhere(
        36,
        "map with the right to write only",
        "INVALID_PARAMETER",
        "tests/hypervisor/hypercall/test_memory_calls.py::test_rights",
    ),
    Elsewhere(
        37,
        "map a deposited page",
        "OPERATION_DENIED",
        "tests/hypervisor/hypercall/test_memory_calls.py::test_sources_are_mapped_and_not_deposited",
    ),
    Elsewhere(
        40,
        "finalize a partition with children",
        "OPERATION_DENIED",
        "tests/hypervisor/hypercall/test_partitions.py::test_a_parent_of_children_cannot_be_finalized",
    ),
    Elsewhere(
        49,
        "monitor bits that are not assigned, or of channels that are not open",
        "taken and dropped; nobody looks while no such channel is open",
        "tests/hostile/test_monitor_pages.py::test_bits_that_nobody_has",
    ),
    Elsewhere(
        49,
        "monitor pages that change while they are looked at",
        "each word is read once; a trigger reaches ports of the page's receiver only",
        "tests/hostile/test_monitor_pages.py::test_pages_that_change_while_they_are_looked_at",
    ),
    Elsewhere(
        49,
        "interrupt page bits of no channel, or of one that is not open",
        "cleared and counted",
        "tests/hostile/test_monitor_pages.py::test_bits_of_the_interrupt_page",
    ),
    Elsewhere(
        61,
        "indices and descriptors that change while the host reads",
        "each is read once; what was checked is used",
        "tests/hostile/test_ring.py::test_descriptor_changes_between_two_copies",
    ),
    Elsewhere(
        91,
        "resets with commands under way",
        "SUCCESS after them; they end with BUS_RESET",
        "tests/hostile/test_storage.py::test_91_resets_while_much_is_under_way",
    ),
)
