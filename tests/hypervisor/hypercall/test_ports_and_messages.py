"""Hypercalls on ports, connections, messages and events: who may, which layout, what arrives."""

from __future__ import annotations

import pytest

from hypervisor.hypercall import layouts
from hypervisor.hypercall.abi import FAST, CallCode
from hypervisor.privileges import Privilege
from hypervisor.status import HvStatus
from hypervisor.synic.messages import ANY_VP, MessageHeader
from hypervisor.synic.ports import Connection, ConnectionInfo, PortInfo, PortType
from tests.doubles.hypercaller import CHILD_INPUT, Machine

EVENT = PortInfo(PortType.EVENT, 2, 0, 0, 4).encode()
MESSAGE = PortInfo(PortType.MESSAGE, 2, 0).encode()


@pytest.fixture
def machine() -> Machine:
    made = Machine()
    made.listen()
    return made


def slot(machine: Machine) -> tuple[MessageHeader, bytes]:
    """The root's message slot of SINT 2."""
    content = bytes(machine.vp.synic.message_page.view[512:768])
    header = MessageHeader.decode(content)
    return header, content[16 : 16 + header.payload_size]


# --- messages


@pytest.mark.parametrize("size", [0, 1, 64, 239, 240])
def test_a_childs_message_arrives(machine: Machine, size: int) -> None:
    """Exactly `size` bytes of it, with the port's ID as its origin; nothing behind them."""
    child = machine.child(Privilege.POST_MESSAGES)
    machine.connect(child, PortType.MESSAGE, 0x11, 1)
    payload = bytes(range(1, 241))
    answer = machine.call(0x5C, layouts.PostMessageInput(1, 7, size, payload), caller=child)
    assert answer.status is HvStatus.SUCCESS
    header, received = slot(machine)
    assert (header.message_type, header.payload_size, header.origination_id) == (7, size, 0x11)
    assert received == payload[:size]
    assert not any(machine.vp.synic.message_page.view[512 + 16 + size : 768])


@pytest.mark.parametrize(
    ("connection", "kind", "size", "status"),
    [
        (1, 1, 241, HvStatus.INVALID_PARAMETER),
        (1, 1, 0xFFFFFFFF, HvStatus.INVALID_PARAMETER),
        (1, 0, 8, HvStatus.INVALID_PARAMETER),
        (1, 0x80000010, 8, HvStatus.INVALID_PARAMETER),
        (2, 1, 8, HvStatus.INVALID_CONNECTION_ID),
        (2, 1, 241, HvStatus.INVALID_CONNECTION_ID),  # objects before values
        (0x01000001, 1, 8, HvStatus.INVALID_CONNECTION_ID),
        (3, 1, 8, HvStatus.INVALID_PORT_ID),  # an event port
    ],
)
def test_bad_posts(machine: Machine, connection: int, kind: int, size: int, status: HvStatus) -> None:
    child = machine.child(Privilege.POST_MESSAGES)
    machine.connect(child, PortType.MESSAGE, 0x11, 1)
    machine.connect(child, PortType.EVENT, 0x12, 3)
    request = layouts.PostMessageInput(connection, kind, size, bytes(240))
    assert machine.call(0x5C, request, caller=child).status is status
    assert slot(machine)[0].message_type == 0


def test_a_flood_stops_at_the_ports_buffers(machine: Machine) -> None:
    """One in the slot, sixteen waiting, then INSUFFICIENT_BUFFERS; nothing grows."""
    child = machine.child(Privilege.POST_MESSAGES)
    machine.connect(child, PortType.MESSAGE, 0x11, 1)
    in_use = machine.root.pool.in_use
    statuses = [
        machine.call(0x5C, layouts.PostMessageInput(1, 1, 1, bytes(240)), caller=child).status for _ in range(40)
    ]
    assert statuses == [HvStatus.SUCCESS] * 17 + [HvStatus.INSUFFICIENT_BUFFERS] * 23
    assert machine.root.pool.in_use == in_use


# --- events


