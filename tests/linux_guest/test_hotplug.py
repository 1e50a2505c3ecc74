"""A controller with a disk is plugged in and pulled out under a running kernel; and a kernel returns without UNLOAD.

The return is an emergency restart (sysrq b) with I/O under way: the kernel says nothing to the bus, closes nothing, and
the machine is reset. A kernel that takes over without a reset is in `test_kexec.py`.

Pulled out under a reader, this kernel used to hang: storvsc loses what it sends after a rescind, reads no answer any
more, and lets no command time out, so the reader waited for ever, and the removal of its device for the reader. Now the
disks go first (`StorageVsp.leave`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest

from partitions.host import Host, Vm
from partitions.topology_schema import DiskTable
from tests.linux_guest import guest

MIB = 1 << 20
SIZE = 8 * MIB
NAME = "more"
# The first disk is sda, and whatever else there is was plugged in.
FUNCTIONS = """
other() { for block in /sys/block/sd*; do [ ${block##*/} = sda ] || echo ${block##*/}; done; }
here() { [ -n "$(other)" ] && [ -b /dev/$(other) ]; }
gone() { [ -z "$(other)" ]; }
devices() { ls -1 /sys/bus/vmbus/devices | wc -l; }
as_before() { [ $(devices) = $(cat /before) ]; }
"""
DIGEST = "dd if=/dev/$(other) bs=64k iflag=direct 2>/dev/null | sha256sum"
# First life: leave a mark, keep the disk busy, and go down in the middle of it. Second life: the mark is there.
RETURN = """
if [ "$(dd if=/dev/sda bs=4 count=1 2>/dev/null)" = back ]; then
  echo returned
else
  echo -n back | dd of=/dev/sda bs=4 conv=notrunc,fsync 2>/dev/null
  while :; do dd if=/dev/sda of=/dev/null bs=64k iflag=direct; done 2>/dev/null &
  sleep 0.3
  echo b > /proc/sysrq-trigger
  sleep 100
fi
"""
BUSY = """
while dd if=/dev/$(other) of=/dev/null bs=64k iflag=direct; do :; done 2>/dev/null &
sleep 0.3; echo pull; await 20 gone && wait && echo over
"""
COMPLAINTS = "dmesg | grep -E 'BUG|WARNING|Call Trace|blocked for more|timed out|relid|GPADL|gpadl' || true"
STEPS = {
    "load": "dmesg -c > /dev/null; all; await 10 test -b /dev/sda",
    "return": RETURN,
    "before": "devices | tee /before",
    "added": f"await 20 here && {DIGEST}",
    "during": "devices",
    "busy": BUSY,
    "after": "await 20 as_before; devices",
    "again": f"await 20 here && {DIGEST}",
    "pulled": "await 20 gone; await 20 as_before",
    "first": "dd if=/dev/sda bs=64k count=16 iflag=direct 2>/dev/null | wc -c",
    "complaints": COMPLAINTS,
}

Seen = tuple[guest.Evidence, bytes, int]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One run of a VM for all tests: two boots, and two times the disk."""
    folder = tmp_path_factory.mktemp("hotplug")
    content = random.Random(11).randbytes(SIZE)
    (folder / "more.raw").write_bytes(content)
    (folder / "own.raw").write_bytes(bytes(MIB))
    resets: list[int] = []

    async def add(host: Host, vm: Vm) -> None:
        await vm.add_device(NAME, DiskTable(path=str(folder / "more.raw"), read_only=True))

    async def pull(host: Host, vm: Vm) -> None:
        resets.append(await host.inspect(f"vm/{vm.name}/worker/resets"))
        lines = vm.console.follow()
        while "pull" not in map(str.rstrip, vm.console.lines()):
            await anext(lines)
        await vm.remove_device(NAME)

    async def pull_idle(host: Host, vm: Vm) -> None:
        await vm.remove_device(NAME)

    steps = {name: FUNCTIONS + lines for name, lines in STEPS.items()}
    disks = [DiskTable(path=str(folder / "own.raw"))]
    plan = guest.Plan(steps=steps, disks=disks, processors=2, traced=True)
    during = {"added": add, "busy": pull, "again": add, "pulled": pull_idle}
    return guest.boot(plan, folder, during), content, resets[0]


def test_a_kernel_that_said_no_unload_comes_back(seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """Restarted in the middle of reading: the next one finds bus and disk as the first did."""
    assert seen[0]["return"].endswith("returned")
    assert seen[2] == 1
    evidence("return without UNLOAD", "sysrq b while reading; the second boot connected, and its disk was there")


def test_a_disk_comes_and_is_what_the_host_has(seen: Seen) -> None:
    """One device more on the bus, a new sd device, and every byte of it."""
    assert int(seen[0]["during"]) == int(seen[0]["before"]) + 1
    assert seen[0]["added"].split()[0] == hashlib.sha256(seen[1]).hexdigest()


def test_a_disk_goes_under_a_reader(seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """Reads fail, the sd device and the bus's device are gone, nobody hangs."""
    assert seen[0]["busy"].endswith("over")
    assert int(seen[0]["after"]) == int(seen[0]["before"])
    evidence("hot plug", f"devices before, with and after: {[seen[0][step] for step in ('before', 'during', 'after')]}")


def test_it_comes_again_and_goes_unused(seen: Seen) -> None:
    """The same instance a second time, and the first disk never noticed."""
    assert seen[0]["again"].split()[0] == hashlib.sha256(seen[1]).hexdigest()
    assert seen[0]["pulled"] == ""
    assert int(seen[0]["first"]) == MIB


def test_nobody_complains(seen: Seen) -> None:
    """Neither the kernel nor, of its messages, the host."""
    assert seen[0]["complaints"] == ""
    assert seen[0].statistics.faults == 0
    assert [words for words in seen[0].warnings if words.startswith(("unexpected", "malformed", "refused"))] == []
