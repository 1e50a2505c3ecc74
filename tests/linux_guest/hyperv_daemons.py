"""Debian's Hyper-V daemons with the C library that they need, as files for an initramfs. Root side."""

from __future__ import annotations

import shutil
import subprocess

from tests.linux_guest.parts import BUILD, MissingPart

PACKAGES = ("hyperv-daemons", "libc6")
HOST_NAME = "linux-guest"
_LIBRARIES = "lib/x86_64-linux-gnu"
_FILES = {
    **{name: f"usr/sbin/{name}" for name in ("hv_kvp_daemon", "hv_vss_daemon", "hv_fcopy_daemon")},
    "libc.so.6": f"{_LIBRARIES}/libc.so.6",
    "ld-linux-x86-64.so.2": f"{_LIBRARIES}/ld-linux-x86-64.so.2",
}
INSTALL = f"""
mkdir -p /{_LIBRARIES} /lib64 /usr/sbin /etc /var/lib
ip link set lo up; hostname {HOST_NAME}; echo "127.0.0.1 {HOST_NAME}" >/etc/hosts
echo "hosts: files" >/etc/nsswitch.conf
mv /libc.so.6 /{_LIBRARIES}/ && mv /ld-linux-x86-64.so.2 /lib64/ && mv /hv_*_daemon /usr/sbin/
"""
"""Shell lines that put the files where they belong, and give the guest a name that it can look up."""


def fetch() -> dict[str, bytes]:
    """The daemons, their library and its loader, for the top folder; fetched and unpacked once, never installed."""
    place = BUILD / "hyperv-daemons"
    if not place.exists():
        scratch = BUILD / "hyperv-daemons.part"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        done = subprocess.run(
            ["apt-get", "download", *PACKAGES], cwd=scratch, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise MissingPart(f"apt-get download {' '.join(PACKAGES)}: {done.stderr.strip()}")
        for package in scratch.glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, scratch / "root"], check=True)
        (scratch / "root").rename(place)
        shutil.rmtree(scratch)
    return {name: (place / file).resolve().read_bytes() for name, file in _FILES.items()}
