"""Declared channel messages against a table that was written by hand from other implementations, both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmbus.protocol import messages
from vmbus.protocol.messages import Message

TABLE = Path(__file__).parent / "layouts" / "vmbus.txt"
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


def declared() -> dict[str, type[Message]]:
    """Every message that is declared."""
    return {
        name: value
        for name, value in vars(messages).items()
        if isinstance(value, type) and issubclass(value, Message) and value is not Message
    }


def test_the_table_and_the_code_know_the_same_structs() -> None:
    """A struct that only one of them has is a mistake in the other."""
    assert set(golden()) == set(declared())


@pytest.mark.parametrize("name", sorted(declared()))
def test_offsets_and_sizes(name: str) -> None:
    """Each field lies where the sources put it, no field is missing, and none is ours."""
    struct = declared()[name]
    found = {field.name: (field.offset, field.size) for field in struct.FIELDS}
    assert {"*": (0, struct.SIZE), **found} == golden()[name]
