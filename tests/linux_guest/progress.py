"""Which tests with real kernels have come to their end, kept where the outer machine's end does not take it along."""

from __future__ import annotations

from pathlib import Path

import attrs

from tests.linux_guest import nested

FILE = nested.OUT / "progress.txt"


class Progress:
    """Writes a line when a test begins and when it has ended."""

    def __init__(self, place: Path = FILE) -> None:
        self._place = place

    def begin(self, test: str) -> None:
        """A test starts."""
        self._add("begin", test)

    def end(self, test: str, outcome: str) -> None:
        """It has passed, failed or was skipped."""
        self._add(outcome, test)

    def machine(self, number: int) -> None:
        """Another outer machine: nothing is under way."""
        self._add("machine", str(number))

    def _add(self, word: str, test: str) -> None:
        with self._place.open("a") as file:
            file.write(f"{word} {test}\n")


@attrs.frozen
class Reached:
    """How far a run of tests came, as its lines say."""

    began: frozenset[str]
    ended: frozenset[str]
    failed: frozenset[str]
    under_way: str
    """The test that had begun and not ended; empty if there is none."""


def reached(text: str) -> Reached:
    """What the lines say; the last may be cut short by the machine's end."""
    began: set[str] = set()
    ended: set[str] = set()
    failed: set[str] = set()
    under_way = ""
    for line in text.splitlines():
        word, _, test = line.partition(" ")
        if word == "begin":
            began.add(test)
            under_way = test
        elif word == "machine":
            under_way = ""
        elif word in ("passed", "failed", "skipped"):
            ended.add(test)
            if word == "failed":
                failed.add(test)
            if test == under_way:
                under_way = ""
    return Reached(frozenset(began), frozenset(ended), frozenset(failed), under_way)
