"""A limit on a disk under Linux's hv_storvsc: I/Os that its own kernel counts, by its own clock."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from partitions.host import Host, Vm
from partitions.topology_schema import DiskTable, IopsTable
from tests.linux_guest import guest

SIZE = 16 << 20
LIMIT, LOWER = 200, 100
SECONDS = 8
LEAF = "vm/linux/devices/storage/disks/0/iops_limit"

# Twelve readers, each at a place of its own, and direct: what they read reaches the disk. So many that some always wait
# there: a limit saves nothing up for a guest that comes late with its next request, and an emulated one often does.
# /sys/block/*/stat begins with the reads that were completed. The first line is taken once all are at work.
LOOK = """
look() { read reads rest < /sys/block/$1/stat; read up rest < /proc/uptime; echo $reads $up; }
readers() { # readers DISK BYTES
  for part in 0 1 2 3 4 5 6 7 8 9 10 11; do
    dd if=/dev/$1 of=/dev/null bs=$2 skip=$((part * 1048576 / $2)) iflag=direct 2>/dev/null & pids="$pids $!"
  done
}
"""
MEASURE = f"""{LOOK}
readers $(disk $LUN) $BYTES; sleep 1
for second in $(seq {SECONDS + 1}); do look $(disk $LUN); sleep 1; done
kill $pids; wait
"""
# The same for three seconds without a limit: how fast this machine is.
FREE = f"""{LOOK}
readers $(disk $LUN) 4096; sleep 1; look $(disk $LUN); sleep 3; look $(disk $LUN)
kill $pids; wait
"""

STEPS = {
    "load": "all; await 60 test -b /dev/sda -a -b /dev/sdb",
    "free": f"LUN=1{FREE}",
    "limited": f"LUN=0; BYTES=4096{MEASURE}",
    "large": f"LUN=0; BYTES=65536{MEASURE}",
    "lowered": f"LUN=0; BYTES=4096{MEASURE}",
    "lifted": f"LUN=0{FREE}",
    "intact": "dd if=/dev/$(disk 0) bs=64k iflag=direct 2>/dev/null | sha256sum",
    "complaints": "dmesg | grep -iE 'i/o error|timing out|timed out|hung|storvsc.*(error|fail)' || true",
}


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> tuple[guest.Evidence, bytes]:
    """Two disks, one with a limit that is lowered and lifted while the guest reads."""
    folder = tmp_path_factory.mktemp("limit")
    content = random.Random(9).randbytes(SIZE)
    limited, free = folder / "limited.raw", folder / "free.raw"
    limited.write_bytes(content)
    free.write_bytes(bytes(SIZE))

    async def lower(host: Host, _vm: Vm) -> None:
        host.update(LEAF, str(LOWER))

    async def lift(host: Host, _vm: Vm) -> None:
        host.update(LEAF, "0")

    disks = [DiskTable(path=str(limited), iops=IopsTable(limit=LIMIT)), DiskTable(path=str(free))]
    plan = guest.Plan(steps=STEPS, disks=disks)
    return guest.boot(plan, folder, {"lowered": lower, "lifted": lift}), content


def marks(evidence: guest.Evidence, step: str) -> list[tuple[int, float]]:
    """Reads so far and seconds since boot, as the guest printed them."""
    lines = evidence[step].splitlines()
    return [
        (int(reads), float(up)) for reads, up in (line.split() for line in lines if re.fullmatch(r"\d+ [\d.]+", line))
    ]


def rate(evidence: guest.Evidence, step: str) -> float:
    """Reads a second, from the first look to the last."""
    (first, begin), *_, (last, end) = marks(evidence, step)
    return (last - first) / (end - begin)


Evidence = Callable[[str, str], None]


@pytest.fixture(scope="module")
def fast_enough(boot: tuple[guest.Evidence, bytes]) -> float:
    """Reads a second without a limit, before and after: a machine that hardly does so many is not held back by it."""
    free = min(rate(boot[0], "free"), rate(boot[0], "lifted"))
    if free < 1.5 * LIMIT:
        pytest.skip(f"this machine reads {free:.0f} times a second without a limit: no machine to hold to {LIMIT}")
    return free


def test_no_second_goes_past_the_limit(boot: tuple[guest.Evidence, bytes], evidence: Evidence) -> None:
    """On any machine, however slow: at most 200 reads of 4 KiB a second and 5 %, and no second far above."""
    seen = boot[0]
    each = [(later[0] - one[0]) / (later[1] - one[1]) for one, later in pairwise(marks(seen, "limited"))]
    limited, seconds = rate(seen, "limited"), " ".join(f"{one:.0f}" for one in each)
    words = f"without: {rate(seen, 'free'):.0f} a second; with {LIMIT}: {limited:.1f}, second by second {seconds}"
    words += f"; of 64 KiB: {rate(seen, 'large'):.2f}; with {LOWER}: {rate(seen, 'lowered'):.1f}"
    evidence(f"a limit of {LIMIT} IOPS, by /sys/block/*/stat", words)
    assert limited < 1.05 * LIMIT
    assert max(each) < 1.15 * LIMIT
    assert rate(seen, "large") < 1.08 * LIMIT / 8
    assert rate(seen, "lowered") < 1.05 * LOWER


@pytest.mark.usefixtures("fast_enough")
def test_a_limit_holds_for_linux(boot: tuple[guest.Evidence, bytes]) -> None:
    """200 reads of 4 KiB a second, within 5 %."""
    assert rate(boot[0], "limited") == pytest.approx(LIMIT, rel=0.05)


@pytest.mark.usefixtures("fast_enough")
def test_large_reads_count_for_what_they_are(boot: tuple[guest.Evidence, bytes]) -> None:
    """Reads of 64 KiB are eight normalized I/Os each: 25 a second."""
    assert rate(boot[0], "large") == pytest.approx(LIMIT / 8, rel=0.08)


def test_a_limit_is_lowered_while_linux_reads(boot: tuple[guest.Evidence, bytes], fast_enough: float) -> None:
    """It holds from then on; when it is lifted the disk is as fast as the other."""
    assert rate(boot[0], "lowered") == pytest.approx(LOWER, rel=0.05)
    assert rate(boot[0], "lifted") >= fast_enough > LIMIT


def test_linux_noticed_nothing_but_a_slow_disk(boot: tuple[guest.Evidence, bytes]) -> None:
    """No error, no timeout, no reset, and every byte as it was."""
    seen, content = boot
    assert seen["complaints"] == ""
    assert seen["intact"].split()[0] == hashlib.sha256(content).hexdigest()
