"""Ports and connections: how one partition posts messages and signals events to another. Hypervisor.

A partition names a connection of its own, which its parent made; the connection leads to one port of one other
partition (TLFS 2.0a, 14). Callers have found the partitions and checked privilege and parenthood; every other check is
here, in this order: partitions and their states, object IDs, values, resources.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from hypervisor.inspect import Branch, Hex
from hypervisor.pages import PAGE_MASK, PAGE_SHIFT
from hypervisor.partition import ROOT_ID, PageCost, PartitionState
from hypervisor.status import HvError, HvStatus
from hypervisor.synic.messages import (
    ANY_VP,
    EVENT_FLAGS,
    HYPERVISOR_MESSAGE,
    INTERCEPT_SINT,
    PAYLOAD_MAX,
    PORT_BUFFERS,
    SINT_COUNT,
)
from hypervisor.synic.synic import Message
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer
from hypervisor.wire import Wire, at, wire
from hypervisor.wire.scalars import u16, u32, u64

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.synic.synic import Synic
    from hypervisor.timer_queue import Waiting
    from hypervisor.vp import VirtualProcessor

ID_MASK = 0xFFFFFF
"""Port and connection IDs have 24 bits; the eight above are zero."""


class PortType(enum.IntEnum):
    """HV_PORT_TYPE."""

    MESSAGE = 1
    EVENT = 2
    MONITOR = 3


class PortProperty(enum.IntEnum):
    """HV_PORT_PROPERTY_CODE (TLFS 2.0a, 14.10.4)."""

    POST_COUNT = 0
    PREFERRED_TARGET_VP = 1


@wire(size=24, spec="HV_PORT_INFO, TLFS 2.0a 14.8.7; hvgdk.h of 2010")
class PortInfo(Wire):
    """What a new port is: message and event ports name a target, monitor ports a page."""

    port_type: u32 = at(0x00)
    target_sint: u32 = at(0x08, default=0)
    target_vp: u32 = at(0x0C, default=0)
    base_flag: u16 = at(0x10, default=0)
    """Event ports; reserved and zero for message ports, like all that follows."""
    flag_count: u16 = at(0x12, default=0)
    reserved: u32 = at(0x14, default=0)

    @property
    def monitor_address(self) -> int:
        """Monitor ports: the page's GPA, which lies where others have SINT and VP."""
        return self.target_sint | self.target_vp << 32


@wire(size=16, spec="HV_CONNECTION_INFO, TLFS 2.0a 14.8.8; hvgdk.h of 2010")
class ConnectionInfo(Wire):
    """What a new connection is."""

    port_type: u32 = at(0x00)
    monitor_address: u64 = at(0x08, default=0)
    """Reserved and zero for message and event connections."""


@attrs.define(eq=False)
class Port:
    """Where messages or events of one sender arrive. It holds the buffers of messages that wait."""

    owner: Partition = attrs.field(repr=False)
    id: int
    sender_id: int
    """The partition that may connect."""
    type: PortType
    sint: int
    vp_index: int
    """Target processor, or ANY_VP."""
    base_flag: int = 0
    flag_count: int = 0
    monitor_address: int = 0
    """Monitor ports: where the owner sees the page."""
    buffers: int = PORT_BUFFERS
    """Free ones."""
    post_count: int = 0
    """Messages posted or events signaled since creation."""
    connection: Connection | None = attrs.field(default=None, repr=False)
    deleted: bool = False

    @property
    def alive(self) -> bool:
        """Whether anything can still arrive."""
        return not self.deleted and self.owner.state is PartitionState.ACTIVE

    def release_buffer(self) -> None:
        """A message has left for its slot."""
        self.buffers += 1

    def inspect(self) -> Branch:
        """What it is for, and what came by it."""
        seen: dict[str, object] = {"type": self.type.name.lower(), "sender": self.sender_id}
        if self.type is PortType.MONITOR:
            seen |= {"page": Hex(self.monitor_address)}
        else:
            seen |= {"sint": self.sint, "vp": "any" if self.vp_index == ANY_VP else self.vp_index}
        if self.type is PortType.EVENT:
            seen |= {"base_flag": self.base_flag, "flags": self.flag_count}
        if self.type is PortType.MESSAGE:
            seen |= {"free_buffers": self.buffers}
        connection = None if self.connection is None else Hex(self.connection.id)
        return Branch(seen | {"post_count": self.post_count, "connection": connection})


