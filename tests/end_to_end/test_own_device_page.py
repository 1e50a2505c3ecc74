"""docs/own-device.md: its files are the example's, its commands print what it shows, its test passes."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from partitions.cli.main import main
from partitions.host import Host

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "21-own-vsp"
PAGE = (ROOT / "docs" / "own-device.md").read_text()
CONSOLE = [block.split("\n```")[0] for block in PAGE.split("```console\n")[1:]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the page would be, with a copy of the example."""
    shutil.copytree(EXAMPLE, tmp_path / "dice")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path


def test_the_files_are_the_examples() -> None:
    """Nobody reads an old device here, and the VSP keeps to its sixty lines."""
    files = re.findall(r"```(?:python|toml) ([\w.]+)\n(.*?)\n```", PAGE, re.DOTALL)
    assert [name for name, _ in files] == ["dice.py", "player.py", "topology.toml", "test"]
    for name, content in files[:3]:
        assert content == (EXAMPLE / name).read_text().rstrip()
    assert len((EXAMPLE / "dice.py").read_text().splitlines()) <= 60


def test_the_commands_print_what_is_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the page, each in the folder that the last one left."""
    assert len(CONSOLE) == 3
    for block in CONSOLE:
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*(?:\n|$))*)", block, re.MULTILINE):
            program, *words = shlex.split(command)
            assert program == "partita"
            assert main(words) == 0
            assert capsys.readouterr().out.rstrip() == output.rstrip(), command


async def test_the_pages_test_passes(
    folder: Path, partita_host: Callable[..., Awaitable[Host]], autojump_clock: Any
) -> None:
    """As it stands there."""
    source = PAGE.split("```python test\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(source, "docs/own-device.md", "exec"), names)
    await names["test_four_dice"](partita_host)
