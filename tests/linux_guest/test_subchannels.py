"""Linux's storvsc spreads its I/O over subchannels: one for each processor but the first's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from partitions.topology_schema import DiskTable
from tests.linux_guest import guest

PROCESSORS = 4
MIB = 1 << 20
SIZE = 16 * MIB

# Each processor reads or writes its own quarter, with direct I/O, all at the same time.
SPREAD = """
for cpu in 0 1 2 3; do
  taskset $((1 << cpu)) dd if={source} of={target} bs=64k count=64 {skip}=$((cpu * 64)) {flags} 2>/dev/null &
done
wait
"""
# By LUN: disks are probed in parallel, and the first to answer is sda.
SOURCE, TARGET = "/dev/$(disk 0)", "/dev/$(disk 1)"
DIGEST = "dd if={disk} bs=64k iflag=direct 2>/dev/null | sha256sum"
READ = "cat /quarter* | sha256sum; rm /quarter*"
FOLDER = "$(dirname $(grep -l ba6163d9 /sys/bus/vmbus/devices/*/class_id))/channels"
GONE = f"""
folder={FOLDER}; one() {{ [ $(ls -1 $folder | wc -l) = 1 ]; }}
rmmod hv_storvsc; await 5 one; ls -1 $folder | wc -l
"""
CHANNELS = f"""
cd {FOLDER} && for c in *; do
  echo $c $(cat $c/subchannel_id $c/cpu $c/interrupts $c/events)
done
"""


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(5).randbytes(SIZE)


Boot = tuple[guest.Evidence, bytes, bytes]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Boot:
    """One boot for all tests."""
    return run(tmp_path_factory.mktemp("subchannels"), content)


def run(folder: Path, content: bytes) -> Boot:
    """Read all, write all, from all processors; then take the driver out and put it in again."""
    source, target = folder / "source.raw", folder / "target.raw"
    source.write_bytes(content)
    target.write_bytes(bytes(SIZE))
    read = SPREAD.format(source=SOURCE, target="/quarter$cpu", skip="skip", flags="iflag=direct")
    write = SPREAD.format(source=SOURCE, target=TARGET, skip="skip=$((cpu * 64)) seek", flags="oflag=direct")
    steps = {
        "load": "all; await 10 test -b /dev/sda -a -b /dev/sdb",
        "before": CHANNELS,
        "read": read + READ,
        "write": write + "sync; echo 3 > /proc/sys/vm/drop_caches; " + DIGEST.format(disk=TARGET),
        "after": CHANNELS,
        "gone": GONE,
        "again": "load hv_storvsc; await 10 test -b /dev/sda -a -b /dev/sdb; " + DIGEST.format(disk=SOURCE),
        "channels again": CHANNELS,
        "complaints": "dmesg | grep -E 'storvsc|vmbus' | grep -iE 'error|fail|warn|invalid|timed' || true",
    }
    disks = [DiskTable(path=str(source), read_only=True), DiskTable(path=str(target))]
    plan = guest.Plan(steps=steps, disks=disks, processors=PROCESSORS, timeout=120)
    return guest.boot(plan, folder), content, target.read_bytes()


def rows(text: str) -> list[list[int]]:
    """Of each channel: ID, subchannel index, processor, interrupts, signals sent."""
    return [[int(word) for word in line.split()] for line in text.splitlines()]


def test_a_channel_for_each_processor(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """The primary and three more, each with its interrupts on another processor."""
    seen = rows(boot[0]["before"])
    assert sorted(row[1] for row in seen) == list(range(PROCESSORS))
    assert sorted(row[2] for row in seen) == list(range(PROCESSORS))
    evidence("hv_storvsc", "channels of 4 processors: relid, subchannel, cpu, interrupts, events\n" + boot[0]["after"])


def test_io_is_spread_over_the_channels(boot: Boot) -> None:
    """Each processor's goes by its own channel, which carries its share and its interrupts."""
    before, after = rows(boot[0]["before"]), rows(boot[0]["after"])
    for old, new in zip(before, after, strict=True):
        assert new[3] - old[3] >= 16, f"interrupts of channel {new[0]}"
        assert new[4] - old[4] >= 16, f"signals of channel {new[0]}"


def test_no_byte_is_lost_on_any_channel(boot: Boot) -> None:
    """Checksums agree inside and outside, of what was read and of what was written."""
    seen, content, written = boot
    digest = hashlib.sha256(content).hexdigest()
    assert seen["read"].split()[0] == digest
    assert seen["write"].split()[0] == digest
    assert hashlib.sha256(written).hexdigest() == digest


def test_subchannels_go_with_the_driver_and_come_back_with_it(boot: Boot) -> None:
    """Only the primary stays offered while no driver has it; the next one asks anew."""
    assert boot[0]["gone"] == "1"
    assert boot[0]["again"].split()[0] == hashlib.sha256(boot[1]).hexdigest()
    assert sorted(row[1] for row in rows(boot[0]["channels again"])) == list(range(PROCESSORS))


def test_nobody_complains(boot: Boot) -> None:
    """Neither the driver nor the bus."""
    assert boot[0]["complaints"] == ""
    assert boot[0].statistics.faults == 0
