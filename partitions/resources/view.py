"""The four views of `partita top`: which columns, what stands in them, and what is worth a word above them. Root side.

Names are esxtop's in the table (%RUN, %RDY, %MLMTD, %WAIT, MCTLSZ) and mean what they mean there: %RDY is all the time
that a VM had work and no processor, and %MLMTD what of it a limit is to blame for. The long form has Hyper-V's names.
Percent are of one logical processor.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from partitions.resources.sample import HOST, SHORTEST_CONTENTION, Cpu, Disk, Heading, Network, Node, Sample


class View(enum.StrEnum):
    """What of the nodes is shown."""

    CPU = "cpu"
    MEMORY = "memory"
    DISK = "disk"
    NETWORK = "network"


class Column(msgspec.Struct, frozen=True):
    """One figure of a node."""

    heading: str
    cell: Callable[[Node], str]
    worth: int
    """How long it stays where the terminal is narrow: the lowest goes first."""


def percent(value: float | None) -> str:
    """One digit behind the point, nothing where there is none."""
    return "-" if value is None else f"{value:.1f}"


def count(value: float | None) -> str:
    """A whole number."""
    return "-" if value is None else f"{value:.0f}"


def mib(value: int | None) -> str:
    """Bytes in MiB, where there are any."""
    return "-" if value is None else f"{value / (1 << 20):,.0f}"


def wait(cpu: Cpu) -> str:
    """CPU Wait Time Per Dispatch, where there has been one."""
    if not cpu.dispatches:
        return ""
    us = cpu.wait_per_dispatch_us
    return f"{us:.1f} us" if us < 999.95 else f"{us / 1000:.1f} ms"


def mbit(value: float | None) -> str:
    """Bits a second in Mbit/s."""
    return "-" if value is None else f"{value / 1e6:,.2f}"


def _on(node: Node) -> bool:
    return node.kind != "vm" or node.cpu.elapsed > 0


def _cpu(get: Callable[[Node], str]) -> Callable[[Node], str]:
    return lambda node: get(node) if _on(node) else ""


_CPU: Final = (
    Column("VPS", lambda node: str(node.cpu.vps or "-"), 3),
    Column("WEIGHT", lambda node: count(node.cpu.weight), 5),
    Column("RESERVE", lambda node: percent(node.cpu.reserve), 2),
    Column("LIMIT", lambda node: percent(node.cpu.limit), 4),
    Column("DEMAND", _cpu(lambda node: percent(node.cpu.demand)), 1),
    Column("ENTITLED", _cpu(lambda node: percent(node.cpu.entitled)), 8),
    Column("%RUN", _cpu(lambda node: percent(node.cpu.run_percent)), 10),
    Column("%RDY", _cpu(lambda node: percent(node.cpu.steal_percent)), 9),
    Column("%MLMTD", _cpu(lambda node: percent(node.cpu.capped_percent)), 7),
    Column("%WAIT", _cpu(lambda node: percent(node.cpu.halted_percent)), 6),
    Column("WAIT/DISP", lambda node: wait(node.cpu), 3),
)
_MEMORY: Final = (
    Column("WEIGHT", lambda node: count(node.memory.weight), 3),
    Column("MIN", lambda node: mib(node.memory.minimum), 4),
    Column("MAX", lambda node: mib(node.memory.maximum), 4),
    Column("ASSIGNED", lambda node: mib(node.memory.assigned), 10),
    Column("DEMAND", lambda node: mib(node.memory.demand), 9),
    Column("TARGET", lambda node: mib(node.memory.target), 6),
    Column("ACTV", lambda node: mib(node.memory.active), 5),
    Column("MCTLSZ", lambda node: mib(node.memory.ballooned), 8),
    Column("ADDED", lambda node: mib(node.memory.added), 2),
    Column("PRESSURE", lambda node: count(node.memory.pressure), 7),
)


def _disk(get: Callable[[Disk], str]) -> Callable[[Node], str]:
    return lambda node: "" if node.disk is None else get(node.disk)


def _network(get: Callable[[Network], str]) -> Callable[[Node], str]:
    return lambda node: "" if node.network is None else get(node.network)


_DISK: Final = (
    Column("WEIGHT", _disk(lambda disk: count(disk.weight)), 4),
    Column("RESERVE", _disk(lambda disk: count(disk.reserve)), 3),
    Column("LIMIT", _disk(lambda disk: count(disk.limit)), 5),
    Column("ENTITLED", _disk(lambda disk: count(disk.entitled)), 8),
    Column("IOPS", _disk(lambda disk: count(disk.iops)), 10),
    Column("REQ/S", _disk(lambda disk: count(disk.requests_per_second)), 6),
    Column("MB/S", _disk(lambda disk: percent(disk.bytes_per_second / 1e6)), 7),
    Column("LAT/MS", _disk(lambda disk: f"{disk.latency_ms:.2f}"), 9),
    Column("HELD/MS", _disk(lambda disk: f"{disk.waited_ms:.2f}"), 2),
)
_NETWORK: Final = (
    Column("WEIGHT", _network(lambda network: count(network.weight)), 4),
    Column("RESERVE", _network(lambda network: mbit(network.reserve)), 3),
    Column("LIMIT", _network(lambda network: mbit(network.limit)), 5),
    Column("ENTITLED", _network(lambda network: mbit(network.entitled)), 6),
    Column("MBTX/S", _network(lambda network: mbit(network.sent_bits_per_second)), 10),
    Column("MBRX/S", _network(lambda network: mbit(network.received_bits_per_second)), 9),
    Column("TX", _network(lambda network: count(network.sent)), 2),
    Column("RX", _network(lambda network: count(network.received)), 2),
    Column("DROPPED", _network(lambda network: count(network.dropped)), 8),
)
COLUMNS: Final = {View.CPU: _CPU, View.MEMORY: _MEMORY, View.DISK: _DISK, View.NETWORK: _NETWORK}


def columns_of(view: View, sample: Sample) -> tuple[Column, ...]:
    """A view's; with several logical processors %RUN in percent of the host as well."""
    columns = COLUMNS[view]
    lps = len(sample.lps)
    if view is not View.CPU or lps < 2:
        return columns
    whole = lps * max(1, sample.window)
    place = 1 + [column.heading for column in columns].index("%RUN")
    of_host = Column("%HOST", _cpu(lambda node: percent(100 * node.cpu.run / whole)), 2)
    return (*columns[:place], of_host, *columns[place:])


