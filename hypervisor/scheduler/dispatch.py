"""Logical processors, who runs on them, and until when. Hypervisor.

What happens at one moment is taken together: slices that end, budgets that are filled, work that comes. Only when time
leaves the moment are logical processors given out, so the order in which those things were told changes nothing, and
who gets new work in the moment in which the old was done has never stopped.
"""

from __future__ import annotations

from heapq import heappop, heappush, heapreplace

from hypervisor.scheduler import budgets
from hypervisor.scheduler.budgets import blocked_for, places
from hypervisor.scheduler.nodes import SCALE, Budget, Domain, Queue, Reason, Vp
from hypervisor.scheduler.pacing import pace
from hypervisor.scheduler.queues import charge, due, first, insert, pay_rates, run_on, shorten, sweep, withdraw
from hypervisor.scheduler.slices import READY, RUNNING, Slices

FOREVER = 1 << 80


class Dispatcher(Slices):
    """What the kernel does by itself as time goes on."""

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
        if (
            domain.stale
            and (domain.touched or normal.arrivals)
            and domain.lps
            and self.now >= domain.paced_until
            and (root.ready or self._budgets or self._reserved)
        ):
            pace(domain, self.now)
        domain.touched = False
        while normal.arrivals or (root.ready and domain.free | domain.batch_lps and not root.throttled):
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
        now, lp, left = self.now, vp.lp, vp.left
        quantum = vp.queue.domain.length or self.quantum
        longest = quantum + self.min_run
        ran = max(0, now - vp.start)
        whole = ran // quantum * quantum
        if left is not None and whole and left - whole <= longest - quantum:
            whole -= quantum
        if whole and whole == ran:
            self._slice_over(lp)
            return
        granted = quantum if left is None or left - whole > longest else left - whole
        over = ran - whole
        granted = over + shorten(vp, granted - over, now, self.min_run // 10)
        del vp.queue.open[vp]
        run_on(vp.path, whole, quantum)
        for place in vp.path:
            if place.tag > place.above.served:
                place.above.served, place.above.reach = place.tag, place.step
        charge(vp.path, granted)
        pay_rates(vp, whole, vp.start + whole)
        pay_rates(vp, granted, vp.start + whole + granted)
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
        """Serve one: who is owed service, or whose turn it is.

        Returns where, or -1 if there was no budget.
        """
        owed = due(queue, now) if queue.owed or queue.urgent else None
        vp = owed if isinstance(owed, Vp) else first(queue.root if owed is None else owed)
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
                if budget.short and not queue.batch:
                    self._tighten(budget, queue.domain)
            if granted <= 0:
                for budget in caps:
                    if budget.left <= 0:
                        self._throttle(budget)
                return -1
        domain = queue.domain
        length = domain.length or quantum
        if granted > length + self.min_run:
            granted = length
        if domain.strict:
            granted = shorten(vp, granted, now, self.min_run // 10)
        # Where: its last one if that is free, else the lowest.
        lp = vp.lp
        if lp < 0 or not mask >> lp & 1:
            lp = (mask & -mask).bit_length() - 1
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
            heap = above.heap
            if tag > above.served and heap[0][2] is place and heap[0][0] == tag:  # its turn, and not only owed
                above.served, above.reach = tag, place.step
            place.tag = paid = tag + (place.step if granted == quantum else granted * SCALE // place.weight)
            if place.ready:
                if heap[0][2] is place:
                    heapreplace(heap, (paid, place.rank, place))
                else:
                    heappush(heap, (paid, place.rank, place))
                    if len(heap) > above.crowd:
                        sweep(above)
            else:
                place.queued = False
                above.ready -= 1
                if heap[0][2] is place:
                    heappop(heap)
        for budget in caps:
            budget.left -= granted
            budget.ends += end
            budget.running += 1
        if vp.owed:
            pay_rates(vp, granted, end)
        for budget in caps:
            if budget.left <= 0:
                self._throttle(budget)
        return lp

    def _tighten(self, budget: Budget, domain: Domain) -> None:
        """Shorter slices for the sake of a cap: who is capped had less than that in the last period, and was due all
        of it, or is behind, or a group that it is in.

        A budget that was not used is gone, so a turn that comes too late for it cannot be made up for. It stays so as
        long as somebody under that cap is busy, and until controls change.
        """
        place = places(budget.node)[0]
        budget.short = False
        root = place.queue.root
        while place is not root and place.binding is not budget and place.tag >= place.above.served:
            place = place.above
        if place is not root:
            domain.tight[budget] = min(self.quantum, max(self.min_run, budget.period // 10, 1))
            domain.length = min(domain.tight.values())

    @staticmethod
    def _is_last(vp: Vp) -> bool:
        """Whether nobody else is queued in the groups around `vp`."""
        return all(place.ready < 2 for place in vp.path)
