"""Ports and connections: one status for each mistake, in a fixed order, and pool pages that all come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hypervisor.msr import Msr
from hypervisor.pages import PAGE_SHIFT
from hypervisor.partition import PartitionState
from hypervisor.status import HvError, HvStatus
from hypervisor.synic import ports
from hypervisor.synic.messages import InterceptHeader, MessageHeader, MessageType
from hypervisor.synic.ports import ConnectionInfo, PortInfo, PortProperty, PortType
from tests.doubles.bare_hypervisor import BareHypervisor, RecordingRunner

MESSAGE = PortInfo(PortType.MESSAGE, 2, 0)
EVENT = PortInfo(PortType.EVENT, 2, 0, 0, 1)


@pytest.fixture
def host() -> BareHypervisor:
    host = BareHypervisor()
    host.start_synic(host.child)
    return host


def refused(status: HvStatus, call: Callable[[], object]) -> None:
    with pytest.raises(HvError) as caught:
        call()
    assert caught.value.status is status


def test_layouts_are_those_of_2010() -> None:
    info = PortInfo(PortType.EVENT, 2, 0xFFFFFFFF, 7, 9)
    assert info.encode().hex(" ", 4) == "02000000 00000000 02000000 ffffffff 07000900 00000000"
    assert ConnectionInfo(PortType.EVENT).encode() == b"\x02" + bytes(15)


@pytest.mark.parametrize(
    ("info", "status"),
    [
        (PortInfo(PortType.MESSAGE, 0, 0), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.MESSAGE, 16, 0), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.MESSAGE, 2, 0, 1), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.MESSAGE, 2, 0, 0, 1), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.MESSAGE, 2, 0, 0, 0, 1), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.MESSAGE, 2, 1), HvStatus.INVALID_VP_INDEX),
        (PortInfo(PortType.MESSAGE, 2, 0xFFFFFFFE), HvStatus.INVALID_VP_INDEX),
        (PortInfo(PortType.EVENT, 2, 0, 0, 0), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.EVENT, 2, 0, 1, 2048), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.EVENT, 2, 0, 2048, 1), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.EVENT, 2, 0, 0, 1, 1), HvStatus.INVALID_PARAMETER),
        (PortInfo(PortType.MONITOR, 0x1001, 0), HvStatus.INVALID_ALIGNMENT),
        (PortInfo(PortType.MONITOR, 0x1000, 0, 1), HvStatus.INVALID_PARAMETER),
        (PortInfo(0, 2, 0), HvStatus.INVALID_PARAMETER),
        (PortInfo(4, 2, 0), HvStatus.INVALID_PARAMETER),
    ],
)
def test_what_create_port_refuses(host: BareHypervisor, info: PortInfo, status: HvStatus) -> None:
    refused(status, lambda: ports.create_port(host.child, 5, host.root, info))
    assert not host.child.ports
    assert host.child.pool.in_use == 0


def test_the_last_flag_of_a_sint_may_be_a_ports(host: BareHypervisor) -> None:
    ports.create_port(host.child, 5, host.root, PortInfo(PortType.EVENT, 15, 0xFFFFFFFF, 2047, 1))
    ports.create_port(host.child, 6, host.root, PortInfo(PortType.EVENT, 1, 0, 0, 2048))


def test_ids_have_24_bits_and_one_owner(host: BareHypervisor) -> None:
    ports.create_port(host.child, 0xFFFFFF, host.root, MESSAGE)
    refused(HvStatus.INVALID_PORT_ID, lambda: ports.create_port(host.child, 0xFFFFFF, host.root, MESSAGE))
    refused(HvStatus.INVALID_PORT_ID, lambda: ports.create_port(host.child, 1 << 24, host.root, MESSAGE))
    info = ConnectionInfo(PortType.MESSAGE)
    refused(HvStatus.INVALID_CONNECTION_ID, lambda: ports.connect_port(host.root, 1 << 24, host.child, 0xFFFFFF, info))
    ports.connect_port(host.root, 9, host.child, 0xFFFFFF, info)
    ports.create_port(host.child, 1, host.root, MESSAGE)
    refused(HvStatus.INVALID_CONNECTION_ID, lambda: ports.connect_port(host.root, 9, host.child, 1, info))
    refused(HvStatus.INVALID_PORT_ID, lambda: ports.connect_port(host.root, 10, host.child, 0xFFFFFF, info))
    refused(HvStatus.INVALID_PORT_ID, lambda: ports.connect_port(host.root, 10, host.child, 77, info))


def test_a_partition_has_no_port_for_itself(host: BareHypervisor) -> None:
    refused(HvStatus.INVALID_PARTITION_ID, lambda: ports.create_port(host.child, 1, host.child, MESSAGE))


def test_only_the_named_partition_connects_and_only_as_the_port_is(host: BareHypervisor) -> None:
    ports.create_port(host.root, 1, host.child, MESSAGE)
    info = ConnectionInfo(PortType.MESSAGE)
    refused(HvStatus.INVALID_PARTITION_ID, lambda: ports.connect_port(host.root, 1, host.root, 1, info))
    for wrong in (ConnectionInfo(PortType.EVENT), ConnectionInfo(PortType.MESSAGE, 8), ConnectionInfo(9)):
        refused(HvStatus.INVALID_PARAMETER, lambda wrong=wrong: ports.connect_port(host.child, 1, host.root, 1, wrong))  # type: ignore[misc]
    ports.connect_port(host.child, 1, host.root, 1, info)


def test_both_partitions_must_be_active(host: BareHypervisor) -> None:
    host.message_port(host.child, host.root, 1)
    host.child.state = PartitionState.FINALIZING
    refused(HvStatus.INVALID_PARTITION_STATE, lambda: ports.create_port(host.root, 1, host.child, MESSAGE))
    refused(HvStatus.INVALID_PARTITION_STATE, lambda: ports.create_port(host.child, 2, host.root, MESSAGE))
    info = ConnectionInfo(PortType.MESSAGE)
    refused(HvStatus.INVALID_PARTITION_STATE, lambda: ports.connect_port(host.root, 2, host.child, 1, info))
    refused(HvStatus.INVALID_PORT_ID, lambda: host.post(host.root, 1, b"to a partition that ends"))


def test_an_empty_pool_refuses_and_changes_nothing(host: BareHypervisor) -> None:
    host.child.pool.granted = host.child.pool.in_use
    refused(HvStatus.INSUFFICIENT_MEMORY, lambda: ports.create_port(host.child, 1, host.root, MESSAGE))
    assert not host.child.ports
    ports.create_port(host.root, 1, host.child, MESSAGE)
    info = ConnectionInfo(PortType.MESSAGE)
    refused(HvStatus.INSUFFICIENT_MEMORY, lambda: ports.connect_port(host.child, 1, host.root, 1, info))
    host.child.pool.granted += 10
    ports.connect_port(host.child, 1, host.root, 1, info)


@pytest.mark.parametrize("message_type", [0, 0x80000000, 0x80000010, 0xFFFFFFFF])
def test_a_partition_cannot_forge_the_hypervisors_messages(host: BareHypervisor, message_type: int) -> None:
    host.message_port(host.child, host.root, 1)
    refused(HvStatus.INVALID_PARAMETER, lambda: host.post(host.root, 1, b"", message_type))
    refused(HvStatus.INVALID_PARAMETER, lambda: host.post(host.root, 1, bytes(241)))
    host.post(host.root, 1, bytes(240), 0x7FFFFFFF)


def test_using_the_wrong_kind_or_a_dead_end(host: BareHypervisor) -> None:
    host.message_port(host.child, host.root, 1)
    host.event_port(host.child, host.root, 2, base=10, count=4)
    refused(HvStatus.INVALID_CONNECTION_ID, lambda: host.post(host.root, 3, b""))
    refused(HvStatus.INVALID_CONNECTION_ID, lambda: host.post(host.root, 1 << 24 | 1, b""))
    refused(HvStatus.INVALID_CONNECTION_ID, lambda: host.post(host.child, 1, b""))
    refused(HvStatus.INVALID_PORT_ID, lambda: host.post(host.root, 2, b""))
    refused(HvStatus.INVALID_PORT_ID, lambda: host.signal(host.root, 1))
    refused(HvStatus.INVALID_PARAMETER, lambda: host.signal(host.root, 2, 4))
    host.signal(host.root, 2, 3)
    assert host.child.memory.read((9 << PAGE_SHIFT) + 512, 2) == b"\x00\x20", "counted from the port's base"
    ports.delete_port(host.child, 1)
    ports.delete_port(host.child, 2)
    refused(HvStatus.INVALID_PORT_ID, lambda: host.post(host.root, 1, b""))
    refused(HvStatus.INVALID_PORT_ID, lambda: host.signal(host.root, 2))
    refused(HvStatus.INVALID_PORT_ID, lambda: ports.delete_port(host.child, 1))


def test_a_reused_port_id_is_another_port(host: BareHypervisor) -> None:
    """Deleting loses what waits, keeps what is in the slot; the old connection does not lead to the new port."""
    host.message_port(host.child, host.root, 1)
    for text in (b"in the slot", b"waits", b"waits too"):
        host.post(host.root, 1, text)
    host.message_port(host.child, host.root, 2)
    host.post(host.root, 2, b"another port's")
    ports.delete_port(host.child, 1)
    port = ports.create_port(host.child, 1, host.root, MESSAGE)
    refused(HvStatus.INVALID_PORT_ID, lambda: host.post(host.root, 1, b""))
    assert port.buffers == 16
    slot = (8 << PAGE_SHIFT) + 512
    assert host.child.memory.read(slot + 16, 11) == b"in the slot"
    host.child.memory.write(slot, bytes(4))
    host.write_msr(host.child.vps[0], Msr.EOM, 0)
    assert host.child.memory.read(slot + 16, 14) == b"another port's"
    assert host.child.vps[0].synic.queued == 0


def test_disconnecting_keeps_what_was_sent_and_frees_both_ids(host: BareHypervisor) -> None:
    host.message_port(host.child, host.root, 1)
    host.post(host.root, 1, b"one")
    host.post(host.root, 1, b"two")
    ports.disconnect_port(host.root, 1)
    refused(HvStatus.INVALID_CONNECTION_ID, lambda: ports.disconnect_port(host.root, 1))
    refused(HvStatus.INVALID_CONNECTION_ID, lambda: host.post(host.root, 1, b""))
    assert host.child.vps[0].synic.queued == 1
    ports.connect_port(host.root, 1, host.child, 1, ConnectionInfo(PortType.MESSAGE))
    ports.disconnect_port(host.root, 1)
    ports.delete_port(host.child, 1)
    assert host.child.pool.in_use == host.root.pool.in_use == 0


def test_port_properties(host: BareHypervisor) -> None:
    host.message_port(host.child, host.root, 1)
    host.post(host.root, 1, b"")
    host.post(host.root, 1, b"")
    assert ports.get_port_property(host.child, 1, PortProperty.POST_COUNT) == 2
    assert ports.get_port_property(host.child, 1, PortProperty.PREFERRED_TARGET_VP) == 0
    ports.set_port_property(host.child, 1, PortProperty.PREFERRED_TARGET_VP, 0xFFFFFFFF)
    refused(HvStatus.INVALID_VP_INDEX, lambda: ports.set_port_property(host.child, 1, 1, 7))
    refused(HvStatus.INVALID_PARAMETER, lambda: ports.set_port_property(host.child, 1, 0, 7))
    refused(HvStatus.UNKNOWN_PROPERTY, lambda: ports.set_port_property(host.child, 1, 2, 7))
    refused(HvStatus.UNKNOWN_PROPERTY, lambda: ports.get_port_property(host.child, 1, 2))
    refused(HvStatus.INVALID_PORT_ID, lambda: ports.get_port_property(host.child, 2, 0))


def test_a_target_processor_that_is_deleted_is_an_unknown_one(host: BareHypervisor) -> None:
    host.message_port(host.child, host.root, 1)
    host.event_port(host.child, host.root, 2)
    host.child.vps.pop(0).delete()
    refused(HvStatus.INVALID_VP_INDEX, lambda: host.post(host.root, 1, b""))
    refused(HvStatus.INVALID_VP_INDEX, lambda: host.signal(host.root, 2))


def test_the_child_signals_the_root_within_the_call(host: BareHypervisor) -> None:
    """The root's handler has run when the hypercall returns; traffic is counted on the sender."""
    runner = RecordingRunner()
    host.root.vps[0].runner = runner
    host.start_synic(host.root, vector=0x32)
    host.event_port(host.root, host.child, 0x2001, base=5)
    host.signal(host.child, 0x2001)
    assert runner.vectors == [0x32]
    assert host.child.counters["events_signaled"] == 1
    assert host.root.counters["interrupts"] == 1


