"""What a host does for requests about limits, reservations, shares and pools. Root side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypervisor.scheduler.tree import ResourceError
from partitions import control_protocol as protocol
from partitions.root.resource_edits import edit_pool
from partitions.root.resource_view import Row, pool_rows, row_of
from partitions.topology_check import Check
from partitions.topology_controls import PoolTable

if TYPE_CHECKING:
    from partitions.host import Host


def use_resources(host: Host, request: protocol.Request) -> Any:
    """The result. Raises `ResourceError`."""
    match request:
        case protocol.Set():
            host.resources.change(request.node, request.values)
            return row_of(host.resources, host.resources.owner(request.node))
        case protocol.AddPool():
            return _add(host, request)
        case protocol.RemovePool():
            host.resources.remove_pool(_name(request.pool))
            return pool_rows(host.resources)
        case protocol.MovePool():
            name = _name(request.pool)
            host.resources.move_pool(name, "" if request.parent == "host" else _name(request.parent))
            return row_of(host.resources, f"pool/{name}")
        case protocol.Pools():
            return pool_rows(host.resources)
        case _:
            raise AssertionError(f"{request} is about no resource")


def _add(host: Host, request: protocol.AddPool) -> Row:
    name = _name(request.pool)
    check = Check({}, Path(), programs=False)
    check.names("pool", [name])
    for reason in check.found.values():
        raise ResourceError(f"pool/{name}", "name", reason)
    table = PoolTable(name=name)
    for key, value in request.values.items():
        table = edit_pool(table, key, value)
    host.resources.add_pool(table)
    return row_of(host.resources, f"pool/{name}")


def _name(pool: str) -> str:
    """As people call it: with or without what it is."""
    return pool.rpartition("pool/")[2]
