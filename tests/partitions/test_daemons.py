"""Debian's genuine daemons answer the host: its API, VSP, VMBus, a VSC like the Linux kernel's, and the daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from partitions.child.guest import Guest
from partitions.host import NoAnswer, Pool, Vm
from partitions.root.integration import FreezeState
from partitions.topology_schema import IntegrationName
from tests.doubles.daemon_drivers import FileCopyByDaemon, KvpByDaemon, VssByDaemon
from tests.doubles.daemons import DOMAIN, build, daemon, furnish, needs_daemons
from tests.partitions.test_integration import open_guest
from vsp_vsc.integration.component import Contact
from vsp_vsc.integration.protocol import RING_BYTES, Component
from vsp_vsc.integration.responder import Responder, responding

pytestmark = needs_daemons
PATIENCE = 20


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("device"))


@asynccontextmanager
async def by_daemon(
    root: Path, program: str, kind: Callable[[trio.socket.SocketType], Any], name: IntegrationName, component: Component
) -> AsyncIterator[Vm]:
    """A VM whose component is the daemon's."""
    async with daemon(root, program) as device:
        bound = trio.Event()

        async def main(guest: Guest) -> None:
            driver = kind(device)
            await driver.register()
            await guest.settled()
            await guest.unbind(name)
            channel = await guest.open_channel(name, ring_bytes=RING_BYTES)
            async with responding(channel, Responder(component, driver.answer, driver.versions)):
                bound.set()
                await trio.sleep_forever()

        with trio.fail_after(PATIENCE):
            async with open_guest(main, [name]) as host:  # type: ignore[attr-defined]
                vm = host["web"]
                await vm.start()
                await bound.wait()  # before that it is the guest's own driver who is ready, and about to go
                words = component.words
                while vm.integration[words] is not Contact.READY or not registered(vm, component):  # noqa: ASYNC110
                    await trio.sleep(0.01)
                yield vm
                await vm.turn_off()


def registered(vm: Vm, component: Component) -> bool:
    """Whether it is the daemon's version that was agreed on, and not the kernel's own driver's."""
    integration = vm._integration()
    if integration is None:
        return False
    found = next(one for one in integration.components if one.component is component)
    return found.version in ("4.0", "5.0") if component is Component.KVP else found.version in ("5.0", "1.1")


async def test_the_key_value_daemon(tmp_path: Path, library: Path) -> None:
    """It says what its system is; items are set, read, listed and removed in its pools, which are its own files."""
    furnish(tmp_path, library)
    async with by_daemon(tmp_path, "hv_kvp_daemon", KvpByDaemon, IntegrationName.KVP, Component.KVP) as vm:
        while not (facts := await vm.kvp.items()):  # noqa: ASYNC110
            await trio.sleep(0.01)
        assert str(facts["FullyQualifiedDomainName"]).endswith(f".{DOMAIN}")
        assert facts["OSName"] == "Debian GNU/Linux"
        assert facts["OSMajorVersion"] == "12"
        assert facts["ProcessorArchitecture"] == "x86_64"
        assert facts["IntegrationServicesVersion"] == "3.1"
        assert {"OSVersion", "OSBuildNumber", "NetworkAddressIPv4", "NetworkAddressIPv6"} <= facts.keys()

        for pool in (Pool.EXTERNAL, Pool.GUEST):
            await vm.kvp.set("greeting", "grüß dich", pool)
            await vm.kvp.set("number", 7, pool)
            await vm.kvp.set("number", 8, pool)
            assert await vm.kvp.items(pool) == {"greeting": "grüß dich", "number": "8"}
            assert await vm.kvp.get("number", pool) == "8"
            assert await vm.kvp.get("nothing", pool) is None
            assert await vm.kvp.delete("number", pool)
            assert not await vm.kvp.delete("number", pool)
            assert await vm.kvp.items(pool) == {"greeting": "grüß dich"}
            record = (tmp_path / f"var/lib/hyperv/.kvp_pool_{pool.value}").read_bytes()
            assert record.startswith(b"greeting\0")
            assert "grüß dich".encode() in record
        # What the host says of itself has arrived without having been asked for.
        own = await vm.kvp.items(Pool.AUTO_EXTERNAL)
        assert own["VirtualMachineName"] == "web"
        assert own["HostName"]


