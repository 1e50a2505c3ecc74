"""A topology's problems in words: where they are, what stands there, what was expected. Root side."""

from __future__ import annotations

import enum
import re
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from partitions.topology_source import KeyPath, nearest

_TYPES = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


_OTHER_NAMES = {
    "share": "weight",
    "shares": "weight",
    "priority": "weight",
    "reservation": "reserve",
    "min": "reserve",
    "cap": "limit",
    "max": "limit",
    "latency": "delay",
    "vcpus": "processors",
    "cpus": "processors",
}
"""What lectures and other hosts call it."""
_CONTROLS = ("reserve", "limit", "weight")


def meant(key: str, known: Collection[str]) -> str | None:
    """The key of another name, or the table around it, for one that is unknown here."""
    name = _OTHER_NAMES.get(key.lower(), key)
    if name in known:
        return name
    around = next((table for table in ("iops", "bandwidth") if table in known and name in _CONTROLS), None)
    return None if around is None else f"{around} = {{ {name} = ... }}"


def what(raw: object) -> str:
    """A value as it stands in the file, or its kind."""
    match raw:
        case bool():
            return "true" if raw else "false"
        case str():
            return f'"{raw}"'
        case int() | float():
            return str(raw)
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def reason_words(error: str, kind: Any, raw: object) -> str:
    """msgspec's reason in the words of a topology file."""
    reason = re.sub(r" - at `.*`$", "", error)
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        return f"must not be {what(raw)}; {_known(kind, raw)}"
    if typing.get_origin(kind) is list and isinstance(raw, list):
        item = bare_type(typing.get_args(kind)[0])
        if isinstance(item, type) and issubclass(item, enum.StrEnum):
            wrong = next((one for one in raw if one not in tuple(item)), None)
            return f"must not have {what(wrong)} in it; {_known(item, wrong)}"
        match = re.fullmatch(r"Expected `([a-z]+)`, got `.*`", reason)
        if match and (place := re.search(r" - at `\$\[(\d+)\]`$", error)):
            return f"must be a list with {_TYPES[match[1]]} in each place, has {what(raw[int(place[1])])} in it"
    if match := re.fullmatch(r"Expected `(?:int|float)` (>=|<=) (-?\d+)(?:\.0)?", reason):
        return f"must be at {'least' if match[1] == '>=' else 'most'} {match[2]}, is {raw}"
    if match := re.fullmatch(r"Expected `(?:int|float)` > (-?\d+)(?:\.0)?", reason):
        return f"must be more than {match[1]}, is {raw}"
    if match := re.fullmatch(r"Expected `([a-z]+)(?: \| null)?`, got `.*`", reason):
        return f"must be {_TYPES[match[1]]}, is {what(raw)}"
    return reason


def _known(kind: type[enum.StrEnum], raw: object) -> str:
    """The word that was meant, or all that there are."""
    known = [str(member) for member in kind]
    near = nearest(str(raw), known)
    return f'did you mean "{near}"?' if near else f"known are {', '.join(known)}"


def error_words(error: Exception) -> str:
    """An operating system's reason without its number and path."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def bare_type(kind: Any) -> Any:
    """A field's type without its description and without `| None`."""
    if typing.get_origin(kind) is typing.Annotated:
        return bare_type(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return bare_type(next(part for part in typing.get_args(kind) if part is not type(None)))
    return kind


def description(kind: Any) -> str:
    """What the schema says beside a key of this type; empty if it says nothing."""
    metas = (meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, msgspec.Meta))
    return next((meta.description for meta in metas if meta.description), "")


def is_table(kind: Any) -> bool:
    """Whether a bare type is one of the schema's tables."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def brackets(keys: KeyPath) -> str:
    """What stands between the brackets of a table's header."""
    return ".".join(str(key) for key in keys if isinstance(key, str))


def siblings(path: Path) -> list[str]:
    """Files beside a path, for guesses at what was meant."""
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except OSError:
        return []


def spell(raw: object, keys: KeyPath) -> str:
    """`vm[1] "web".disk[0].path`: the VM's name beside its number, because nobody counts tables."""
    words = ""
    for key in keys:
        if isinstance(key, int):
            raw = raw[key] if isinstance(raw, list) and key < len(raw) else None
            words += f"[{key}]"
            if isinstance(raw, dict) and isinstance(name := raw.get("name"), str):
                words += f' "{name}"'
        else:
            raw = raw.get(key) if isinstance(raw, dict) else None
            words += f".{key}" if words else key
    return words


def copy_hint(folder: Path) -> str:
    """What helps where a topology's folder cannot be written, as that of an installed example may be."""
    from partitions.examples import examples

    name = next((example.name for example in examples() if example.folder == folder), None)
    return f"copy it: partita examples --copy {name} DIR" if name else "copy the topology to a folder of your own"
