"""`partita screenshot` against a real `partita run` in another process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.cli.completing import candidates
from partitions.cli.main import main
from tests.doubles.pictures import read_png
from tests.partitions.control.test_verbs import COMMAND, read_until, runtime

__all__ = ["runtime"]

GUEST = """
async def main(guest):
    if guest.name == "desk":
        screen = await guest.screen()
        screen.fill(0, 0, 640, 240, 0xFF0000)
        screen.fill(0, 240, 640, 240, 0x0000FF)
    print("up")
    await guest.sleep(1000)
"""
TOPOLOGY = """
[[vm]]
name = "desk"
program = "guest.py"
memory = "8MiB"
[vm.screen]
width = 640
height = 480
[[vm]]
name = "blind"
program = "guest.py"
memory = "4MiB"
"""
PICTURE = 640, 480, b"\xff\0\0" * (640 * 240) + b"\0\0\xff" * (640 * 240)


@pytest.fixture
def host(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host that runs; the folder in which files are made."""
    folder = tmp_path / "office"
    folder.mkdir()
    (folder / "guest.py").write_text(GUEST)
    (folder / "topology.toml").write_text(TOPOLOGY)
    call = [*COMMAND, "run", str(folder), "--stay", "--timeout", "100"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        read_until(process.stdout, "up")
        read_until(process.stdout, "up")
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        yield tmp_path / "here"
        process.kill()
        process.communicate()


def refused(capsys: pytest.CaptureFixture[str], *words: str, status: int) -> str:
    assert main(["screenshot", *words]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_pictures_from_another_terminal(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that is free, one that was given, and standard output; why there is none, and no file then."""
    for name in ("desk.png", "desk-2.png"):
        assert main(["screenshot", "desk"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row == {"vm": "desk", "width": 640, "height": 480, "path": str(host / name)}
        assert read_png((host / name).read_bytes()) == PICTURE
    (host / "desk.png").write_bytes(b"old")
    assert main(["screenshot", "desk", "desk.png", "-o", "table"]) == 0
    assert capsys.readouterr().out.split() == f"VM WIDTH HEIGHT FILE desk 640 480 {host / 'desk.png'}".split()
    assert read_png((host / "desk.png").read_bytes()) == PICTURE
    piped = subprocess.run([*COMMAND, "screenshot", "desk", "-"], stdout=subprocess.PIPE, check=True)
    assert read_png(piped.stdout) == PICTURE

    assert 'VM "blind" has no screen: give it a [vm.screen] table' in refused(capsys, "blind", status=1)
    assert 'did you mean "desk"?' in refused(capsys, "desc", status=2)
    assert "No such file or directory" in refused(capsys, "desk", "nowhere/desk.png", status=1)
    assert main(["stop", "desk", "--force"]) == 0
    capsys.readouterr()
    assert 'VM "desk" is off: start it' in refused(capsys, "desk", "off.png", status=1)
    assert sorted(path.name for path in host.iterdir()) == ["desk-2.png", "desk.png"]

    assert [name for name, _ in candidates(["screenshot", ""])] == ["desk", "blind"]
    assert [name for name, _ in candidates(["screenshot", "desk", ""])] == [":files"]