def _percent_of(get: Callable[[Node], float]) -> Callable[[Node], str]:
    return lambda node: percent(get(node)) if node.cpu.elapsed else ""


CPU_SUMMARY: Final = (
    Column("RESERVE", lambda node: percent(node.cpu.reserve), 1),
    Column("LIMIT", lambda node: percent(node.cpu.limit), 1),
    Column("WEIGHT", lambda node: count(node.cpu.weight), 1),
    Column("RUN/S", lambda node: f"{node.cpu.run_seconds:.3f}" if node.cpu.elapsed else "", 9),
    Column("%RUN", _percent_of(lambda node: node.cpu.run_percent), 9),
    Column("%RDY", _percent_of(lambda node: node.cpu.steal_percent), 9),
    Column("%MLMTD", _percent_of(lambda node: node.cpu.capped_percent), 9),
    Column("WAIT/DISP", lambda node: wait(node.cpu), 2),
    Column("LONGEST/MS", lambda node: f"{node.cpu.longest_wait_ms:.1f}" if node.cpu.elapsed else "", 3),
)
"""Of processors, over a whole run. What was due is no figure of that: demand comes and goes."""
SUMMARY: Final = (
    Column("MEMORY", lambda node: mib(node.memory.assigned) if node.memory.minimum is not None else "", 3),
    Column("MCTLSZ", lambda node: mib(node.memory.ballooned) if node.memory.minimum is not None else "", 3),
    Column("ADDED", lambda node: mib(node.memory.added), 3),
    Column("IOPS", _disk(lambda disk: count(disk.iops)), 3),
    Column("LAT/MS", _disk(lambda disk: f"{disk.latency_ms:.2f}"), 3),
    Column("HELD/MS", _disk(lambda disk: f"{disk.waited_ms:.2f}"), 2),
    Column("MBTX/S", _network(lambda network: mbit(network.sent_bits_per_second)), 3),
    Column("DROPPED", _network(lambda network: count(network.dropped)), 3),
)
"""Of all else."""


def summary_words(sample: Sample) -> list[str]:
    """Of each resource that was used and is controlled, whether anybody was short of it."""
    host = sample.node(HOST)
    told = [] if host is None else [*_cpu_words(sample, host), *_disk_words(host.disk), *_network_words(host.network)]
    first, *others = told or [""]
    return [f"resources: {first}".rstrip(), *(f"           {words}" for words in others)]


