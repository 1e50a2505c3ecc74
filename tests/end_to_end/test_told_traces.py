"""Pages that show what the tools print are true: their commands are run again, and all but times is compared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.cli.common import FAILED, TIMED_OUT
from partitions.cli.main import main
from tests.partitions.copies import copied_example

ROOT = Path(__file__).parents[2]
STORY = ROOT / "docs" / "story-of-a-disk-read.md"
QUESTIONS = ROOT / "examples" / "08-questions" / "README.md"
_BLOCK = re.compile(r"```console\n\$ partita (?P<command>.*)\n(?P<output>(?:.*\n)*?)```")
_LEFT_OUT = "..."
_TIME = r"[\d.]+ (?:us|ms|s)"


def told(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each command of a page, with the lines that it is said to print."""
    for found in _BLOCK.finditer(page.read_text()):
        yield found["command"], found["output"].splitlines()


def plain(line: str) -> str:
    """A line without what differs from run to run: times, shares, and what others did meanwhile."""
    line = re.sub(r"(; )?meanwhile: .*", "", line)
    line = re.sub(r"^(Most of the time|No time passed).*", "SUMMARY", line)
    line = re.sub(r"uptime=[\d.e-]+", "uptime=S", line)
    line = re.sub(rf"^ *{_TIME} +{_TIME} +\d+%", "AT TOOK SHARE", line)
    line = re.sub(rf"\b{_TIME} from [\d.]+ s on", "TIME", line)
    return re.sub(r"^ +\d+\.\d{6}(?=  )", "TIME", line).rstrip()


def agree(expected: list[str], printed: list[str]) -> bool:
    """Whether the lines of a page are the printed ones, of which some may be left out where the page says so."""
    if not expected:
        return not printed
    if expected[0] == _LEFT_OUT:
        return any(agree(expected[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and plain(expected[0]) == plain(printed[0]) and agree(expected[1:], printed[1:])


def printed(capsys: pytest.CaptureFixture[str], command: str, folder: Path) -> list[str]:
    """What a command prints now; its recording is in the folder."""
    arguments = shlex.split(command)
    place = next(index for index, word in enumerate(arguments) if word.endswith(".pcapng"))
    arguments[place] = str(folder / arguments[place])
    capsys.readouterr()
    assert main(arguments) == 0, command
    return capsys.readouterr().out.splitlines()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recordings of both pages on the virtual clock."""
    folder = tmp_path_factory.mktemp("told")
    quiet = ["--no-lines", "--clock", "virtual", "--pcap"]
    assert main(["run", str(copied_example("03-disk", folder)), *quiet, str(folder / "disk.pcapng")]) == 0
    example = str(copied_example("08-questions", folder))
    assert main(["run", example, "--timeout", "1", *quiet, str(folder / "questions.pcapng")]) == TIMED_OUT
    return folder


@pytest.mark.parametrize("page", [STORY, QUESTIONS], ids=lambda page: page.name)
def test_a_page_shows_what_is_printed(page: Path, recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command with its output, but for questions about time, which stands still on this clock."""
    commands = 0
    for command, expected in told(page):
        if "slowest" in command or "--requests" in command:
            continue
        commands += 1
        now = printed(capsys, command, recorded)
        assert agree(expected, now), f"partita {command}\n" + "\n".join(map(plain, now))
    assert commands == {STORY: 3, QUESTIONS: 5}[page]


def test_where_the_time_of_the_slowest_read_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the real clock: a read of the shelf, from guest to guest, and a last line with one of the page's reasons."""
    file = tmp_path / "questions.pcapng"
    assert main(["run", str(copied_example("08-questions", tmp_path)), "--no-lines", "--pcap", str(file)]) == FAILED
    story = next(command for command, _ in told(QUESTIONS) if "slowest" in command)
    lines = printed(capsys, story, tmp_path)
    assert re.match(r"reader/1/0x\w+(\.\d+)?  SCSI READ\(10\) lba=\d+ blocks=\d+ -> good", lines[0])
    who = [line.split(":")[0].split()[-1] for line in lines[4:-2] if re.match(rf" *{_TIME}", line)]
    assert [name for name in who if name in ("VMBus", "VSP")] == ["VMBus", "VSP", "VSP", "VMBus"]
    assert re.match(rf"Most of the time, {_TIME} \(\d+%\), went by (waiting for|while)", lines[-1])
    table = next(command for command, _ in told(QUESTIONS) if "--requests" in command)
    rows = printed(capsys, table, tmp_path)
    assert rows[1].split()[0] == lines[0].split()[0], "the table's first is the slowest too"


def test_lines_that_differ_are_seen() -> None:
    """The comparison overlooks times, and what is left out where it says so, and nothing else."""
    shown = ["   0.010000  a", "...", "   0.020000  d"]
    assert agree(shown, ["   0.5  x"]) is False
    assert agree(shown, ["   1.010000  a", "b", "c", "   0.000000  d"])
    assert not agree(shown, ["   1.010000  a", "b", "c", "   0.000000  e"])
    assert not agree(["a", "b"], ["a", "x", "b"])
    assert agree(["   1.0 us    2.0 us   50%    root: x"], ["   0.0 us    0.0 us    0%    root: x"])
    assert not agree(["   1.0 us    2.0 us   50%    root: x"], ["   0.0 us    0.0 us    0%  root: x"]), "indents count"
