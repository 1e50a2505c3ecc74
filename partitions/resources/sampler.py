"""Readings of a host at the ends of windows, and what came between two of them as a sample. Root side.

    with Sampler(host) as sampler:
        ...
        sample = sampler.sample()           # since the last one, or since the sampler began

Counters of a VM that ends are read just before its partition goes, so nothing is lost between two windows. A sample of
many VMs is made piece by piece: `steps` stops often enough that nobody else waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TypeVar

import attrs
import trio

from hypervisor.clock import NS_PER_TICK
from partitions.resources.collect import Source
from partitions.resources.nodes import Window, sample_of
from partitions.resources.sample import FORMAT, Heading, Lp, Sample
from partitions.resources.totals import NOTHING, Totals, since, together

if TYPE_CHECKING:
    from types import TracebackType

    from partitions.host import Host
    from partitions.root.worker import Worker
    from partitions.topology_schema import VmTable
    from vsp_vsc.storage.qos.arbiter import FlowFigures

T = TypeVar("T")

VMS_AT_ONCE: Final = 16
"""VMs that are read before others get their turn."""
WINDOW_MS: Final = 100
SECOND: Final = 1_000_000_000


@attrs.frozen
class Reading:
    """All VMs at one moment, or over the few moments that it takes where there are many."""

    time: int
    """Nanoseconds since the host was opened, on its clock."""
    vms: dict[str, Totals]
    lps: list[Lp]
    contended_for: int
    """Nanoseconds in which somebody has waited for a processor."""
    disks: dict[str, tuple[int, int]] = attrs.field(factory=dict)
    """See `DiskQos.spans`."""
    sent: dict[int, int] = attrs.field(factory=dict)
    """See `Shaping.sent`."""


class Sampler:
    """What has come since when."""

    def __init__(self, host: Host, *, look: bool = True) -> None:
        """Without a `look` the first window begins when the host was opened, or at `begin`."""
        self._host = host
        self._earlier: dict[str, Totals] = {}
        """What VMs had in runs that have ended."""
        self._gone: dict[str, Worker] = {}
        """Of those runs the last one's, by VM."""
        self._disks: dict[str, FlowFigures] = {}
        """Of the last window: a VM that ends takes its disks' controls with it."""
        self.first = Reading(0, {}, [], 0)
        """When the host was opened, with nothing counted."""
        self.last = self.read() if look else self.first
        """Where the next window begins."""

    def __enter__(self) -> Sampler:
        self._host.vmms.leaving.append(self.leaving)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._host.vmms.leaving.remove(self.leaving)

    def now(self) -> int:
        """Nanoseconds since the host was opened, on its clock."""
        return self._host.hypervisor.clock() * NS_PER_TICK

    def heading(self, *, topology: str, window: int) -> Heading:
        """The first line of a file of samples."""
        from partitions.surroundings import is_virtual

        host = self._host.topology.host
        return Heading(
            partita_samples=FORMAT,
            topology=topology,
            clock="virtual" if is_virtual(None) else "real",
            window=window,
            logical_processors=host.logical_processors,
            memory=int(host.memory),
        )

    def leaving(self, worker: Worker, settings: VmTable) -> None:
        """A VM's partition goes."""
        name = settings.name
        self._earlier[name] = together(self._earlier.get(name, NOTHING), Source(self._host).vm(worker, settings))
        self._gone[name] = worker

    def _of(self, source: Source, name: str) -> Totals:
        managed = self._host.vmms.vms[name]
        worker = managed.worker
        # One that is leaving has been counted, though it is there for a moment still.
        now = NOTHING if worker is self._gone.get(name, self) else source.vm(worker, managed.settings)
        earlier = self._earlier.get(name)
        return now if earlier is None else earlier if now is NOTHING else together(earlier, now)

    def _reading(self) -> Iterator[Reading | None]:
        taken: dict[str, Totals] = {}
        source, time = Source(self._host), self.now()
        lps, contended_for = source.lps(), source.scheduler.contended_for
        for number, name in enumerate(list(self._host.vmms.vms), 1):
            if name in self._host.vmms.vms:
                taken[name] = self._of(source, name)
            if number % VMS_AT_ONCE == 0:
                yield None
        made = self._host.network.made
        sent = {} if made is None else made.sent()
        yield Reading(time, taken, lps, contended_for, self._host.vmms.disk_controls.spans(), sent)

    def read(self) -> Reading:
        """All VMs now, at one go."""
        return next(reading for reading in self._reading() if reading is not None)

    def between(self, before: Reading, after: Reading, *, whole: bool = False) -> Sample:
        """What came between two readings; with `whole`, VMs that have ended have the memory that they had."""
        return next(sample for sample in self._between(before, after, whole=whole) if sample is not None)

    def _between(self, before: Reading, after: Reading, *, whole: bool = False) -> Iterator[Sample | None]:
        window = after.time - before.time
        came: dict[str, Totals] = {}
        for number, (name, totals) in enumerate(after.vms.items(), 1):
            came[name] = since(before.vms.get(name, NOTHING), totals)
            if number % VMS_AT_ONCE == 0:
                yield None
        earlier = before.lps or [Lp()] * len(after.lps)
        lps = [
            Lp(run=lp.run - was.run, idle=lp.idle - was.idle, batch=lp.batch - was.batch)
            for lp, was in zip(after.lps, earlier, strict=True)
        ]
        contended_for = after.contended_for - before.contended_for
        disks: dict[str, FlowFigures] = {}
        for number, (name, figures) in enumerate(self._host.vmms.disk_controls.each(), 1):
            disks[name] = figures
            if number % VMS_AT_ONCE == 0:
                yield None
        for name, was in self._disks.items():
            vm = came.get(name.split("/")[1]) if name.startswith("vm/") else None
            if vm is not None and vm.disk is not None and vm.disk.requests:
                disks.setdefault(name, was)
        if not whole:
            self._disks = disks
        spans = {
            name: (due - before.disks.get(name, (0, 0))[0], short - before.disks.get(name, (0, 0))[1])
            for name, (due, short) in after.disks.items()
        }
        made = self._host.network.made
        rates = {
            flow: SECOND * (bits - before.sent.get(flow, 0)) // max(1, window) for flow, bits in after.sent.items()
        }
        ports = {} if made is None or whole else made.due(rates)
        yield from sample_of(
            Window(self._host, came, after.time, window, lps, contended_for, disks, spans, ports, whole)
        )

    def sample(self) -> Sample:
        """What has come since the last one, at one go: where time stands still meanwhile."""
        before, self.last = self.last, self.read()
        return self.between(before, self.last)

    async def begin(self) -> None:
        """The next window begins now, with everybody else's turns in between."""
        self.last = await _in_turns(self._reading())

    async def sample_in_turns(self) -> Sample:
        """The same, with everybody else's turns in between. One that is given up leaves its window to the next."""
        reading = await _in_turns(self._reading())
        sample = await _in_turns(self._between(self.last, reading))
        self.last = reading
        return sample


async def _in_turns(steps: Iterator[T | None]) -> T:
    """What steps end with."""
    last: T | None = None
    for last in steps:  # noqa: B007  # it is wanted after the loop
        await trio.lowlevel.checkpoint()
    assert last is not None, "steps end with a result"
    return last
