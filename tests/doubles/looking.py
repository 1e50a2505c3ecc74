"""What an object shows of itself, as dictionaries, without a host around it."""

from __future__ import annotations

from typing import Any

from hypervisor.inspect import Branch, Fault
from partitions.inspect.path import find
from partitions.inspect.render import Values
from partitions.inspect.walk import runs


def seen(branch: Branch, path: str = "") -> Any:
    """The value at `path`, or all below it."""
    values = Values()
    for run in runs(find(branch, path)):
        values.take(run)
    return values.result


def faults(value: Any, path: str = "") -> list[str]:
    """Where the tree shows a mistake of ours."""
    match value:
        case Fault():
            return [f"{path}: {value.words}"]
        case dict():
            return [each for name, member in value.items() for each in faults(member, f"{path}/{name}")]
        case _:
            return []
