"""The host's I/O among its disks: the tree of pools, VMs and disks, their gates, and the one timer. Root side.

A disk has a gate while something controls it: itself, its VM, a pool around them, or the capacity of the host. Without
control it has none, its commands take the way that they always take, and nothing here is called for them.

No task waits for anything: the hypervisor's timers call `fire` when the next request is due.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import attrs
import msgspec

from hypervisor.clock import NS_PER_TICK
from hypervisor.inspect import Branch
from vsp_vsc.storage.qos.gate import Command, DiskGate
from vsp_vsc.storage.qos.mclock import MClock, Node
from vsp_vsc.storage.qos.meter import WINDOW, Meter
from vsp_vsc.storage.qos.policy import NONE, IopsPolicy

if TYPE_CHECKING:
    from hypervisor.clock import Clock
    from hypervisor.scheduler.divvy import Due
    from hypervisor.timer_queue import TimerQueue
    from vsp_vsc.storage.controller import Unit

_SECOND: Final = 1_000_000_000
_TOLERANCE: Final = 20
"""A reserve is kept if all but one part in so many came: 50 ms of a second are what `MClock` makes up for later."""
_LOOK: Final = 10_000_000
"""ns at least between two looks at what is due, for each disk: dividing for many takes its time."""
_LOOKS: Final = 32
"""And one part in so many of how long there have been looks: it costs a long run nothing, and a short one is exact."""


class FlowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a disk, a VM's disks, a pool or the host has had of I/O. Counts grow for as long as it is there."""

    requests: int
    normalized: int
    bytes: int
    held: int
    """ns that its requests waited in gates, all together."""
    taken: int
    """ns from arrival to completion, all together."""
    delivered: int
    """Normalized I/Os in the last second."""
    entitled: float | None
    """Normalized I/Os a second that are its due now; None where nothing bounds it."""
    reserve: int
    limit: int
    """0: none."""
    weight: int
    waiting: int
    """Requests in gates now."""
    under_way: int
    """Requests let go that have not ended."""
    status: str
    """`Ok`, or `InsufficientThroughput` where it has waited for a second without getting what is reserved for it."""
    latency: tuple[int, ...] = ()
    """Requests by time from arrival to completion, as a `Histogram` of microseconds counts them."""


@attrs.define
class Span:
    """Of a node, since it came."""

    due: int = 0
    """Normalized I/Os that were due, in parts of 1 / 1,000,000,000."""
    contended: int = 0
    """ns in which those directly below it wanted more than there was for them."""

    def and_also(self, other: Span | None) -> Span:
        """Both together."""
        return self if other is None else Span(self.due + other.due, self.contended + other.contended)


@attrs.define(eq=False)
class Flow:
    """One disk of one guest; Hyper-V's Storage QoS has the word. Made by `DiskQos.add_disk`."""

    qos: DiskQos
    name: str
    node: Node
    policy: IopsPolicy
    unit: Unit
    meter: Meter = attrs.field(factory=Meter)
    gate: DiskGate | None = None
    looked: int = 0
    """Normalized I/Os at the last look at what is due."""

    def set_policy(self, policy: IopsPolicy) -> None:
        """Other controls from now on. ValueError."""
        policy.check()
        self.policy = policy
        self.qos.changed(self.node, policy)

    def close(self) -> None:
        """The disk has gone, and what it had waiting has ended."""
        self.qos.remove_disk(self)

    def inspect(self) -> Branch:
        """Figures, while it is controlled."""
        return Branch({} if self.gate is None else {"iops": self._figures})

    def _figures(self) -> Branch:
        figures, (device, kernel, guest) = self.qos.figures_of(self.node), self.meter.averages()
        return Branch(
            {
                "status": figures.status,
                "delivered": figures.delivered,
                "entitled": figures.entitled,
                "waiting": figures.waiting,
                "requests": figures.requests,
                "normalized": figures.normalized,
                "DAVG_ms": device,
                "KAVG_ms": kernel,
                "GAVG_ms": guest,
                "latency": self.meter.latency.histogram("us"),
            }
        )


