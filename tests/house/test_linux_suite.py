"""The suite with real kernels, when the machine that it runs in dies: what runs again, and what counts as failed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tests.linux_guest as linux_guest
from tests.linux_guest import __main__ as main
from tests.linux_guest import nested, progress, suite

FIRST = f"tests/linux_guest/{suite.FIRST[0]}::test_a"
LATER = "tests/linux_guest/test_console.py::test_b"
LAST = "tests/linux_guest/test_timers.py::test_c"


class Machines:
    """Outer machines that write what their tests came to, one after the other, and end as they are told."""

    def __init__(self, place: Path, *plans: tuple[list[str], int]) -> None:
        self._place = place
        self._plans = list(plans)
        self.left_out: list[list[str]] = []
        self.processors: list[int] = []

    def __call__(self, options: list[str], processors: int, seconds: float) -> int:
        self.left_out.append([option.removeprefix("--deselect=") for option in options])
        self.processors.append(processors)
        lines, status = self._plans.pop(0)
        with self._place.open("a") as file:
            file.writelines(line + "\n" for line in lines)
        return status


@pytest.fixture
def machines(tmp_path: Path) -> Callable[..., Machines]:
    return lambda *plans: Machines(tmp_path / "progress.txt", *plans)


def run(machines: Machines) -> int:
    return suite.run(machines, seconds=100, place=machines._place)


def passed(*tests: str) -> list[str]:
    return [f"{word} {test}" for test in tests for word in ("begin", "passed")]


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_machine_that_lives_decides(machines: Callable[..., Machines], status: int) -> None:
    """Pytest's own status is the suite's, and there is one machine only."""
    made = machines((passed(FIRST), status))
    assert run(made) == status
    assert made.left_out == [[]]


def test_the_rest_runs_in_another_machine(machines: Callable[..., Machines]) -> None:
    """What had passed is not run again; what was under way is, and the verdict is that of the second machine."""
    made = machines(([*passed(FIRST), f"begin {LATER}"], nested.NO_STATUS), (passed(LATER, LAST), 0))
    assert run(made) == 0
    assert made.left_out == [[], [FIRST]]


def test_nothing_left_is_well(machines: Callable[..., Machines]) -> None:
    """A machine that died after the last test leaves nothing to collect."""
    made = machines((passed(FIRST), nested.NO_STATUS), ([], suite.NO_TESTS_LEFT))
    assert run(made) == 0


def test_nothing_collected_at_first_is_not_well(machines: Callable[..., Machines]) -> None:
    """A suite that finds no tests at all has not passed."""
    assert run(machines(([], suite.NO_TESTS_LEFT))) == suite.NO_TESTS_LEFT


def test_a_failure_is_run_again_for_its_words(machines: Callable[..., Machines]) -> None:
    """The traceback went with the machine."""
    lines = [f"begin {LATER}", f"failed {LATER}"]
    made = machines((passed(FIRST) + lines, nested.NO_STATUS), ([*lines], 1))
    assert run(made) == 1
    assert made.left_out[1] == [FIRST]


def test_who_stands_still_has_failed(machines: Callable[..., Machines]) -> None:
    """The next machine does without it, and however that ends, the suite has failed."""
    lines = [*passed(FIRST), f"begin {LATER}"]
    made = machines((lines, nested.STOOD_STILL), (passed(LAST), 0))
    assert run(made) == 1
    assert made.left_out[1] == sorted([FIRST, LATER])


def test_the_last_machine_has_one_processor(machines: Callable[..., Machines]) -> None:
    """What emulation gets wrong between processors, it cannot get wrong there; no test is blamed for it."""
    killed = ([f"begin {LATER}"], nested.NO_STATUS)
    made = machines(([*passed(FIRST), *killed[0]], nested.NO_STATUS), killed, (passed(LATER, LAST), 0))
    assert run(made) == 0
    assert made.processors == [2, 2, 1]


def test_three_deaths_judge_nothing(machines: Callable[..., Machines]) -> None:
    """No test failed, and not all were run: that is neither passed nor failed."""
    made = machines(
        ([*passed(FIRST), f"begin {LATER}"], nested.NO_STATUS),
        ([*passed(LATER), f"begin {LAST}"], nested.NO_STATUS),
        ([], nested.NO_STATUS),
    )
    assert run(made) == suite.NOT_JUDGED


def test_without_the_first_files_it_has_failed(machines: Callable[..., Machines]) -> None:
    """Machines that never come further than the first files prove nothing."""
    made = machines(*[([f"begin {FIRST}"], nested.NO_STATUS), ([], nested.NO_STATUS), ([], nested.NO_STATUS)])
    assert run(made) == 1


def test_a_failure_counts_though_all_machines_die(machines: Callable[..., Machines]) -> None:
    """What failed has failed, whatever became of the machines."""
    made = machines(
        ([*passed(FIRST), f"begin {LATER}", f"failed {LATER}"], nested.NO_STATUS),
        ([], nested.NO_STATUS),
        ([], nested.NO_STATUS),
    )
    assert run(made) == 1


def test_a_line_cut_short_is_no_end(tmp_path: Path) -> None:
    """A machine may die in the middle of a line."""
    found = progress.reached(f"begin {FIRST}\npassed {FIRST}\nbegin {LATER}\npas")
    assert found.ended == {FIRST}
    assert found.under_way == LATER


def test_nothing_is_fetched_in_an_outer_machine() -> None:
    """Whatever unpacks Debian's packages is asked to do so before an outer machine runs, which has no network."""
    folder = Path(linux_guest.__file__).parent
    fetching = {file.stem for file in folder.glob("*.py") if re.search(r"^def fetch\(", file.read_text(), re.MULTILINE)}
    assert fetching == {module.__name__.rpartition(".")[2] for module in main.FETCHED}
