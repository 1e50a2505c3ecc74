"""What Linux finds when it looks for disks behind hv_storvsc, and how much it has to ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from hypervisor.trace import TraceEvent
from partitions.topology_schema import DiskTable
from tests.linux_guest import guest

LUNS = 3
PATHS, TARGETS = 8, 2
"""What storvsc looks at, whatever a host says: STORVSC_MAX_CHANNELS and STORVSC_MAX_TARGETS."""

DISKS = """
cd /sys/block; for lun in 0 1 2; do
  d=$(disk $lun); echo $lun $(cat $d/size $d/device/vendor $d/device/model)
done
"""

Boot = tuple[guest.Evidence, Counter[tuple[int, int, int, str]]]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """Three disks, found and left alone."""
    folder = tmp_path_factory.mktemp("inventory")
    disks: list[DiskTable] = []
    for lun in range(LUNS):
        image = folder / f"disk{lun}.raw"
        image.write_bytes(bytes((lun + 1) << 20))
        disks.append(DiskTable(path=str(image)))
    commands: Counter[tuple[int, int, int, str]] = Counter()

    def count(event: TraceEvent) -> None:
        if event.event == "scsi_command":
            path, target, lun = (event.fields[name] for name in ("path", "target", "lun"))
            commands[path, target, lun, event.words] += 1

    steps = {
        "load": "all; await 60 test -b /dev/sda -a -b /dev/sdb -a -b /dev/sdc; sleep 0.5",
        "units": "ls -1 /sys/class/scsi_device",
        "disks": DISKS,
        "complaints": "dmesg | grep -iE 'scsi|storvsc|sd ' | grep -iE 'error|fail|not supported|unexpected' || true",
    }
    return guest.boot(guest.Plan(steps=steps, disks=disks), folder, sinks=[count]), commands


def test_linux_finds_the_disks_and_no_others(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """By LUN on path 0, target 0, each with its own size."""
    seen, _ = boot
    addresses = [line.split(":", 1)[1] for line in seen["units"].splitlines()]
    assert addresses == [f"0:0:{lun}" for lun in range(LUNS)]
    assert seen["disks"].splitlines() == [f"{lun} {(lun + 1) * 2048} PARTITA VIRTUAL DISK" for lun in range(LUNS)]
    assert seen["complaints"] == ""
    evidence("hv_storvsc", f"units: {' '.join(addresses)}\n{seen['disks']}")


def test_a_target_that_is_not_there_costs_two_commands(boot: Boot) -> None:
    """An INQUIRY that says that nothing can be there, and a REPORT LUNS of no units.

    One command less would do harm: storvsc takes any failed INQUIRY for a success, and a disk without a name appears;
    and a command to a LUN that is not there, on any path, makes it remove the disk of that LUN on path 0.
    """
    _, commands = boot
    for path in range(PATHS):
        for target in range(TARGETS):
            if (path, target) != (0, 0):
                sent = {words: count for (*place, words), count in commands.items() if place[:2] == [path, target]}
                assert sent == {"SCSI INQUIRY": 1, "SCSI REPORT LUNS": 1}, (path, target)
    assert {(path, target) for path, target, _, _ in commands} == {
        (path, target) for path in range(PATHS) for target in range(TARGETS)
    }


def test_finding_a_disk_takes_few_commands(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """Every question is answered the first time it is asked."""
    _, commands = boot
    each = [sum(count for (*place, _), count in commands.items() if place == [0, 0, lun]) for lun in range(LUNS)]
    asked = "\n".join(f"{count} {words}" for (*place, words), count in commands.items() if place == [0, 0, 1])
    evidence("hv_storvsc", f"SCSI commands by LUN {each}, in all {commands.total()}; of LUN 1:\n{asked}")
    assert max(each) < 60