@pytest.mark.parametrize(
    ("word", "status"),
    [
        (0x2001, HvStatus.SUCCESS),
        (0x2001 | 3 << 32, HvStatus.SUCCESS),
        (0x2001 | 4 << 32, HvStatus.INVALID_PARAMETER),
        (0x2001 | 0xFFFF << 32, HvStatus.INVALID_PARAMETER),
        (0x2001 | 1 << 48, HvStatus.INVALID_PARAMETER),  # reserved
        (0x2001 | 1 << 63, HvStatus.INVALID_PARAMETER),
        (0x2002, HvStatus.INVALID_CONNECTION_ID),
        (0x2002 | 1 << 63, HvStatus.INVALID_CONNECTION_ID),
        (0x01002001, HvStatus.INVALID_CONNECTION_ID),
        (1, HvStatus.INVALID_PORT_ID),  # a message port
    ],
)
def test_signals(machine: Machine, word: int, status: HvStatus) -> None:
    """The same answers in registers and in memory."""
    child = machine.child(Privilege.SIGNAL_EVENTS)
    machine.connect(child, PortType.EVENT, 0x10, 0x2001, flags=4)
    machine.connect(child, PortType.MESSAGE, 0x11, 1)
    vp = child.vps[0]
    assert machine.hypervisor.hypercall(vp, CallCode.SIGNAL_EVENT | FAST, word, 0xDEAD) & 0xFFFF == status
    flags = bytes(machine.vp.synic.event_page.view[512:768])
    assert flags == (bytes(256) if status else (1 << (word >> 32)).to_bytes(256, "little"))
    child.memory.write(CHILD_INPUT, word.to_bytes(8, "little"))
    assert machine.hypervisor.hypercall(vp, CallCode.SIGNAL_EVENT, CHILD_INPUT) & 0xFFFF == status


def test_a_long_spin_is_only_advice(machine: Machine) -> None:
    child = machine.child()
    assert machine.call(8, layouts.LongSpinWaitInput(0xFFFFFFFF), fast=True, caller=child).status is HvStatus.SUCCESS


# --- ports and connections


def test_both_layouts_make_the_same_port(machine: Machine) -> None:
    child = machine.child()
    machine.must(CallCode.CREATE_PORT_2010, layouts.CreatePort2010Input(1, 1, child.id, EVENT))
    machine.must(CallCode.CREATE_PORT, layouts.CreatePortInput(1, 2, 0, 0, child.id, EVENT))
    old, new = machine.root.ports[1], machine.root.ports[2]
    assert (old.type, old.sint, old.vp_index, old.flag_count) == (new.type, new.sint, new.vp_index, new.flag_count)
    info = ConnectionInfo(PortType.EVENT).encode()
    machine.must(CallCode.CONNECT_PORT_2010, layouts.ConnectPort2010Input(child.id, 5, 1, 1, info))
    machine.must(CallCode.CONNECT_PORT, layouts.ConnectPortInput(child.id, 6, 0, 0, 0, 1, 2, info))
    assert child.connections[5].port is old
    assert child.connections[6].port is new


@pytest.mark.parametrize(
    ("port_vtl", "connection_vtl", "proximity"), [(1, 0, 0), (0, 1, 0), (0, 0, layouts.PROXIMITY_VALID << 32 | 1)]
)
def test_there_is_one_trust_level_and_one_node(
    machine: Machine, port_vtl: int, connection_vtl: int, proximity: int
) -> None:
    child = machine.child()
    request = layouts.CreatePortInput(1, 2, port_vtl, connection_vtl, child.id, EVENT, proximity)
    assert machine.call(CallCode.CREATE_PORT, request).status is HvStatus.INVALID_PARAMETER
    machine.must(CallCode.CREATE_PORT_2010, layouts.CreatePort2010Input(1, 1, child.id, EVENT))
    info = ConnectionInfo(PortType.EVENT).encode()
    request_2 = layouts.ConnectPortInput(child.id, 5, port_vtl, connection_vtl, 0, 1, 1, info, bytes(16), proximity)
    assert machine.call(CallCode.CONNECT_PORT, request_2).status is HvStatus.INVALID_PARAMETER


