"""Linux's hv_utils with Debian's hv_vss_daemon and hv_fcopy_daemon: a frozen ext4 is whole, and files arrive."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from partitions.host import Host, NoAnswer, Vm
from partitions.topology_schema import DiskTable
from tests.linux_guest import guest, hyperv_daemons

MODULES = (*guest.STORAGE, "hv_utils")
DISK_MIB = 32
SIZES = (0, 1, 6144, 300_000)
READY = """
all; await 60 test -b /dev/sda
mkdir -p /mnt && mount -t ext4 /dev/$(disk 0) /mnt || exit 1
(while :; do date >>/mnt/log; dmesg >/mnt/dmesg; done) &
"""
"""A file system that is never at rest."""
DAEMONS = f"""{hyperv_daemons.INSTALL}
/usr/sbin/hv_vss_daemon -n & /usr/sbin/hv_fcopy_daemon -n &
await 60 [ -f /srv/new/over ]; sleep 1
"""
COPIED = "cd /srv/new && sha256sum *; ls /srv"


class Seen:
    """What the host did and was told while the guest ran."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image = image
        self.folder = folder
        self.backup = folder / "backup.img"
        self.versions: dict[str, str] = {}
        self.at_rest: list[str] = []
        self.sums: dict[str, str] = {}
        self.refusals: list[str] = []

    async def act(self, host: Host, vm: Vm) -> None:
        """Freeze and copy the disk, then send files."""
        with trio.fail_after(60):
            await self._freeze(vm)
            integration = vm._integration()
            assert integration is not None
            self.versions = {one.words: one.version for one in integration.components}
            await self._copy(vm)

    async def _freeze(self, vm: Vm) -> None:
        while True:
            try:
                await vm.freeze()
                break
            except NoAnswer:  # until its daemon is there, the kernel says no
                await trio.sleep(0.2)
        self.at_rest.append(self._sum())
        await trio.sleep(1)
        self.at_rest.append(self._sum())
        self.backup.write_bytes(self.image.read_bytes())
        await vm.thaw()

    async def _copy(self, vm: Vm) -> None:
        source = self.folder / "source"
        for size in SIZES:
            data = bytes(number * 31 >> 3 & 0xFF for number in range(size))
            source.write_bytes(data)
            while True:
                try:
                    await vm.copy_file(source, f"/srv/new/{size}", create_path=True)
                    break
                except NoAnswer as error:
                    if size:
                        raise AssertionError(error) from error
                    await trio.sleep(0.2)
            self.sums[str(size)] = hashlib.sha256(data).hexdigest()
        for path in ("/srv/new/1", "/nowhere/file"):
            try:
                await vm.copy_file(source, path)
            except NoAnswer as error:
                self.refusals.append(str(error))
        source.write_bytes(b"the end\n")
        await vm.copy_file(source, "/srv/new/over")

    def _sum(self) -> str:
        return hashlib.sha256(self.image.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("backup")
    image = folder / "disk.img"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image, f"{DISK_MIB}M"], check=True, capture_output=True)
    return Seen(image, folder)


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory, seen: Seen) -> guest.Evidence:
    steps = {
        "ready": READY,
        "daemons": DAEMONS,
        "copied": COPIED,
        "complaints": "dmesg | grep -E 'hv_|vmbus' | grep -iE 'error|fail|warn|timed out|invalid|short' || true",
    }
    disks = [DiskTable(path=str(seen.image))]
    plan = guest.Plan(steps=steps, disks=disks, modules=MODULES, extra=hyperv_daemons.fetch(), timeout=150)
    return guest.boot(plan, tmp_path_factory.mktemp("boot"), {"daemons": seen.act})


def test_what_was_agreed_on(boot: guest.Evidence, seen: Seen) -> None:
    """Linux 6.1 speaks one version of each."""
    assert boot.statistics.faults == 0
    assert (seen.versions["vss"], seen.versions["file copy"]) == ("5.0", "1.1"), boot["daemons"]


def test_a_frozen_disk_is_whole(boot: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """Nothing reaches it while it is frozen, and a copy made then needs no repair: not even its journal is replayed."""
    first, second = seen.at_rest
    assert first == second
    check = subprocess.run(["e2fsck", "-f", "-n", seen.backup], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    features = subprocess.run(["dumpe2fs", "-h", seen.backup], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" not in features
    evidence("hv_vss_daemon", f"e2fsck of a copy made while frozen:\n{check.stdout}")


def test_files_arrive(boot: guest.Evidence, seen: Seen, evidence: Callable[[str, str], None]) -> None:
    """Byte for byte; the daemon's refusals are the host's answers."""
    there = dict(reversed(line.split()) for line in boot["copied"].splitlines() if len(line.split()) == 2)
    assert {name: there[name] for name in seen.sums} == seen.sums
    assert "overwrite it" in seen.refusals[0]
    assert "a folder that it does not have" in seen.refusals[1]
    evidence("hv_fcopy_daemon", f"{boot['copied']}\n" + "\n".join(seen.refusals))


def test_nobody_complains(boot: guest.Evidence) -> None:
    """No warning in the guest's log."""
    assert boot["complaints"] == ""
