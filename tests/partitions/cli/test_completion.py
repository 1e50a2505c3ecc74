"""What shells offer at the Tab key: verbs, options, values, examples, hosts that run and their VMs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from partitions.cli.completing import FILES, candidates
from partitions.cli.completion import SCRIPTS
from partitions.cli.main import VERBS, main
from partitions.host import Host
from partitions.root.control_socket import open_control_socket
from tests.doubles.root import bare_host, idle, vm_table


def offered(*words: str) -> list[str]:
    return [name for name, _ in candidates(words)]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two hosts in another thread, as a completing shell finds them: it has no Trio of its own."""
    (tmp_path / "runtime").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setattr("partitions.control_folder._SHARED", str(tmp_path))
    up = threading.Event()
    done: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    async def hosts() -> None:
        async with (
            bare_host(idle, vm_table("web"), vm_table("db")) as farm,
            bare_host(idle, vm_table("probe")) as lab,
            open_control_socket(farm, topology="farm"),
            open_control_socket(lab, topology="lab"),
        ):
            assert isinstance(lab, Host)
            over = trio.Event()
            done.append((trio.lowlevel.current_trio_token(), over))
            up.set()
            await over.wait()

    thread = threading.Thread(target=trio.run, args=(hosts,))
    thread.start()
    assert up.wait(20)
    yield
    token, over = done[0]
    token.run_sync_soon(over.set)
    thread.join()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sto"], ["stop"]),
        (["re"], ["resume", "reset", "remove-disk", "remove-nic"]),
        (["--v"], ["--version"]),
        (["run", "--clo"], ["--clock"]),
        (["run", "--clock", ""], ["real", "virtual"]),
        (["run", "--clock=v"], ["virtual"]),
        (["run", "--clock", "=", "v"], ["virtual"]),
        (["run", "03"], ["03-disk"]),
        (["run", "./"], [FILES]),
        (["run", "03-disk", "--trace", ""], [FILES]),
        (["run", "--trace", "=", "/tm"], [FILES]),
        (["add-disk", "web", "im"], [FILES]),
        (["ps", "-o", "c"], ["csv"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["nonsense", ""], []),
        (["run", "03-disk", "x", ""], []),
    ],
)
def test_words_of_the_command_itself(words: list[str], expected: list[str]) -> None:
    """By the verbs' own parsers, so that nothing can be forgotten; file names are left to the shell."""
    assert offered(*words) == expected


def test_all_verbs() -> None:
    """In the order of the help."""
    assert offered("") == list(VERBS)


def test_what_runs_now(running: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Hosts by name, VMs of the host that is meant, each name once; a description says where."""
    assert offered("stop", "--host", "") == ["farm", "lab"]
    assert set(offered("stop", "")) == {"web", "db", "probe"}
    assert offered("stop", "--host", "lab", "") == ["probe"]
    assert offered("stop", "--host=farm", "web", "") == ["db"]
    assert main(["__complete", "console", "pr"]) == 0
    assert capsys.readouterr().out == "probe\ton lab\n"


def test_paths_of_the_tree(running: None) -> None:
    """Step by step, a branch with a slash at its end, so that the next Tab goes on below it; never files."""
    assert offered("inspect", "--host", "farm", "") == ["host/", "hypervisor/", "vm/", "trace/"]
    assert offered("inspect", "--host", "farm", "vm/w") == ["vm/web/"]
    assert offered("inspect", "--host=lab", "-r", "vm/probe/st") == ["vm/probe/state", "vm/probe/statistics/"]
    assert set(offered("inspect", "vm/")) == {"vm/web/", "vm/db/", "vm/probe/"}
    assert offered("inspect", "--host", "farm", "nothing/x") == []
    assert offered("inspect", "--host", "none", "vm/") == []


BASH_TEST = r"""
set -eu
partita() { "$PYTHON" -m partitions.cli.main "$@"; }
eval "$(partita completion bash)"
complete -p partita
COMP_WORDBREAKS=$' \t\n"\'><=;|&(:'
offer() {
    COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
    COMPREPLY=()
    _partita partita "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
    echo "${COMPREPLY[*]-}"
}
offer partita sto
offer partita run --clock ""
offer partita run --clock = v
offer partita stop --host farm ""
offer partita inspect --host farm vm/d
offer partita run 03-disk --trace ""
"""


def test_in_a_real_bash(running: None) -> None:
    """The script that `partita completion bash` prints, in the shell that it is for, with the words as it cuts them."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([bash, "-c", BASH_TEST], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "complete -F _partita partita",
        "stop",
        "real virtual",
        "virtual",
        "web db",
        "vm/db/",
        "",
    ]


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_each_shell_reads_its_script(shell: str, check: str, tmp_path: Path) -> None:
    """No shell that is here finds a mistake in it."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(SCRIPTS[shell])
    done = subprocess.run([program, check, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