def test_unknown_partitions_at_the_other_end(machine: Machine) -> None:
    child = machine.child()
    made = machine.call(CallCode.CREATE_PORT_2010, layouts.CreatePort2010Input(1, 1, 99, EVENT))
    assert made.status is HvStatus.INVALID_PARTITION_ID
    info = ConnectionInfo(PortType.EVENT).encode()
    connected = machine.call(CallCode.CONNECT_PORT_2010, layouts.ConnectPort2010Input(child.id, 1, 99, 1, info))
    assert connected.status is HvStatus.INVALID_PARTITION_ID


def test_a_child_makes_no_port_in_the_root(machine: Machine) -> None:
    """Even with the right to make ports, which it then has for itself."""
    child = machine.child(Privilege.CREATE_PORT | Privilege.CONNECT_PORT)
    request = layouts.CreatePort2010Input(1, 1, child.id, MESSAGE)
    assert machine.call(CallCode.CREATE_PORT_2010, request, caller=child).status is HvStatus.ACCESS_DENIED
    own = layouts.CreatePort2010Input(child.id, 1, 1, MESSAGE)
    assert machine.call(CallCode.CREATE_PORT_2010, own, caller=child).status is HvStatus.SUCCESS


def test_a_backend_hears_of_connections(machine: Machine) -> None:
    """Of those made and broken by hypercall, and of those that finalizing breaks."""
    child = machine.child()
    heard: list[tuple[str, int]] = []

    class Bells:
        def attach(self, connection: Connection) -> None:
            heard.append(("attach", connection.id))

        def detach(self, connection: Connection) -> None:
            heard.append(("detach", connection.id))

    child.doorbells = Bells()
    machine.connect(child, PortType.EVENT, 0x10, 0x2001)
    machine.connect(child, PortType.EVENT, 0x11, 0x2002)
    machine.must(CallCode.DISCONNECT_PORT, layouts.DisconnectPortInput(child.id, 0x2001))
    machine.must(CallCode.FINALIZE_PARTITION, layouts.PartitionInput(child.id))
    assert heard == [("attach", 0x2001), ("attach", 0x2002), ("detach", 0x2001), ("detach", 0x2002)]


def test_properties_and_the_way_back(machine: Machine) -> None:
    child = machine.child(Privilege.SIGNAL_EVENTS)
    machine.connect(child, PortType.EVENT, 0x10, 0x2001)
    machine.hypervisor.hypercall(child.vps[0], CallCode.SIGNAL_EVENT | FAST, 0x2001)

    def count(port: int, code: int = 0) -> tuple[HvStatus, int]:
        answer = machine.call(CallCode.GET_PORT_PROPERTY, layouts.GetPortPropertyInput(1, port, code))
        return answer.status, int.from_bytes(answer.output[:8], "little")

    assert count(0x10) == (HvStatus.SUCCESS, 1)
    assert count(0x11)[0] is HvStatus.INVALID_PORT_ID
    assert count(0x10, 9)[0] is HvStatus.UNKNOWN_PROPERTY
    machine.must(CallCode.SET_PORT_PROPERTY, layouts.SetPortPropertyInput(1, 0x10, 1, ANY_VP))
    assert count(0x10, 1) == (HvStatus.SUCCESS, ANY_VP)

    gone = layouts.DisconnectPortInput(child.id, 0x2001)
    assert machine.call(CallCode.DISCONNECT_PORT, gone, fast=True).status is HvStatus.SUCCESS
    assert machine.call(CallCode.DISCONNECT_PORT, gone).status is HvStatus.INVALID_CONNECTION_ID
    port = layouts.DeletePortInput(1, 0x10)
    assert machine.call(CallCode.DELETE_PORT, port).status is HvStatus.SUCCESS
    assert machine.call(CallCode.DELETE_PORT, port, fast=True).status is HvStatus.INVALID_PORT_ID