def test_an_intercept_tells_the_parent_and_overwrites_its_own_elder(host: BareHypervisor) -> None:
    """SINT0 of the parent's first processor; one buffer a processor, whose unread message is replaced."""
    untyped: Any = host
    vp = host.child.vps[0]
    message = MessageType.UNRECOVERABLE_EXCEPTION
    assert not ports.post_intercept(untyped, vp, message, InterceptHeader(0).encode())
    assert host.trace.warnings[host.child.id, "intercept_lost"] == 1
    host.start_synic(host.root, vector=0x30, sint=0)
    for number in (1, 2, 3):
        assert ports.post_intercept(untyped, vp, message, bytes([number]))
    assert host.root.vps[0].synic.queued == 1
    slot = 8 << PAGE_SHIFT
    header = MessageHeader.decode(host.root.memory.read(slot, 16))
    assert (header.message_type, header.origination_id, header.flags) == (message, host.child.id, 1)
    assert host.root.memory.read(slot + 16, 1) == b"\x01"
    host.root.memory.write(slot, bytes(4))
    host.write_msr(host.root.vps[0], Msr.EOM, 0)
    assert host.root.memory.read(slot + 16, 1) == b"\x03"


def test_traffic_is_traced_from_the_childs_point_of_view(host: BareHypervisor) -> None:
    seen: list[tuple[str, int, str]] = []
    host.trace.add_sink(lambda event: seen.append((event.event, event.partition, event.direction)))
    host.start_synic(host.root)
    host.message_port(host.child, host.root, 1)
    host.event_port(host.root, host.child, 2)
    seen.clear()
    host.post(host.root, 1, b"x")
    host.signal(host.child, 2)
    assert seen == [
        ("post_message", 2, ">child"),
        ("interrupt", 2, ">child"),
        ("signal_event", 2, ">root"),
        ("interrupt", 1, ">root"),
    ]
