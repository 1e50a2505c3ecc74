"""The house rules that a program can check: import direction, sides, file length, silence about the world outside."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import attrs

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

# One test a rule, which names all that break it: a test for each file and rule would be a quarter of the suite.


@attrs.frozen
class Facts:
    """What a module says of itself. Its tree is not kept: later tests would wait for the collector to walk it."""

    side: str | None
    imports: frozenset[str]
    """By full name; a name taken from a package counts as the module it is."""


@functools.cache
def facts_of(name: str) -> Facts:
    tree = ast.parse(MODULES[name].read_text())
    first = (ast.get_docstring(tree) or "").split("\n", 1)[0]
    side = next((side for side in SIDES if first.endswith(f" {side}.") or first == f"{side}."), None)
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{name}: imports are absolute"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                found.add(deeper if deeper in MODULES else node.module)
    return Facts(side, frozenset(found))


def side_of(name: str) -> str | None:
    return facts_of(name).side


def imports_of(name: str) -> frozenset[str]:
    return facts_of(name).imports


def test_first_docstring_line_says_which_side_a_module_runs_on() -> None:
    """It ends with one of `SIDES`."""
    silent = [name for name in MODULES if side_of(name) is None]
    assert not silent, "\n".join(silent)


def upwards(name: str, imported: str) -> bool:
    """Whether an import leads up the layers, or out of the house."""
    top = imported.split(".")[0]
    if top in LAYERS:
        return LAYERS.index(top) > LAYERS.index(name.split(".")[0])
    return top in ("tests", "examples", "benchmarks")


def test_imports_run_one_way() -> None:
    """hypervisor <- vmbus <- vsp_vsc <- partitions."""
    found = [f"{name} imports {it}" for name in MODULES for it in imports_of(name) if upwards(name, it)]
    assert not found, "\n".join(found)
    assert upwards("vmbus.ring", "partitions.host")
    assert upwards("vmbus.ring", "tests.doubles")


def crossing(name: str, imported: str) -> bool:
    """Whether an import joins the root's side and a child's, or a child's side and the hypervisor's own code."""
    forbidden = {
        ("Root side", "Child side"),
        ("Child side", "Root side"),
        ("Child side", "Hypervisor"),
        ("Hypervisor", "Root side"),
        ("Hypervisor", "Child side"),
        ("Both sides", "Root side"),
        ("Both sides", "Child side"),
    }
    return (side_of(name), side_of(imported)) in forbidden


def is_package(name: str) -> bool:
    return MODULES[name].name == "__init__.py"


def test_root_side_and_child_side_never_import_each_other() -> None:
    """Between a child and everything else pass only bytes, hypercalls, interrupts and intercepts."""
    found = [
        f"{name} ({side_of(name)}) imports {imported} ({side_of(imported)})"
        for name in MODULES
        if name != COMPOSER and not is_package(name)
        for imported in imports_of(name)
        if imported in MODULES and not is_package(imported) and crossing(name, imported)
    ]
    assert not found, "\n".join(found)


def test_the_side_rule_can_fail() -> None:
    """The check above sees a crossing when there is one."""
    child = next(name for name in MODULES if side_of(name) == "Child side")
    root = next(name for name in MODULES if side_of(name) == "Root side")
    assert crossing(child, root)
    assert crossing(root, child)


def test_no_file_is_feared() -> None:
    """Each well-kept project has one file that newcomers fear; ours end at 700 lines."""
    files = [path for top in (*LAYERS, "tests", "examples", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in files}
    long = [f"{name} has {length} lines" for name, length in lengths.items() if length > LONGEST_FILE]
    assert not long, "\n".join(long)
    assert len(files) > len(MODULES)


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


def test_protocol_modules_have_no_behaviour_of_a_side() -> None:
    """protocol.py is the contract of a device pair: both sides stand on it, so it belongs to both."""
    due = {"protocol": "Both sides", "vsp": "Root side", "vsc": "Child side"}
    last = {name: name.rpartition(".")[2] for name in MODULES if name.startswith("vsp_vsc.")}
    assert set(due) <= set(last.values())
    strays = [name for name, word in last.items() if side_of(name) != due.get(word, side_of(name))]
    assert not strays, "\n".join(strays)
