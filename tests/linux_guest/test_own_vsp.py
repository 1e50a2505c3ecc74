"""A VSP from a file, used by a kernel that has no driver for it: uio_hv_generic binds to its GUID. Root side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import partitions
from hypervisor.trace import TraceEvent
from partitions.explain import Explainer
from partitions.explain_steps import explain, lines
from partitions.topology_schema import DeviceTable
from tests.linux_guest import guest, parts

EXAMPLE = Path(__file__).parents[2] / "examples" / "21-own-vsp"
INTERFACE = "d1ce0000-8a3f-4c52-9d0e-6f2b7c415e21"
PLACE = "/sys/bus/vmbus/devices/d1ce0001-8a3f-4c52-9d0e-6f2b7c415e21/uio"
UIO = f"$(ls {PLACE})"
"""Ours is not the first where the kernel leaves file copy to a program, as 6.12 does: that has the driver too."""
CHANNEL = "/sys/bus/vmbus/devices/d1ce0001-8a3f-4c52-9d0e-6f2b7c415e21/channels/*"
STEPS = {
    "bind": f"all; echo {INTERFACE} > /sys/bus/vmbus/drivers/uio_hv_generic/new_id &&"
    f" await 20 test -d {PLACE} && await 5 test -c /dev/{UIO}",
    "open": f"exec 3<>/dev/{UIO} && await 5 grep -qx 40 {CHANNEL}/read_avail && cat {CHANNEL}/read_avail",
    "driver": "basename $(readlink /sys/bus/vmbus/devices/d1ce0001-*/driver)",
}


def test_linux_opens_a_device_of_ours(tmp_path: Path, evidence: Callable[[str, str], None]) -> None:
    """The generic driver binds, opening its file opens the channel, and the VSP's first packet lies in the ring."""
    plan = guest.Plan(steps=STEPS, modules=("hv_vmbus", "uio_hv_generic"), kernel=parts.NEWER)
    topology = guest.topology(plan, tmp_path)
    topology.vm[0].device.append(DeviceTable(vsp=f"{EXAMPLE / 'dice.py'}:Dice"))
    explainer = Explainer()

    async def run() -> list[str]:
        def sink(event: TraceEvent) -> None:
            if event.partition in host.trace.names:
                explainer.feed(event)

        with trio.move_on_after(plan.timeout):
            async with partitions.open_host(topology) as host:
                host.trace.add_sink(sink)
                await host.start_all()
                await host.wait_all()
        return [line.rstrip("\r") for line in host["linux"].console.lines()]

    said = trio.run(run)
    told = explain(explainer, vm="linux", kvm=True, processors=1)
    if guest.OVER not in said:
        pytest.fail("\n".join([*said[-25:], *lines(told)]))
    steps = guest._steps(said)
    assert [(name, step.status) for name, step in steps.items()] == [("bind", 0), ("open", 0), ("driver", 0)], said
    assert steps["driver"].output == "uio_hv_generic"
    (channel,) = [channel for channel in explainer.progress.channels.values() if channel.name == INTERFACE]
    assert channel.opened is not None
    assert channel.packets_out == 1
    evidence(
        "a device of your own",
        f"uio_hv_generic opened it; {steps['open'].output} bytes to read\n" + "\n".join(lines(told)),
    )
