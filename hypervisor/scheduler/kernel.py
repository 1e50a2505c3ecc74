"""The scheduler of virtual processors: a pure machine of events in whole nanoseconds. Hypervisor.

Caps, reserves and shares on nested groups; batch processors on what is left over. Inputs are what virtual processors
want and what people set; what comes out is who ran when. The same inputs at the same times give the same schedule,
however often or late somebody looked. docs/cpu-scheduler.md tells how it decides.

    kernel = CpuKernel(1)
    a = kernel.add_vp(kernel.root, "a", id=1, shares=100)
    b = kernel.add_vp(kernel.root, "b", id=2, shares=300)
    kernel.work(a, None)
    kernel.work(b, None)
    kernel.advance(1_000_000_000)
    kernel.times(b).run  # 750_000_000
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final, TypeAlias

from hypervisor.scheduler import budgets, counters
from hypervisor.scheduler.completions import Completions
from hypervisor.scheduler.counters import LpTimes
from hypervisor.scheduler.nodes import Domain, Group, Listener, Place, Reason, State, Times, Vp
from hypervisor.scheduler.queues import charge
from hypervisor.scheduler.settings import DEFAULT_PERIOD, DEFAULT_SHARES, WHOLE
from hypervisor.scheduler.wiring import Wiring

__all__ = ["CpuKernel", "Group", "Listener", "LpTimes", "Reason", "State", "Times", "Vp"]


class _Keep(enum.Enum):
    KEEP = "keep"


KEEP: Final = _Keep.KEEP
Node: TypeAlias = Group | Vp
Entry: TypeAlias = tuple[int, str, tuple[object, ...]]
"""An input: its time, its name, and what it was given; nodes by their serial numbers."""


class CpuKernel(Wiring):
    """Virtual processors on a number of logical ones. Inputs count at `now`; `advance` first.

    `quantum`: nanoseconds of a slice. `min_run`: a slice that would leave less of its work or budget behind takes that
    along. `switch_cost`: what a logical processor loses when it goes from one virtual processor to another; part of the
    wait of the latter. `log`: all inputs are kept in `log`, for `replay`.
    """

    def __init__(
        self,
        logical_processors: int,
        *,
        quantum: int = 10_000_000,
        min_run: int = 500_000,
        switch_cost: int = 0,
        log: bool = False,
    ) -> None:
        if logical_processors < 1 or quantum < 1 or min_run < 0 or switch_cost < 0:
            raise ValueError("a machine has at least one processor, a quantum at least a nanosecond")
        super().__init__(logical_processors, quantum=quantum, min_run=min_run, switch_cost=switch_cost)
        self._completions = Completions(self)
        self.log: list[Entry] | None = [] if log else None
        if self.log is not None:
            self.log.append((0, "CpuKernel", (logical_processors, quantum, min_run, switch_cost)))

    def _note(self, name: str, *values: object) -> None:
        if self.log is not None:
            self.log.append((self.now, name, values))

    # --- nodes

    def add_group(
        self,
        parent: Group,
        name: str,
        *,
        id: int,  # noqa: A002 - the number that others know it by, as `Node.id`
        shares: int = DEFAULT_SHARES,
        cap: int | None = None,
        reserve: int = 0,
        period: int = DEFAULT_PERIOD,
        processors: Iterable[int] | None = None,
    ) -> Group:
        """A group in `parent`. `cap` and `reserve` are for all in it together and may be more than `WHOLE`.

        `id` is its own among the groups in `parent`, and orders what would be equal. `processors`: the logical ones
        that all in it run on, and nobody else; only of a group of the machine itself. ValueError where that cannot be.
        """
        own = None if processors is None else frozenset(processors)
        group = self._new_group(parent, name, id, shares, cap, reserve, period, own)
        where = None if own is None else tuple(sorted(own))
        self._note("add_group", self._number(parent), name, id, shares, cap, reserve, period, where)
        return group

    def add_vp(
        self,
        parent: Group,
        name: str,
        *,
        id: int,  # noqa: A002 - as above
        shares: int = DEFAULT_SHARES,
        cap: int | None = WHOLE,
        reserve: int = 0,
        period: int = DEFAULT_PERIOD,
        batch: bool = False,
    ) -> Vp:
        """A virtual processor in `parent`, without work. `id` is its own among those in `parent`."""
        vp = self._new_vp(parent, name, id, shares, cap, reserve, period, batch)
        self._note("add_vp", self._number(parent), name, id, shares, cap, reserve, period, batch)
        return vp

    def remove(self, node: Node) -> None:
        """Take it away with all that is in it. Its account stays as it is now."""
        self._note("remove", self._number(node))
        self._remove(node)
        self._completions.reset()

    def move(self, node: Node, parent: Group) -> None:
        """Put it into another group, with all that is in it. It takes its arrears with it, and no claims."""
        self._move(node, parent)
        self._note("move", self._number(node), self._number(parent))
        self._completions.reset()

    def change(
        self,
        node: Node,
        *,
        shares: int | None = None,
        cap: int | _Keep | None = KEEP,
        reserve: int | None = None,
        period: int | None = None,
        batch: bool | None = None,
        processors: Iterable[int] | _Keep | None = KEEP,
    ) -> None:
        """Other controls, from now on: who runs in it is chosen again. What is not named stays."""
        shares = node.shares if shares is None else shares
        reserve = node.reserve if reserve is None else reserve
        period = node.period if period is None else period
        limit = node.cap if isinstance(cap, _Keep) else cap
        if isinstance(node, Vp):
            if not (processors is KEEP or processors is None):
                raise ValueError(f"{node.name}: only groups have processors of their own")
            batch = node.batch if batch is None else batch
            if (shares, limit, reserve, period, batch) == (*_controls(node), node.batch):
                return
            self._change(node, shares, limit, reserve, period)
            if batch is not node.batch:
                self._change_class(node, batch)
            where = None
        else:
            if batch is not None:
                raise ValueError(f"{node.name}: only virtual processors are of a class")
            own = (
                node.processors
                if isinstance(processors, _Keep)
                else None
                if processors is None
                else frozenset(processors)
            )
            if (shares, limit, reserve, period, own) == (*_controls(node), node.processors):
                return
            self._change(node, shares, limit, reserve, period, own)
            where = None if own is None else tuple(sorted(own))
        self._note("change", self._number(node), shares, limit, reserve, period, batch, where)
        self._completions.reset()

    # --- what virtual processors want

    def work(self, vp: Vp, ns: int | None) -> None:
        """`vp` has so much to do in addition; with None, until `stop`."""
        if ns is not None and ns < 0:
            raise ValueError(f"{vp.name}: {ns} ns of work")
        self._check(vp)
        self._note("work", vp.serial, ns)
        if vp.left is not None:
            if ns == 0:
                return
            vp.left = None if ns is None else vp.left + ns
        if vp.state is State.HALTED and not vp.suspended:
            self.wake(vp)
        if vp.left is not None:
            self._completions.expect(vp)

    def stop(self, vp: Vp) -> int:
        """`vp` has nothing to do any more. Returns the nanoseconds of its work that are undone, 0 if it had no end."""
        self._check(vp)
        self._note("stop", vp.serial)
        self._take_off(vp, Reason.BLOCKED)
        undone = vp.left or 0
        vp.left = 0
        return undone

    def suspend(self, vp: Vp) -> None:
        """`vp` may not run. Its work waits, and it counts as halted."""
        self._check(vp)
        self._note("suspend", vp.serial)
        vp.suspended = True
        self._take_off(vp, Reason.SUSPENDED)

    def resume(self, vp: Vp) -> None:
        """It may again."""
        self._check(vp)
        self._note("resume", vp.serial)
        if vp.suspended:
            vp.suspended = False
            if vp.left != 0:
                self.wake(vp)
                if vp.left is not None:
                    self._completions.expect(vp)

    def charge(self, vp: Vp, ns: int) -> None:
        """`vp` ran so much more than it was dispatched, or so much less. Not a part of the work that it declared.

        The time is taken from what it was not running, and the other way round: its account still sums up to its life.
        """
        self._check(vp)
        self._note("charge", vp.serial, ns)
        self._charge(vp, ns)
        self._completions.reset()

    def settle(self) -> None:
        """Decide who runs at `now` before time leaves it. This is an input: others at `now` come too late for it."""
        if self._undecided:
            self._note("settle")
            self.settle_moment()

    # --- what there is to see

    def next_wake(self) -> int | None:
        """No work is done before; until then nobody needs to call `advance`. None: none, unless there is an input."""
        return self._completions.earliest()

    def running(self, vp: Vp) -> bool:
        """Whether it has a logical processor."""
        return vp.state is State.RUNNING

    def times(self, node: Node) -> Times:
        """Its account until now; of a group, the sum of what is in it now."""
        if isinstance(node, Vp):
            return counters.of_vp(node, self.now)
        return counters.of_group(node, self.now)

    def lp_times(self, lp: int) -> LpTimes:
        """A logical processor's account until now."""
        return counters.of_lp(self, lp)

    @property
    def contended(self) -> bool:
        """Whether somebody with work and budget waits for a logical processor: only then do shares mean anything."""
        return any(domain.contended for domain in self.domains)

    @property
    def crowded(self) -> bool:
        """Whether no logical processor is left over, or none of a group's own: who begins to work now would wait."""
        return any(domain.lps and not domain.free for domain in self.domains)

    def contended_for(self, node: Node | None = None) -> int:
        """Nanoseconds until now in which that was so, where `node` runs; or where it was so for longest."""
        domains = self.domains if node is None else [self._domain(node)]
        return max(counters.contended_for(domain, self.now) for domain in domains)

    # --- inside

    def _take_off(self, vp: Vp, reason: Reason) -> None:
        """`vp` neither runs nor waits any more."""
        if vp.state is State.RUNNING:
            self.cut(vp, reason)
        if vp.state is State.HALTED:
            return
        self.account(vp)
        self.unqueue(vp)
        self.rest(vp)
        self._completions.reset()

    def _charge(self, vp: Vp, ns: int) -> None:
        for place in vp.path:
            if place.tag < 0:
                place.tag = place.above.served + place.step
            elif not place.busy and ns > 0:  # as if it were dispatched now: being idle has earned it nothing
                place.tag = max(place.tag, place.above.served)
        charge(vp.path, ns)
        if vp.state is not State.RUNNING:
            self.account(vp)
        if ns < 0:
            ns = -min(-ns, self.times(vp).run)
            if vp.state is State.HALTED:
                vp.halted -= ns
            else:
                vp.waited -= ns  # it had a logical processor of ours, and the host's own were busy
        elif vp.state is State.CAPPED:
            ns = _take(vp, ns, ("capped", "halted", "waited"))
        elif vp.state is State.READY:
            ns = _take(vp, ns, ("waited", "halted", "capped"))
        elif vp.state is State.HALTED:
            ns = _take(vp, ns, ("halted", "waited", "capped"))
        else:
            switching = max(0, vp.start - self.now)  # is in its account already
            vp.waited -= switching
            ns = _take(vp, ns, ("waited", "capped", "halted"))
            vp.waited += switching
        vp.run += ns
        for budget in vp.budgets:
            if self.now >= budget.until:
                budgets.refill(budget, self.now)
            if ns < 0 and vp.state is not State.HALTED:
                # In this period it would be of no use: slices of it would not be run in time either.
                budgets.give_credit(budget, -ns)
                continue
            most = budget.full - (budget.ends - budget.running * self.now)
            budget.left = min(budget.left - ns, max(most, budget.left))
            if budget.left <= 0:
                self._throttle(budget)
            elif budget.throttled:
                self._unthrottle(budget)

    def _check(self, vp: Vp) -> None:
        if vp.gone:
            raise ValueError(f"{vp.name} was removed")

    @staticmethod
    def _number(node: Node) -> int:
        return node.serial if isinstance(node, Vp) else node.normal.serial

    @staticmethod
    def _domain(node: Node) -> Domain:
        place: Place = node if isinstance(node, Vp) else node.normal
        return place.queue.domain


def _controls(node: Node) -> tuple[int, int | None, int, int]:
    return node.shares, node.cap, node.reserve, node.period


def _take(vp: Vp, ns: int, accounts: tuple[str, ...]) -> int:
    """Take up to `ns` out of those accounts, in their order; returns how much there was."""
    taken = 0
    for name in accounts:
        part = min(ns - taken, getattr(vp, name))
        setattr(vp, name, getattr(vp, name) - part)
        taken += part
    return taken
