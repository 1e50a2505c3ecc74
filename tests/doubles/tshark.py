"""tshark with our dissector: fields of captures, and whether a capture is clean."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from partitions.dissector import PATH

TSHARK = shutil.which("tshark")


def _lack() -> str:
    """Why these tests cannot run; empty where they can."""
    if TSHARK is None:
        return "tshark is not installed (Debian: apt-get install tshark)"
    said = subprocess.run([TSHARK, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"\b(\d+)\.\d+\.\d+", said)
    if version is None or int(version[1]) < 4:
        return f"tshark 4.0 or later is needed, and this is {version[0] if version else 'of an unknown version'}"
    return "" if re.search(r"with\s+Lua", said) else "this tshark was built without Lua"


LACK = _lack()
needs_tshark = pytest.mark.skipif(bool(LACK), reason=LACK)

SEPARATOR, OCCURRENCE = "\x1f", "\x1e"
FAULTS = ("truncated", "unknown", "direction", "version", "corrupt", "gpadl", "unpaired", "reserved", "extra")
"""What the dissector finds wrong; a capture of well-behaved guests has none of it. Truncated and corrupt packets are
malformed ones to Wireshark too."""

ALWAYS_WRONG = ("_ws.malformed", "_ws.lua.error")
"""What Wireshark itself finds wrong, with a packet and with the dissector."""


def run_tshark(capture: Path, *arguments: str, two_passes: bool = True) -> str:
    """Standard output. A complaint about the dissector is an error here; so is a file that cannot be read."""
    assert TSHARK is not None
    command = [TSHARK, "-X", f"lua_script:{PATH}", "-r", str(capture), "-n", *arguments]
    if two_passes:
        command.insert(1, "-2")
    # An empty folder instead of the person's own settings and plugins.
    environment = {**os.environ, "WIRESHARK_CONFIG_DIR": str(capture.parent / "no-settings"), "TZ": "UTC"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    errors = done.stderr.decode(errors="replace")
    kept = [line for line in errors.splitlines() if line and not line.startswith("Running as user")]
    assert done.returncode == 0, errors
    assert not kept, errors
    return done.stdout.decode(errors="replace")


def read_fields(
    capture: Path, names: Sequence[str], *, where: str = "", two_passes: bool = True
) -> list[dict[str, list[str]]]:
    """Every packet's values of these fields, as tshark prints them."""
    arguments = ["-T", "fields", "-E", f"separator={SEPARATOR}", "-E", f"aggregator={OCCURRENCE}"]
    for name in names:
        arguments += ["-e", name]
    if where:
        arguments += ["-Y", where]
    lines = run_tshark(capture, *arguments, two_passes=two_passes).split("\n")
    return [
        {name: text.split(OCCURRENCE) for name, text in zip(names, line.split(SEPARATOR), strict=True) if text}
        for line in lines[:-1]
    ]


def read_info(capture: Path, where: str = "") -> list[str]:
    """The Info column."""
    return [row["_ws.col.Info"][0] for row in read_fields(capture, ["_ws.col.Info"], where=where)]


def faults_of(capture: Path, *, kinds: Sequence[str] = FAULTS) -> list[str]:
    """What is wrong with a capture, in words with frame numbers: malformed packets, Lua errors and protocol faults."""
    tests = [*ALWAYS_WRONG, *(f"vmbus.fault.{kind}" for kind in kinds)]
    rows = read_fields(capture, ["frame.number", "vmbus", "_ws.expert.message", *tests])
    assert any("vmbus" in row for row in rows), "there is no VMBus in this capture"
    return [
        f"frame {row['frame.number'][0]}: {'; '.join(row.get('_ws.expert.message', ['no words']))}"
        for row in rows
        if not row.keys().isdisjoint(tests)
    ]


def read_clean(capture: Path, *names: str) -> dict[int, dict[str, list[str]]]:
    """`assert_clean`, and in the same go the values of some fields: by frame, for those that have any."""
    tests = [*ALWAYS_WRONG, *(f"vmbus.fault.{kind}" for kind in FAULTS)]
    found = {}
    for number, row in enumerate(read_fields(capture, ["_ws.expert.message", *names, *tests]), 1):
        assert row.keys().isdisjoint(tests), f"frame {number}: {row}"
        if "_ws.expert.message" not in names:
            row.pop("_ws.expert.message", None)
        if row:
            found[number] = row
    return found


def assert_clean(capture: Path) -> None:
    """No packet of this capture is malformed or breaks the protocol, and the dissector has no error of its own."""
    assert not faults_of(capture)