class DiskQos:
    """One for the host."""

    def __init__(self, clock: Clock, timers: TimerQueue, *, capacity: int = 0) -> None:
        """`capacity` in normalized I/Os a second, 0 where it is not modelled: then only limits mean something."""
        self.core = MClock(capacity or None)
        self._clock = clock
        self._timers = timers
        self._groups: dict[str, Node] = {}
        self._policies: dict[Node, IopsPolicy] = {}
        self._flows: dict[Node, Flow] = {}
        self._spans: dict[Node, Span] = {}
        self._gone: dict[str, Span] = {}
        """Of those that have left, by name."""
        self._last: dict[Node, Due] = {}
        """At the last look, if nothing has been changed since."""
        self._began = self._looked = self._next_look = self.now()

    def now(self) -> int:
        """ns."""
        return self._clock() * NS_PER_TICK

    # --- the tree

    def set_group(self, name: str, parent: str, policy: IopsPolicy) -> None:
        """A pool or a VM: made, moved or with other controls. `parent` is a group that is there, or empty."""
        policy.check()
        above = self._groups[parent] if parent else self.core.root
        node = self._groups.get(name)
        if node is None:
            node = self._groups[name] = self.core.add_node(above, name)
        elif node.parent is not above:
            self.core.move(node, above)
        self.changed(node, policy)

    def has_group(self, name: str) -> bool:
        """Whether `set_group` has made it."""
        return name in self._groups

    def remove_if_empty(self, name: str) -> None:
        """A group goes, if it is there and nothing is in it."""
        node = self._groups.get(name)
        if node is None or node.children:
            return
        self._leaves(name, node)
        del self._groups[name]
        self._policies.pop(node, None)
        self.core.remove(node)

    def set_capacity(self, capacity: int) -> None:
        """Another host, as it were; 0 is one without bounds."""
        self._add_up(self.now())
        self._last = {}
        self._drain(self.now())
        self.core.change(self.core.root, limit=capacity)
        self._look()

    def changed(self, node: Node, policy: IopsPolicy) -> None:
        """Other controls for a node, from now on."""
        self._add_up(self.now())
        self._last = {}
        self._drain(self.now())
        self._policies[node] = policy
        self.core.change(node, reserve=policy.reserve, limit=policy.limit, weight=policy.weight)
        self._look()

    def add_disk(self, group: str, name: str, policy: IopsPolicy, unit: Unit) -> Flow:
        """A disk of a VM, which is a group that is there."""
        policy.check()
        node = self.core.add_node(self._groups[group], name)
        flow = self._flows[node] = Flow(self, name, node, policy, unit)
        self.changed(node, policy)
        return flow

    def remove_disk(self, flow: Flow) -> None:
        """For `Flow.close`."""
        if flow.node not in self._flows:
            return
        above = flow.node.parent
        self._leaves(f"{'' if above is None else above.name}/{flow.name}", flow.node)
        del self._flows[flow.node]
        del self._policies[flow.node]
        self._pass(flow, through=False)
        for request in self.core.remove(flow.node):
            request.payload.go(self.now())
        self._arm()

    # --- requests

    def enter(self, node: Node, cost: int, command: Command, now: int) -> bool:
        """A command comes; whether it may go at once. If not it will be told."""
        core = self.core
        if now >= self._next_look:
            self._add_up(now)
        if core.root.waiting:
            self._drain(now)
        mine = core.add(node, cost, command, now)
        while (request := core.pull(now)) is not None:
            if request is mine:
                if not core.root.waiting:
                    return True  # nobody waits, so there is nothing to wake up for
                self._drain(now)
                break
            request.payload.go(now)
        self._arm()
        return mine.phase is not None

    def fire(self) -> None:
        """For the timers: something is due."""
        now = self.now()
        if now >= self._next_look:
            self._add_up(now)
        self._drain(now)
        self._arm()

    def _drain(self, now: int) -> None:
        while (request := self.core.pull(now)) is not None:
            request.payload.go(now)

    def _arm(self) -> None:
        moment = self.core.next_time()
        self._timers.set(self, None if moment is None else -(-moment // NS_PER_TICK))

    # --- gates where they are needed

    def _look(self) -> None:
        """After a change: let go who may go now, and see which disks need a gate."""
        self._drain(self.now())
        for flow in self._flows.values():
            self._pass(flow, through=self._controlled(flow.node) or bool(flow.node.queue))
        self._arm()

    def _controlled(self, node: Node) -> bool:
        if self.core.root.limit is not None:
            return True
        way: Node | None = node
        while way is not None:
            if self._policies.get(way, NONE).any:
                return True
            way = way.parent
        return False

    def _pass(self, flow: Flow, *, through: bool) -> None:
        if through and flow.gate is None:
            flow.gate = DiskGate(self, flow.node, flow.meter)
            flow.unit.pass_through(flow.gate)
        elif not through and flow.gate is not None:
            flow.gate = None
            flow.unit.pass_through(None)

    # --- figures

    def figures(self) -> dict[str, FlowFigures]:
        """Of the host (`host`), of each group by its name, and of each disk, such as `vm/web/disk/0`."""
        return dict(self.each())

    def spans(self) -> dict[str, tuple[int, int]]:
        """By the same names, as far as something bounds them: normalized I/Os that were due, and ns contended for."""
        self._add_up(self.now())
        found = dict(self._gone)
        for name, node in self._named():
            if node in self._spans:
                found[name] = self._spans[node].and_also(found.get(name))
        return {name: (span.due // _SECOND, span.contended) for name, span in found.items()}

    def _leaves(self, name: str, node: Node) -> None:
        """A node is about to go: keep what was due to it."""
        self._add_up(self.now())
        self._last = {}
        span = self._spans.pop(node, None)
        if span is not None:
            self._gone[name] = span.and_also(self._gone.get(name))

    def _add_up(self, now: int) -> None:
        """What was due since the last look: as it was then for half the time between two, and as it is now after it."""
        elapsed = now - self._looked
        if not elapsed:
            return
        early = min(elapsed, self._next_look - self._looked) // 2
        self._looked = now
        self._next_look = now + max(WINDOW, _LOOK * len(self._flows), (now - self._began) // _LOOKS)
        rates = {}
        for node, flow in self._flows.items():
            rates[node] = (flow.meter.normalized - flow.looked) * _SECOND // elapsed
            flow.looked = flow.meter.normalized
        before, self._last = self._last, self._entitled(rates)
        for node, due in self._last.items():
            if due.amount is not None:
                span = self._spans.setdefault(node, Span())
                was = before.get(node, due)
                span.due += int((was.amount or 0) * early + due.amount * (elapsed - early))
                span.contended += was.contended * early + due.contended * (elapsed - early)

    def each(self) -> Iterator[tuple[str, FlowFigures]]:
        """The same, one by one; what goes meanwhile is left out or was there still."""
        entitled = self._entitled()
        for name, node in self._named():
            yield name, self._sum(node, entitled)

    def _named(self) -> Iterator[tuple[str, Node]]:
        yield "host", self.core.root
        yield from list(self._groups.items())
        for node, flow in list(self._flows.items()):
            if node.parent is not None:
                yield f"{node.parent.name}/{flow.name}", node

    def figures_of(self, node: Node) -> FlowFigures:
        """Of one node."""
        return self._sum(node, self._entitled())

    def _below(self, node: Node) -> Iterator[Flow]:
        flow = self._flows.get(node)
        if flow is not None:
            yield flow
        for child in node.children.values():
            yield from self._below(child)

    def _sum(self, node: Node, entitled: dict[Node, Due]) -> FlowFigures:
        now, flows = self.now(), list(self._below(node))
        due, policy = entitled.get(node), self._policies.get(node, NONE)
        delivered = sum(flow.meter.rate(now) for flow in flows)
        enough = node.owed - node.owed // _TOLERANCE - node.largest
        short = node.waiting and now - node.since_ns > _SECOND and delivered < enough
        ended = sum(flow.meter.requests for flow in flows)
        return FlowFigures(
            requests=ended,
            normalized=sum(flow.meter.normalized for flow in flows),
            bytes=sum(flow.meter.bytes for flow in flows),
            held=sum(flow.meter.held for flow in flows),
            taken=sum(flow.meter.taken for flow in flows),
            delivered=delivered,
            entitled=None if due is None or due.amount is None else float(due.amount),
            reserve=policy.reserve,
            limit=node.limit or 0,
            weight=policy.weight,
            waiting=node.waiting,
            under_way=sum(flow.unit.nexus.under_way for flow in flows) - node.waiting,
            status="InsufficientThroughput" if short else "Ok",
            latency=_together([flow.meter.latency.histogram("us").counts for flow in flows]),
        )

    def _entitled(self, rates: dict[Node, int] | None = None) -> dict[Node, Due]:
        """By reservation, limit, shares and what each wants now: all that it can get, or what it had lately."""
        from vsp_vsc.storage.qos.entitled import entitled

        now = self.now()
        return entitled(self.core.root, rates or {node: flow.meter.rate(now) for node, flow in self._flows.items()})


def _together(counts: list[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, itertools.zip_longest(*counts, fillvalue=0)))