@attrs.define(eq=False)
class Connection:
    """A sender's end: the only name it has for a port."""

    owner: Partition = attrs.field(repr=False)
    id: int
    port: Port
    monitor_address: int = 0
    """Monitor connections: where the sender sees the page."""
    watch: Waiting | None = attrs.field(default=None, repr=False)
    """Monitor connections: what looks at the page."""

    def inspect(self) -> Branch:
        """Where it leads."""
        port = self.port
        seen = {"type": port.type.name.lower(), "to_partition": port.owner.id, "port": Hex(port.id)}
        return Branch(seen | {"alive": port.alive, "post_count": port.post_count})


# --- making and breaking


def create_port(owner: Partition, port_id: int, sender: Partition, info: PortInfo) -> Port:
    """HvCreatePort: a port of `owner` for what `sender` will post or signal."""
    if owner is sender:
        raise HvError(HvStatus.INVALID_PARTITION_ID)
    _require_active(owner, sender)
    if port_id & ~ID_MASK or port_id in owner.ports:
        raise HvError(HvStatus.INVALID_PORT_ID)
    match info.port_type:
        case PortType.MESSAGE:
            valid = not info.base_flag and not info.flag_count and not info.reserved
        case PortType.EVENT:
            valid = 0 < info.flag_count <= EVENT_FLAGS - info.base_flag and not info.reserved
        case PortType.MONITOR:
            if info.monitor_address & PAGE_MASK:
                raise HvError(HvStatus.INVALID_ALIGNMENT)
            valid = not info.base_flag and not info.flag_count and not info.reserved
        case _:
            valid = False
    kind = PortType(info.port_type) if valid else None
    if kind is None or (kind is not PortType.MONITOR and not 0 < info.target_sint < SINT_COUNT):
        raise HvError(HvStatus.INVALID_PARAMETER)
    if kind is PortType.MONITOR:
        port = Port(owner, port_id, sender.id, kind, 0, 0, monitor_address=info.monitor_address)
    else:
        if info.target_vp != ANY_VP and info.target_vp not in owner.vps:
            raise HvError(HvStatus.INVALID_VP_INDEX)
        port = Port(owner, port_id, sender.id, kind, info.target_sint, info.target_vp, info.base_flag, info.flag_count)
    owner.charge(_cost(kind))
    owner.ports[port_id] = port
    return port


def delete_port(owner: Partition, port_id: int) -> None:
    """HvDeletePort. Messages that wait are lost, those in their slots stay; the connection stays and leads nowhere."""
    port = _port(owner, port_id)
    del owner.ports[port_id]
    port.deleted = True
    for vp in owner.vps.values():
        vp.synic.drop(lambda message: message.release == port.release_buffer)
    owner.discharge(_cost(port.type))


def connect_port(
    owner: Partition, connection_id: int, port_owner: Partition, port_id: int, info: ConnectionInfo
) -> Connection:
    """HvConnectPort: a connection of `owner` to a port that was made for it."""
    _require_active(owner, port_owner)
    if connection_id & ~ID_MASK or connection_id in owner.connections:
        raise HvError(HvStatus.INVALID_CONNECTION_ID)
    port = _port(port_owner, port_id)
    if port.sender_id != owner.id:
        raise HvError(HvStatus.INVALID_PARTITION_ID)
    if port.connection is not None:
        raise HvError(HvStatus.INVALID_PORT_ID)
    if info.port_type != port.type:
        raise HvError(HvStatus.INVALID_PARAMETER)
    if port.type is PortType.MONITOR:
        _check_monitor_pages(owner, info.monitor_address, port)
    elif info.monitor_address:
        raise HvError(HvStatus.INVALID_PARAMETER)
    owner.charge(PageCost.CONNECTION)
    connection = port.connection = Connection(owner, connection_id, port, info.monitor_address)
    owner.connections[connection_id] = connection
    return connection


