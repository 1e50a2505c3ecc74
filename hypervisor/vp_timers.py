"""The synthetic timers of a virtual processor at work: what expires is signaled, what is next waits. Hypervisor.

`hypervisor.synic.timers` decides; here its decisions become messages, interrupts and an entry of the hypervisor's
`TimerQueue`. A processor has no such object until it writes a timer register. A count in the past expires within the
write, everything else when the queue fires. While the processor is suspended nothing does.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hypervisor.inspect import Branch, Hex, Many
from hypervisor.machine import GeneralProtection
from hypervisor.partition import ROOT_ID
from hypervisor.synic.messages import MessageType
from hypervisor.synic.synic import Message
from hypervisor.synic.timer_registers import TimerMessage
from hypervisor.synic.timers import BadTimer, Expiration, SyntheticTimers, Timer
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer

if TYPE_CHECKING:
    from hypervisor.vp import VirtualProcessor

_U64 = (1 << 64) - 1


class VpTimers:
    """One processor's timers; `fire` is for the queue."""

    __slots__ = ("_time", "_vp", "state")

    def __init__(self, vp: VirtualProcessor) -> None:
        self._vp = vp
        self._time = vp.partition.reference_time
        self.state = SyntheticTimers()

    def inspect(self) -> Branch:
        """Those that are set, in the partition's reference time, 100 ns units."""
        used = {n: timer for n, timer in enumerate(self.state.timers) if timer.config or timer.count}
        return Branch({"ticks_skipped": self.state.skipped, "set": Many(used, int, show=_inspect_timer)})

    # --- registers

    def write_config(self, index: int, value: int) -> None:
        """Raises `GeneralProtection`."""
        try:
            self.state.timers[index].write_config(value, self._time.now())
        except BadTimer as problem:
            raise GeneralProtection(str(problem)) from None
        self.settle()

    def write_count(self, index: int, value: int) -> None:
        """Any value is one."""
        self.state.timers[index].write_count(value, self._time.now())
        self.settle()

    def reset(self) -> None:
        """As at creation. Messages that wait are the SynIC's to drop."""
        self.state.reset()
        self._wait()

    # --- time

    def settle(self) -> None:
        """Signal what is due and wait for the rest; after every change of registers, suspension or time."""
        if not self._vp.suspended:
            before = self.state.skipped
            for expired in self.state.expire(self._time.now()):
                self._signal(expired)
            if self.state.skipped != before:
                self._vp.partition.counters["timer_ticks_skipped"] += self.state.skipped - before
        self._wait()

    fire = settle

    def _wait(self) -> None:
        deadline = None if self._vp.suspended else self.state.deadline()
        moment = None if deadline is None else self._time.moment(deadline)
        self._vp.partition.hypervisor.timers.set(self, moment)

    def _signal(self, expired: Expiration) -> None:
        vp = self._vp
        partition = vp.partition
        partition.counters["timer_expirations"] += 1
        trace = partition.hypervisor.trace
        if trace.on:
            trace.emit(
                *(Layer.SYNIC, "timer_expired", partition.id),
                direction=TO_ROOT if partition.id == ROOT_ID else TO_CHILD,
                vp=vp.index,
                timer=expired.index,
                due=expired.due,
            )
        if expired.vector is not None:
            vp.raise_interrupt(expired.vector)
            return
        timer = self.state.timers[expired.index]
        vp.synic.post(expired.sint, self.message(expired.index, timer, expired.due))

    def message(self, index: int, timer: Timer, due: int) -> Message:
        """The message of an expiration; its delivery time is filled in as it goes into its slot."""

        def payload() -> bytes:
            return TimerMessage(index, 0, due & _U64, self._time.now() & _U64).encode()

        return Message(
            MessageType.TIMER_EXPIRED, payload(), 0, partial(self._taken, timer), sender=timer, at_delivery=payload
        )

    def _taken(self, timer: Timer) -> None:
        """The message has left its buffer; what the timer had to hold back is due now."""
        timer.waits = False
        self._wait()


def _inspect_timer(timer: Timer) -> Branch:
    return Branch(
        {
            "config": Hex(timer.config),
            "count": timer.count,
            "due": timer.due,
            "message_waits": timer.waits,
            "sint": timer.sint,
            "vector": timer.vector,
        }
    )
