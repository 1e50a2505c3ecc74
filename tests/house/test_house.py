"""The house rules that a program can check: import direction, sides, file length, silence about the world outside."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("hypervisor", "vmbus", "vsp_vsc", "partitions")
SIDES = ("Hypervisor", "Root side", "Child side", "Both sides")
COMPOSER = "partitions.compose"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for layer in LAYERS
    for path in sorted((ROOT / layer).rglob("*.py"))
}
LONGEST_FILE = 700


def side_of(source: str) -> str | None:
    docstring = ast.get_docstring(ast.parse(source)) or ""
    first = docstring.split("\n", 1)[0]
    return next((side for side in SIDES if first.endswith(f" {side}.") or first == f"{side}."), None)


def imports_of(source: str) -> set[str]:
    """Modules that a source imports, by full name; a name taken from a package counts as the module it is."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                found.add(deeper if deeper in MODULES else node.module)
    return found


SIDE = {name: side_of(path.read_text()) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
def test_first_docstring_line_says_which_side_a_module_runs_on(name: str) -> None:
    assert SIDE[name] is not None, f"{name}: the first docstring line ends with one of {SIDES}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name: str) -> None:
    """hypervisor <- vmbus <- vsp_vsc <- partitions."""
    own = LAYERS.index(name.split(".")[0])
    for imported in imports_of(MODULES[name].read_text()):
        top = imported.split(".")[0]
        if top in LAYERS:
            assert LAYERS.index(top) <= own, f"{name} imports {imported}"
        assert top not in ("tests", "examples", "benchmarks"), f"{name} imports {imported}"


def crossing(name: str, imported: str) -> bool:
    """Whether an import joins the root's side and a child's, or a child's side and the hypervisor's own code."""
    sides = (SIDE.get(name), SIDE.get(imported))
    forbidden = {
        ("Root side", "Child side"),
        ("Child side", "Root side"),
        ("Child side", "Hypervisor"),
        ("Hypervisor", "Root side"),
        ("Hypervisor", "Child side"),
        ("Both sides", "Root side"),
        ("Both sides", "Child side"),
    }
    return sides in forbidden


def is_package(name: str) -> bool:
    return MODULES[name].name == "__init__.py"


@pytest.mark.parametrize("name", [name for name in MODULES if name != COMPOSER])
def test_root_side_and_child_side_never_import_each_other(name: str) -> None:
    """Between a child and everything else pass only bytes, hypercalls, interrupts and intercepts."""
    for imported in imports_of(MODULES[name].read_text()):
        if imported in MODULES and not (is_package(imported) or is_package(name)):
            assert not crossing(name, imported), f"{name} ({SIDE[name]}) imports {imported} ({SIDE[imported]})"


def test_the_side_rule_can_fail() -> None:
    """The check above sees a crossing when there is one."""
    assert any(side == "Child side" for side in SIDE.values())
    assert any(side == "Root side" for side in SIDE.values())
    child = next(name for name, side in SIDE.items() if side == "Child side")
    root = next(name for name, side in SIDE.items() if side == "Root side")
    assert crossing(child, root)
    assert crossing(root, child)


@pytest.mark.parametrize(
    "path", sorted(p for top in (*LAYERS, "tests", "examples", "benchmarks") for p in (ROOT / top).rglob("*.py"))
)
def test_no_file_is_feared(path: Path) -> None:
    """Each well-kept project has one file that newcomers fear; ours end at 700 lines."""
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


def test_test_folders_are_packages() -> None:
    """Without tests/__init__.py, tests/hypervisor would shadow the real package."""
    for folder in {path.parent for path in (ROOT / "tests").rglob("*.py")}:
        while folder != ROOT:
            assert (folder / "__init__.py").exists(), f"{folder} lacks __init__.py"
            folder = folder.parent


def test_the_project_speaks_of_itself_alone() -> None:
    """No path of a developer's machine and no registry address stands in the tree."""
    places = "/(?:work|tmp/plan|root/[.])"
    registries = "py(?:pi)[.]org|files[.]python(?:hosted)|deb[.]debian(?:[.]org)|registry[.]npm(?:js)"
    forbidden = re.compile(rf"{places}\b|{registries}")
    for path in ROOT.rglob("*"):
        relative = path.relative_to(ROOT)
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ""}
            and path.is_file()
            and not relative.parts[0].startswith(
                (".venv", ".git", ".mypy", ".ruff", ".pytest", ".hypothesis", "dist", ".build")
            )
        ):
            match = forbidden.search(path.read_text(errors="replace"))
            assert match is None or path == Path(__file__), f"{relative}: {match}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] == "vsp_vsc"])
def test_protocol_modules_have_no_behaviour_of_a_side(name: str) -> None:
    """protocol.py is the contract of a device pair: both sides stand on it, so it belongs to both."""
    if name.endswith(".protocol"):
        assert SIDE[name] == "Both sides"
    if name.endswith(".vsp"):
        assert SIDE[name] == "Root side"
    if name.endswith(".vsc"):
        assert SIDE[name] == "Child side"
