"""A run of a topology in which one VM's boundary is recorded, or its guest is the replay of a record. Root side."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import IO

import trio

from hypervisor.backend.base import Backend
from hypervisor.backend.task import GuestEntry, TaskBackend
from hypervisor.hypervisor import Hypervisor
from partitions.backends import TopologyBackends
from partitions.boundary import protocol
from partitions.boundary.record import BoundaryLog, Watch, recorded
from partitions.boundary.replay import Header, Record, Replay
from partitions.boundary.replay import RecordError as RecordError
from partitions.boundary.turns import Turns
from partitions.topology_schema import Backend as BackendKind
from partitions.topology_schema import Topology, VmTable


class BoundaryRun(abc.ABC):
    """What both are: an order of tasks, and backends in which one VM's is another."""

    def __init__(self, topology: Topology, vm: str, seed: int, log: BoundaryLog, *, steps: bool) -> None:
        self.seed = seed
        self.turns = log.turns
        self.vm = vm
        self._log = log
        self._others = TopologyBackends(topology)
        self._topology = topology
        self._watch = Watch(log, steps=steps)
        self._watching = False

    def backends(self, hypervisor: Hypervisor, vm: VmTable) -> Backend:
        """A worker's `BackendFactory`."""
        if vm.name != self.vm:
            return self._others(hypervisor, vm)
        if not self._watching:
            self._watching = True
            hypervisor.trace.add_sink(self._log.interrupted)
            trio.lowlevel.add_instrument(self._watch)
        return TaskBackend(hypervisor, self._entry(vm))

    @abc.abstractmethod
    def _entry(self, vm: VmTable) -> GuestEntry:
        """The guest of the VM that this is about."""

    @abc.abstractmethod
    def finish(self) -> str:
        """After the run: what became of it, for people."""

    @property
    @abc.abstractmethod
    def ok(self) -> bool:
        """Whether it went as it should."""


class RecordedRun(BoundaryRun):
    """The guest is the topology's, and all that crosses its boundary goes to a file."""

    def __init__(self, topology: Topology, vm: str, path: Path, seed: int) -> None:
        """Raises `RecordError`."""
        table = check(topology, vm)
        self._path = path
        self._problem = ""
        self._lines = 0
        try:
            self._file: IO[bytes] = path.open("wb")
        except OSError as error:
            raise RecordError(f"{path}: {error.strerror}") from None
        super().__init__(topology, vm, seed, BoundaryLog(Turns(seed), self._write), steps=True)
        self._write(protocol.encode(Header(vm=vm, memory=int(table.memory), processors=table.processors, seed=seed)))

    def _entry(self, vm: VmTable) -> GuestEntry:
        from partitions.compose import guest_entry

        return recorded(guest_entry(vm, self._topology)[0], self._log)

    def _write(self, line: bytes) -> None:
        if not self._problem:
            try:
                self._file.write(line + b"\n")
                self._lines += 1
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        # What is buffered cannot be written either, and the run must not end of it.
        self._problem = error.strerror or str(error)

    def finish(self) -> str:
        """Closes the file."""
        try:
            self._file.close()
        except OSError as error:
            self._fail(error)
        if self._problem:
            return f"{self._path}: {self._problem}; the record ends there, and the run went on without it"
        return f"{self._path} has {self._lines} lines of {self.vm}'s boundary; --replay {self.vm}={self._path}"

    @property
    def ok(self) -> bool:
        """Whether all of it was written."""
        return not self._problem


class ReplayedRun(BoundaryRun):
    """The guest is the record's."""

    def __init__(self, topology: Topology, vm: str, path: Path, seed: int | None) -> None:
        """Raises `RecordError`. Without a seed the record's is taken."""
        table = check(topology, vm)
        record = Record.read(path)
        header = record.header
        mine = (vm, int(table.memory), table.processors)
        if (header.vm, header.memory, header.processors) != mine:
            raise RecordError(
                f"{path} was made of VM {header.vm} with {header.memory >> 20} MiB and {header.processors} processors; "
                f"{vm} here has {mine[1] >> 20} MiB and {mine[2]}"
            )
        wanted = header.seed if seed is None else seed
        self._replay = Replay(record, Turns(wanted))
        super().__init__(topology, vm, wanted, self._replay.log, steps=False)

    def _entry(self, vm: VmTable) -> GuestEntry:
        return self._replay.entry

    def finish(self) -> str:
        """The verdict."""
        return f"replay of {self.vm}: {self._replay.comparison.verdict()}"

    @property
    def ok(self) -> bool:
        """Whether the root did to the last byte what it did then."""
        return self._replay.comparison.complete


def check(topology: Topology, vm: str) -> VmTable:
    """The VM's table. Raises `RecordError` for one whose guest runs meanwhile."""
    table = next(table for table in topology.vm if table.name == vm)
    if table.backend is not BackendKind.TASK:
        raise RecordError(
            f'VM {vm} has backend "{table.backend.value}": its guest runs at the same time as the root, so there is no '
            "one order of what they did; a guest program can be recorded"
        )
    return table
