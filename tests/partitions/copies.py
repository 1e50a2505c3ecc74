"""Copies of examples: one that makes images beside its topology can run once at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

from partitions.examples import examples


def copied_example(name: str, folder: Path) -> Path:
    """A copy of the example in `folder`, without images of earlier runs."""
    source = next(example.folder for example in examples() if example.name == name)
    return shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.img", "__pycache__"))
