"""How slices end, and what a virtual processor's state means for its account and its place in the queue. Hypervisor."""

from __future__ import annotations

from heapq import heappush
from typing import assert_never

from hypervisor.clock import NS_PER_TICK
from hypervisor.scheduler import budgets
from hypervisor.scheduler.budgets import blocked_for, places
from hypervisor.scheduler.nodes import Budget, Domain, Group, Listener, Reason, State, Vp
from hypervisor.scheduler.queues import charge, pay_rates, repay_rates, run_on, withdraw

HALTED, READY, CAPPED, RUNNING = State.HALTED, State.READY, State.CAPPED, State.RUNNING


class Slices:
    """Logical processors, and who leaves them."""

    def __init__(self, logical_processors: int, *, quantum: int, min_run: int, switch_cost: int) -> None:
        self.now = 0
        """Nanoseconds."""
        self.lps = logical_processors
        self.quantum = quantum
        self.min_run = min_run
        """A slice that would leave less than that behind takes it along."""
        self.switch_cost = switch_cost
        self.listener: Listener | None = None
        self.running_on: list[Vp | None] = [None] * logical_processors
        self.last_on: list[Vp | None] = [None] * logical_processors
        self.lp_run = [0] * logical_processors
        self.lp_batch = [0] * logical_processors
        """Of that, for batch processors."""
        self.lp_switch = [0] * logical_processors
        self.domains: list[Domain] = []
        self.dispatches = 0
        self._events: list[tuple[int, int, int]] = []
        """When, which (a logical processor, or behind them all a budget), and for a slice its number."""
        self._tokens = [0] * logical_processors
        self._budgets: dict[int, Budget] = {}
        self._reserved: set[int] = set()
        """The serial numbers of places with a reserve."""
        self._undecided = False
        """Something has happened at `now`, and nobody has been dispatched since."""
        self._out: dict[int, tuple[Vp, Reason]] = {}
        """Who lost its logical processor at this moment, by that; the listener hears of it once it is decided."""
        self._in: list[tuple[Vp, int, int]] = []

    # --- taking back

    def _slice_over(self, lp: int) -> None:
        """The slice on `lp` ends as it was granted: nothing is to be paid back."""
        vp = self.running_on[lp]
        assert vp is not None
        if vp.slice:
            ran = vp.slice
            end = vp.start + ran
            for budget in vp.budgets:
                if end >= budget.until:
                    budgets.refill(budget, end)
                budget.ends -= end
                budget.running -= 1
        else:
            ran = max(0, self.now - vp.start)
            self._account_open(vp, ran)
        self._off(vp, lp, ran, Reason.SLICE_END)

    def _account_open(self, vp: Vp, ran: int) -> None:
        """Pay for an open slice."""
        del vp.queue.open[vp]
        run_on(vp.path, ran, self.quantum)
        pay_rates(vp, ran, self.now)

    def cut(self, vp: Vp, reason: Reason) -> None:
        """End the slice of `vp`, which runs, now. What it paid for and did not get is paid back."""
        now, lp = self.now, vp.lp
        ran = max(0, now - vp.start)
        if not vp.slice:
            self._account_open(vp, ran)
        else:
            end = vp.start + vp.slice
            unused = vp.slice - ran
            if unused:
                charge(vp.path, ran, vp.slice)
            for budget in vp.budgets:
                if now >= budget.until:
                    budgets.refill(budget, now)
                budget.ends -= end
                budget.running -= 1
                budget.left += unused
                if budget.throttled and budget.left > 0:
                    self._unthrottle(budget)
            if unused:
                repay_rates(vp, vp.slice, unused)
        if now < vp.start:  # within the switch
            vp.waited -= vp.start - now
            vp.wait_total -= vp.start - now
            self.lp_switch[lp] -= vp.start - now
        self._off(vp, lp, ran, reason)

    def _off(self, vp: Vp, lp: int, ran: int, reason: Reason) -> None:
        """`vp` leaves `lp` after `ran`."""
        now = self.now
        vp.run += ran
        self.lp_run[lp] += ran
        if vp.batch:
            self.lp_batch[lp] += ran
        domain = vp.queue.domain
        bit = 1 << lp
        domain.free |= bit
        domain.batch_lps &= ~bit
        self.running_on[lp] = None
        self._tokens[lp] += 1
        vp.slice = 0
        vp.paid = ()
        vp.since = vp.waiting_since = now
        self._undecided = True
        left = vp.left
        if left is not None:
            vp.left = left = left - ran
        if left == 0:
            self.rest(vp)
            reason = Reason.BLOCKED
        elif vp.throttled:
            vp.state = CAPPED
            reason = Reason.CAPPED if reason is Reason.SLICE_END else reason
        else:
            vp.state = READY
            if vp.group_capped:
                vp.mark = blocked_for(vp.group, now)
                if vp.group.blocked and reason is Reason.SLICE_END:
                    reason = Reason.CAPPED
            vp.queue.arrivals.append(vp)
        listener = self.listener
        if listener is not None:
            self._out[lp] = vp, reason
            if left == 0:
                listener.finished(vp)

    def rest(self, vp: Vp) -> None:
        """`vp`, which neither runs nor is queued, has nothing to do from now on."""
        vp.state = HALTED
        vp.since = self.now
        for place in vp.path:
            place.busy -= 1
            if not place.busy:
                place.idle_before, place.idle_since = place.idle_since, self.now
        self._touch(vp)

    @staticmethod
    def _touch(vp: Vp) -> None:
        """It has become busy or idle."""
        if not vp.batch:
            domain = vp.queue.domain
            domain.stale = domain.touched = True

    def wake(self, vp: Vp) -> None:
        """`vp`, which is halted, has work."""
        now = self.now
        vp.halted += now - vp.since
        vp.since = vp.waiting_since = now
        self._touch(vp)
        for place in vp.path:
            if not place.busy:
                if now - place.idle_since < NS_PER_TICK:  # within a tick of its guest's clock: it has never stopped
                    place.idle_since = place.idle_before
                else:
                    place.woken = True
                    place.due = max(place.due, now)
            place.busy += 1
        self.line_up(vp)

    def line_up(self, vp: Vp) -> None:
        """`vp` has work and does not run."""
        self._undecided = True
        if vp.throttled:
            vp.state = CAPPED
            return
        vp.state = READY
        if vp.group_capped:
            vp.mark = blocked_for(vp.group, self.now)
        vp.queue.arrivals.append(vp)

    def account(self, vp: Vp) -> None:
        """Bring the account of `vp`, which does not run, to the present."""
        span = self.now - vp.since
        vp.since = self.now
        match vp.state:
            case State.HALTED:
                vp.halted += span
            case State.CAPPED:
                vp.capped += span
            case State.READY:
                if vp.group_capped:
                    mark, vp.mark = vp.mark, blocked_for(vp.group, self.now)
                    vp.capped += vp.mark - mark
                    span -= vp.mark - mark
                vp.waited += span
            case State.RUNNING:
                raise AssertionError(vp)
            case _:
                assert_never(vp.state)

    def unqueue(self, vp: Vp) -> None:
        """`vp`, which is ready, leaves the queue if it has come that far. Its state is for the caller to set."""
        self._undecided = True
        if vp.queued:
            vp.queue.waiting -= 1
            withdraw(vp)

    # --- budgets

    def _throttle(self, budget: Budget) -> None:
        """The budget is used up."""
        if budget.throttled:
            return
        budget.throttled = True
        node = budget.node
        for place in places(node):
            place.throttled = True
            if isinstance(place, Vp):
                if place.state is READY:
                    self.account(place)
                    self.unqueue(place)
                    place.state = CAPPED
            elif place.queued:
                withdraw(place)
        if isinstance(node, Group):
            budgets.block(node, self.now, 1)
        self._await_fill(budget)

    def _await_fill(self, budget: Budget) -> None:
        if budget.full and budget.fill_at != budget.until:
            budget.fill_at = budget.until
            heappush(self._events, (budget.until, self.lps + budget.serial, 0))

    def _fill(self, serial: int, moment: int) -> None:
        """A period ends."""
        budget = self._budgets.get(serial)
        if budget is None or not budget.throttled or budget.fill_at != moment:
            return
        if moment >= budget.until:
            budgets.refill(budget, moment)
        if budget.left > 0:
            self._unthrottle(budget)
        else:
            self._await_fill(budget)

    def _unthrottle(self, budget: Budget) -> None:
        """There is budget again."""
        budget.throttled = False
        self._undecided = True
        node = budget.node
        for place in places(node):
            place.throttled = False
            if isinstance(place, Vp):
                if place.state is CAPPED:
                    self.account(place)
                    self.line_up(place)
            else:
                if place.ready and place is not place.queue.root:
                    place.queue.arrivals.append(place)
        if isinstance(node, Group):
            budgets.block(node, self.now, -1)