def _check_monitor_pages(sender: Partition, address: int, port: Port) -> None:
    """Both ends must name the same memory: there is no page of the hypervisor's own that it could show to both."""
    if address & PAGE_MASK:
        raise HvError(HvStatus.INVALID_ALIGNMENT)
    here = sender.memory.source(address >> PAGE_SHIFT)
    there = port.owner.memory.source(port.monitor_address >> PAGE_SHIFT)
    if here is None or there is None or here[:2] != there[:2]:
        raise HvError(HvStatus.INVALID_PARAMETER)


def disconnect_port(owner: Partition, connection_id: int) -> None:
    """HvDisconnectPort. Messages that wait are still delivered."""
    connection = owner.connections.pop(connection_id, None)
    if connection is None:
        raise HvError(HvStatus.INVALID_CONNECTION_ID)
    connection.port.connection = None
    owner.discharge(PageCost.CONNECTION)


def get_port_property(owner: Partition, port_id: int, code: int) -> int:
    """HvGetPortProperty. Raises INVALID_PORT_ID, UNKNOWN_PROPERTY."""
    port = _port(owner, port_id)
    match code:
        case PortProperty.POST_COUNT:
            return port.post_count
        case PortProperty.PREFERRED_TARGET_VP:
            return port.vp_index
        case _:
            raise HvError(HvStatus.UNKNOWN_PROPERTY)


def set_port_property(owner: Partition, port_id: int, code: int, value: int) -> None:
    """HvSetPortProperty: the target processor may change, the count may not. What waits stays with the old target."""
    port = _port(owner, port_id)
    match code:
        case PortProperty.POST_COUNT:
            raise HvError(HvStatus.INVALID_PARAMETER)
        case PortProperty.PREFERRED_TARGET_VP:
            if value != ANY_VP and value not in owner.vps:
                raise HvError(HvStatus.INVALID_VP_INDEX)
            port.vp_index = value
        case _:
            raise HvError(HvStatus.UNKNOWN_PROPERTY)


# --- using


def post_message(
    hypervisor: Hypervisor, sender: Partition, connection_id: int, message_type: int, payload: bytes
) -> None:
    """HvPostMessage: `payload` is a private copy, cut to the size that the sender named."""
    port = _reach(sender, connection_id, PortType.MESSAGE)
    if not 0 < message_type < HYPERVISOR_MESSAGE or len(payload) > PAYLOAD_MAX:
        raise HvError(HvStatus.INVALID_PARAMETER)
    owner = port.owner
    synic = _message_target(port)
    if not port.buffers:
        synic.deliver_waiting()  # a guest may have emptied its slot and not said so
    if not port.buffers:
        owner.counters["messages_refused"] += 1
        raise HvError(HvStatus.INSUFFICIENT_BUFFERS)
    port.buffers -= 1
    port.post_count += 1
    sender.counters["messages_posted"] += 1
    trace = hypervisor.trace
    if trace.on:
        child, direction = _concerned(sender, owner)
        trace.emit(
            *(Layer.SYNIC, "post_message", child),
            direction=direction,
            size=len(payload),
            connection=connection_id,
            port=port.id,
            sint=port.sint,
            type=message_type,
        )
    synic.post(port.sint, Message(message_type, payload, port.id, port.release_buffer))


def signal_event(hypervisor: Hypervisor, sender: Partition, connection_id: int, flag: int) -> None:
    """HvSignalEvent: set one of the port's flags, counted from its base."""
    port = _reach(sender, connection_id, PortType.EVENT)
    if flag >= port.flag_count:
        raise HvError(HvStatus.INVALID_PARAMETER)
    sint = port.sint
    synic = _event_target(port, sint)
    port.post_count += 1
    sender.counters["events_signaled"] += 1
    trace = hypervisor.trace
    if trace.on:
        child, direction = _concerned(sender, port.owner)
        trace.emit(
            *(Layer.SYNIC, "signal_event", child),
            direction=direction,
            connection=connection_id,
            port=port.id,
            sint=sint,
            flag=port.base_flag + flag,
        )
    synic.set_flag(sint, port.base_flag + flag)


