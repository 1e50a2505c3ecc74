"""Debian's sg3-utils with the libraries that they need, as files for an initramfs. Root side."""

from __future__ import annotations

from collections.abc import Iterable

from tests.linux_guest.parts import BUILD, unpack

PACKAGES = ("sg3-utils", "libsgutils2-1.46-2", "libc6")
_LIBRARIES = "lib/x86_64-linux-gnu"
_FILES = {
    "libsgutils2-1.46.so.2": f"usr/{_LIBRARIES}/libsgutils2-1.46.so.2",
    "libc.so.6": f"{_LIBRARIES}/libc.so.6",
    "ld-linux-x86-64.so.2": f"{_LIBRARIES}/ld-linux-x86-64.so.2",
}
INSTALL = f"""
mkdir -p /{_LIBRARIES} /lib64
mv /libsgutils2-1.46.so.2 /libc.so.6 /{_LIBRARIES}/ && mv /ld-linux-x86-64.so.2 /lib64/ && mv /sg_* /bin/
"""
"""Shell lines that put the files where they belong."""


def fetch(tools: Iterable[str] = ()) -> dict[str, bytes]:
    """These tools, their libraries and the loader, for the top folder; fetched once, never installed."""
    place = BUILD / "sg3-utils"
    if not place.exists():
        scratch = place.with_suffix(".part")
        unpack(PACKAGES, scratch)
        scratch.rename(place)
    files = {**_FILES, **{tool: f"usr/bin/{tool}" for tool in tools}}
    return {name: (place / file).resolve().read_bytes() for name, file in files.items()}