def _cpu_words(sample: Sample, host: Node) -> Iterator[str]:
    if not host.cpu.run:
        return
    if not sample.contended_for:
        why = "only limits held anybody back" if host.cpu.capped else "nobody waited for a processor"
        yield f"{why}, so shares of processors had {_effect(sample)}"
        return
    part = 100 * sample.contended_for / max(1, sample.window)
    waited = f"{sample.contended_for / 1e9:.3f} s ({part:.0f} % of the time)"
    rest = "" if part >= 99.5 else f"; in the rest shares had {_effect(sample)}"
    yield f"somebody waited for a processor for {waited}{rest}"


def _effect(sample: Sample) -> str:
    """Of shares, while logical processors are free: a pool at its limit is divided by them all the same."""
    at_limit = any(node.kind == "pool" and node.cpu.limit and node.cpu.capped for node in sample.nodes)
    return "an effect within pools at their limit only" if at_limit else "no effect"


def _disk_words(disk: Disk | None) -> Iterator[str]:
    if disk is None or not disk.requests:
        return
    used = f"; {disk.iops:.0f} of its {disk.limit} IOPS were used" if disk.limit else ""
    if not disk.waited:
        yield f"no request to a disk was held back{used}"
    else:
        held = f"{disk.waited_ms:.2f} ms of the {disk.latency_ms:.2f} ms that it took"
        decided = "; the storage was contended, so shares decided" if disk.contended else ""
        yield f"a request to a disk was held back for {held}, by a limit or for others{used}{decided}"


def _network_words(network: Network | None) -> Iterator[str]:
    if network is not None and network.dropped:
        frames = "1 frame was" if network.dropped == 1 else f"{network.dropped:,} frames were"
        yield f"{frames} dropped by limits, full queues or links"


# What stands above the columns


def headline(sample: Sample, heading: Heading) -> str:
    """Which host, when, and how long a window."""
    on = sum(node.kind == "vm" and node.cpu.elapsed > 0 for node in sample.nodes)
    vms = sum(node.kind == "vm" for node in sample.nodes)
    clock = " (virtual)" if heading.clock == "virtual" else ""
    name = heading.topology.rstrip("/").rpartition("/")[2]
    return f"{name}: {sample.time:.3f} s{clock}, window {_window(sample.window)} ms, {on} of {vms} VMs on"


def _window(length: int) -> str:
    """Milliseconds; on the real clock a window is never to the microsecond what was asked for."""
    return f"{length / 1e6:.0f}" if length >= 100_000_000 else f"{length / 1e6:.3g}"


def state_words(sample: Sample, heading: Heading, view: View) -> list[str]:
    """How full the host is, and whether anybody contends for it: shares mean nothing else."""
    host = sample.node(HOST)
    if host is None:
        return []
    match view:
        case View.CPU:
            lps = heading.logical_processors
            full = 100 * host.cpu.run / (lps * host.cpu.elapsed) if lps and host.cpu.elapsed else 0.0
            many = "1 logical processor" if lps == 1 else f"{lps} logical processors"
            return [f"CPU {full:.1f} % of {many}; {contended_words(sample)}"]
        case View.MEMORY:
            memory = host.memory
            state = f", state {memory.state}" if memory.state else ""
            return [
                f"memory {mib(memory.assigned)} of {mib(memory.capacity)} MiB assigned, {mib(memory.free)} free{state}"
            ]
        case View.DISK:
            disk = host.disk
            if disk is None:
                return ["no disk is controlled, and so none is counted: give one iops, or the host disk_iops"]
            if disk.contended is None:
                tail = "its capacity is not modelled ([host] disk_iops), so shares have no effect"
            elif disk.contended:
                tail = "contended: yes; shares decide"
            else:
                tail = "contended: no; shares have no effect now"
            return [f"storage {disk.iops:.0f} IOPS; {tail}"]
        case View.NETWORK:
            network = host.network
            if network is None:
                return ["no VM has a network adapter"]
            drops = f", {network.dropped} frames dropped" if network.dropped else ""
            tail = "" if network.contended is None else _contended(network.contended)
            return [f"network {mbit(network.sent_bits_per_second)} Mbit/s sent{drops}{tail}"]


def _contended(contended: bool) -> str:
    return "; contended: yes; shares decide" if contended else "; contended: no; shares have no effect now"


def contended_words(sample: Sample) -> str:
    """Where weights matter at this moment, if they do anywhere."""
    if sample.contended:
        host = sample.node(HOST)
        worth = None if host is None else _worth(host)
        return "contended: yes; shares decide" + ("" if worth is None else f", and a weight of 100 is worth {worth} %")
    pools = [
        node.name + ("" if node.cpu.worth is None else f" (where a weight of 100 is worth {_worth(node)} %)")
        for node in sample.nodes
        if node.kind == "pool" and node.cpu.contended
    ]
    if pools:
        return f"contended: within {', '.join(pools)} only; shares have no effect elsewhere now"
    return "contended: no; shares have no effect now"


