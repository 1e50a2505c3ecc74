"""docs/decode.md shows what the command prints, and its Python runs."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from partitions.cli.main import main

DOCUMENT = (Path(__file__).parents[3] / "docs" / "decode.md").read_text()
CONSOLE = [block.split("```")[0] for block in DOCUMENT.split("```console\n")[1:]]


def test_the_page_has_examples() -> None:
    """None of them was lost."""
    assert len(CONSOLE) == 6


@pytest.mark.parametrize("shown", CONSOLE, ids=lambda shown: shown.splitlines()[0][2:40])
def test_examples(
    shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command of the page prints what stands below it; the guest's trace is the one on the page."""
    command, _, output = shown.partition("\n")
    (tmp_path / "guest.txt").write_text(DOCUMENT.split("```text\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(os.environ, "NO_COLOR", "1")
    program, *words = shlex.split(command.removeprefix("$ "))
    assert program == "partita"
    status = main(words)
    assert capsys.readouterr().out == output
    assert status == (1 if "  ! " in output else 0)


def test_the_python_example(capsys: pytest.CaptureFixture[str]) -> None:
    """It runs as it stands there."""
    source = DOCUMENT.split("```python\n")[1].split("```")[0]
    exec(compile(source, "docs/decode.md", "exec"), {})
    assert capsys.readouterr().out == "OPEN_CHANNEL_RESULT channel=8 open_id=8 status=0xc0000122\n3221225762\n"