def post_intercept(hypervisor: Hypervisor, vp: VirtualProcessor, message_type: int, payload: bytes) -> bool:
    """Tell the parent of an intercept: a message to SINT0 of its first processor. Returns whether it could be taken.

    There is one buffer for each processor that stops; an older message of it that nobody has read is overwritten.
    """
    parent = vp.partition.parent
    target = None if parent is None else parent.vps.get(0)
    trace = hypervisor.trace
    if trace.on:
        trace.emit(
            *(Layer.SYNIC, "intercept", vp.partition.id),
            direction=TO_ROOT,
            size=len(payload),
            vp=vp.index,
            type=message_type,
        )
    if target is None or not target.synic.takes_messages:
        trace.warn(Layer.SYNIC, "intercept_lost", vp.partition.id, "the parent takes no messages", vp=vp.index)
        return False
    for waiting in target.synic.queues[INTERCEPT_SINT]:
        if waiting.sender is vp:
            waiting.message_type, waiting.payload = message_type, payload
            return True
    target.synic.post(INTERCEPT_SINT, Message(message_type, payload, vp.partition.id, None, vp))
    return True


# --- inside


def _cost(kind: PortType) -> int:
    return PageCost.MESSAGE_PORT if kind is PortType.MESSAGE else PageCost.EVENT_PORT


def _require_active(*partitions: Partition) -> None:
    if any(partition.state is not PartitionState.ACTIVE for partition in partitions):
        raise HvError(HvStatus.INVALID_PARTITION_STATE)


def _port(owner: Partition, port_id: int) -> Port:
    port = owner.ports.get(port_id)
    if port is None:
        raise HvError(HvStatus.INVALID_PORT_ID)
    return port


def _reach(sender: Partition, connection_id: int, kind: PortType) -> Port:
    """The live port behind a connection. IDs with high bits are in no table, so they fail as unknown ones do."""
    connection = sender.connections.get(connection_id)
    if connection is None:
        raise HvError(HvStatus.INVALID_CONNECTION_ID)
    port = connection.port
    if port.type is not kind or not port.alive:
        raise HvError(HvStatus.INVALID_PORT_ID)
    return port


def _message_target(port: Port) -> Synic:
    """Where a message goes; of any processor, the first that takes it."""
    vps = port.owner.vps
    if port.vp_index == ANY_VP:
        for candidate in vps.values():
            if candidate.synic.takes_messages:
                return candidate.synic
        raise HvError(HvStatus.INVALID_SYNIC_STATE)
    vp = vps.get(port.vp_index)
    if vp is None:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    if not vp.synic.takes_messages:
        raise HvError(HvStatus.INVALID_SYNIC_STATE)
    return vp.synic


def _event_target(port: Port, sint: int) -> Synic:
    """Where an event goes; of any processor, the first that takes it."""
    vps = port.owner.vps
    if port.vp_index == ANY_VP:
        for candidate in vps.values():
            if candidate.synic.takes_events(sint):
                return candidate.synic
        raise HvError(HvStatus.INVALID_SYNIC_STATE)
    vp = vps.get(port.vp_index)
    if vp is None:
        raise HvError(HvStatus.INVALID_VP_INDEX)
    if not vp.synic.takes_events(sint):
        raise HvError(HvStatus.INVALID_SYNIC_STATE)
    return vp.synic


def _concerned(sender: Partition, receiver: Partition) -> tuple[int, str]:
    """The child that an exchange is about, and which way it goes."""
    return (receiver.id, TO_CHILD) if sender.id == ROOT_ID else (sender.id, TO_ROOT)
