"""Linux's sd driver discards on our disks: what it finds out, what it sends, what becomes of the image."""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from partitions.host import Host, Vm
from partitions.topology_schema import DiskTable
from tests.linux_guest import guest

MIB = 1 << 20
BARE_SIZE, FILES_SIZE = 16 * MIB, 32 * MIB
LINES = "file sizes in KiB, as the file system outside sees them"

# By LUN: disks are probed in parallel, and the first to answer is sda.
BARE, WITH_FILES, FIXED = (f"/dev/$(disk {lun})" for lun in range(3))
DIGEST = f"dd if={BARE} bs=64k iflag=direct 2>/dev/null | sha256sum"
QUEUE = """
cd /sys/block/$1/queue
echo rotational $(cat rotational) granularity $(cat discard_granularity) most $(cat discard_max_bytes)
cat /sys/block/$1/device/scsi_disk/*/provisioning_mode
"""
FILES = f"""
mount -t ext4 {WITH_FILES} /mnt || exit 1
dd if=/dev/urandom of=/mnt/large bs=1M count=16 2>/dev/null && cp /init /mnt/small && sync
"""


class Room:
    """What the images take outside, by the step during which it was measured."""

    def __init__(self, *images: Path) -> None:
        self.images = images
        self.kib: dict[str, list[int]] = {}

    def look(self, step: str) -> guest.During:
        async def measure(_host: Host, _vm: Vm) -> None:
            self.kib[step] = [image.stat().st_blocks // 2 for image in self.images]

        return measure


Boot = tuple[guest.Evidence, Room, list[str], bytes]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """A disk without a file system, one with ext4, and one that cannot be written to."""
    folder = tmp_path_factory.mktemp("discard")
    bare, files, fixed = folder / "bare.raw", folder / "files.raw", folder / "fixed.raw"
    content = random.Random(2).randbytes(BARE_SIZE)
    bare.write_bytes(content)
    files.write_bytes(b"\xff" * FILES_SIZE)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard", files], check=True)
    fixed.write_bytes(content[:MIB])
    room = Room(bare, files)
    steps = {
        "load": "all; await 60 test -b /dev/sda -a -b /dev/sdb -a -b /dev/sdc",
        "bare queue": "set $(disk 0)" + QUEUE,
        "fixed queue": "set $(disk 2)" + QUEUE,
        "part": f"blkdiscard -o {4 * MIB} -l {8 * MIB} {BARE}; {DIGEST}",
        "part outside": "sleep 0.3",
        "whole": f"blkdiscard {BARE}; {DIGEST}",
        "whole outside": "sleep 0.3",
        "fixed": f"blkdiscard {FIXED} && echo done || echo refused",
        "files": FILES,
        "files outside": "sleep 0.3",
        "trim": "fstrim -v /mnt; rm /mnt/large; sync; fstrim -v /mnt",
        "trim outside": "sleep 0.3",
        "intact": "cmp /init /mnt/small && umount /mnt && echo same",
        "complaints": "dmesg | grep -iE 'i/o error|discard|sense key|storvsc.*(error|fail)' || true",
    }
    disks = [DiskTable(path=str(bare)), DiskTable(path=str(files)), DiskTable(path=str(fixed), read_only=True)]
    commands: list[str] = []
    during = {name: room.look(name) for name in steps if name.endswith("outside")}
    plan = guest.Plan(steps=steps, disks=disks)
    evidence = guest.boot(
        plan, folder, during, [lambda event: commands.append(event.words) if event.event == "scsi_command" else None]
    )
    room.kib["end"] = [image.stat().st_blocks // 2 for image in room.images]
    return evidence, room, commands, content


def test_linux_takes_the_disk_for_a_thin_one(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """By READ CAPACITY(16) and three pages: discards by UNMAP, in granules of 4 KiB, up to 256 MiB; no rotation."""
    seen = boot[0]["bare queue"].splitlines()
    assert seen == [f"rotational 0 granularity 4096 most {256 * MIB}", "unmap"]
    evidence("hv_storvsc", "discard, as sd sees the disk\n" + "\n".join(seen))


def test_linux_takes_a_read_only_disk_for_a_thick_one(boot: Boot) -> None:
    """Nothing can be discarded there, and nobody has to try."""
    queue, mode = boot[0]["fixed queue"].splitlines()
    assert queue.startswith("rotational 0 ")
    assert queue.endswith("most 0")
    assert mode == "full"
    assert boot[0]["fixed"].endswith("refused")


def test_blkdiscard_makes_holes(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """Of just that range: zeros inside, the old bytes around it, and room given back outside."""
    seen, room, commands, content = boot
    expected = content[: 4 * MIB] + bytes(8 * MIB) + content[12 * MIB :]
    assert seen["part"].split()[0] == hashlib.sha256(expected).hexdigest()
    assert seen["whole"].split()[0] == hashlib.sha256(bytes(BARE_SIZE)).hexdigest()
    assert room.kib["part outside"][0] <= (BARE_SIZE - 8 * MIB) // 1024
    assert room.kib["whole outside"][0] == 0
    assert any(words.startswith("SCSI UNMAP") for words in commands)
    evidence("hv_storvsc", f"blkdiscard: {LINES}\n{BARE_SIZE // 1024} -> 8 MiB of it: {room.kib['part outside'][0]} -> "
             f"all: {room.kib['whole outside'][0]}")  # fmt: skip


def test_fstrim_gives_room_back_and_loses_no_file(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """What a deleted file took is not taken outside any longer; the file system is clean."""
    seen, room, _, _ = boot
    full, trimmed = room.kib["files outside"][1], room.kib["trim outside"][1]
    assert len(re.findall(r"(\d+) bytes trimmed", seen["trim"])) == 2
    assert trimmed < full - 16 * 1024
    assert seen["intact"] == "same"
    checked = subprocess.run(["e2fsck", "-fn", room.images[1]], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    evidence("hv_storvsc", f"fstrim: {LINES}\n{full} -> {trimmed}\n{seen['trim']}")


def test_nobody_complains(boot: Boot) -> None:
    """No error in the guest's log."""
    assert boot[0]["complaints"] == ""
