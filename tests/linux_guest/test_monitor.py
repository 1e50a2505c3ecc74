"""Monitor pages as Linux uses them: triggers in place of signals, and what its sysfs shows of the pages. Root side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import partitions
from partitions.topology_schema import DeviceTable
from tests.linux_guest import guest
from tests.linux_guest.test_own_vsp import CHANNEL, EXAMPLE, INTERFACE
from vsp_vsc.integration.heartbeat.vsp import HeartbeatState, HeartbeatVsp

LATENCY = 1000
DICE, HEARTBEAT = "d1ce0001-*", "fd149e91-*"
FIELDS = (
    "monitor_id",
    "server_monitor_latency",
    "client_monitor_latency",
    "server_monitor_pending",
    "client_monitor_pending",
    "server_monitor_conn_id",
    "client_monitor_conn_id",
)
SHOW = f"for field in {' '.join(FIELDS)}; do cat $field; done"
STEPS = {
    "bind": f"all; echo {INTERFACE} > /sys/bus/vmbus/drivers/uio_hv_generic/new_id && await 5 test -c /dev/uio0",
    "open": f"exec 3<>/dev/uio0 && await 5 grep -qx 40 {CHANNEL}/read_avail"
    f" && cd /sys/bus/vmbus/devices/{DICE} && {SHOW}",
    "heartbeat": f"cd /sys/bus/vmbus/devices/{HEARTBEAT} && basename $(readlink driver) && {SHOW}",
    "beats": "sleep 5",
}


@pytest.fixture
def heartbeat_with_monitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeat component asks for a monitor ID, so that a driver of the kernel's own writes to such a channel."""
    original = HeartbeatVsp.__init__

    def begin(self: HeartbeatVsp, *arguments: Any, **more: Any) -> None:
        original(self, *arguments, **more)
        self.offer = attrs.evolve(self.offer, monitor_latency=LATENCY)

    monkeypatch.setattr(HeartbeatVsp, "__init__", begin)


def fields(lines: list[str]) -> dict[str, int]:
    return dict(zip(FIELDS, map(int, lines), strict=True))


@pytest.mark.usefixtures("heartbeat_with_monitor")
def test_linux_sets_triggers(tmp_path: Path, evidence: Callable[[str, str], None]) -> None:
    """Linux 6.1 binds uio_hv_generic to nothing without a monitor ID; hv_util answers beats without a hypercall.

    Its sysfs shows the latencies and connections that the host wrote into both pages.
    """
    plan = guest.Plan(steps=STEPS, modules=("hv_vmbus", "hv_utils", "uio_hv_generic"))
    topology = guest.topology(plan, tmp_path)
    topology.vm[0].device.append(DeviceTable(vsp=f"{EXAMPLE / 'dice.py'}:Dice"))

    async def run() -> tuple[list[str], Any, Any, Any]:
        with trio.move_on_after(plan.timeout):
            async with partitions.open_host(topology) as host:
                await host.start_all()
                vm = host["linux"]
                child = host.hypervisor.partitions[vm.partition_id or 0]
                beat = vm.heartbeat
                async with trio.open_nursery() as nursery:

                    async def look() -> None:
                        nonlocal beat
                        while True:
                            if vm.heartbeat.beats:
                                beat = vm.heartbeat
                            await trio.sleep(0.2)

                    nursery.start_soon(look)
                    await host.wait_all()
                    nursery.cancel_scope.cancel()
        said = [line.rstrip("\r") for line in vm.console.lines()]
        return said, beat, child.counters, host.hypervisor.root.counters

    said, beat, child, root = trio.run(run)
    steps = guest._steps(said)
    assert [(name, step.status) for name, step in steps.items()] == [(name, 0) for name in STEPS], said[-25:]
    dice = fields(steps["open"].lines)
    driver, *lines = steps["heartbeat"].lines
    heartbeat = fields(lines)
    assert driver == "hv_utils" or driver == "hv_util"
    assert dice["monitor_id"] != heartbeat["monitor_id"]
    for shown in (dice, heartbeat):
        assert shown["monitor_id"] in (0, 1)
        assert shown["server_monitor_latency"] == shown["client_monitor_latency"] == LATENCY
        assert shown["client_monitor_conn_id"] >> 12 == 2
        assert shown["server_monitor_conn_id"] >= 0x1000
    assert beat.state is HeartbeatState.OK
    assert beat.beats >= 2
    assert beat.missed == 0
    assert child["monitor_signals"] >= beat.beats
    assert root["monitor_signals"] >= beat.beats
    evidence(
        "monitor pages",
        f"dice: {dice}\nheartbeat: {heartbeat}, {beat.beats} beats\n"
        f"triggers seen: {child['monitor_signals']} of the guest's, {root['monitor_signals']} of the host's",
    )
