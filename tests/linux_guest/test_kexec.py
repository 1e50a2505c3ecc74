"""A kernel that is replaced by another in the same machine, without a reset: the bus is taken over.

A kernel that has agreed on a version before 3.0 says no UNLOAD: Linux takes such hosts for ones that would not let it
come back. So the first kernel, held to version 2.4, leaves everything open: connection, channels, GPADLs. The second
one connects over it, says UNLOAD when a third takes its place, and that one ends the machine.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable

import attrs
import pytest

from hypervisor.trace import TO_ROOT, Layer, TraceEvent
from partitions.topology_schema import DiskTable
from tests.linux_guest import guest, kexec, parts

MIB = 1 << 20
SIZE = 4 * MIB
VERSION_2_4 = 0x2_0004
SEES = """await 20 test -b /dev/sda
dmesg | grep -o 'Vmbus version:.*'; sha256sum < /dev/sda; ls /sys/bus/vmbus/devices | wc -l"""
GO = "/kexec 3</kernel 4</initramfs"
COMPLAINTS = "dmesg | grep -E 'hv_|vmbus|scsi|sd ' | grep -iE 'error|fail|warn|timed out|invalid|unable' || true"


@attrs.frozen
class Seen:
    """One run of the machine."""

    evidence: guest.Evidence
    messages: list[str]
    """Of the bus, as the guest sent them."""
    digest: str


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Three kernels, one after the other."""
    folder = tmp_path_factory.mktemp("kexec")
    content = random.Random(5).randbytes(SIZE)
    (folder / "disk.raw").write_bytes(content)
    kernel = parts.kernel(parts.INNER)
    modules = kernel.modules(guest.STORAGE)
    ours = {"kexec": kexec.program(guest.QUIET), "kernel": kernel.image.read_bytes()}
    last = parts.initramfs(
        folder / "third.img", guest.script({"third": f"all; {SEES}", "complaints": COMPLAINTS}), modules
    )
    second = parts.initramfs(
        folder / "second.img",
        guest.script({"second": f"all; {SEES}", "complaints before": COMPLAINTS, "once more": GO}),
        modules,
        {**ours, "initramfs": last.read_bytes()},
    )
    first = f"load hv_vmbus max_version={VERSION_2_4}; all 2>/dev/null; {SEES}"
    messages: list[str] = []

    def listen(event: TraceEvent) -> None:
        if event.layer is Layer.CONTROL and event.direction == TO_ROOT:
            messages.append(event.event)

    plan = guest.Plan(
        steps={"first": first, "go": GO},
        disks=[DiskTable(path=str(folder / "disk.raw"))],
        memory=512 * MIB,
        processors=2,
        extra={**ours, "initramfs": second.read_bytes()},
        traced=True,
    )
    evidence = guest.boot(plan, folder, sinks=[listen])
    return Seen(evidence, messages, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(("kernel", "version"), [("first", "2.4"), ("second", "5.3"), ("third", "5.3")])
def test_each_kernel_has_bus_and_disk(seen: Seen, kernel: str, version: str) -> None:
    """With the version that it wanted, and every byte."""
    said, digest, count = seen.evidence[kernel].splitlines()
    assert said == f"Vmbus version:{version}"
    assert digest.split()[0] == seen.digest
    assert int(count) == 7  # the disk controller and six integration components


def test_the_first_left_without_a_word(seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """Nothing was closed or unloaded before the second connected; before the third, UNLOAD was said."""
    told = Counter(seen.messages)
    assert told["unload"] == 1, seen.messages
    again = [number for number, name in enumerate(seen.messages) if name == "initiate_contact"]
    evidence("kexec", "three kernels in one machine; to the bus they said: " + ", ".join(seen.messages))
    assert "unload" not in seen.messages[: again[-2]]
    assert "close_channel" not in seen.messages[: again[-2]]


def test_nobody_complains(seen: Seen) -> None:
    """Neither kernels nor host."""
    assert seen.evidence["complaints before"] == ""
    assert seen.evidence["complaints"] == ""
    assert seen.evidence.statistics.faults == 0
    assert [words for words in seen.evidence.warnings if words.startswith(("unexpected", "malformed", "refused"))] == []
