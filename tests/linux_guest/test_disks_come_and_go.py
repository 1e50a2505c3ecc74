"""A stock kernel while its disks come, grow and go; 4 KiB blocks; a DVD in its drive, ejected and replaced."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from partitions.host import DiskError, Host, Vm
from partitions.topology_schema import DiskTable, DiskType
from tests.linux_guest import discs, guest, images

MIB = 1 << 20
FIRST_SIZE, GROWN = 8 * MIB, 12 * MIB
ROOT, LARGE_BLOCKS, ADDED, DRIVE, AGAIN = 0, 1, 4, 3, 5
"""LUNs. Those that are added get what no disk had before."""

# Disks are named by LUN: which of them is sda depends on whose probe was first.
TOOLS = """
there() { ls -d /sys/class/scsi_disk/*:0:0:$1/device/block/* > /dev/null 2>&1; }
gone() { ! there $1; }
size() { [ "$(blockdev --getsize64 /dev/$(disk $1))" = $2 ]; }
drive() { [ -b /dev/sr0 ]; }
mkdir -p /cd
"""
DIGEST = "dd if=/dev/$(disk {lun}) bs=64k iflag=direct 2>/dev/null | sha256sum"
FILES = "mount -t iso9660 -o ro /dev/sr0 /cd && cd /cd && find . -type f -exec sha256sum {} +"

# No tool: the kernel itself ejects when the last one who had the drive open is done.
EJECT = """
echo 1 > /proc/sys/dev/cdrom/autoeject; : < /dev/sr0 && echo out; echo 0 > /proc/sys/dev/cdrom/autoeject
mount -t iso9660 -o ro /dev/sr0 /cd 2>&1 | tail -n 1; true
"""


@attrs.define
class Seen:
    """What the host saw while the guest ran."""

    luns: list[int] = attrs.field(factory=list)
    refused: str = ""
    drive_after_eject: str = "?"


@attrs.frozen
class Boot:
    """One boot, what it said, and what it should have said."""

    evidence: guest.Evidence
    seen: Seen
    added: bytes
    again: bytes
    trees: list[dict[str, str]]
    large_blocks: Path
    packets: list[str]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """All of it in one boot."""
    folder = tmp_path_factory.mktemp("come-and-go")
    chance = random.Random(11)
    added, again = chance.randbytes(FIRST_SIZE), chance.randbytes(4 * MIB)
    (folder / "root.raw").write_bytes(bytes(MIB))
    (folder / "added.raw").write_bytes(added)
    (folder / "again.raw").write_bytes(again)
    large = folder / "large.raw"
    large.write_bytes(bytes(32 * MIB))
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", large], check=True, capture_output=True)
    trees = [images.tree(folder / f"files{number}", files=12, seed=number) for number in (1, 2)]
    first, second = (discs.iso(folder / f"{n}.iso", folder / f"files{n}", f"DISC{n}") for n in (1, 2))
    seen = Seen()

    async def add(_host: Host, vm: Vm) -> None:
        seen.luns.append(await vm.add_disk(folder / "added.raw"))

    async def grow(_host: Host, vm: Vm) -> None:
        assert await vm.resize_disk(ADDED, GROWN) == GROWN

    async def remove(_host: Host, vm: Vm) -> None:
        await trio.sleep(1)  # the guest is to be in the middle of its reads
        await vm.remove_disk(ADDED)

    async def add_again(_host: Host, vm: Vm) -> None:
        seen.luns.append(await vm.add_disk(folder / "again.raw", read_only=True))

    async def try_to_eject(_host: Host, vm: Vm) -> None:
        try:
            await vm.eject_disc(DRIVE)
        except DiskError as error:
            seen.refused = str(error)

    async def replace(_host: Host, vm: Vm) -> None:
        seen.drive_after_eject = vm.disks[DRIVE].path
        await vm.insert_disc(DRIVE, second)

    steps = {
        "load": f"""dmesg -c > /dev/null; {TOOLS} all
            await 20 there {ROOT}; await 20 there {LARGE_BLOCKS}; await 20 drive""",
        "added": f"{TOOLS} await 20 there {ADDED}; {DIGEST.format(lun=ADDED)}",
        "grown": f"""{TOOLS} await 20 size {ADDED} {GROWN}; blockdev --getsize64 /dev/$(disk {ADDED})
            {DIGEST.format(lun=ADDED)}""",
        "removed": f"""{TOOLS} d=$(disk {ADDED}); n=0
            while dd if=/dev/$d of=/dev/null bs=64k iflag=direct 2>/dev/null; do n=$((n + 1)); done &
            await 20 gone {ADDED}; wait; ls /sys/block | grep -c $d; ls /dev/$d 2>&1 || true""",
        "again": f"{TOOLS} await 20 there {AGAIN}; {DIGEST.format(lun=AGAIN)}; blockdev --getro /dev/$(disk {AGAIN})",
        "4k": f"""d=/dev/$(disk {LARGE_BLOCKS}); blockdev --getss $d; blockdev --getsize64 $d
            mount -t ext4 $d /mnt && cp /bin/busybox /mnt/copy && sync && echo 3 > /proc/sys/vm/drop_caches
            cmp /bin/busybox /mnt/copy && echo same; umount /mnt
            cat /sys/block/$(disk {LARGE_BLOCKS})/queue/physical_block_size""",
        "drive": "cat /sys/block/sr0/device/type /sys/block/sr0/size /sys/block/sr0/queue/logical_block_size",
        "disc": f"{FILES}; cd /; grep -o 'iso9660 ro' /proc/mounts",
        "held": "sleep 0.3; umount /cd",
        "ejected": EJECT,
        "replaced": "sleep 0.5; " + FILES + "; cd /; umount /cd",
        "log": "dmesg | grep -E 'sd [0-9]|sr [0-9]|scsi [0-9]|LUN|apacity'",
        "complaints": "dmesg | grep -iE 'BUG:|WARNING:|hung|timed out|storvsc.*fail|EXT4-fs error|Call Trace' || true",
    }
    during = {
        "added": add,
        "grown": grow,
        "removed": remove,
        "again": add_again,
        "held": try_to_eject,
        "replaced": replace,
    }
    plan = guest.Plan(
        steps=steps,
        disks=[
            DiskTable(path=str(folder / "root.raw"), lun=ROOT),
            DiskTable(path=str(large), lun=LARGE_BLOCKS, block_size=4096),
            DiskTable(path=str(first), lun=DRIVE, type=DiskType.DVD),
        ],
        modules=(*guest.STORAGE, "sr_mod", "isofs"),
    )
    packets: list[str] = []
    evidence = guest.boot(
        plan,
        folder,
        during,
        [lambda event: packets.append(event.words) if event.event == "storage_control" else None],
    )
    return Boot(evidence, seen, added, again, trees, large, packets)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_disk_that_comes_is_found_and_read(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """storvsc hears of it and scans; what the guest reads is what is in the image."""
    assert boot.seen.luns == [ADDED, AGAIN]
    assert digest(boot.added) in boot.evidence["added"]
    assert "ENUMERATE_BUS" in boot.packets
    evidence("hv_storvsc", "disks that come and go\n" + boot.evidence["log"])


def test_a_disk_that_grows_is_as_large_inside(boot: Boot) -> None:
    """Without a rescan by hand: the unit attention CAPACITY DATA HAS CHANGED has storvsc look again."""
    assert boot.evidence["grown"].splitlines()[0] == str(GROWN)
    assert digest(boot.added + bytes(GROWN - FIRST_SIZE)) in boot.evidence["grown"]


def test_a_disk_that_goes_is_gone(boot: Boot) -> None:
    """In the middle of reads: they end, the device is deleted, and the kernel has nothing worse to say."""
    assert boot.evidence["removed"].splitlines()[0] == "0"
    assert boot.evidence["complaints"] == ""


def test_another_disk_is_another(boot: Boot) -> None:
    """At a LUN of its own, read-only as it was said, with its own bytes."""
    lines = boot.evidence["again"].splitlines()
    assert digest(boot.again) in lines[0]
    assert lines[1] == "1"


def test_blocks_of_4_kib(boot: Boot) -> None:
    """The kernel takes them for what they are, and a file system lives on them."""
    lines = boot.evidence["4k"].splitlines()
    assert lines == ["4096", str(32 * MIB), "same", "4096"]
    checked = subprocess.run(["e2fsck", "-fn", boot.large_blocks], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_dvd_is_mounted(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """A drive of SCSI type 5 with blocks of 2048; every file of the disc by SHA-256."""
    kind, _, block = boot.evidence["drive"].splitlines()
    assert (kind, block) == ("5", "2048")
    *files, mounted = boot.evidence["disc"].splitlines()
    assert found(files) == boot.trees[0]
    assert mounted == "iso9660 ro"
    evidence("sr_mod", f"{len(files)} files of an ISO image: SHA-256 agrees inside and outside")


def test_a_mounted_disc_is_held(boot: Boot) -> None:
    """The kernel has locked the door; without force the host asks and is refused."""
    assert "the guest holds the disc in drive 3" in boot.seen.refused


def test_a_disc_is_ejected_and_replaced(boot: Boot) -> None:
    """The guest ejects; the drive is empty on the host; the next disc is another for the guest too."""
    assert "out" in boot.evidence["ejected"]
    assert boot.seen.drive_after_eject == ""
    assert found(boot.evidence["replaced"].splitlines()) == boot.trees[1]


def found(lines: list[str]) -> dict[str, str]:
    """SHA-256 by name, as sha256sum prints them."""
    return {name.removeprefix("./"): value for value, name in (line.split(maxsplit=1) for line in lines)}