def notes(sample: Sample, view: View) -> list[str]:
    """What people misread at this very moment."""
    found = []
    if view is View.CPU and (pair := _upside_down(sample)) is not None:
        high, low = pair
        found.append(
            f"note: {high.name} (weight {high.cpu.weight}) is entitled to less than {low.name} (weight "
            f"{low.cpu.weight}): weights count between siblings, and these are in different pools"
        )
    return found


def _upside_down(sample: Sample) -> tuple[Node, Node] | None:
    """A VM with a higher weight than another in another pool that is entitled to less, though both want more."""
    waiting: list[tuple[str, Node]] = []
    way: list[str] = []
    for node in sample.nodes:
        del way[node.depth :]
        if node.kind != "vm":
            way.append(node.path)
        elif (
            node.cpu.ready * SHORTEST_CONTENTION > node.cpu.elapsed
            and node.cpu.weight is not None
            and node.cpu.entitled is not None
            and not node.cpu.capped
        ):
            waiting.append((way[-1] if way else "", node))
    waiting.sort(key=lambda one: _each(one[1]))
    # The one that is due least against the heaviest wrong that is done to it: by weight down the others.
    for place, (pool, high) in enumerate(waiting):
        for other, low in reversed(waiting[place + 1 :]):
            if other != pool and _weight(low) < _weight(high) and _each(low) > _each(high) + 0.05:
                return high, low
        if place > 16:
            break
    return None


def _each(node: Node) -> float:
    return (node.cpu.entitled or 0.0) / max(1, node.cpu.vps)


def _weight(node: Node) -> int:
    return node.cpu.weight or 0


# The long form


Counter = tuple[str, Callable[[Node], str | None]]
_VP: Final = "Hyper-V Hypervisor Virtual Processor"
_LP: Final = "Hyper-V Hypervisor Logical Processor"
_VM_MEMORY: Final = "Hyper-V Dynamic Memory VM"
_STORAGE: Final = "Hyper-V Virtual Storage Device"
_ADAPTER: Final = "Hyper-V Virtual Network Adapter"


def _maybe(value: str) -> str | None:
    return None if value == "-" else value


def _disk_long(get: Callable[[Disk], str | None]) -> Callable[[Node], str | None]:
    return lambda node: None if node.disk is None else get(node.disk)


def _network_long(get: Callable[[Network], str | None]) -> Callable[[Node], str | None]:
    return lambda node: None if node.network is None else get(node.network)


