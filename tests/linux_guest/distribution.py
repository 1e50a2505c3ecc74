"""A small Debian on a disk: the distribution's own libc, shell, tools and init, unpacked and set up by hand. Root side.

Packages are unpacked and never configured, since that would need root's rights on a system of its own; the few files
that maintainer scripts would have made are written here. busybox does what no package of this set does: getty, login.
"""

from __future__ import annotations

import shutil
import subprocess
import zlib
from pathlib import Path

from tests.linux_guest import images, parts

PACKAGES = (
    *("base-files", "base-passwd", "libc6", "libtinfo6", "bash", "busybox-static", "sysvinit-core"),
    *("coreutils", "libacl1", "libattr1", "libgmp10", "libselinux1", "libpcre2-8-0"),
)
TREE = parts.BUILD / f"distribution-{zlib.crc32(Path(__file__).read_bytes()):08x}"
"""Made anew when this file changes."""
UNWANTED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/share/info", "usr/lib/x86_64-linux-gnu/gconv")
MEBIBYTES = 96
HOST_NAME = "partita"

INITTAB = """id:2:initdefault:
si::sysinit:/etc/init.d/boot
l0:0:wait:/etc/init.d/halt
l6:6:wait:/etc/init.d/halt
S0:2345:respawn:/bin/busybox getty -L ttyS0 115200 vt100
"""
BOOT = f"""#!/bin/bash
busybox mount -t proc proc /proc
busybox mountpoint -q /sys || busybox mount -t sysfs sys /sys
busybox mount -t tmpfs run /run
busybox mount -o remount,rw /
busybox hostname {HOST_NAME}
echo "boot: root is $(busybox grep ' / ' /proc/mounts | busybox tail -n 1)"
"""
HALT = """#!/bin/bash
echo "halt: runlevel $RUNLEVEL"
sync
busybox mount -o remount,ro / && echo "halt: root is read-only"
exec halt -d -f -p
"""


def tree() -> Path:
    """The root file system, made once."""
    if not TREE.exists():
        scratch = TREE.with_suffix(".part")
        shutil.rmtree(scratch, ignore_errors=True)
        parts.unpack(PACKAGES, scratch)
        for name in UNWANTED:
            shutil.rmtree(scratch / name, ignore_errors=True)
        for folder in ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "etc/init.d", "var"):
            (scratch / folder).mkdir(parents=True, exist_ok=True)
        masters = scratch / "usr/share/base-passwd"
        passwd = (masters / "passwd.master").read_text().replace("root:*:", "root::")
        _write(scratch / "etc/passwd", passwd)
        _write(scratch / "etc/group", (masters / "group.master").read_text())
        _write(scratch / "etc/inittab", INITTAB)
        _write(scratch / "etc/init.d/boot", BOOT, mode=0o755)
        _write(scratch / "etc/init.d/halt", HALT, mode=0o755)
        _write(scratch / "etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n")
        (scratch / "bin/login").symlink_to("busybox")
        (scratch / "sbin/getty").symlink_to("../bin/busybox")
        scratch.rename(TREE)
    return TREE


def image(place: Path) -> Path:
    """A partitioned disk with the tree on its first partition."""
    return images.partitioned(place, tree(), mebibytes=MEBIBYTES)


def _write(place: Path, text: str, mode: int = 0o644) -> None:
    place.unlink(missing_ok=True)
    place.write_text(text)
    place.chmod(mode)


def release() -> str:
    """How this Debian calls itself."""
    done = subprocess.run(
        ["sh", "-c", '. "$0"; echo "$PRETTY_NAME"', tree() / "etc/os-release"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()
