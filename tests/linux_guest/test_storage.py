"""Linux's hv_storvsc, sd and ext4 on our storage VSP: what it finds, and that no byte is lost or wrong."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from partitions.host import ExitReason
from partitions.topology_schema import DiskTable
from tests.linux_guest import guest, images, parts

HAMMER_SECONDS = int(os.environ.get("PARTITA_HAMMER_SECONDS", "20"))
BRIEF_HAMMER_SECONDS = 3
RAW_MIB = 16
CHUNK = 256 << 10
"""Each writer's own part of the raw disk. Writes of one sector take milliseconds in an emulated machine."""
FILES = 60

# Everything below is one file of shell for the guest. A writer puts a pattern that nobody else has on its own part of
# the raw disk, reads it back past the page cache and compares; a copier copies the file tree and compares; a reader
# reads all of the read-only disk. Each counts its rounds in a file, and stops the others over a wrong byte.
HAMMER = f"""
until=$(($(date +%s) + SECONDS))
going() {{ [ $(date +%s) -lt $until ] && [ ! -e /wrong ]; }}
fail() {{ touch /wrong; cat /errors; exit 1; }}
writer() {{
  n=0
  while going; do
    dd if=/dev/urandom of=/pattern$1 bs=64k count={CHUNK >> 16} 2>/dev/null
    dd if=/pattern$1 of=/dev/lun1 bs=$2 seek=$(($1 * {CHUNK} / $2)) oflag=direct conv=notrunc 2>/errors || fail
    dd if=/dev/lun1 of=/back$1 bs=$3 skip=$(($1 * {CHUNK} / $3)) count=$(({CHUNK} / $3)) iflag=direct 2>/errors || fail
    cmp /pattern$1 /back$1 || fail
    n=$((n + 1)); echo $n > /rounds/writer$1
  done
}}
copier() {{
  n=0
  while going; do
    cp -a /mnt/tree /mnt/copy && sync && echo 3 > /proc/sys/vm/drop_caches
    diff -r /mnt/tree /mnt/copy > /difference || fail
    rm -r /mnt/copy
    n=$((n + 1)); echo $n > /rounds/copier
  done
}}
reader() {{
  n=0
  while going; do
    [ "$(dd if=/dev/lun2 bs=32k iflag=direct 2>/dev/null | sha256sum)" = "$1" ] || fail
    n=$((n + 1)); echo $n > /rounds/reader
  done
}}
mkdir /rounds
expected="$(sha256sum < /dev/lun2)"
writer 0 4096 65536 & writer 1 65536 4096 & writer 2 512 131072 & copier & reader "$expected" &
wait
[ ! -e /wrong ] || exit 1
for file in /rounds/*; do echo ${{file#/rounds/}} $(cat $file); done
"""

# By LUN: disks are probed in parallel, and the first to answer is sda.
STEPS = {
    "load": """
        all; await 60 test -b /dev/sda -a -b /dev/sdb -a -b /dev/sdc
        for n in 0 1 2; do ln -s $(disk $n) /dev/lun$n; done; ln -s $(disk 0)1 /dev/part
        await 60 test -b /dev/part""",
    "names": "for n in 0 1 2; do disk $n; done",
    "inventory": "cd /sys/class/scsi_device; for d in *; do echo $d $(cd $d/device; cat type vendor model); done",
    "disks": """
        for n in 0 1 2; do d=/sys/block/$(disk $n); echo lun$n $(cd $d; cat size ro queue/logical_block_size); done""",
    "log": "dmesg | grep -E 'storvsc|scsi host|sd [0-9]'",
    "read only": "dd if=/dev/zero of=/dev/lun2 bs=4k count=1 oflag=direct; blockdev --getro /dev/lun2",
    "mount": "mount -t ext4 /dev/part /mnt && grep ' /mnt ' /proc/mounts",
    "checksums": "cd /mnt/tree && find . -type f -exec sha256sum {} +",
    "write": """
        cp -a /mnt/tree /mnt/kept && diff -r /mnt/tree /mnt/kept
        dd if=/dev/urandom of=/mnt/synced bs=64k count=32 conv=fsync 2>&1 | tail -n 1
        echo 3 > /proc/sys/vm/drop_caches
        sha256sum < /mnt/synced""",
    "hammer": "",
    "discard": "cat /sys/block/$(disk 0)/queue/discard_max_bytes; fstrim -v /mnt 2>&1 || true",
    "unmount": "umount /mnt && sync",
    "pieces": f"""
        for n in 0 1 2; do
          dd if=/dev/lun1 bs={CHUNK} skip=$n count=1 iflag=direct 2>/dev/null | sha256sum
          sha256sum < /pattern$n
        done""",
    "complaints": "dmesg | grep -iE 'I/O error|storvsc.*(fail|error)|EXT4-fs (error|warning)|timed out|hung' || true",
}


@attrs.frozen
class Boot:
    """One boot with three disks, and the images that it left."""

    kernel: str
    evidence: guest.Evidence
    tree: dict[str, str]
    partitioned: Path
    raw: Path
    read_only: Path
    read_only_digest: str


