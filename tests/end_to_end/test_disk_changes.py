"""Disks that are added, removed and resized through the Python API, with a guest program that watches."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from partitions.host import DiskError, Host, VmState, open_host
from partitions.topology_schema import DiskTable, DiskType, Size, Topology, VmTable

MIB = 1 << 20
WATCHER = """
    async def main(guest):
        await guest.settled()
        print("disks", [disk.lun for disk in guest.disks])
        with guest.disk_changes() as changes:
            print("ready")
            async for change in changes:
                disk = change.disk
                print(change.kind, disk.lun, disk.facts.kind, disk.blocks, disk.block_size, disk.read_only)
                if change.kind == "added" and not disk.read_only:
                    await disk.write(0, b"guest".ljust(disk.block_size), fua=True)
                if disk.blocks == 4:
                    return
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "watcher.py").write_text(textwrap.dedent(WATCHER))
    for name, size in (("a.raw", MIB), ("b.raw", MIB), ("disc.iso", 2048 * 5), ("other.iso", 2048 * 4)):
        (tmp_path / name).write_bytes(bytes(size))
    return tmp_path


def topology(folder: Path, *disks: DiskTable, **settings: Any) -> Topology:
    table = VmTable(name="vm", program="watcher.py", memory=Size(8 * MIB), disk=list(disks), **settings)
    return Topology(vm=[table], folder=folder)


async def printed(host: Host, line: str) -> None:
    """Until the guest has printed a line."""
    with trio.fail_after(20):
        while line not in host["vm"].console.lines():  # noqa: ASYNC110 - a console is followed from now on only
            await trio.sleep(0.01)


async def test_a_guest_sees_every_change(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """It comes, grows and goes; a drive has a disc, none, and another. The host's view agrees at each step."""
    async with open_host(topology(folder, DiskTable(path="a.raw"))) as host:
        vm = host["vm"]
        await vm.start()
        await printed(host, "ready")
        assert await vm.add_disk("b.raw", block_size=4096) == 1
        await printed(host, "added 1 disk 256 4096 False")
        assert (vm.disks[1].path, vm.disks[1].size) == (str(folder / "b.raw"), MIB)
        assert await vm.resize_disk(1, "2MiB") == 2 * MIB
        await printed(host, "changed 1 disk 512 4096 False")
        with (folder / "b.raw").open("r+b") as image:
            image.truncate(3 * MIB)
        assert await vm.resize_disk(1) == 3 * MIB
        await printed(host, "changed 1 disk 768 4096 False")
        await vm.remove_disk(1)
        await printed(host, "removed 1 disk 768 4096 False")
        assert (folder / "b.raw").read_bytes().startswith(b"guest ")
        assert await vm.add_disk("disc.iso", type="dvd") == 2, "a LUN that no disk had"
        await printed(host, "added 2 dvd 5 2048 True")
        await vm.eject_disc(2)
        await printed(host, "changed 2 dvd 0 2048 True")
        assert vm.disks[2].path == ""
        await vm.insert_disc(2, "other.iso")
        await printed(host, "changed 2 dvd 4 2048 True")
        assert (await vm.wait()).ok
        assert vm.state is VmState.OFF
        assert {lun: (disk.path, disk.type) for lun, disk in vm.disks.items()} == {
            0: ("a.raw", DiskType.DISK),
            2: ("other.iso", DiskType.DVD),
        }
        await vm.start()
        await printed(host, "disks [0, 2]")


async def test_a_vm_without_disks_may_get_one(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """With it comes the controller; the guest's driver finds both."""
    async with open_host(topology(folder)) as host:
        vm = host["vm"]
        await vm.start()
        await printed(host, "ready")
        assert await vm.add_disk("a.raw", read_only=True) == 0
        await printed(host, "added 0 disk 2048 512 True")
        assert "storage" in vm.devices
        await vm.remove_disk(0)
        await printed(host, "removed 0 disk 2048 512 True")


async def test_disks_of_a_vm_that_is_off(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """Are changed in its settings; those that stay keep their LUNs, and an image is made where a size is given."""
    async with open_host(topology(folder, DiskTable(path="a.raw"), DiskTable(path="b.raw"))) as host:
        vm = host["vm"]
        await vm.remove_disk(0)
        assert await vm.add_disk("new.raw", size="1MiB") == 2
        assert [(disk.lun, disk.size) for disk in vm.disks.values()] == [(1, MIB), (2, MIB)]
        with pytest.raises(DiskError, match="lun: must be 0 to 63"):
            await vm.add_disk("a.raw", lun=64)
        with pytest.raises(DiskError, match="VM 'vm' is off: this is for one that runs"):
            await vm.resize_disk(1)
        await vm.start()
        await printed(host, "disks [1, 2]")
        assert (folder / "new.raw").stat().st_size == MIB


async def test_what_cannot_be_is_refused_in_words(folder: Path, autojump_clock: trio.abc.Clock) -> None:
    """And changes nothing."""
    async with open_host(topology(folder, DiskTable(path="a.raw"), DiskTable(path="", type=DiskType.DVD))) as host:
        vm = host["vm"]
        await vm.start()
        before = vm.disks
        for words, ask in (
            ("there is no file", lambda: vm.add_disk("nowhere.raw")),
            ("type: must be disk or dvd, is 'cd'", lambda: vm.add_disk("b.raw", type="cd")),  # type: ignore[arg-type]
            ("lun: must be 0 to 63, is 64", lambda: vm.add_disk("b.raw", lun=64)),
            ("lun: must be 0 to 63, is -1", lambda: vm.add_disk("b.raw", lun=-1)),
            ("LUN 0 is taken", lambda: vm.add_disk("b.raw", lun=0)),
            ("block_size: must be 512 or 4096", lambda: vm.add_disk("b.raw", block_size=1024)),
            ("not a multiple of 2048", lambda: vm.add_disk("watcher.py", type="dvd")),
            ("in use", lambda: vm.add_disk("a.raw")),
            ('size: has the unit "MB"; write "1MiB"', lambda: vm.add_disk("new.raw", size="1MB")),
            ('size: must be a size such as "64MiB"', lambda: vm.resize_disk(0, "big")),
            ("no disk at LUN 7; there are: 0, 1", lambda: vm.remove_disk(7)),
            ("no disk at LUN 7", lambda: vm.resize_disk(7)),
            ("would lose its end", lambda: vm.resize_disk(0, 512)),
            ("multiple of 512", lambda: vm.resize_disk(0, MIB + 1)),
            ("is a DVD drive", lambda: vm.resize_disk(1)),
            ("is no DVD drive", lambda: vm.eject_disc(0)),
            ("drive 1 is empty", lambda: vm.eject_disc(1)),
            ("nowhere.iso", lambda: vm.insert_disc(1, "nowhere.iso")),
        ):
            with pytest.raises(DiskError, match=words):
                await ask()
            assert vm.disks == before, words
        await vm.insert_disc(1, "disc.iso")
        with pytest.raises(DiskError, match="eject that first"):
            await vm.insert_disc(1, "other.iso")