async def test_the_longest_item_that_there_is(tmp_path: Path, library: Path) -> None:
    """Key and value as long as the daemon's fields are, less their ends."""
    furnish(tmp_path, library)
    async with by_daemon(tmp_path, "hv_kvp_daemon", KvpByDaemon, IntegrationName.KVP, Component.KVP) as vm:
        await vm.kvp.set("k" * 255, "v" * 1023)
        assert await vm.kvp.get("k" * 255, Pool.EXTERNAL) == "v" * 1023


async def test_the_snapshot_daemon(tmp_path: Path, library: Path) -> None:
    """It freezes what is mounted, but the read-only and the strange; and thaws it when the host says so."""
    mounts = "/dev/sda1 /data ext4 rw 0 0\n/dev/sr0 /disc iso9660 ro 0 0\n/dev/sdb1 /more xfs rw 0 0\n"
    mounts += "tmpfs /run tmpfs rw 0 0\n/dev/sda2 /small vfat rw 0 0\n"
    furnish(tmp_path, library, mounts)
    for name in ("data", "disc", "more", "run", "small", "dev"):
        (tmp_path / name).mkdir()
    async with by_daemon(tmp_path, "hv_vss_daemon", VssByDaemon, IntegrationName.VSS, Component.VSS) as vm:
        log = tmp_path / "log"
        async with vm.frozen():
            assert log.read_text() == "freeze\nfreeze\n"
            assert vm.freeze_state is FreezeState.FROZEN
        assert log.read_text() == "freeze\nfreeze\nthaw\nthaw\n"


async def test_a_file_system_that_cannot_be_frozen(tmp_path: Path, library: Path) -> None:
    """The daemon says so, the host hears it, and the guest goes on."""
    furnish(tmp_path, library, "/dev/sda1 /data ext4 rw 0 0\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "cannot-freeze").touch()
    async with by_daemon(tmp_path, "hv_vss_daemon", VssByDaemon, IntegrationName.VSS, Component.VSS) as vm:
        with pytest.raises(NoAnswer, match="freeze: fail"):
            await vm.freeze()
        while vm.freeze_state is not FreezeState.THAWED:  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_the_copying_daemon(tmp_path: Path, library: Path) -> None:
    """Files of several sizes arrive byte for byte; what the daemon refuses is the host's answer."""
    root, source = tmp_path / "root", tmp_path / "source.bin"
    root.mkdir()
    furnish(root, library)
    async with by_daemon(
        root, "hv_fcopy_daemon", FileCopyByDaemon, IntegrationName.FILE_COPY, Component.FILE_COPY
    ) as vm:
        for size in (0, 1, 6144, 100_000):
            data = bytes(number * 31 >> 3 & 0xFF for number in range(size))
            source.write_bytes(data)
            assert await vm.copy_file(source, f"/srv/größe/{size}", create_path=True) == size
            assert (root / f"srv/größe/{size}").read_bytes() == data
        with pytest.raises(NoAnswer, match="overwrite it"):
            await vm.copy_file(source, "/srv/größe/1")
        source.write_bytes(b"other")
        await vm.copy_file(source, "/srv/größe/", overwrite=True)
        assert (root / "srv/größe/source.bin").read_bytes() == b"other"
        with pytest.raises(NoAnswer, match="a folder that it does not have"):
            await vm.copy_file(source, "/nowhere/file")

        source.write_bytes(bytes(50_000_000))
        with trio.move_on_after(0.3):
            await vm.copy_file(source, "/srv/cancelled")
        source.write_bytes(b"next")
        await vm.copy_file(source, "/srv/next")
        assert not (root / "srv/cancelled").exists()
        assert (root / "srv/next").read_bytes() == b"next"
