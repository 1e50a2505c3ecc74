"""Guest programs as files: found, checked without running, loaded as a fresh module. Child side."""

from __future__ import annotations

import ast
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs

from partitions.child import programs

BUILT_IN: Final = Path(programs.__file__).parent
ENTRY: Final = "async def main(guest)"


def built_in_programs() -> list[str]:
    """Names that a topology can give in place of a file."""
    return sorted(path.stem for path in BUILT_IN.glob("*.py") if path.stem != "__init__")


def find_program(name: str, folder: Path) -> Path:
    """A program's file: relative to the topology's folder first, then by built-in name. The file need not exist."""
    path = folder / name
    if not path.exists() and name in built_in_programs():
        return BUILT_IN / f"{name}.py"
    return path


def check_program(path: Path) -> str | None:
    """What is wrong with a program file, in words; None when it can be loaded. Parses it and never runs it."""
    if path.is_dir():
        return f"{path} is a folder, not a Python file"
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except SyntaxError as error:
        return f"{path}, line {error.lineno}: {error.msg}"
    except ValueError as error:
        return f"{path}: {error}"
    for statement in tree.body:
        match statement:
            case ast.AsyncFunctionDef(name="main", args=arguments):
                if _takes_one(arguments):
                    return None
                return f"{path}, line {statement.lineno}: `main` takes one argument: `{ENTRY}`"
            case ast.FunctionDef(name="main"):
                return f"{path}, line {statement.lineno}: `main` is not async; a guest program has `{ENTRY}`"
            case _:
                pass
    return f"{path} has no `{ENTRY}`"


@attrs.frozen
class Program:
    """A program that was read and compiled once; each boot makes a module object of its own from it."""

    path: Path
    code: types.CodeType
    resumable: bool = False
    """It has an `async def resume(guest)`, so its VM can be saved."""

    @classmethod
    def read(cls, path: Path) -> Program:
        """Compile a file. Raises OSError, SyntaxError or ValueError; `check_program` puts them into words."""
        source = path.read_bytes()
        code = compile(source, str(path), "exec", dont_inherit=True)
        tree = ast.parse(source, str(path))
        return cls(path, code, any(isinstance(one, ast.AsyncFunctionDef) and one.name == "resume" for one in tree.body))

    def load(self, name: str, entry: str = "main", **names: Any) -> Callable[[Any], Awaitable[object]]:
        """Run the module's top level in a fresh module with these names in it, and return its `main`, or its `resume`.

        The module is not in `sys.modules`: two VMs with one program share nothing, nor does a VM with itself before a
        reset.
        """
        module = types.ModuleType(f"guest.{name}")
        module.__file__ = str(self.path)
        module.__dict__.update(names)
        exec(self.code, module.__dict__)  # that is what loading a program is
        main: Callable[[Any], Awaitable[object]] = module.__dict__[entry]
        return main


def _takes_one(arguments: ast.arguments) -> bool:
    positional = len(arguments.posonlyargs) + len(arguments.args)
    required = positional - len(arguments.defaults)
    missing = any(default is None for default in arguments.kw_defaults)
    return required <= 1 and (positional >= 1 or arguments.vararg is not None) and not missing
