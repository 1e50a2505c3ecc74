"""Where the example topologies are: inside the installed package, or beside it in a checkout. Root side."""

from __future__ import annotations

import difflib
from pathlib import Path

import msgspec

_HERE = Path(__file__).parent


class Example(msgspec.Struct, frozen=True):
    """One example folder."""

    name: str
    folder: Path
    title: str
    """The first heading of its README, without the number."""


def examples() -> list[Example]:
    """All examples in reading order; none if this installation has none."""
    # The wheel carries a copy; in a checkout (an editable installation) the originals stand beside the packages.
    for root in (_HERE / "_examples", _HERE.parent / "examples"):
        folders = sorted(file.parent for file in root.glob("*/topology.toml"))
        if folders:
            return [Example(folder.name, folder, _title(folder)) for folder in folders]
    return []


def example_names() -> list[str]:
    """The names of all examples."""
    return [example.name for example in examples()]


def find_example(name: str) -> Path | None:
    """The folder of the example with this name, or the only one whose number or words are this: `03`, `3`, `disk`."""
    name = name.rstrip("/")
    name = name.zfill(2) if name.isdecimal() else name
    found = [example.folder for example in examples() if example.name == name]
    if not found and name:
        found = [example.folder for example in examples() if name == _words(example.name)]
    if not found and name:
        found = [example.folder for example in examples() if name in example.name.split("-")]
    if not found and len(name) > 2:
        found = [example.folder for example in examples() if name in example.name]
    return found[0] if len(found) == 1 else None


def near_example(name: str) -> str | None:
    """The example that a person most likely meant; of several that have the word, the first."""
    names = {word: known for known in reversed(example_names()) for word in (*known.split("-"), known)}
    near = difflib.get_close_matches(name, names, n=1)
    return names[near[0]] if near else None


def _words(name: str) -> str:
    return name.partition("-")[2]


def _title(folder: Path) -> str:
    try:
        with (folder / "README.md").open(encoding="utf-8") as readme:
            heading = next((line for line in readme if line.startswith("#")), "")
    except OSError:
        return ""
    title = heading.lstrip("#").strip()
    for prefix in (folder.name, folder.name.split("-")[0]):
        title = title.removeprefix(prefix).lstrip(":.- ")
    return title
