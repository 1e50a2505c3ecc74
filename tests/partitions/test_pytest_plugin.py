"""The fixture for hosts, used as another project would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from partitions import pytest_plugin

TOPOLOGY = '[[vm]]\nname = "web"\nprogram = "web.py"\nmemory = "4MiB"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody else's project, warnings being errors there too."""
    (tmp_path / "topology.toml").write_text(TOPOLOGY)
    (tmp_path / "web.py").write_text(
        "async def main(guest):\n    print('hello')\n    return guest.args.get('code', 0)\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    return tmp_path


def run_pytest(project: Path, source: str) -> subprocess.CompletedProcess[str]:
    (project / "test_it.py").write_text(source)
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project)]
    return subprocess.run(call, capture_output=True, text=True, cwd=project, check=False)


def test_fixture_in_another_project(project: Path) -> None:
    """Hosts are opened in a test, several of them, and closed after it, in an order that is safe."""
    done = run_pytest(
        project,
        """
import pytest

@pytest.fixture
def folder(request):
    return request.path.parent

async def test_guest(partita_host, folder, autojump_clock):
    host = await partita_host(folder)
    await host["web"].start()
    record = await host["web"].wait()
    assert record.ok and host["web"].console.lines() == ["hello"]

async def test_two_hosts(partita_host, folder):
    first, second = await partita_host(folder), await partita_host(str(folder), seed=3)
    await first["web"].start()
    await second["web"].start()

def test_without():
    pass
""",
    )
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_the_documented_example_works(project: Path) -> None:
    """What the module shows can be copied; once it compared a record with a number, which is never equal."""
    shown = [line[4:] for line in (pytest_plugin.__doc__ or "").splitlines() if line.startswith("    ")]
    done = run_pytest(project, "\n".join(shown).replace("my_topology/", str(project)) + "\n")
    assert done.returncode == 0, done.stdout


def test_failures_are_the_tests_own(project: Path) -> None:
    """A test that fails with a host open fails with its own assertion; a bad topology is its exception."""
    done = run_pytest(
        project,
        """
async def test_assertion(partita_host, request):
    host = await partita_host(request.path.parent)
    await host["web"].start()
    assert host["web"].name == "db"

async def test_topology(partita_host):
    await partita_host("no-such-topology")
""",
    )
    assert done.returncode == 1
    assert "AssertionError: assert 'web' == 'db'" in done.stdout
    assert "TopologyError: no-such-topology: no such folder, file or example" in done.stdout


def test_plugin_costs_other_projects_nothing() -> None:
    """Importing the plugin imports neither Trio nor anything of ours beyond it."""
    code = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport partitions.pytest_plugin\n"
        "print(sorted(name for name in set(sys.modules) - before if name.split('.')[0] in "
        "('trio', 'msgspec', 'structlog', 'hypervisor', 'vmbus', 'vsp_vsc', 'partitions')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['partitions', 'partitions.pytest_plugin']"
