"""A distribution from its own disk: root=/dev/sda1, its init, a login on the console, a shutdown that is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio

from partitions.host import ExitReason, ExitRecord
from partitions.topology_schema import DiskTable
from tests.linux_guest import distribution, guest, images

SWITCH = """
umount /proc /sys
mount --move /dev /new/dev
exec switch_root -c /dev/console /new /sbin/init
"""
PLAN = guest.Plan(
    steps={"root": "all; await 60 test -b /dev/sda1 && mount -t ext4 -o ro /dev/sda1 /new"},
    modules=(*guest.STORAGE, "hv_utils"),
    ending=SWITCH,
)


@attrs.frozen
class Session:
    """What was seen on the console, and what is left."""

    before_login: str
    os_release: str
    identity: str
    first_process: str
    written: str
    after: str
    exit: ExitRecord
    image: Path


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One boot: log in, look round, write a file, be shut down."""
    folder = tmp_path_factory.mktemp("distribution")
    image = distribution.image(folder / "root.raw")
    return trio.run(_session, folder, image)


async def _session(folder: Path, image: Path) -> Session:
    plan = attrs.evolve(PLAN, disks=[DiskTable(path=str(image))])
    async with guest.booted(plan, folder) as (_, vm):
        shell = guest.Shell(vm.console)
        before = await shell.expect(f"{distribution.HOST_NAME} login: ", 90)
        await shell.type("root\n")
        await shell.expect("# ")
        await shell.run("PS1=; stty -echo")
        os_release = await shell.run("cat /etc/os-release")
        identity = await shell.run("id -un; uname -n; busybox grep ' / ' /proc/mounts")
        first = await shell.run("cat /proc/1/comm; cat /proc/1/maps | head -n 1")
        written = await shell.run("head -c 1000000 /dev/urandom > /root/written; sha256sum < /root/written")
        so_far = len(vm.console.text)
        exit_record = await vm.shut_down(60)
        return Session(before, os_release, identity, first, written, vm.console.text[so_far:], exit_record, image)


def test_the_distribution_boots_from_its_disk_to_a_login(
    session: Session, evidence: Callable[[str, str], None]
) -> None:
    """Its own init mounts its own root, and getty asks who is there."""
    assert "boot: root is /dev/sda1 / ext4 rw" in session.before_login
    evidence("distribution", session.before_login[session.before_login.index("INIT") :] + "login: root")


def test_commands_on_the_console_run_in_the_distribution(
    session: Session, evidence: Callable[[str, str], None]
) -> None:
    """What is typed reaches its shell, and what that says comes back."""
    assert f'PRETTY_NAME="{distribution.release()}"' in session.os_release
    assert session.identity.splitlines()[:2] == ["root", distribution.HOST_NAME]
    assert session.first_process.splitlines()[0] == "init"
    evidence("distribution", f"{session.identity}\nprocess 1:\n{session.first_process}")


def test_it_shuts_down_when_the_host_asks(session: Session, evidence: Callable[[str, str], None]) -> None:
    """The shutdown component runs the distribution's own way down: no power is cut."""
    assert "halt: runlevel 0" in session.after
    assert "halt: root is read-only" in session.after
    assert session.exit.reason is ExitReason.POWERED_OFF
    evidence("distribution", f"shutdown asked for by the host:\n{session.after.strip()}\n{session.exit}")


def test_the_image_is_intact_afterwards(session: Session, evidence: Callable[[str, str], None]) -> None:
    """e2fsck -fn finds nothing to mend, and a file that was written just before is whole."""
    evidence("distribution", f"e2fsck -fn: {images.check_partition(session.image)}")
    digest = hashlib.sha256(images.file_in_partition(session.image, "/root/written")).hexdigest()
    assert session.written.split()[0] == digest
    evidence("distribution", f"a file written before the shutdown, in the guest and in the image: {digest}")
