"""The scheduler's accounts as of now: exact to the nanosecond, whatever runs at the moment. Hypervisor."""

from __future__ import annotations

from typing import NamedTuple, assert_never

from hypervisor.scheduler.budgets import blocked_for, processors_in
from hypervisor.scheduler.dispatch import Dispatcher
from hypervisor.scheduler.nodes import Domain, Group, State, Times, Vp


class LpTimes(NamedTuple):
    """Nanoseconds of a logical processor; `run`, `switch` and `idle` sum up to the time since the start."""

    run: int
    idle: int
    batch: int
    """Of `run`, for batch processors."""
    switch: int


def of_vp(vp: Vp, now: int) -> Times:
    """The account of one virtual processor."""
    run, waited, capped, halted = vp.run, vp.waited, vp.capped, vp.halted
    wait_total = vp.wait_total
    span = 0 if vp.gone else now - vp.since
    match vp.state:
        case State.RUNNING:
            switching = max(0, vp.start - now)
            run += max(0, now - vp.start)
            waited -= switching
            wait_total -= switching
        case State.READY:
            blocked = blocked_for(vp.group, now) - vp.mark if vp.group_capped else 0
            capped += blocked
            waited += span - blocked
        case State.CAPPED:
            capped += span
        case State.HALTED:
            halted += span
        case _:
            assert_never(vp.state)
    return Times(run, waited, capped, halted, vp.dispatches, wait_total, vp.wait_longest)


def of_group(group: Group, now: int) -> Times:
    """Those of all in it, together; the longest wait is that of one."""
    each = [of_vp(vp, now) for vp in processors_in(group)]
    if not each:
        return Times()
    run, ready, capped, halted, dispatches, wait_total, _ = map(sum, zip(*each, strict=True))
    longest = max(times.wait_longest for times in each)
    return Times(run, ready, capped, halted, dispatches, wait_total, longest)


def of_lp(machine: Dispatcher, lp: int) -> LpTimes:
    """The account of one logical processor."""
    run, batch, switch = machine.lp_run[lp], machine.lp_batch[lp], machine.lp_switch[lp]
    vp = machine.running_on[lp]
    if vp is not None:
        switch -= max(0, vp.start - machine.now)
        ran = max(0, machine.now - vp.start)
        run += ran
        batch += ran if vp.batch else 0
    return LpTimes(run, machine.now - run - switch, batch, switch)


def contended_for(domain: Domain, now: int) -> int:
    """How long, in all, somebody in it had work and budget and waited for a logical processor."""
    return domain.contended_total + (now - domain.contended_since if domain.contended else 0)
