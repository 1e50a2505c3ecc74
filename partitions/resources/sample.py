"""What every pool and VM got of each resource in one window of time, by stable names. Root side.

A sample is a line of `partita run --samples`, a screen of `partita top`, and, as one window from a run's beginning to
its end, where a question's `measure` looks. Times are whole nanoseconds, memory is in bytes; percent are of one logical
processor, so a VM with two virtual processors may have 200. What is None is not known or does not apply.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

FORMAT = 1
"""Of the lines of a file of samples, as its heading has it."""

HOST = "host"
"""The host's path."""
SHORTEST_CONTENTION = 100
"""A hundredth of a window: less waiting than that is two wake-ups at the same moment."""
Kind = Literal["host", "pool", "vm"]
MOST_DEPTH = 100
Whole = Annotated[int, Meta(ge=-(2**61), le=2**61)]
Real = Annotated[float, Meta(ge=-1e18, le=1e18)]
"""What a file may have: more nobody has measured, and who draws it need not be able to. 2**61 ns are 73 years."""


class Cpu(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Processor time. `run + ready + capped + halted` of a VM is the time that it was on, times its processors."""

    vps: Annotated[int, Meta(ge=0, le=10**6)] = 0
    """Virtual processors."""
    elapsed: Whole = 0
    """Nanoseconds that one virtual processor was on; for a pool and the host the window."""
    run: Whole = 0
    """Nanoseconds on a logical processor. In esxtop %RUN, in Hyper-V "% Guest Run Time"."""
    ready: Whole = 0
    """Nanoseconds of waiting for a logical processor: others had it. In esxtop %RDY without %MLMTD."""
    capped: Whole = 0
    """Nanoseconds of waiting for the next period, a limit being used up. In esxtop %MLMTD."""
    halted: Whole = 0
    """Nanoseconds without anything to do. In esxtop %WAIT."""
    dispatches: Whole = 0
    """Times that a virtual processor got a logical one."""
    waited: Whole = 0
    """Nanoseconds from ready to dispatched, all waits together that have ended."""
    longest_wait: Whole = 0
    """Nanoseconds of the longest wait since its start: what averages hide."""
    delivered: Real = 0.0
    """Percent that it got: `run` in words of `entitled`."""
    demand: Real | None = None
    """Percent that it would have used, had nothing been in its way."""
    entitled: Real | None = None
    """Percent that is its due by reservations, limits and shares, given what all others wanted."""
    reserve: Real | None = None
    """Percent, all processors together."""
    limit: Real | None = None
    """Percent, all processors together; none is none."""
    weight: Whole | None = None
    contended: bool | None = None
    """Whether those directly below it wanted more than it had for them: only then do their weights matter."""
    worth: Real | None = None
    """Where they do: percent that a weight of 1 comes to among them."""
    batch: bool = False
    """Whether it gets only what others leave."""

    @property
    def run_percent(self) -> float:
        """%RUN: what it got, in percent of one logical processor."""
        return _percent(self.run, self.elapsed)

    @property
    def ready_percent(self) -> float:
        """%RDY without %MLMTD: others had the processors."""
        return _percent(self.ready, self.elapsed)

    @property
    def capped_percent(self) -> float:
        """%MLMTD."""
        return _percent(self.capped, self.elapsed)

    @property
    def halted_percent(self) -> float:
        """%WAIT."""
        return _percent(self.halted, self.elapsed)

    @property
    def steal_percent(self) -> float:
        """%RDY: ready and capped, which the guest sees as stolen and cannot tell apart."""
        return _percent(self.ready + self.capped, self.elapsed)

    @property
    def longest_wait_ms(self) -> float:
        """Milliseconds of the longest wait for a processor since its start."""
        return self.longest_wait / 1e6

    @property
    def run_seconds(self) -> float:
        """Processor seconds that it got."""
        return self.run / 1e9

    @property
    def ready_seconds(self) -> float:
        """Seconds that its processors waited for others."""
        return self.ready / 1e9

    @property
    def capped_seconds(self) -> float:
        """Seconds that its limit held it back."""
        return self.capped / 1e9

    @property
    def halted_seconds(self) -> float:
        """Seconds that its processors had nothing to do."""
        return self.halted / 1e9

    @property
    def dispatches_per_second(self) -> float:
        """How often it got a processor."""
        return _rate(self.dispatches, self.elapsed)

    @property
    def wait_percent(self) -> float:
        """Waits per dispatch times dispatches a second: percent of one virtual processor's time."""
        return _percent(self.waited, self.elapsed)

    @property
    def wait_per_dispatch_us(self) -> float:
        """Microseconds that a dispatch was waited for; in Hyper-V "CPU Wait Time Per Dispatch", which is in ns."""
        return self.waited / 1000 / self.dispatches if self.dispatches else 0.0


class Memory(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Memory, in bytes."""

    assigned: Whole = 0
    """What it has: in Hyper-V "Physical Memory"."""
    demand: Whole | None = None
    """What its guest says that it has committed."""
    active: Whole | None = None
    """What its guest uses, by a sample of its pages: in esxtop ACTV."""
    target: Whole | None = None
    """What the host wants it to have."""
    ballooned: Whole | None = None
    """What its balloon holds: in esxtop MCTLSZ."""
    added: Whole | None = None
    """What was added to what it was built with, and is there."""
    swapped: Whole | None = None
    """What its guest says that its page files hold: of a model guest what is swapped out; Linux always says 0."""
    cause: str = ""
    """Why it has less than it was built with: idle, host, limit, asked."""
    pressure: Real | None = None
    """100 x demand / assigned: in Hyper-V "Current Pressure"."""
    minimum: Whole | None = None
    maximum: Whole | None = None
    reserve: Whole | None = None
    limit: Whole | None = None
    weight: Whole | None = None
    free: Whole | None = None
    """Of the host: what no VM has."""
    capacity: Whole | None = None
    """Of the host."""
    state: str | None = None
    """Of the host: high, soft, hard, low."""

    @property
    def assigned_mib(self) -> float:
        """MiB that it has."""
        return self.assigned / (1 << 20)

    @property
    def ballooned_mib(self) -> float:
        """MiB in its balloon."""
        return (self.ballooned or 0) / (1 << 20)

    @property
    def active_mib(self) -> float:
        """MiB that its guest uses."""
        return (self.active or 0) / (1 << 20)

    @property
    def demand_mib(self) -> float:
        """MiB that its guest has committed."""
        return (self.demand or 0) / (1 << 20)


class Disk(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Requests to disks, in normalized operations: one for each 8 KiB that is begun."""

    requests: Whole = 0
    """Completed in the window, as they came."""
    normalized: Whole = 0
    """The same in normalized operations."""
    bytes: Whole = 0
    elapsed: Whole = 0
    """Nanoseconds that the figures are of."""
    waited: Whole = 0
    """Nanoseconds that its requests were held back, all together."""
    busy: Whole = 0
    """Nanoseconds from a request's arrival to its completion, all together."""
    entitled: Real | None = None
    """Normalized operations a second that are its due."""
    reserve: Whole | None = None
    limit: Whole | None = None
    weight: Whole | None = None
    contended: bool | None = None
    """As of processors; None where the host's storage has no capacity to contend for."""
    latency: list[tuple[Whole, Whole]] = []
    """Requests by latency: upper bounds in microseconds and how many were at most that, and above the bound before."""

    @property
    def iops(self) -> float:
        """Normalized operations a second."""
        return _rate(self.normalized, self.elapsed)

    @property
    def requests_per_second(self) -> float:
        """Requests a second as they came."""
        return _rate(self.requests, self.elapsed)

    @property
    def bytes_per_second(self) -> float:
        """Bytes a second."""
        return _rate(self.bytes, self.elapsed)

    @property
    def latency_ms(self) -> float:
        """Mean milliseconds of a request, from its arrival to its completion."""
        return self.busy / 1e6 / self.requests if self.requests else 0.0

    @property
    def waited_ms(self) -> float:
        """Mean milliseconds that a request was held back."""
        return self.waited / 1e6 / self.requests if self.requests else 0.0


class Network(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Frames through ports of switches, as the VM sees them."""

    sent_bits: Whole = 0
    received_bits: Whole = 0
    sent: Whole = 0
    """Frames."""
    received: Whole = 0
    dropped: Whole = 0
    """Frames that a limit, a full queue or the link's loss took, either way."""
    elapsed: Whole = 0
    """Nanoseconds that the figures are of."""
    entitled: Real | None = None
    """Bits a second that are its due for sending."""
    reserve: Whole | None = None
    limit: Whole | None = None
    """Bits a second."""
    weight: Whole | None = None
    contended: bool | None = None

    @property
    def sent_bits_per_second(self) -> float:
        """What it sent."""
        return _rate(self.sent_bits, self.elapsed)

    @property
    def received_bits_per_second(self) -> float:
        """What came to it."""
        return _rate(self.received_bits, self.elapsed)


class Node(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One pool or VM, or the host."""

    path: str
    """`host`, `pool/prod`, `vm/web`."""
    kind: Kind
    depth: Annotated[int, Meta(ge=0, le=MOST_DEPTH)] = 0
    """Pools above it; nodes stand in the tree's order, each below its pool."""
    state: str = ""
    """Of a VM: off, running, ..."""
    backend: str = ""
    uptime: Real | None = None
    """Of a VM: seconds since its start, or of its last run."""
    exit_code: Whole | None = None
    cpu_pool: str = ""
    """Of a VM: the pool of its processors, where that is another."""
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    disk: Disk | None = None
    network: Network | None = None

    @property
    def name(self) -> str:
        """Without what it is."""
        return self.path.rpartition("/")[2]


class Lp(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One logical processor in the window, in nanoseconds."""

    run: Whole = 0
    idle: Whole = 0
    """In Hyper-V "% Idle Run Time"."""
    batch: Whole = 0
    """Of `run`, what the batch class had."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One window."""

    time: Real
    """Seconds from the host's opening to the window's end, on its clock."""
    window: Whole
    """Nanoseconds."""
    contended: bool | None = None
    """Whether processors were waited for, so that weights had an effect."""
    contended_for: Whole = 0
    """Nanoseconds of the window in which they were."""
    lps: list[Lp] = []
    nodes: list[Node] = []

    def node(self, path: str) -> Node | None:
        """The one at a path."""
        return next((node for node in self.nodes if node.path == path), None)


class Heading(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The first line of a file of samples."""

    partita_samples: Whole = 0
    """`FORMAT`: what tells such a file from others."""
    topology: str = ""
    clock: str = ""
    window: Whole = 0
    """Nanoseconds."""
    logical_processors: Whole = 0
    memory: Whole = 0
    """Bytes for VMs."""


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _rate(count: int, elapsed: int) -> float:
    return count * 1e9 / elapsed if elapsed else 0.0
