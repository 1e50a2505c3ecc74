"""Guest programs: found, checked without running, loaded afresh."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.child.program import BUILT_IN, Program, built_in_programs, check_program, find_program


@pytest.mark.parametrize(
    "source",
    [
        "async def main(guest): pass",
        "async def main(guest, /): pass",
        "async def main(guest, loud=True, *, often=1): pass",
        "async def main(*anything): pass",
        "import os\n\nx = 1\n\nasync def main(guest):\n    return 3\n",
        "# -*- coding: latin-1 -*-\nasync def main(guest): '\xe4'".encode("latin-1"),
    ],
)
def test_a_program_with_main_is_fine(source: str | bytes, tmp_path: Path) -> None:
    """Whatever can be called with the guest alone will do."""
    path = tmp_path / "p.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    assert check_program(path) is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "has no `async def main(guest)`"),
        ("def main(guest): pass", "line 1: `main` is not async"),
        ("\n\nasync def main(): pass", "line 3: `main` takes one argument"),
        ("async def main(guest, host): pass", "takes one argument"),
        ("async def main(guest, *, speed): pass", "takes one argument"),
        ("async def main(guest:\n  pass", "line 1: "),
        ("class A:\n    async def main(guest): pass", "has no `async def main(guest)`"),
        ("x = '\0'", "null bytes"),
        (b"\xff\xfe", ""),
    ],
)
def test_what_is_wrong_is_said_with_its_line(source: str | bytes, words: str, tmp_path: Path) -> None:
    """A topology is refused before anything starts, with words that lead to the place."""
    path = tmp_path / "p.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    problem = check_program(path)
    assert problem is not None
    assert words in problem
    assert str(path) in problem


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A file that goes between two looks, and a folder."""
    assert check_program(tmp_path / "gone.py") == f"{tmp_path / 'gone.py'} cannot be read: No such file or directory"
    assert check_program(tmp_path) == f"{tmp_path} is a folder, not a Python file"


def test_checking_never_runs_a_program(tmp_path: Path) -> None:
    """Validation of somebody else's topology must be safe."""
    path = tmp_path / "p.py"
    path.write_text("raise SystemExit('ran')\nasync def main(guest): pass")
    assert check_program(path) is None


def test_a_file_beside_the_topology_wins_over_a_built_in(tmp_path: Path) -> None:
    """Built-in names are a convenience and take nothing from anybody."""
    assert find_program("idle", tmp_path) == BUILT_IN / "idle.py"
    (tmp_path / "idle").write_text("async def main(guest): pass")
    assert find_program("idle", tmp_path) == tmp_path / "idle"
    assert find_program("own.py", tmp_path) == tmp_path / "own.py"


@pytest.mark.parametrize("name", built_in_programs())
def test_built_in_programs_are_sound(name: str) -> None:
    """What we ship passes our own check."""
    assert check_program(BUILT_IN / f"{name}.py") is None


def test_each_load_is_a_module_of_its_own(tmp_path: Path) -> None:
    """Two VMs with one program share no variable, and what one does to `print` the other does not see."""
    path = tmp_path / "p.py"
    path.write_text("seen = []\nasync def main(guest):\n    seen.append(guest)\n    print(len(seen))\n")
    program = Program.read(path)
    printed: list[object] = []
    mains = [program.load(f"vm{number}", print=printed.append) for number in range(2)]
    for main in mains:
        coroutine = main("guest")
        with pytest.raises(StopIteration):
            coroutine.send(None)  # type: ignore[attr-defined]
    assert printed == [1, 1]
