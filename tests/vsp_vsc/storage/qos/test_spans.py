"""What was due over a window, and for how long somebody went short: not only as things stand at its end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from tests.doubles.disk_control import HandClock
from vsp_vsc.storage.qos.arbiter import DiskQos, Flow
from vsp_vsc.storage.qos.policy import IopsPolicy


@attrs.define(eq=False)
class Reader:
    """A guest that always has so many requests under way, until it has had enough; its disk takes no time."""

    qos: DiskQos
    flow: Flow
    until: float
    clock: HandClock

    def begin(self, count: int = 4) -> None:
        for _ in range(count):
            self.next()

    def next(self) -> None:
        while self.clock.now < self.until * 1e7:
            if not self.qos.enter(self.flow.node, 1, self, self.clock.now * 100):  # type: ignore[arg-type]  # only `go` is called
                return
            self.ended(self.clock.now * 100)

    def ended(self, now: int) -> None:
        self.flow.meter.ended(1, 4096, now, now, now)

    def go(self, now: int) -> None:
        self.ended(now)
        self.next()


class Host:
    """VMs of a disk each, named by their letters."""

    def __init__(self, capacity: int, *, pool: IopsPolicy | None = None, **policies: IopsPolicy) -> None:
        self.clock = HandClock()
        self.qos = DiskQos(self.clock, self.clock.timers, capacity=capacity)
        if pool is not None:
            self.qos.set_group("pool/p", "", pool)
        self.flows = {}
        for name, policy in policies.items():
            self.qos.set_group(f"vm/{name}", "" if pool is None else "pool/p", IopsPolicy(weight=policy.weight))
            unit: Any = SimpleNamespace(pass_through=lambda _: None, nexus=SimpleNamespace(under_way=0))
            self.flows[name] = self.qos.add_disk(f"vm/{name}", "disk/0", policy, unit)

    def read(self, name: str, until: float) -> None:
        Reader(self.qos, self.flows[name], until, self.clock).begin()

    def due(self, name: str) -> int:
        return self.qos.spans()[name][0]

    def short(self, name: str) -> float:
        return self.qos.spans()[name][1] / 1e9


def test_a_window_in_which_things_change() -> None:
    """Two of three work for four seconds and the third for two: 250, 380, 570 a second, then 400, 800."""
    host = Host(1200, a=IopsPolicy(250), b=IopsPolicy(250, weight=200), c=IopsPolicy(0, 1000, 300))
    for name, until in (("a", 4), ("b", 4), ("c", 2)):
        host.read(name, until)
    host.clock.wait(4)
    host.clock.wait(60)
    dues = [host.due(f"vm/{name}") for name in "abc"]
    assert dues == pytest.approx([2 * (250 + 400), 2 * (380 + 800), 2 * 570], rel=0.05)
    assert host.due("host") == pytest.approx(4 * 1200, rel=0.05)
    assert [host.flows[name].meter.normalized for name in "abc"] == pytest.approx(dues, rel=0.05)
    assert host.short("host") == pytest.approx(4, abs=0.2)
    assert host.qos.figures()["vm/a"].entitled == 0, "now"


def test_a_limit_alone_is_no_contention() -> None:
    """Who waits for his own limit goes short of nothing; two that want more than their pool has do."""
    host = Host(1000, a=IopsPolicy(0, 100), b=IopsPolicy(0, 200))
    host.read("a", 2)
    host.read("b", 2)
    host.clock.wait(2)
    assert (host.short("host"), host.short("vm/a")) == (0, 0)
    host = Host(0, pool=IopsPolicy(0, 100), a=IopsPolicy(), b=IopsPolicy())
    host.read("a", 2)
    host.read("b", 1)
    host.clock.wait(2)
    assert host.short("pool/p") == pytest.approx(2, abs=0.2)
    assert [host.due(f"vm/{name}") for name in "ab"] == pytest.approx([150, 50], abs=8)


def test_what_was_due_to_a_vm_that_ended() -> None:
    """It is told with the rest at a run's end; a VM that comes back goes on from there."""
    host = Host(100, a=IopsPolicy(), b=IopsPolicy())
    host.read("a", 1)
    host.read("b", 2)
    host.clock.wait(1)
    host.flows["a"].close()
    host.qos.remove_if_empty("vm/a")
    host.clock.wait(1)
    assert [host.due(f"vm/{name}") for name in "ab"] == pytest.approx([50, 150], abs=8)


@pytest.mark.parametrize(("reserve", "status"), [(250, "Ok"), (255, "Ok"), (300, "InsufficientThroughput")])
def test_a_reserve_is_kept_to_five_percent(reserve: int, status: str) -> None:
    """Of 245 that a host gives: a second is not measured more closely than that, on a clock whose timers are late."""
    host = Host(245, a=IopsPolicy(reserve))
    host.read("a", 5)
    host.clock.wait(3)
    assert host.qos.figures()["vm/a/disk/0"].status == status
