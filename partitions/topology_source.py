"""What a topology's problems need from source text: line numbers, near names, a look into Python. Root side."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable
from pathlib import Path

KeyPath = tuple[str | int, ...]
"""A place in the parsed file: `("vm", 1, "disk", 0, "path")`."""

_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.\-\s]+?)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that a person most likely meant."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), None)


def line_of(text: str, keys: KeyPath) -> int | None:
    """The line of the nearest enclosing table or key, counted from 1; None where it cannot be told.

    A scan for headers and keys, not a parser: it serves messages only, and a wrong guess there costs a glance.
    """
    best: int | None = None
    best_depth = 0
    counts: dict[str, int] = {}
    here: KeyPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            here = _enter([part.strip() for part in header[2].split(".")], header[1] == "[[", counts)
            place = here
        elif key := _KEY.match(line):
            place = (*here, key[1])
        else:
            continue
        if len(place) > best_depth and keys[: len(place)] == place:
            best, best_depth = number, len(place)
    return best


def _enter(parts: list[str], is_array: bool, counts: dict[str, int]) -> KeyPath:
    """The path of a table from its header; `counts` remembers how many elements each array of tables has so far."""
    place: list[str | int] = []
    for depth, part in enumerate(parts):
        place.append(part)
        spelled = ".".join(map(str, place))
        if is_array and depth == len(parts) - 1:
            counts[spelled] = counts.get(spelled, -1) + 1
        if spelled in counts:
            place.append(counts[spelled])
    return tuple(place)


def check_program(folder: Path, program: str) -> str | None:
    """Why a guest program cannot be used, or None. It is parsed and never run."""
    # Imported late: it stands on the whole child side, which reading a topology for its VMs' names does not need.
    from partitions import compose

    try:
        path = compose.find_program(program, folder)
        if not path.is_file() and not path.is_dir():
            known = [*sorted(entry.name for entry in path.parent.glob("*.py")), *compose.built_in_programs()]
            near = nearest(program, known) or nearest(path.name, known)
            hint = f'did you mean "{near}"?' if near else f"built in: {', '.join(compose.built_in_programs())}"
            return f'there is no file "{path}"; {hint}'
        return compose.check_program(path)
    except (OSError, ValueError) as error:
        return f"cannot be looked at: {error}"


def check_vsp(folder: Path, reference: str) -> str | None:
    """Why `file.py:Class` cannot be used as a VSP, or None. It is parsed and never run."""
    file, colon, name = reference.partition(":")
    if not (file and colon and name.isidentifier()):
        return f'must be a file and a class such as "echo.py:Echo", is "{reference}"'
    tree = _parse(folder, file)
    if isinstance(tree, str):
        return tree
    names = _bound_names(tree)
    if name in names:
        return None
    near = nearest(name, names)
    return f'"{file}" has no class {name}' + (f"; did you mean {near}?" if near else "")


def _parse(folder: Path, file: str) -> ast.Module | str:
    path = folder / file
    try:
        if not path.is_file():
            near = nearest(path.name, sorted(entry.name for entry in path.parent.glob("*.py")))
            return f'there is no file "{path}"' + (f'; did you mean "{near}"?' if near else "")
        return ast.parse(path.read_bytes(), filename=file)
    except SyntaxError as error:
        return f'line {error.lineno} of "{file}": {error.msg}'
    except (OSError, ValueError) as error:
        return f'"{file}" cannot be read: {error}'


def _bound_names(tree: ast.Module) -> set[str]:
    """Names that the module's top level binds."""
    names: set[str] = set()
    for node in tree.body:
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Import() | ast.ImportFrom():
                names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
            case ast.Assign():
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            case _:
                pass
    return names
