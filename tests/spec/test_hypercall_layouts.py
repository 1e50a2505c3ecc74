"""Declared hypercall layouts against a table that was written by hand from the specification, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypervisor import intercept
from hypervisor.hypercall import layouts
from hypervisor.wire import Wire

TABLE = Path(__file__).parent / "layouts" / "hypercalls.txt"
Layout = dict[str, tuple[int, int]]


def golden() -> dict[str, Layout]:
    """Struct name to field name to (offset, size)."""
    structs: dict[str, Layout] = {}
    for line in TABLE.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            struct, field, offset, size, _ = line.split(None, 4)
            fields = structs.setdefault(struct, {})
            assert field not in fields, f"{struct}.{field} stands twice"
            fields[field] = (int(offset), int(size))
    return structs


def declared() -> dict[str, type[Wire]]:
    """Every layout that the two modules declare themselves."""
    return {
        name: value
        for module in (layouts, intercept)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Wire) and value.__module__ == module.__name__
    }


def test_the_table_and_the_code_know_the_same_structs() -> None:
    """A struct that only one of them has is a mistake in the other."""
    assert set(golden()) == set(declared())


@pytest.mark.parametrize("name", sorted(declared()))
def test_offsets_and_sizes(name: str) -> None:
    """Each field lies where the specification puts it, no field is missing, and none is ours."""
    struct = declared()[name]
    found = {field.name: (field.offset, field.size) for field in struct.FIELDS}
    assert {"*": (0, struct.SIZE), **found} == golden()[name]
