"""Logical processors, who runs on them, and until when. Hypervisor.

What happens at one moment is taken together: slices that end, budgets that are filled, work that comes. Only when time
leaves the moment are logical processors given out, so the order in which those things were told changes nothing, and
who gets new work in the moment in which the old was done has never stopped.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace
from typing import assert_never

from hypervisor.scheduler import budgets
from hypervisor.scheduler.budgets import blocked_for, places, unpark
from hypervisor.scheduler.nodes import (
    SCALE,
    WHOLE,
    Budget,
    Domain,
    Group,
    Listener,
    Queue,
    Reason,
    State,
    Vp,
)
from hypervisor.scheduler.queues import (
    charge,
    due,
    first,
    insert,
    owe,
    pay_reserve,
    repay_reserve,
    run_on,
    withdraw,
)

FOREVER = 1 << 80
HALTED, READY, CAPPED, RUNNING = State.HALTED, State.READY, State.CAPPED, State.RUNNING


class Dispatcher:
    """What the kernel does by itself as time goes on."""

    def __init__(self, logical_processors: int, *, quantum: int, min_run: int, switch_cost: int) -> None:
        self.now = 0
        """Nanoseconds."""
        self.lps = logical_processors
        self.quantum = quantum
        self.longest = quantum + min_run
        """A slice that would leave less than `min_run` behind takes that along."""
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
        self._undecided = False
        """Something has happened at `now`, and nobody has been dispatched since."""
        self._out: dict[int, tuple[Vp, Reason]] = {}
        """Who lost its logical processor at this moment, by that; the listener hears of it once it is decided."""
        self._in: list[tuple[Vp, int, int]] = []

    # --- time

    def advance(self, to: int) -> None:
        """Do all that happens until `to`, each at its own time. What is due at `to` itself is done but for dispatching.

        Calling it more often, or later, changes nothing.
        """
        if to < self.now:
            raise ValueError(f"time does not go back from {self.now} to {to}")
        events = self._events
        tokens = self._tokens
        while True:
            if self._undecided:
                if to == self.now:
                    return
                self.settle_moment()
            if not events or events[0][0] > to:
                break
            moment = self.now = events[0][0]
            while events and events[0][0] == moment:
                _, which, token = heappop(events)
                if which >= self.lps:
                    self._fill(which - self.lps, moment)
                elif tokens[which] == token:
                    self._slice_over(which)
        self.now = to

    def next_time(self) -> int | None:
        """When something happens next by itself; None: nothing, until there is an input."""
        if self._undecided:
            return self.now + 1
        events = self._events
        while events:
            moment, which, token = events[0]
            if which >= self.lps:
                budget = self._budgets.get(which - self.lps)
                if budget is not None and budget.throttled and budget.fill_at == moment:
                    return moment
            elif self._tokens[which] == token:
                return moment
            heappop(events)
        return None

    def soonest(self) -> int | None:
        """When somebody who does not run can get a logical processor at the earliest."""
        return self.now if self._undecided else self.next_time()

    def settle_moment(self) -> None:
        """Give out logical processors at this moment."""
        for domain in self.domains:
            self._give_out(domain)
        self._undecided = False
        if self._out or self._in:
            self._tell()

    def _tell(self) -> None:
        """The listener hears what has become of this moment."""
        out, self._out = self._out, {}
        new, self._in = self._in, []
        listener = self.listener
        if listener is None:
            return
        on = {lp: vp for vp, lp, _ in new}
        for lp, (vp, reason) in out.items():
            if on.get(lp) is not vp:
                listener.descheduled(vp, lp, reason)
        for vp, lp, slice_ns in new:
            listener.dispatched(vp, lp, slice_ns)

    # --- giving out

    def _give_out(self, domain: Domain) -> None:
        normal, batch = domain.normal, domain.batch
        root, low = normal.root, batch.root
        if normal.arrivals or root.ready:
            self._admit(normal, domain.free | domain.batch_lps)
            self._serve(normal, domain.free | domain.batch_lps)
        if batch.arrivals or low.ready:
            self._admit(batch, domain.free)
            self._serve(batch, domain.free)
        contended = (root.ready > 0 and not root.throttled) or (low.ready > 0 and not low.throttled)
        if contended is not domain.contended:
            domain.contended = contended
            if contended:
                domain.contended_since = self.now
            else:
                domain.contended_total += self.now - domain.contended_since

    def _serve(self, queue: Queue, mask: int) -> None:
        """Serve one class on the logical processors of `mask`."""
        root, now = queue.root, self.now
        # All will get one, and nobody waits behind them: no slice needs an end.
        alone = queue.waiting <= mask.bit_count()
        while mask and root.ready and not root.throttled:
            lp = self._place(queue, mask, now, alone)
            if lp >= 0:
                mask &= ~(1 << lp)

    def _admit(self, queue: Queue, mask: int) -> None:
        """Queue who has become ready. If that are more than there is room for, open slices get an end."""
        arrivals = queue.arrivals
        if queue.open and queue.waiting + len(arrivals) > mask.bit_count():
            for vp in list(queue.open):
                self._close(vp)
        if not arrivals:
            return
        queue.arrivals = []
        for place in arrivals:
            if place.queued or place.throttled or place.queue is not queue:
                continue
            if isinstance(place, Vp):
                if place.state is READY:
                    queue.waiting += 1
                    insert(place)
            elif place.ready:
                insert(place)

    def _close(self, vp: Vp) -> None:
        """Somebody else is ready: the open slice of `vp` ends where it would have ended among slices of a quantum."""
        now, quantum, lp, left = self.now, self.quantum, vp.lp, vp.left
        ran = max(0, now - vp.start)
        whole = ran // quantum * quantum
        if left is not None and whole and left - whole <= self.longest - quantum:
            whole -= quantum
        if whole and whole == ran:
            self._slice_over(lp)
            return
        granted = quantum if left is None or left - whole > self.longest else left - whole
        del vp.queue.open[vp]
        run_on(vp.path, whole, quantum)
        for place in vp.path:
            place.above.served = max(place.above.served, place.tag)
        charge(vp.path, granted)
        for place in vp.reserved:
            place.due = max(place.due, now)
        vp.run += whole
        self.lp_run[lp] += whole
        if vp.batch:
            self.lp_batch[lp] += whole
        if left is not None:
            vp.left = left - whole
        vp.start += whole
        vp.slice = granted
        self._tokens[lp] += 1
        heappush(self._events, (vp.start + granted, lp, self._tokens[lp]))
        if self.listener is not None:
            self._in.append((vp, lp, granted))

    def _place(self, queue: Queue, mask: int, now: int, alone: bool) -> int:
        """Serve one: who is owed for its reserve, or whose turn it is. Returns where, or -1 if there was no budget."""
        owing = due(queue, now) if queue.owed else None
        vp = first(queue.root) if owing is None else owing if isinstance(owing, Vp) else first(owing)
        quantum = self.quantum
        left = vp.left
        granted = FOREVER if left is None else left
        caps = vp.budgets
        if caps:
            for budget in caps:
                if now >= budget.until:
                    budgets.refill(budget, now)
                if budget.left < granted:
                    granted = budget.left
            if granted <= 0:
                for budget in caps:
                    if budget.left <= 0:
                        self._throttle(budget)
                return -1
        if granted > self.longest:
            granted = quantum
        # Where: its last one if that is free, else the lowest.
        lp = vp.lp
        if lp < 0 or not mask >> lp & 1:
            lp = (mask & -mask).bit_length() - 1
        domain = queue.domain
        bit = 1 << lp
        if not domain.free & bit:
            loser = self.running_on[lp]
            assert loser is not None
            self.cut(loser, Reason.PREEMPTED)
        domain.free &= ~bit
        if queue.batch:
            domain.batch_lps |= bit
        start = now
        if self.last_on[lp] is not vp:
            self.last_on[lp] = vp
            if self.switch_cost:
                start += self.switch_cost
                self.lp_switch[lp] += self.switch_cost
        # Its account. A switch counts as part of the wait.
        waited = start - vp.since
        if waited:
            if vp.group_capped:
                blocked = blocked_for(vp.group, now) - vp.mark
                vp.capped += blocked
                waited -= blocked
            vp.waited += waited
        waited = start - vp.waiting_since
        if waited:
            vp.wait_total += waited
            if waited > vp.wait_longest:
                vp.wait_longest = waited
        vp.dispatches += 1
        self.dispatches += 1
        vp.state = RUNNING
        vp.lp = lp
        vp.start = start
        self.running_on[lp] = vp
        self._tokens[lp] = token = self._tokens[lp] + 1
        queue.waiting -= 1
        if not caps and (alone or (queue.root.ready == 1 and self._is_last(vp))):
            withdraw(vp)
            vp.slice = 0
            queue.open[vp] = None
            if left is not None:
                heappush(self._events, (start + left, lp, token))
            if self.listener is not None:
                self._in.append((vp, lp, 0))
            return lp
        vp.slice = granted
        end = start + granted
        heappush(self._events, (end, lp, token))
        if self.listener is not None:
            self._in.append((vp, lp, granted))
        # All around it pay in advance, so that who is chosen next at this moment is chosen by the new tags.
        for place in vp.path:
            above = place.above
            tag = place.tag
            if tag > above.served:
                above.served = tag
            place.tag = paid = tag + (place.step if granted == quantum else (granted << SCALE) // place.weight)
            heap = above.heap
            if place.ready:
                if heap[0][2] is place:
                    heapreplace(heap, (paid, place.rank, place))
                else:
                    heappush(heap, (paid, place.rank, place))
            else:
                place.queued = False
                above.ready -= 1
                if heap[0][2] is place:
                    heappop(heap)
        if owing is not None:
            pay_reserve(vp, owing, now, granted)
        for budget in caps:
            budget.left -= granted
            budget.ends += end
            budget.running += 1
        for budget in caps:
            if budget.left <= 0:
                self._throttle(budget)
        return lp

    @staticmethod
    def _is_last(vp: Vp) -> bool:
        """Whether nobody else is queued in the groups around `vp`."""
        return all(place.ready < 2 for place in vp.path)

    # --- taking back

    def _slice_over(self, lp: int) -> None:
        """The slice on `lp` ends as it was granted: nothing is to be paid back."""
        vp = self.running_on[lp]
        assert vp is not None
        if vp.slice:
            ran = vp.slice
            end = vp.start + ran
            for budget in vp.budgets:
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
        for place in vp.reserved:
            place.due = max(place.due, self.now)

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
                repay_reserve(vp, unused)
            for budget in vp.budgets:
                budget.ends -= end
                budget.running -= 1
                if now >= budget.until:
                    budgets.refill(budget, now)
                budget.left += unused
                if budget.throttled and budget.left > 0:
                    self._unthrottle(budget)
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
                place.idle_since = self.now

    def wake(self, vp: Vp) -> None:
        """`vp`, which is halted, has work."""
        now = self.now
        vp.halted += now - vp.since
        vp.since = vp.waiting_since = now
        for place in vp.path:
            if not place.busy:
                if place.idle_since != now:
                    place.woken = True
                    place.due = max(place.due, now)
            elif place.rate > place.busy * WHOLE:  # what it is owed it had nobody to use it
                place.due = max(place.due, now - self.quantum * WHOLE // place.rate)
                if place.queued:
                    owe(place)
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
                unpark(place)
        if isinstance(node, Group):
            budgets.block(node, self.now, -1)
