"""ISO 9660 images, made by Debian's genisoimage, which is fetched once and never installed. Root side."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.linux_guest.parts import BUILD, unpack

PACKAGES = ("genisoimage", "libmagic1")
_PLACE = BUILD / "genisoimage"


def fetch() -> None:
    """Bring the tool here."""
    if not _PLACE.exists():
        scratch = _PLACE.with_suffix(".part")
        unpack(PACKAGES, scratch)
        scratch.rename(_PLACE)


def iso(place: Path, source: Path, label: str) -> Path:
    """A disc with the files of a folder, long names by Rock Ridge."""
    fetch()
    subprocess.run(
        [_PLACE / "usr/bin/genisoimage", "-quiet", "-R", "-V", label, "-o", place, source],
        env={**os.environ, "LD_LIBRARY_PATH": str(_PLACE / "usr/lib/x86_64-linux-gnu")},
        check=True,
        capture_output=True,
    )
    return place
