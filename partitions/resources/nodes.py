"""The rows of a sample: the host, its pools and VMs as a tree, each with what those below it add up to. Root side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec

from hypervisor.scheduler.settings import WHOLE
from partitions.resources.entitle import Entitled, LeafClaim, PoolClaim, entitled
from partitions.resources.sample import HOST, SHORTEST_CONTENTION, Cpu, Disk, Lp, Memory, Network, Node, Sample
from partitions.resources.totals import Totals, add_counts
from partitions.topology_controls import DEFAULT_WEIGHT, CpuClass, PoolTable
from partitions.topology_figures import cpu_figures, pool_figures, vm_pool
from partitions.topology_networks import port_name
from partitions.topology_schema import numbers_of

if TYPE_CHECKING:
    from hypervisor.scheduler.divvy import Due
    from partitions.host import Host
    from partitions.topology_schema import VmTable
    from vsp_vsc.storage.qos.arbiter import FlowFigures

ROWS_AT_ONCE: Final = 64


@attrs.frozen
class Window:
    """What came in one window, and from whom."""

    host: Host
    came: Mapping[str, Totals]
    """By VM, in the order of definition."""
    time: int
    """Nanoseconds at its end, on the host's clock."""
    length: int
    lps: list[Lp]
    contended_for: int
    """Nanoseconds in which somebody waited for a processor."""
    disks: Mapping[str, FlowFigures]
    """As of the end, by `vm/web`, `pool/prod` and `host`."""
    spans: Mapping[str, tuple[int, int]] = {}
    """By the same names, normalized I/Os that were due, and ns for which those directly below contended."""
    ports: Mapping[str, Due] = {}
    """Of ports, pools and the host, as of the end: what they may send."""
    whole: bool = False
    """The whole run: a VM that has ended has the memory that it had."""


def sample_of(window: Window) -> Iterator[Sample | None]:
    """The sample, with None before it as often as others should get their turn."""
    tree = _Tree(window)
    yield from tree.divide_processors()
    rows: list[Node] = []
    for row in tree.rows():
        if row is None:
            yield None
        else:
            rows.append(row)
    yield Sample(
        time=window.time / 1e9,
        window=window.length,
        contended=window.contended_for * SHORTEST_CONTENTION > window.length,
        contended_for=window.contended_for,
        lps=window.lps,
        nodes=rows[::-1],
    )


