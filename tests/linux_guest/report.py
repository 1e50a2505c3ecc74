"""What real guests said, driver by driver: collected by the tests, shown after them and kept in a file."""

from __future__ import annotations

from pathlib import Path

from tests.linux_guest import nested

FILE = nested.OUT / "report.md"


class Report:
    """Evidence by driver, in the order of its coming."""

    def __init__(self) -> None:
        self._drivers: dict[str, list[str]] = {}

    def add(self, driver: str, evidence: str) -> None:
        """One piece of evidence: the guest's own words, or a figure with what it is."""
        self._drivers.setdefault(driver, []).append(evidence.strip())

    def __bool__(self) -> bool:
        return bool(self._drivers)

    def text(self) -> str:
        """The report as Markdown."""
        parts = ["# What real guests reported\n"]
        for driver, pieces in self._drivers.items():
            parts.append(f"## {driver}\n")
            parts += [f"    {line}" if line else "" for line in "\n\n".join(pieces).splitlines()]
            parts.append("")
        return "\n".join(parts)

    def write(self, place: Path = FILE) -> None:
        """Put it where the outer machine's end does not take it along."""
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(self.text())
