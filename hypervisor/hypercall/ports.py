"""Hypercalls that make, change and break ports and connections. Hypervisor.

The 2010 calls and the current ones do the same; the latter name virtual trust levels too, of which there is only 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypervisor import monitor
from hypervisor.hypercall.layouts import (
    ConnectPort2010Input,
    ConnectPortInput,
    CreatePort2010Input,
    CreatePortInput,
    DeletePortInput,
    DisconnectPortInput,
    GetPortPropertyInput,
    PropertyOutput,
    SetPortPropertyInput,
)
from hypervisor.hypercall.partitions import check_proximity
from hypervisor.status import HvError, HvStatus
from hypervisor.synic import ports
from hypervisor.synic.ports import Connection, ConnectionInfo, PortInfo

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.partition import Partition
    from hypervisor.vp import VirtualProcessor


def _partition(hypervisor: Hypervisor, untrusted_id: int) -> Partition:
    """The other end, whoever its parent: a port lets one named sender in, and a connection needs such a port."""
    partition = hypervisor.partitions.get(untrusted_id)
    if partition is None:
        raise HvError(HvStatus.INVALID_PARTITION_ID)
    return partition


def _attach(target: Partition, connection: Connection) -> None:
    monitor.watch(connection)
    if target.doorbells is not None:
        target.doorbells.attach(connection)


def disconnect(target: Partition, untrusted_id: int) -> None:
    """Break a connection, after the backend's shortcut and the watch over its page. Raises INVALID_CONNECTION_ID."""
    connection = target.connections.get(untrusted_id)
    if connection is not None and target.doorbells is not None:
        target.doorbells.detach(connection)
    if connection is not None:
        monitor.unwatch(connection)
    ports.disconnect_port(target, untrusted_id)


def create_port_2010(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: CreatePort2010Input
) -> None:
    """A port of the target's for what one other partition will send."""
    sender = _partition(hypervisor, request.connection_partition_id)
    ports.create_port(target, request.port_id, sender, PortInfo.decode(request.port_info))


def create_port(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: CreatePortInput) -> None:
    """As above, for callers that name trust levels and a memory node."""
    sender = _partition(hypervisor, request.connection_partition_id)
    if request.port_vtl or request.min_connection_vtl:
        raise HvError(HvStatus.INVALID_PARAMETER)
    check_proximity(request.proximity)
    ports.create_port(target, request.port_id, sender, PortInfo.decode(request.port_info))


def delete_port(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: DeletePortInput) -> None:
    """What waits in its buffers is lost."""
    ports.delete_port(target, request.port_id)


def connect_port_2010(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: ConnectPort2010Input
) -> None:
    """A name in the target's hands for a port of another partition."""
    owner = _partition(hypervisor, request.port_partition_id)
    info = ConnectionInfo.decode(request.connection_info)
    _attach(target, ports.connect_port(target, request.connection_id, owner, request.port_id, info))


def connect_port(hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: ConnectPortInput) -> None:
    """As above, for callers that name trust levels and a memory node. Doorbells are not offered."""
    owner = _partition(hypervisor, request.port_partition_id)
    if request.connection_vtl or request.reserved_0 or request.reserved_1:
        raise HvError(HvStatus.INVALID_PARAMETER)
    check_proximity(request.proximity)
    info = ConnectionInfo.decode(request.connection_info)
    _attach(target, ports.connect_port(target, request.connection_id, owner, request.port_id, info))


def disconnect_port(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: DisconnectPortInput
) -> None:
    """What was sent is still delivered."""
    disconnect(target, request.connection_id)


def get_port_property(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: GetPortPropertyInput
) -> bytes:
    """One property's value."""
    return PropertyOutput(ports.get_port_property(target, request.port_id, request.code)).encode()


def set_port_property(
    hypervisor: Hypervisor, vp: VirtualProcessor, target: Partition, request: SetPortPropertyInput
) -> None:
    """Change one property."""
    ports.set_port_property(target, request.port_id, request.code, request.value)