class _Tree:
    """The pools as they are now, and what is in each."""

    def __init__(self, window: Window) -> None:
        self.window = window
        host = window.host
        made = host.resource_control.made
        self.pools: dict[str, PoolTable] = {} if made is None else made.pools
        self.tables: dict[str, VmTable] = {name: vm.settings for name, vm in host.vmms.vms.items()}
        self.children: dict[str, list[str]] = {"": [], **{name: [] for name in self.pools}}
        """Paths below each pool, VMs first; "" is the host."""
        for name in window.came:
            table = self.tables.get(name)
            self.children["" if table is None or table.pool not in self.pools else table.pool].append(f"vm/{name}")
        for pool in self.pools.values():
            self.children[pool.parent].append(f"pool/{pool.name}")
        self.due: Entitled = Entitled({}, {}, {})
        self.wanted: dict[str, int] | None = {}
        """Nanoseconds of processors, by path; None where that is not known."""
        self.flows: dict[str, list[FlowFigures]] = {}
        """Of each VM's disks, by its path."""
        for name, flow in window.disks.items():
            if "/disk/" in name:
                self.flows.setdefault(name.partition("/disk/")[0], []).append(flow)
        self.parts: dict[str, list[Cpu]] = {}
        """What the VMs directly in a pool had of processors, which may be another pool than for all else."""

    # --- processors

    def divide_processors(self) -> Iterator[None]:
        """Who was due how much."""
        window = self.window
        capacity = window.host.topology.host.logical_processors * window.length
        for step in entitled(capacity, self._pool_claims(), self._leaf_claims()):
            if step is not None:
                self.due = step
            yield None
        if self._somebody_is_gone():
            self.wanted = None
            self.due = Entitled({}, self.due.contended, {})

    def _somebody_is_gone(self) -> bool:
        """Whether a VM that had to wait is off at the end of the run: nobody knows what it still wanted, nor therefore
        what was whose due.
        """
        window = self.window
        return window.whole and any(
            came.cpu.ready + came.cpu.capped and not window.host[name].state.active
            for name, came in window.came.items()
        )

    def _pool_claims(self) -> dict[str, PoolClaim]:
        found = {}
        for name, pool in self.pools.items():
            figures = pool_figures("cpu", pool)
            limit = None if figures.limit is None else self._time(figures.limit)
            own = self._time(figures.dedicated)
            found[name] = PoolClaim(pool.parent, self._time(figures.reservation), limit, figures.shares, own)
        return found

    def _leaf_claims(self) -> Iterator[LeafClaim]:
        """Each virtual processor.

        It wanted what it got, and what it waited for unless it was done with all its work at the end.
        """
        length, host = self.window.length, self.window.host.topology.host
        self.wanted = all_wanted = dict[str, int]()
        for name, came in self.window.came.items():
            table = self.tables.get(name)
            if table is None:
                continue
            pool = vm_pool("cpu", table)
            pool = pool if pool in self.pools else ""
            self.parts.setdefault(pool, []).append(came.cpu)
            figures, count = cpu_figures(table, host), table.processors
            batch = table.cpu is not None and table.cpu.class_ is CpuClass.BATCH
            wanted = 0
            for vp in came.vps:
                demand = min(length, vp.run + (vp.stolen if vp.wants else 0))
                wanted += demand
                yield LeafClaim(
                    owner=f"vm/{name}",
                    pool=pool,
                    reservation=self._time(figures.reservation // count),
                    limit=None if figures.limit is None else self._time(figures.limit // count),
                    shares=figures.shares // count,
                    demand=demand,
                    batch=batch,
                )
            if came.vps:
                all_wanted[f"vm/{name}"] = wanted

    def _time(self, units: int) -> int:
        """Nanoseconds of the window from 1/65536 of a processor."""
        return units * self.window.length // WHOLE

    def _percent(self, amount: int | Fraction | None) -> float | None:
        """Of one logical processor."""
        return None if amount is None else round(float(Fraction(100 * amount, max(1, self.window.length))), 3)

    # --- rows

    def rows(self) -> Iterator[Node | None]:
        """From the last to the first, since a pool's needs those below it."""
        yield from self._below("", 0)

    def _below(self, pool: str, depth: int) -> Iterator[Node | None]:
        own: list[Node] = []
        number = 0
        for path in reversed(self.children[pool]):
            kind, _, name = path.partition("/")
            if kind == "pool":
                for row in self._below(name, depth + 1):
                    if row is not None and row.path == path:
                        own.append(row)
                    yield row
                continue
            row = self._vm(name, depth + 1)
            own.append(row)
            yield row
            number += 1
            if number % ROWS_AT_ONCE == 0:
                yield None
        yield self._sum(pool, own, depth)

    def _vm(self, name: str, depth: int) -> Node:
        came, path = self.window.came[name], f"vm/{name}"
        vm = self.window.host[name]
        record, table = vm.exit, vm.settings
        pool = vm_pool("cpu", table)
        cpu = came.cpu
        if came.vps or cpu.elapsed:
            cpu = msgspec.structs.replace(
                cpu,
                delivered=self._percent(cpu.run) or 0.0,
                demand=self._percent(None if self.wanted is None else self.wanted.get(path)),
                entitled=self._percent(self.due.amounts.get(path)),
            )
        controls: dict[str, Any] = {"weight": DEFAULT_WEIGHT if table.cpu is None else table.cpu.weight}
        if table.cpu is not None:
            controls["reserve"] = table.cpu.reserve * table.processors or None
            controls["limit"] = table.cpu.limit * table.processors if table.cpu.limit < 100 else None
            controls["batch"] = table.cpu.class_ is CpuClass.BATCH
        return Node(
            path=path,
            kind="vm",
            depth=depth,
            state=vm.state.value,
            backend=table.backend.value,
            uptime=round(vm.uptime, 7),
            exit_code=None if record is None else record.exit_code,
            cpu_pool="" if pool == table.pool else pool,
            cpu=msgspec.structs.replace(cpu, **controls),
            memory=came.memory if self.window.whole or vm.state.active else Memory(),
            disk=None if came.disk is None else self._controlled_disk(came.disk, path),
            network=None if came.network is None else self._of_ports(name, came.network, table),
        )

    def _controlled_disk(self, disk: Disk, path: str) -> Disk:
        """With what the controls say, and how much is its due."""
        flow = self.window.disks.get(path)
        elapsed = self.window.length
        due, short = self.window.spans.get(path, (None, 0))
        entitled = None if due is None or not elapsed else round(1e9 * due / elapsed, 3)
        modelled = bool(self.window.host.topology.host.disk_iops)
        contended = None
        if modelled or path.startswith("pool/"):
            contended = short * SHORTEST_CONTENTION > elapsed
        if flow is None:
            return msgspec.structs.replace(disk, elapsed=elapsed, entitled=entitled, contended=contended)
        reserve, limit = flow.reserve, flow.limit
        if path.startswith("vm/"):  # whose disks have them
            own = self.flows.get(path, [])
            reserve, limit = sum([one.reserve for one in own]), _together([one.limit for one in own])
        return msgspec.structs.replace(
            disk,
            elapsed=elapsed,
            entitled=flow.entitled if entitled is None else entitled,
            reserve=reserve or None,
            limit=limit or None,
            weight=None if path == HOST else flow.weight,
            contended=contended,
        )

    def _of_ports(self, name: str, network: Network, table: VmTable) -> Network:
        """With what the tables of a VM's adapters say, and what is due to them together, where that is bounded."""
        network = _controlled_network(network, table, self.window.length)
        own = [self.window.ports.get(port_name(name, number)) for number in numbers_of(table.nic)]
        amounts = [due.amount for due in own if due is not None and due.amount is not None]
        if not amounts or len(amounts) < len(own):
            return network
        return msgspec.structs.replace(network, entitled=round(float(sum(amounts)), 3))

    def _due(self, network: Network, path: str) -> Network:
        """With what is due to a pool, or the host, and whether those in it want more."""
        due = self.window.ports.get(path)
        if due is None:
            return network
        amount = None if due.amount is None else round(float(due.amount), 3)
        return msgspec.structs.replace(network, entitled=amount, contended=due.contended)

    def _sum(self, pool: str, rows: list[Node], depth: int) -> Node:
        """A pool or the host out of what is directly below it."""
        path = f"pool/{pool}" if pool else HOST
        length = self.window.length
        disks = [row.disk for row in rows if row.disk is not None]
        networks = [row.network for row in rows if row.network is not None]
        disk = None if not disks else self._controlled_disk(add_counts([Disk(), *disks]), path)
        memory = Memory(
            assigned=sum([row.memory.assigned for row in rows]),
            ballooned=_sum_known([row.memory.ballooned for row in rows]),
            demand=_sum_known([row.memory.demand for row in rows]),
            active=_sum_known([row.memory.active for row in rows]),
            swapped=_sum_known([row.memory.swapped for row in rows]),
            target=_sum_known([row.memory.target for row in rows]),
        )
        network = None if not networks else self._due(add_counts([Network(), *networks], elapsed=length), path)
        if not pool:
            memory = _host_memory(self.window.host, memory)
            return Node(
                path=HOST, kind="host", cpu=self._cpu_sum(pool, path, {}), memory=memory, disk=disk, network=network
            )
        table = self.pools[pool]
        return Node(
            path=path,
            kind="pool",
            depth=depth,
            cpu=self._cpu_sum(pool, path, _pool_cpu(table)),
            memory=msgspec.structs.replace(memory, **_pool_controls(table.memory)),
            disk=disk,
            network=None if network is None else msgspec.structs.replace(network, **_pool_controls(table.network)),
        )

    def _cpu_sum(self, pool: str, path: str, controls: dict[str, Any]) -> Cpu:
        """All that is in a pool, at any depth, as far as it has its processors there."""
        parts = list(self._cpu_parts(pool))
        length = self.window.length
        added = add_counts([Cpu(), *parts])
        contended = self.due.contended.get(path, False)
        if pool:  # where somebody could have had more
            contended = contended and (added.ready + added.capped) * SHORTEST_CONTENTION > length
        else:
            contended = self.window.contended_for * SHORTEST_CONTENTION > length
        return msgspec.structs.replace(
            added,
            vps=sum([part.vps for part in parts]),
            elapsed=length,
            longest_wait=max([part.longest_wait for part in parts], default=0),
            delivered=self._percent(added.run) or 0.0,
            entitled=self._percent(self.due.amounts.get(path)),
            demand=self._percent(self._wanted_in(pool)),
            contended=contended,
            worth=self._worth(path) if contended else None,
            **controls,
        )

    def _wanted_in(self, pool: str) -> int | None:
        """What all in a pool wanted together."""
        wanted = self.wanted
        return None if wanted is None else sum([wanted.get(f"vm/{name}", 0) for name in self._vms_in(pool)])

    def _worth(self, path: str) -> float | None:
        """Percent of one logical processor for a weight of 1."""
        amount = self.due.worth.get(path)
        return None if amount is None else round(float(100 * amount / max(1, self.window.length)), 6)

    def _cpu_parts(self, pool: str) -> Iterator[Cpu]:
        yield from self.parts.get(pool, ())
        for name, table in self.pools.items():
            if table.parent == pool:
                yield from self._cpu_parts(name)

    def _vms_in(self, pool: str) -> Iterator[str]:
        for path in self.children[pool]:
            kind, _, name = path.partition("/")
            if kind == "vm":
                yield name
            else:
                yield from self._vms_in(name)


def _sum_known(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _together(limits: list[int]) -> int:
    """The limit of several; none, which is 0, where one of them has none."""
    return sum(limits) if all(limits) else 0


def _host_memory(host: Host, memory: Memory) -> Memory:
    """With what is left, and how short it is."""
    vid = host.vid
    return msgspec.structs.replace(
        memory,
        capacity=int(vid.vm_memory),
        free=int(vid.vm_memory_free),
        state=vid.desk.figures().state,
        assigned=int(vid.vm_memory_used),
    )


def _pool_cpu(table: PoolTable) -> dict[str, Any]:
    cpu = table.cpu
    if cpu is None:
        return {"weight": DEFAULT_WEIGHT}
    return {"reserve": cpu.reserve or None, "limit": cpu.limit or None, "weight": cpu.weight}


def _pool_controls(table: Any) -> dict[str, Any]:
    if table is None:
        return {}
    return {"reserve": int(table.reserve) or None, "limit": int(table.limit) or None, "weight": table.weight}


def _controlled_network(network: Network, table: VmTable, length: int) -> Network:
    """With what its adapters' tables say, all together."""
    bands = [nic.bandwidth for nic in table.nic if nic.bandwidth is not None]
    if not bands:
        return msgspec.structs.replace(network, elapsed=length)
    return msgspec.structs.replace(
        network,
        elapsed=length,
        reserve=sum([int(band.reserve) for band in bands]) or None,
        limit=_together([0 if nic.bandwidth is None else int(nic.bandwidth.limit) for nic in table.nic]) or None,
        weight=sum([band.weight for band in bands]),
    )
