"""The recording of a real kernel's boot, kept as it was: the page that tells of it, tshark, and the guest's own trace.

`tests/linux_guest` makes such a recording anew each time; this one is read wherever the fast tests run.
"""

from __future__ import annotations

import gzip
import os
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from hypervisor.trace import Layer
from partitions.cli.main import main
from partitions.decode.ftrace import FtraceReader, is_ftrace
from partitions.recording.reader import Recording
from tests.doubles import tshark

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
PAGE = (ROOT / "docs" / "linux-guest.md").read_text()
CONSOLE = [block.split("```")[0] for block in PAGE.split("```console\n")[1:]]


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    """A folder with the recording and the guest's trace, under the names of the page."""
    (tmp_path / "boot.pcapng").write_bytes(gzip.decompress((DATA / "linux_6_1_boot.pcapng.gz").read_bytes()))
    (tmp_path / "boot.ftrace").write_bytes((DATA / "linux_6_1_boot.ftrace").read_bytes())
    return tmp_path


def test_the_page_has_examples() -> None:
    """None of them was lost."""
    assert len(CONSOLE) == 6


@pytest.mark.parametrize("shown", CONSOLE, ids=lambda shown: shown.splitlines()[0][2:50])
def test_the_page_shows_what_is_printed(
    shown: str, boot: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command of the page, on this recording."""
    command, _, output = shown.partition("\n")
    monkeypatch.chdir(boot)
    monkeypatch.setitem(os.environ, "NO_COLOR", "1")
    command, _, head = command.removeprefix("$ ").partition(" | head -")
    program, *words = shlex.split(command)
    assert program == "partita"
    assert main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[: int(head) if head else None] == output.splitlines()


def test_the_kernel_traced_the_same(boot: Path) -> None:
    """Every channel message that hv_vmbus traced is in the host's recording, with the same words."""
    lines = (boot / "boot.ftrace").read_text().splitlines()
    reader = FtraceReader("linux")
    theirs = [event for line in lines if is_ftrace(line) and (event := reader.feed(line)) is not None]
    told = [event for event in theirs if event.layer is Layer.CONTROL]
    ours = [event for event in Recording(boot / "boot.pcapng") if event.layer is Layer.CONTROL and event.direction]
    assert len(told) > 25
    assert not Counter((e.event, e.direction, e.words) for e in told) - Counter(
        (e.event, e.direction, e.words) for e in ours
    )


@tshark.needs_tshark
def test_tshark_finds_no_fault(boot: Path) -> None:
    """A real driver's bytes, all of them."""
    tshark.assert_clean(boot / "boot.pcapng")
    info = "\n".join(tshark.read_info(boot / "boot.pcapng"))
    for words in ("INITIATE_CONTACT", "OPEN_CHANNEL", "channel 2: heartbeat"):
        assert words in info
    assert re.search(r"SCSI: .*Read\(10\)|READ\(10\)", info, re.IGNORECASE)
