"""Kernels for tests: what they told, whether they contradict themselves, and what each should get. Hypervisor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction

import attrs

from hypervisor.scheduler.divvy import Claim, divide
from hypervisor.scheduler.kernel import CpuKernel, Group, Reason, State, Vp
from hypervisor.scheduler.nodes import Place

MS = 1_000_000
SECOND = 1000 * MS
QUANTUM = 10 * MS
WHOLE = 0x10000


@attrs.define
class Stretch:
    """A virtual processor ran there without a break."""

    name: str
    lp: int
    begin: int
    end: int
    reason: Reason | None = None


@attrs.define(eq=False)
class Ear:
    """Hears what a kernel tells, and objects to what makes no sense."""

    kernel: CpuKernel
    timely: bool = True
    events: list[tuple[int, str, str, int, object]] = attrs.Factory(list)
    stretches: list[Stretch] = attrs.Factory(list)
    finished_at: dict[str, list[int]] = attrs.Factory(dict)
    then: Callable[[Vp], None] | None = None
    _on: dict[int, Stretch] = attrs.Factory(dict)

    def dispatched(self, vp: Vp, lp: int, slice_ns: int) -> None:
        """It has it, or keeps it."""
        now = self.kernel.now
        self.events.append((now, "dispatched", vp.name, lp, slice_ns))
        on = self._on.get(lp)
        if on is None:
            assert all(one.name != vp.name for one in self._on.values()), f"{vp} runs twice"
            self._on[lp] = on = Stretch(vp.name, lp, now, -1)
            self.stretches.append(on)
        assert on.name == vp.name

    def descheduled(self, vp: Vp, lp: int, reason: Reason) -> None:
        """It has it no more."""
        now = self.kernel.now
        self.events.append((now, "descheduled", vp.name, lp, reason.value))
        on = self._on.pop(lp)
        assert on.name == vp.name
        on.end, on.reason = now, reason

    def finished(self, vp: Vp) -> None:
        """Its work is done."""
        now = self.kernel.now
        self.events.append((now, "finished", vp.name, -1, None))
        self.finished_at.setdefault(vp.name, []).append(now)
        if self.then is not None:
            self.then(vp)

    def digest(self) -> str:
        """Of all events."""
        return hashlib.sha256(repr(self.events).encode()).hexdigest()

    def of(self, *names: str) -> list[tuple[str, int, int, int]]:
        """Where and when those ran. Ends what still runs."""
        return [(it.name, it.lp, it.begin, it.end) for it in self.stretches if it.name in names]


def listen(kernel: CpuKernel) -> Ear:
    """An ear at `kernel`."""
    ear = Ear(kernel)
    kernel.listener = ear
    return ear


def busy(
    kernel: CpuKernel,
    *shares: int,
    parent: Group | None = None,
    cap: int = WHOLE,
    reserve: int = 0,
    period: int = 10 * MS,
    prefix: str = "",
) -> list[Vp]:
    """Virtual processors that always want to run, in the order of IDs."""
    group = kernel.root if parent is None else parent
    vps = [
        kernel.add_vp(group, f"{prefix}{number}", id=number, shares=weight, cap=cap, reserve=reserve, period=period)
        for number, weight in enumerate(shares, start=len(group.children))
    ]
    for vp in vps:
        kernel.work(vp, None)
    return vps


def ran(kernel: CpuKernel, nodes: Sequence[Group | Vp]) -> list[Fraction]:
    """Milliseconds that each ran, exactly."""
    return [Fraction(kernel.times(node).run, MS) for node in nodes]


def inside(group: Group) -> list[Group | Vp]:
    """All nodes in it."""
    found: list[Group | Vp] = []
    for child in group.children.values():
        found.append(child)
        if isinstance(child, Group):
            found += inside(child)
    return found


def check(kernel: CpuKernel) -> None:
    """I1 and I2, and that the kernel's books agree with each other, at any time. Decides about the present moment."""
    kernel.settle()
    now = kernel.now
    vps = [node for node in inside(kernel.root) if isinstance(node, Vp)]
    groups = [kernel.root, *(node for node in inside(kernel.root) if isinstance(node, Group))]
    for vp in vps:
        times = kernel.times(vp)
        assert min(times) >= 0, (vp, times)
        assert times.run + times.ready + times.capped + times.halted == now - vp.born, (vp, times)
        assert (vp.state is State.RUNNING) == (vp in kernel.running_on)
    for group in groups:
        each = [kernel.times(child) for child in group.children.values()]
        assert kernel.times(group)[:5] == tuple(sum(times[index] for times in each) for index in range(5))
    for lp in range(kernel.lps):
        times_of_lp = kernel.lp_times(lp)
        assert min(times_of_lp) >= 0
        assert times_of_lp.run + times_of_lp.idle + times_of_lp.switch == now
    for vp in vps:
        may = vp.state is State.READY and not any(budget.throttled for budget in vp.budgets)
        assert (vp.state is State.CAPPED) <= (vp.budget is not None and vp.budget.throttled)
        if may:
            domain = vp.queue.domain
            for lp in range(kernel.lps):
                if domain.lps >> lp & 1:
                    on = kernel.running_on[lp]
                    assert on is not None, f"{vp} waits, and {lp} is idle"
                    assert vp.batch or not on.batch, f"{vp} waits for {on}"
    for group in groups:
        for place in (group.normal, group.batch):
            children: list[Place] = [
                child if isinstance(child, Vp) else child.batch if place is group.batch else child.normal
                for child in group.children.values()
                if (isinstance(child, Group) and child.domain is None)
                or (isinstance(child, Vp) and child.batch is (place is group.batch))
            ]
            queued = [child for child in children if child.queued]
            assert place.ready == len(queued), place
            live = {id(it) for tag, _, it in place.heap if it.queued and it.tag == tag}
            assert live == {id(child) for child in queued}
            assert len(place.heap) <= place.crowd
            for child in children:
                assert not (child.queued and child.throttled)
                assert isinstance(child, Vp) or child.queued == (child.ready > 0 and not child.throttled)
            if group.domain is None or place.queue.root is not place:
                assert place.busy == sum(child.busy for child in children)
    for domain in kernel.domains:
        for queue in (domain.normal, domain.batch):
            assert not queue.arrivals
            assert queue.waiting == sum(vp.queued for vp in vps if vp.queue is queue)
            assert len(queue.owed) + len(queue.urgent) <= queue.debtors


def entitled(kernel: CpuKernel) -> dict[Vp, Fraction]:
    """What each busy virtual processor is to get of one logical processor, level by level."""

    def most(node: Group | Vp) -> int:
        own = kernel.lps * WHOLE if node.cap is None else node.cap
        return min(own, WHOLE if isinstance(node, Vp) else sum(map(most, node.children.values())))

    def share(group: Group, capacity: int | Fraction) -> None:
        children = list(group.children.values())
        claims = [Claim(min(child.reserve, most(child)), most(child), child.shares) for child in children]
        for child, got in zip(children, divide(capacity, claims).amounts, strict=True):
            if isinstance(child, Vp):
                result[child] = got / WHOLE
            else:
                share(child, got)

    result: dict[Vp, Fraction] = {}
    share(kernel.root, kernel.lps * WHOLE)
    return result
