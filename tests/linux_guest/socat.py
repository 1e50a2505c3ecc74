"""Debian's socat, which speaks AF_VSOCK, with the libraries that it needs, as files for an initramfs. Root side."""

from __future__ import annotations

from tests.linux_guest.parts import BUILD, MissingPart, unpack

PACKAGES = (
    *("socat", "libc6", "libwrap0", "libssl3", "libnsl2", "libtirpc3", "libgssapi-krb5-2", "libkrb5-3"),
    *("libk5crypto3", "libcom-err2", "libkrb5support0", "libkeyutils1"),
)
_FILES = (
    *("socat", "ld-linux-x86-64.so.2", "libc.so.6", "libresolv.so.2", "libwrap.so.0", "libssl.so.3", "libcrypto.so.3"),
    *("libnsl.so.2", "libtirpc.so.3", "libgssapi_krb5.so.2", "libkrb5.so.3", "libk5crypto.so.3", "libcom_err.so.2"),
    *("libkrb5support.so.0", "libkeyutils.so.1"),
)
INSTALL = """
mkdir -p /lib/x86_64-linux-gnu /lib64
mv /ld-linux-x86-64.so.2 /lib64/ && mv /lib*.so.* /lib/x86_64-linux-gnu/ && mv /socat /bin/
"""
"""Shell lines that put the files where they belong."""


def fetch() -> dict[str, bytes]:
    """The tool, its libraries and the loader, for the top folder; fetched once, never installed."""
    place = BUILD / "socat"
    if not place.exists():
        scratch = place.with_suffix(".part")
        unpack(PACKAGES, scratch)
        scratch.rename(place)
    files: dict[str, bytes] = {}
    for name in _FILES:
        # Some of them moved from /lib to /usr/lib between two point releases.
        found = next((file for file in sorted(place.rglob(name)) if file.is_file()), None)
        if found is None:
            raise MissingPart(f"{name} is in none of the packages {' '.join(PACKAGES)}")
        files[name] = found.resolve().read_bytes()
    return files
