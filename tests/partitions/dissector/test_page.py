"""docs/wireshark.md is true: its commands give its output, and its filters exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from partitions.cli.main import main
from partitions.dissector import PATH
from tests.doubles.tshark import TSHARK, needs_tshark, run_tshark
from tests.partitions.copies import copied_example

pytestmark = needs_tshark

PAGE = (Path(__file__).parents[3] / "docs" / "wireshark.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `run.pcapng` is."""
    path = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        assert main(["run", str(copied_example("03-disk", path)), "--clock", "virtual", "--pcap", "run.pcapng"]) == 0
    return path


def shown_commands() -> list[tuple[str, list[str]]]:
    """Commands with their output, without indentation."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"(?:^    .*\n)+", PAGE, re.MULTILINE):
        lines = [line[4:] for line in block.splitlines()]
        if lines[0].startswith("$ "):
            found.append((lines[0][2:], lines[1:]))
    return found


def same_numbers(text: str) -> list[str]:
    """Lines; which frame it is depends on how many events there are, so frames are all called N."""
    return re.sub(r"\b([Ff]rame:?) \d+", r"\1 N", text).splitlines()


@pytest.mark.parametrize(("command", "output"), shown_commands(), ids=lambda value: None)
def test_commands_give_what_the_page_shows(folder: Path, command: str, output: list[str]) -> None:
    """Each piece of the output, between lines of three dots, stands in the real one, in this order."""
    command = command.replace("$(partita dissector)", str(PATH))
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    real = same_numbers(done.stdout)
    at = 0
    for piece in "\n".join(output).split("\n...\n"):
        lines = piece.removesuffix("\n...").splitlines()
        places = [start for start in range(at, len(real)) if real[start : start + len(lines)] == lines]
        assert places, f"not in the output of {command}:\n{piece}\n\nwhich is\n" + "\n".join(real[at:])
        at = places[0] + len(lines)
    assert output[-1] == "..." or at == len(real)


def test_the_page_shows_something() -> None:
    assert len(shown_commands()) == 2


def test_fields_and_filters_of_the_page_exist(folder: Path) -> None:
    """Every field that the page names, and every example of a filter, is one."""
    named = set(re.findall(r"`((?:vmbus|partita|scsi|scsi_sbc|frame)\.[a-z_.]+[a-z_])`", PAGE))
    assert len(named) > 60
    run_tshark(folder / "run.pcapng", "-T", "fields", *(part for name in sorted(named) for part in ("-e", name)))
    section = PAGE.partition("For example:\n\n")[2].partition("\n\n")[0]
    filters = [re.split(r" {2,}", line.strip())[0] for line in section.splitlines()]
    assert len(filters) == 6
    run_tshark(folder / "run.pcapng", "-Y", " or ".join(f"({text})" for text in filters))
    assert TSHARK is not None