LONG: Final[dict[View, tuple[Counter, ...]]] = {
    View.CPU: (
        (rf"{_VP}\% Guest Run Time", lambda node: percent(node.cpu.run_percent / max(1, node.cpu.vps))),
        (rf"{_VP}\CPU Wait Time Per Dispatch", lambda node: f"{1000 * node.cpu.wait_per_dispatch_us:,.0f} ns"),
        ("longest wait", lambda node: f"{node.cpu.longest_wait_ms:,.1f} ms" if node.cpu.vps else None),
        ("dispatches/s", lambda node: f"{node.cpu.dispatches_per_second:,.0f}"),
        ("wait (dispatches/s x wait per dispatch)", lambda node: f"{node.cpu.wait_percent:.1f} %"),
        ("%RUN", lambda node: percent(node.cpu.run_percent)),
        ("%RDY", lambda node: percent(node.cpu.steal_percent)),
        ("%MLMTD", lambda node: percent(node.cpu.capped_percent)),
        ("%WAIT", lambda node: percent(node.cpu.halted_percent)),
        ("entitled", lambda node: _maybe(percent(node.cpu.entitled))),
        ("demand", lambda node: _maybe(percent(node.cpu.demand))),
        ("reserve", lambda node: _maybe(percent(node.cpu.reserve))),
        ("limit", lambda node: _maybe(percent(node.cpu.limit))),
        ("weight", lambda node: _maybe(count(node.cpu.weight))),
        ("what a weight of 100 is worth in it", lambda node: _with(_worth(node), "%")),
    ),
    View.MEMORY: (
        (rf"{_VM_MEMORY}\Physical Memory", lambda node: f"{mib(node.memory.assigned)} MB"),
        (rf"{_VM_MEMORY}\Guest Visible Physical Memory", lambda node: _visible(node)),
        (rf"{_VM_MEMORY}\Current Pressure", lambda node: _maybe(count(node.memory.pressure))),
        ("added", lambda node: _with(_maybe(mib(node.memory.added)), "MB")),
        ("MCTLSZ", lambda node: _with(_maybe(mib(node.memory.ballooned)), "MB")),
        ("cause", lambda node: node.memory.cause or None),
        ("ACTV", lambda node: _with(_maybe(mib(node.memory.active)), "MB")),
        ("demand", lambda node: _with(_maybe(mib(node.memory.demand)), "MB")),
        ("target", lambda node: _with(_maybe(mib(node.memory.target)), "MB")),
        ("minimum", lambda node: _with(_maybe(mib(node.memory.minimum)), "MB")),
        ("maximum", lambda node: _with(_maybe(mib(node.memory.maximum)), "MB")),
        ("weight", lambda node: _maybe(count(node.memory.weight))),
    ),
    View.DISK: (
        (rf"{_STORAGE}\Normalized Throughput", _disk_long(lambda disk: f"{disk.iops:.0f}")),
        (rf"{_STORAGE}\Latency", _disk_long(lambda disk: f"{disk.latency_ms:.3f} ms")),
        ("GAVG", _disk_long(lambda disk: f"{disk.latency_ms:.3f} ms")),
        ("KAVG", _disk_long(lambda disk: f"{disk.waited_ms:.3f} ms")),
        ("DAVG", _disk_long(lambda disk: f"{disk.latency_ms - disk.waited_ms:.3f} ms")),
        ("entitled", _disk_long(lambda disk: _maybe(count(disk.entitled)))),
        ("reserve", _disk_long(lambda disk: _maybe(count(disk.reserve)))),
        ("limit", _disk_long(lambda disk: _maybe(count(disk.limit)))),
        ("weight", _disk_long(lambda disk: _maybe(count(disk.weight)))),
    ),
    View.NETWORK: (
        (rf"{_ADAPTER}\Bytes Sent/sec", _network_long(lambda network: count(network.sent_bits_per_second / 8))),
        (
            rf"{_ADAPTER}\Bytes Received/sec",
            _network_long(lambda network: count(network.received_bits_per_second / 8)),
        ),
        (rf"{_ADAPTER}\Dropped Packets", _network_long(lambda network: count(network.dropped))),
        ("reserve", _network_long(lambda network: _with(_maybe(mbit(network.reserve)), "Mbit/s"))),
        ("limit", _network_long(lambda network: _with(_maybe(mbit(network.limit)), "Mbit/s"))),
        ("weight", _network_long(lambda network: _maybe(count(network.weight)))),
    ),
}
"""Counters by the names that Hyper-V's performance monitor and esxtop give them; None is left out."""


def counters_of(view: View, sample: Sample) -> tuple[Counter, ...]:
    """A view's, with those of the logical processors together on the host's row."""
    busy, idle = sum(lp.run for lp in sample.lps), sum(lp.idle for lp in sample.lps)
    if view is not View.CPU or not busy + idle:
        return LONG[view]

    def of_host(part: int) -> Callable[[Node], str | None]:
        return lambda node: percent(100 * part / (busy + idle)) if node.kind == "host" else None

    total, rest = (rf"{_LP}\% Total Run Time", of_host(busy)), (rf"{_LP}\% Idle Run Time", of_host(idle))
    return (total, rest, *LONG[view])


def _worth(node: Node) -> str | None:
    return None if node.cpu.worth is None else f"{100 * node.cpu.worth:.1f}"


_USE: Final[dict[View, Callable[[Node], float]]] = {
    View.CPU: lambda node: node.cpu.run,
    View.MEMORY: lambda node: node.memory.assigned,
    View.DISK: lambda node: 0 if node.disk is None else node.disk.normalized,
    View.NETWORK: lambda node: 0 if node.network is None else node.network.sent_bits + node.network.received_bits,
}


def by_use(sample: Sample, view: View) -> Sample:
    """The same with who uses most first, among siblings: the tree stays a tree."""
    use = _USE[view]
    keys: list[tuple[tuple[float, int], ...]] = []
    way: list[tuple[float, int]] = []
    for number, node in enumerate(sample.nodes):
        del way[node.depth :]
        way.append((-use(node), number))
        keys.append(tuple(way))
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return msgspec.structs.replace(sample, nodes=[sample.nodes[place] for place in order])


def _with(value: str | None, unit: str) -> str | None:
    return None if value is None else f"{value} {unit}"


def _visible(node: Node) -> str | None:
    memory = node.memory
    return None if memory.ballooned is None else f"{mib(memory.assigned + memory.ballooned)} MB"
