"""The gate between the scheduler of virtual processors and a vCPU's thread. Hypervisor.

The scheduler decides when the thread may be inside KVM_RUN (`scheduler.threads` says how it finds out what the thread
has to do); here is what it decides about.

Why the thread stays in KVM_RUN while its guest is halted, and is looked at: with interrupt controllers in KVM, HLT is
no exit, and what ends it (a local APIC's timer, another processor's IPI, an interrupt that we raise) is known to KVM
alone. The ways to have it otherwise cost more than they bring:

- Interrupt controllers in this process make HLT an exit, and each timer, IPI and end of interrupt too: tens of
  thousands a second, each a hand-over between threads. A split irqchip leaves local APICs in KVM, and HLT with them.
- KVM_GET_MP_STATE says HALTED, but waits for a thread that is inside: each look would be a kick, and takes an idle
  guest out of its halt to ask whether it is idle. /proc answers in a microsecond and disturbs nobody.
- Held outside while it is halted, a vCPU whose timer fires is not heard of: KVM wakes nobody who is not in it.
- An eventfd that tells of a halt does not exist; tracepoints and performance counters need rights that a user of KVM
  does not have.

The price is that a halted guest wakes without asking, and runs beside the one that has its LP until the next look. That
is charged to the nanosecond, since both have clocks of their own.

Why no interleaving loses anything:

- The gate shuts while the guest is inside: the thread is kicked and stays out (`vcpu` says why that cannot be missed).
  Until it has left it runs on, and its clock with it.
- It shuts in the moment in which the guest halts: KVM keeps the halt across KVM_RUNs, and the interrupts that come
  meanwhile in the local APIC, which runs by itself. The next KVM_RUN takes them, or goes on with the halt.
- It shuts while an exit is on its way: that is answered as ever, and the thread waits after the answer.
- It opens, and a look comes before the thread is inside: the thread is not blocked in KVM_RUN, so it counts as busy.
- The root pauses the processor too: the thread goes back when both have let go, whichever is the last.
- It is stopped while it is held: stopping lets it go on to its end. The gate has been detached before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from hypervisor.backend.kvm.vcpu import Vcpu


@attrs.frozen(eq=False)
class VcpuGate:
    """The scheduler's `Gate` of one vCPU."""

    vcpu: Vcpu

    def may_run(self, allowed: bool) -> None:
        """Let the thread into KVM_RUN, or bring it out and keep it out."""
        self.vcpu.hold(not allowed)

    def cpu_time(self) -> int:
        """Nanoseconds of the host's processors that the thread has used."""
        return self.vcpu.cpu_time()

    def halted(self) -> bool:
        """Whether its guest has nothing to do."""
        return self.vcpu.sleeps()
