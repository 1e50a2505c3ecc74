"""The rows of a sample: the host, its pools and VMs as a tree, each with what those below it add up to. Root side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from partitions.resources.sample import Cpu, Disk, Memory, Network, Node, Sample
from partitions.resources.totals import Totals, add_counts

if TYPE_CHECKING:
    from partitions.host import Host

ROWS_AT_ONCE: Final = 64


def nodes_of(host: Host, came: dict[str, Totals], window: int, time: int) -> Iterator[Sample | None]:
    """The sample of a window, None as often as others should get their turn."""
    pools = {pool.name: pool for pool in host.topology.pool}
    children: dict[str, list[str]] = {"": []}
    """Paths below each pool, in order: its VMs, then its pools; "" is the host."""
    for pool in pools.values():
        children.setdefault(pool.name, [])
    for name in came:
        table = host.vmms.vms[name].settings if name in host.vmms.vms else None
        children.setdefault("" if table is None else table.pool, []).append(f"vm/{name}")
    for pool in pools.values():
        children.setdefault(pool.parent, []).append(f"pool/{pool.name}")
    rows: list[Node] = []
    for row in _below(host, "", 0, children, came, window):
        if row is None:
            yield None
        else:
            rows.append(row)
    yield Sample(time=time / 1e9, window=window, nodes=rows[::-1])


def _below(
    host: Host, pool: str, depth: int, children: dict[str, list[str]], came: dict[str, Totals], window: int
) -> Iterator[Node | None]:
    """The rows of a pool from the last to its own, which needs those below it."""
    own: list[Node] = []
    for path in reversed(children[pool]):
        kind, _, name = path.partition("/")
        if kind == "pool":
            for row in _below(host, name, depth + 1, children, came, window):
                if row is not None and row.path == path:
                    own.append(row)
                yield row
        else:
            row = _vm(host, name, depth + 1, came[name])
            own.append(row)
            yield row
            if len(own) % ROWS_AT_ONCE == 0:
                yield None
    yield _sum(own, "pool" if pool else "host", f"pool/{pool}" if pool else "host", depth, window, host)


def _vm(host: Host, name: str, depth: int, came: Totals) -> Node:
    vm = host[name]
    record = vm.exit
    return Node(
        path=f"vm/{name}",
        kind="vm",
        depth=depth,
        state=vm.state.value,
        backend=vm.settings.backend.value,
        uptime=round(vm.uptime, 7),
        exit_code=None if record is None else record.exit_code,
        cpu=came.cpu,
        memory=came.memory,
        disk=came.disk,
        network=came.network,
    )


def _sum(rows: list[Node], kind: str, path: str, depth: int, window: int, host: Host) -> Node:
    """A pool or the host out of what is directly below it."""
    cpu = add_counts([Cpu(), *(row.cpu for row in rows)], vps=sum(row.cpu.vps for row in rows), elapsed=window)
    disks = [row.disk for row in rows if row.disk is not None]
    networks = [row.network for row in rows if row.network is not None]
    assigned = sum(row.memory.assigned for row in rows)
    capacity = int(host.topology.host.memory)
    memory = Memory(assigned=assigned)
    if kind == "host":
        memory = Memory(assigned=assigned, capacity=capacity, free=capacity - assigned)
    return Node(
        path=path,
        kind="host" if kind == "host" else "pool",
        depth=depth,
        cpu=cpu,
        memory=memory,
        disk=None if not disks else add_counts([Disk(), *disks], elapsed=window),
        network=None if not networks else add_counts([Network(), *networks], elapsed=window),
    )