@pytest.fixture(scope="module", params=[parts.INNER, parts.NEWER], ids=["6.1", "6.12"])
def boot(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """A partitioned ext4, a raw disk and a read-only one; the longer hammering on the first kernel."""
    kernel: str = request.param
    folder = tmp_path_factory.mktemp("storage")
    source = folder / "source"
    digests = images.tree(source / "tree", files=FILES, seed=7)
    disk = images.partitioned(folder / "partitioned.raw", source, mebibytes=64)
    raw, read_only = folder / "raw.raw", folder / "read-only.raw"
    raw.write_bytes(bytes(RAW_MIB << 20))
    read_only.write_bytes(random.Random(8).randbytes(4 << 20))
    before = images.digest(read_only)
    seconds = HAMMER_SECONDS if kernel == parts.INNER else BRIEF_HAMMER_SECONDS
    plan = guest.Plan(
        kernel=kernel,
        steps=STEPS | {"hammer": HAMMER.replace("SECONDS", str(seconds))},
        disks=[
            DiskTable(path=str(disk)),
            DiskTable(path=str(raw)),
            DiskTable(path=str(read_only), read_only=True),
        ],
        timeout=guest.DEFAULT_TIMEOUT + 3 * seconds,
    )
    return Boot(kernel, guest.boot(plan, folder), digests, disk, raw, read_only, before)


def test_the_inventory_is_what_the_topology_says(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """Three disks at LUNs 0, 1 and 2 with their sizes, and no ghosts at others."""
    inventory = boot.evidence["inventory"]
    found = [line.split()[:2] for line in inventory.splitlines()]
    assert [(address.split(":")[-1], kind) for address, kind in found] == [("0", "0"), ("1", "0"), ("2", "0")]
    sizes = [path.stat().st_size // 512 for path in (boot.partitioned, boot.raw, boot.read_only)]
    assert boot.evidence["disks"].splitlines() == [
        f"lun0 {sizes[0]} 0 512",
        f"lun1 {sizes[1]} 0 512",
        f"lun2 {sizes[2]} 1 512",
    ]
    release = parts.kernel(boot.kernel).release
    evidence(
        f"hv_storvsc on {release}", f"/sys/class/scsi_device: host:channel:target:lun, type, vendor, model\n{inventory}"
    )
    evidence(f"hv_storvsc on {release}", f"LUN, sectors, read-only, sector size\n{boot.evidence['disks']}")
    evidence(f"hv_storvsc on {release}", boot.evidence["log"])


def test_a_read_only_disk_is_not_written(boot: Boot) -> None:
    """The guest is refused, and the image is as it was."""
    refused = boot.evidence.steps["read only"]
    assert refused.lines[-1] == "1"
    assert "dd:" in refused.output
    assert images.digest(boot.read_only) == boot.read_only_digest


def test_files_made_outside_are_the_same_inside(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """Every file of a tree that mke2fs put into the image, by SHA-256."""
    lines = (line.split(maxsplit=1) for line in boot.evidence["checksums"].splitlines())
    assert {name.removeprefix("./"): digest for digest, name in lines} == boot.tree
    evidence(
        f"ext4 on {parts.kernel(boot.kernel).release}", f"{len(boot.tree)} files: SHA-256 agrees inside and outside"
    )


def test_what_the_guest_wrote_and_synced_is_read_back(boot: Boot) -> None:
    """A tree copied and compared, a file with fsync read back past the cache."""
    assert re.search(r"^[0-9a-f]{64}  -$", boot.evidence["write"], re.MULTILINE)
    assert "/mnt" not in boot.evidence["write"]  # diff has nothing to say


def test_hammering_loses_no_byte(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """Three writers on one disk, a copier on a file system and a reader at once: each comes round, none sees wrong."""
    rounds = {name: int(count) for name, count in (line.split() for line in boot.evidence["hammer"].splitlines())}
    assert set(rounds) == {"copier", "reader", "writer0", "writer1", "writer2"}
    assert min(rounds.values()) >= 1
    statistics = boot.evidence.statistics
    evidence(
        f"hv_storvsc on {parts.kernel(boot.kernel).release}",
        f"hammered: rounds without a wrong byte {rounds}; ring packets of the whole boot {statistics.packets}, "
        f"hypercalls {statistics.hypercalls}",
    )


def test_what_the_guest_wrote_is_in_the_image(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """Each writer's last pattern: the guest's copy, its disk and our image agree."""
    lines = [line.split()[0] for line in boot.evidence["pieces"].splitlines()]
    on_disk, patterns = lines[0::2], lines[1::2]
    in_image = [images.digest(boot.raw, n * CHUNK, CHUNK) for n in range(3)]
    assert on_disk == patterns == in_image
    assert len(set(in_image)) == 3
    evidence(f"hv_storvsc on {parts.kernel(boot.kernel).release}", "SHA-256 in guest and image\n" + "\n".join(in_image))


def test_the_file_system_is_clean_afterwards(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """e2fsck, which has seen nothing of the guest, finds nothing."""
    release = parts.kernel(boot.kernel).release
    evidence(f"ext4 on {release}", f"e2fsck -fn: {images.check_partition(boot.partitioned)}")
    evidence(f"ext4 on {release}", f"discard_max_bytes and fstrim: {boot.evidence['discard']}")


def test_the_guest_has_nothing_to_complain_of(boot: Boot) -> None:
    """No I/O error but the one that was asked for, on the read-only disk; a clean end."""
    read_only = boot.evidence["names"].splitlines()[2]
    assert [line for line in boot.evidence["complaints"].splitlines() if read_only not in line] == []
    assert boot.evidence.exit.reason is ExitReason.POWERED_OFF
    assert boot.evidence.statistics.faults == 0
