"""A real kernel on several virtual processors: all come up, none is warned of, each takes its own interrupts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from partitions.host import ExitReason
from partitions.topology_schema import DiskTable
from tests.linux_guest import guest, parts

RETARGET = """
all; await 20 test -b /dev/sda || exit 1
device=$(dirname $(grep -l ba6163d9 /sys/bus/vmbus/devices/*/class_id))
interrupts() { grep HYP: /proc/interrupts | awk "{print \\$$(($1 + 2))}"; }
for cpu in $(seq 0 $(($(nproc) - 1))); do
  for channel in $device/channels/*; do echo $cpu > $channel/cpu; done
  before=$(interrupts $cpu)
  dd if=/dev/sda bs=16k iflag=direct 2>/dev/null | md5sum | cut -c 1-32 > /sum
  echo cpu $cpu $(cat $device/channels/*/cpu) took $(($(interrupts $cpu) - before)) $(cat /sum)
done
"""
STEPS = {
    "processors": "nproc; cat /proc/cpuinfo | grep -c ^processor",
    "topology": "cd /sys/devices/system/cpu; for c in cpu[0-9]*; do"
    " echo $c $(cat $c/topology/core_id $c/topology/physical_package_id $c/topology/thread_siblings_list); done",
    "complaints": "dmesg | grep -iE 'topology|apic id|firmware bug|not responding|stuck|unsynchronized|Do_IRQ' || true",
    "brought up": "dmesg | grep -E 'smp: Brought up|Allowing'",
    "retarget": RETARGET,
}


@pytest.mark.parametrize(("processors", "kernel"), [(2, parts.NEWER), (4, parts.INNER)])
def test_processors(tmp_path: Path, processors: int, kernel: str, evidence: Callable[[str, str], None]) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(random.Random(1).randbytes(1 << 20))
    disk = DiskTable(path=str(image), read_only=True)
    plan = guest.Plan(steps=STEPS, processors=processors, kernel=kernel, disks=[disk], timeout=150)
    told = guest.boot(plan, tmp_path)
    assert told.exit.reason is ExitReason.POWERED_OFF
    assert told["processors"].split() == [str(processors)] * 2
    # Each processor is a core of its own in one package.
    assert told["topology"].splitlines() == [f"cpu{n} {n} 0 {n}" for n in range(processors)]
    assert told["complaints"] == ""
    rows = re.findall(r"cpu (\d) ([\d ]+) took (\d+) (\w+)", told["retarget"])
    assert [int(row[0]) for row in rows] == list(range(processors))
    for cpu, targets, taken, _ in rows:
        assert set(targets.split()) == {cpu}, "MODIFY_CHANNEL was answered"
        assert int(taken) > 0, f"the channel's interrupts reach processor {cpu}"
    assert len({row[3] for row in rows}) == 1
    evidence(f"smp, {processors} processors", told["brought up"] + "\n" + told["retarget"])
