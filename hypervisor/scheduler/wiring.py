"""Groups and virtual processors come, go, move and are told otherwise, while they run. Hypervisor.

Whatever changes, all in it are lifted out of the queues and off their logical processors first, which settles what they
were charged, and are put back where they now belong. They are dispatched again at the same moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from hypervisor.scheduler.budgets import block, places, processors_in, refill, within
from hypervisor.scheduler.dispatch import Dispatcher
from hypervisor.scheduler.nodes import FINE, NEW, Budget, Domain, Group, Place, Queue, Reason, State, Vp
from hypervisor.scheduler.queues import forget
from hypervisor.scheduler.settings import WHOLE

Node: TypeAlias = Group | Vp


class Wiring(Dispatcher):
    """The tree, and the domains that its top level divides the logical processors into."""

    def __init__(self, logical_processors: int, *, quantum: int, min_run: int, switch_cost: int) -> None:
        super().__init__(logical_processors, quantum=quantum, min_run=min_run, switch_cost=switch_cost)
        self._serials = 0
        normal, batch = self._new_place(0, 1), self._new_place(0, 1)
        self.root = Group("machine", 0, None, 1, None, 0, quantum, None, normal, batch)
        """The machine itself: no controls."""
        self.root.domain = self._new_domain(self.root)
        self._deal_out()

    # --- making

    def _new_place(self, rank: int, shares: int) -> Place:
        self._serials += 1
        return Place(self._serials, rank, shares, self.quantum)

    def _new_group(
        self,
        parent: Group,
        name: str,
        number: int,
        shares: int,
        cap: int | None,
        reserve: int,
        period: int,
        processors: frozenset[int] | None,
    ) -> Group:
        rank = self._admit_child(parent, name, number, 0)
        _check(name, shares, cap, reserve, period)
        self._check_processors(name, parent, None, processors)
        group = Group(
            *(name, number, parent, shares, cap, reserve, period, processors),
            *(self._new_place(rank, shares), self._new_place(rank, shares)),
        )
        group.blocked, group.blocked_since = parent.blocked, self.now
        parent.children[rank] = group
        self._wire_group(group)
        self._set_budget(group, new=True)
        self._set_floor(group)
        if processors is not None:
            self._deal_out()
        return group

    def _new_vp(
        self,
        parent: Group,
        name: str,
        number: int,
        shares: int,
        cap: int | None,
        reserve: int,
        period: int,
        batch: bool,
    ) -> Vp:
        rank = self._admit_child(parent, name, number, 1)
        _check(name, shares, cap, reserve, period)
        if not self._domain_above(parent).lps:
            raise ValueError(f"{name}: groups with processors of their own have all that there are")
        self._serials += 1
        vp = Vp(
            *(self._serials, rank, shares, self.quantum),
            name=name,
            id=number,
            group=parent,
            cap=cap,
            reserve=reserve,
            period=period,
            batch=batch,
            born=self.now,
        )
        vp.since = self.now
        parent.children[rank] = vp
        self._set_budget(vp, new=True)
        self._set_floor(vp)
        self._wire_vp(vp)
        return vp

    def _admit_child(self, parent: Group, name: str, number: int, kind: int) -> int:
        """Its rank among its siblings."""
        rank = 2 * number + kind
        if rank in parent.children:
            raise ValueError(f"{name}: {parent.name} has a child with the ID {number} already")
        return rank

    # --- taking apart and putting together

    @contextmanager
    def _lifted(self, node: Node) -> Iterator[None]:
        """All virtual processors in `node` are off and out meanwhile."""
        inside = list(processors_in(node))
        for vp in inside:
            if vp.state is State.RUNNING:
                self.cut(vp, Reason.SLICE_END)
            self.account(vp)
            if vp.state is State.READY:
                self.unqueue(vp)
            if vp.state is not State.HALTED:
                for place in vp.path:
                    place.busy -= 1
                    if not place.busy:
                        place.idle_since = self.now
        try:
            yield
        finally:
            for vp in inside:
                if vp.gone:
                    continue
                self._wire_vp(vp)
                for place in vp.path:
                    place.changed = True
                if vp.state is not State.HALTED:
                    for place in vp.path:
                        place.busy += 1
                    self.line_up(vp)
            for domain in self.domains:
                domain.tight.clear()
                domain.length = domain.paced_until = 0
                domain.stale = True
            self._undecided = True

    def _wire_vp(self, vp: Vp) -> None:
        """Where `vp` is, as dispatching wants it."""
        path: list[Place] = [vp]
        caps = [vp.budget] if vp.budget is not None else []
        group = vp.group
        vp.above = group.batch if vp.batch else group.normal
        while group.domain is None:
            path.append(group.batch if vp.batch else group.normal)
            assert group.group is not None
            group = group.group
        domain = group.domain
        vp.queue = domain.batch if vp.batch else domain.normal
        above: Group | None = vp.group
        while above is not None:
            if above.budget is not None:
                caps.append(above.budget)
            above = above.group
        vp.path = tuple(path)
        vp.budgets = tuple(caps)
        vp.group_capped = any(budget.node is not vp for budget in caps)
        vp.owed = tuple(place for place in path if place.rate)

    def _wire_group(self, group: Group) -> None:
        """Its places stand in its parent's, or are roots of a domain."""
        above = group.group
        assert above is not None
        if group.processors is not None:
            if group.domain is None:
                group.domain = self._new_domain(group)
        else:
            if group.domain is not None:
                self.domains.remove(group.domain)
                group.domain = None
            domain = self._domain_above(above)
            group.normal.above, group.batch.above = above.normal, above.batch
            group.normal.queue, group.batch.queue = domain.normal, domain.batch

    def _wire_groups(self, group: Group) -> None:
        for one in within(group):
            self._wire_group(one)

    def _domain_above(self, group: Group) -> Domain:
        while group.domain is None:
            assert group.group is not None
            group = group.group
        return group.domain

    def _forget(self, node: Node) -> None:
        """It leaves where it stands. Its tag becomes how far it was ahead of its siblings; arrears are lost."""
        for place in places(node):
            if isinstance(node, Group) and node.domain is not None:
                place.tag = NEW
            else:
                forget(place)
                if place.tag != NEW:
                    place.tag = max(0, place.tag - place.above.served)

    @staticmethod
    def _arrive(node: Node) -> None:
        """It stands somewhere else: as far ahead of the present there."""
        for place in places(node):
            if place.tag != NEW and (isinstance(node, Vp) or node.domain is None):
                place.tag += place.above.served

    # --- domains

    def _new_domain(self, group: Group) -> Domain:
        domain = Domain(group, self.quantum)
        domain.normal = Queue(group.normal, domain, batch=False)
        domain.batch = Queue(group.batch, domain, batch=True)
        group.normal.queue, group.batch.queue = domain.normal, domain.batch
        self.domains.append(domain)
        return domain

    def _check_processors(
        self, name: str, parent: Group | None, group: Group | None, processors: frozenset[int] | None
    ) -> None:
        """Whether a group may have these for its own."""
        if processors is None:
            return
        if parent is not self.root:
            raise ValueError(f"{name}: only groups of the machine itself can have processors of their own")
        if not processors or min(processors) < 0 or max(processors) >= self.lps:
            raise ValueError(f"{name}: there are processors 0 to {self.lps - 1}, and at least one is needed")
        others = [it for it in self.root.children.values() if isinstance(it, Group) and it is not group]
        taken: set[int] = set()
        for other in others:
            taken |= other.processors or frozenset()
            if other.processors is not None and other.processors & processors:
                raise ValueError(f"{name}: processor {min(other.processors & processors)} is of {other.name}")
        if len(taken | processors) == self.lps and any(
            self._domain_above(vp.group) is self.root.domain
            for vp in processors_in(self.root)
            if group is None or not _is_in(vp, group)
        ):
            raise ValueError(f"{name}: no processor would be left for those that have none of their own")

    def _deal_out(self) -> None:
        """Each domain gets its logical processors; the machine's own those that no group has."""
        masks = {id(self.root.domain): (1 << self.lps) - 1}
        for group in self.root.children.values():
            if isinstance(group, Group) and group.processors is not None:
                mask = sum(1 << lp for lp in group.processors)
                masks[id(group.domain)] = mask
                masks[id(self.root.domain)] &= ~mask
        for lp, vp in enumerate(self.running_on):
            if vp is not None and not masks[id(vp.queue.domain)] >> lp & 1:
                self.cut(vp, Reason.SLICE_END)
        for domain in self.domains:
            domain.lps = domain.free = masks[id(domain)]
            domain.batch_lps = 0
        for lp, vp in enumerate(self.running_on):
            if vp is not None:
                vp.queue.domain.free &= ~(1 << lp)
                vp.queue.domain.batch_lps |= vp.batch << lp
        self._undecided = True

    # --- inputs

    def _remove(self, node: Node) -> None:
        if node is self.root or node.group is None:
            raise ValueError("the machine itself stays")
        with self._lifted(node):
            self._forget(node)
            rank = places(node)[0].rank
            del node.group.children[rank]
            for vp in processors_in(node):
                vp.state = State.HALTED
                vp.gone = True
                self._budgets.pop(vp.budget.serial if vp.budget else -1, None)
                self._reserved.discard(vp.serial)
            for group in within(node) if isinstance(node, Group) else ():
                self._budgets.pop(group.budget.serial if group.budget else -1, None)
                self._reserved.discard(group.normal.serial)
            if isinstance(node, Group) and node.domain is not None:
                self.domains.remove(node.domain)
                self._deal_out()

    def _move(self, node: Node, parent: Group) -> None:
        old = node.group
        if old is None or (isinstance(node, Group) and parent in within(node)):
            raise ValueError(f"{node.name} cannot be moved into {parent.name}")
        if parent is old:
            return
        kind = isinstance(node, Vp)
        rank = self._admit_child(parent, node.name, node.id, kind)
        if isinstance(node, Group):
            self._check_processors(node.name, parent, node, node.processors)
        if not self._domain_above(parent).lps:
            raise ValueError(f"{node.name}: groups with processors of their own have all that there are")
        with self._lifted(node):
            self._forget(node)
            del old.children[rank]
            node.group = parent
            parent.children[rank] = node
            if isinstance(node, Group):
                if parent.blocked != old.blocked:
                    block(node, self.now, parent.blocked - old.blocked)
                self._wire_groups(node)
            else:
                self._wire_vp(node)
            self._arrive(node)

    def _change(
        self,
        node: Node,
        shares: int,
        cap: int | None,
        reserve: int,
        period: int,
        processors: frozenset[int] | None = None,
    ) -> None:
        if node is self.root:
            raise ValueError("the machine itself has no controls")
        _check(node.name, shares, cap, reserve, period)
        if isinstance(node, Group) and processors != node.processors:
            self._check_processors(node.name, node.group, node, processors)
        with self._lifted(node):
            if isinstance(node, Group) and processors != node.processors:
                self._set_processors(node, processors)
            if shares != node.shares:
                for place in places(node):
                    if place.tag != NEW and (isinstance(node, Vp) or node.domain is None):
                        ahead = place.tag - place.above.served
                        place.tag = place.above.served + ahead * place.weight // (shares << FINE)
                    place.shares = shares
                    place.weigh(shares << FINE)
                node.shares = shares
            if (cap, period) != (node.cap, node.period):
                node.cap, node.period = cap, period
                self._set_budget(node)
            if reserve != node.reserve:
                node.reserve = reserve
                self._set_floor(node)

    def _set_processors(self, group: Group, processors: frozenset[int] | None) -> None:
        if (processors is None) is not (group.processors is None):
            self._forget(group)
        group.processors = processors
        self._wire_groups(group)
        self._deal_out()

    def _change_class(self, vp: Vp, batch: bool) -> None:
        with self._lifted(vp):
            self._forget(vp)
            vp.batch = batch
            self._wire_vp(vp)
            self._arrive(vp)
            vp.weigh(vp.shares << FINE)
            vp.bound, vp.rate, vp.binding = False, 0, None
            self._set_floor(vp)

    def _set_budget(self, node: Node, *, new: bool = False) -> None:
        """By its cap and period; of what it had in this period, what it used is used. Who is new has used nothing."""
        now, period, cap = self.now, node.period, node.cap
        old = node.budget
        if cap is None or (isinstance(node, Vp) and cap >= WHOLE):
            if old is not None:
                if old.throttled:
                    self._unthrottle(old)
                del self._budgets[old.serial]
                node.budget = None
            return
        full = cap * period // WHOLE
        until = (now // period + 1) * period
        if old is None:
            self._serials += 1
            left = full if new else full * (until - now) // period
            node.budget = old = Budget(node, self._serials, full, period, left, until)
            self._budgets[old.serial] = old
        else:
            if now >= old.until:
                refill(old, now)
            if old.period == period:
                old.left += full - old.full
            else:
                old.left = min(old.left, 0) + full * (until - now) // period
            old.full, old.period, old.until = full, period, until
        if old.left <= 0:
            self._throttle(old)
            self._await_fill(old)
        elif old.throttled:
            self._unthrottle(old)

    def _set_floor(self, node: Node) -> None:
        """By its reserve. Batch processors have none."""
        place = places(node)[0]
        place.floor = 0 if isinstance(node, Vp) and node.batch else node.reserve
        if place.floor:
            self._reserved.add(place.serial)
        else:
            self._reserved.discard(place.serial)


def _is_in(vp: Vp, group: Group) -> bool:
    above: Group | None = vp.group
    while above is not None and above is not group:
        above = above.group
    return above is group


def _check(name: str, shares: int, cap: int | None, reserve: int, period: int) -> None:
    if shares < 1:
        raise ValueError(f"{name}: {shares} shares; at least 1")
    if (cap is not None and cap < 0) or reserve < 0:
        raise ValueError(f"{name}: caps and reserves are not negative")
    if period < 1:
        raise ValueError(f"{name}: a period of {period} ns; at least 1")
