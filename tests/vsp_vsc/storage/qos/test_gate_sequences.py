"""Whatever guest, host and storage do in whatever order: each command ends once, and the gate keeps nothing back."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.doubles.disk_control import HandClock
from tests.doubles.storage import SlowBackend
from vsp_vsc.storage.controller import Controller, address
from vsp_vsc.storage.qos.arbiter import DiskQos
from vsp_vsc.storage.qos.policy import IopsPolicy
from vsp_vsc.storage.scsi.answer import TASK_ABORTED, ScsiResult
from vsp_vsc.storage.scsi.cdb import ScsiStatus, inquiry_cdb, read_cdb, synchronize_cache_cdb, write_cdb
from vsp_vsc.storage.scsi.sense import Reason
from vsp_vsc.storage.scsi.target import ScsiTarget

CDBS = [
    cdb.ljust(16, b"\0")
    for cdb in (read_cdb(0, 8), write_cdb(8, 8), read_cdb(0, 1), synchronize_cache_cdb(), inquiry_cdb(36), bytes(16))
]
SIZES = (4096, 4096, 512, 0, 36, 0)
FULL = ScsiResult(ScsiStatus.TASK_SET_FULL)

luns = st.integers(0, 1)
steps = st.one_of(
    st.tuples(st.just("start"), luns, st.integers(0, 5), st.integers(1, 3)),
    st.tuples(st.just("start"), luns, st.integers(0, 2), st.integers(3, 6)),
    st.tuples(st.just("start"), luns, st.integers(0, 2), st.integers(3, 6)),
    st.tuples(st.just("wait"), st.integers(0, 300)),
    st.tuples(st.just("finish"), luns, st.integers(0, 4)),
    st.tuples(st.just("reset"), luns),
    st.tuples(st.just("abort"), luns, st.integers(0, 30)),
    st.tuples(st.just("turn away"), luns),
    st.tuples(st.just("limit"), luns, st.sampled_from((1, 10, 0, 1000))),
    st.tuples(st.just("pool"), st.sampled_from((0, 5, 100))),
    st.tuples(st.just("capacity"), st.sampled_from((0, 20, 500))),
    st.tuples(st.just("disconnect")),
)


class World:
    """Two disks of a controller, and all that was asked of them."""

    def __init__(self) -> None:
        self.clock = HandClock()
        self.backends = [SlowBackend(1 << 16, cached=bool(lun)) for lun in range(2)]
        self.controller = Controller(dict(enumerate(map(ScsiTarget, self.backends))), "guest")
        self.units = [self.controller.units[address(lun)] for lun in range(2)]
        self.qos = DiskQos(self.clock, self.clock.timers)
        self.qos.set_group("vm/a", "", IopsPolicy())
        self.flows = [self.qos.add_disk("vm/a", str(lun), IopsPolicy(limit=10), self.units[lun]) for lun in range(2)]
        self.tags: list[list[object]] = [[], []]
        self.ended: dict[int, int] = {}

    def done(self, tag: object, _result: ScsiResult) -> None:
        self.ended[id(tag)] = self.ended.get(id(tag), 0) + 1

    def start(self, lun: int, kind: int) -> None:
        tag, size = object(), SIZES[kind]
        self.tags[lun].append(tag)
        views = [memoryview(bytearray(size))] if size else []
        result = self.units[lun].nexus.start(CDBS[kind], views, size, tag, self.done)
        if result is not None:
            self.done(tag, result)

    def take(self, step: tuple[Any, ...]) -> None:
        match step:
            case "start", lun, kind, count:
                for _ in range(count):
                    self.start(lun, kind)
            case "wait", hundredths:
                self.clock.wait(hundredths / 100)
            case "finish", lun, count:
                self.backends[lun].finish(count)
            case "reset", lun:
                self.controller.reset([self.units[lun]], Reason.DEVICE_RESET, lambda: None)
            case "abort", lun, number if number < len(self.tags[lun]):
                tag = self.tags[lun][number]
                if id(tag) not in self.ended:
                    self.units[lun].nexus.abort(tag)
            case "turn away", lun:
                gate = self.flows[lun].gate
                if gate is not None:
                    gate.end(lambda _tag: True, FULL)
            case "limit", lun, limit:
                self.flows[lun].set_policy(IopsPolicy(limit=limit))
            case "pool", limit:
                self.qos.set_group("vm/a", "", IopsPolicy(limit=limit))
            case "capacity", capacity:
                self.qos.set_capacity(capacity)
            case ("disconnect",) if not any(self.backends[lun].jobs for lun in range(2)):
                for flow in self.flows:
                    if flow.gate is not None:
                        flow.gate.end(lambda _tag: True, TASK_ABORTED)
                self.controller.disconnected()


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, min_size=8, max_size=25))
def test_each_command_ends_once(steps: list[tuple[Any, ...]]) -> None:
    """And where nothing is controlled any more, nothing waits, nothing is armed, and no gate is left."""
    world = World()
    for step in steps:
        world.take(step)
        for lun in range(2):
            assert world.units[lun].nexus.under_way == len(world.backends[lun].jobs) + world.flows[lun].node.waiting
    for lun in range(2):
        world.take(("limit", lun, 0))
    world.take(("pool", 0))
    world.take(("capacity", 0))
    for backend in world.backends:
        while backend.finish():
            pass
    for tags in world.tags:
        assert [world.ended.get(id(tag)) for tag in tags] == [1] * len(tags)
    assert world.qos.core.root.waiting == 0
    assert len(world.clock.timers) == 0
    assert [unit.nexus.under_way for unit in world.units] == [0, 0]
    assert [unit.gate for unit in world.units] == [None, None]
