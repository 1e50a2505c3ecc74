"""`partita run` with a guest that listens, and the programs that people have: curl, socat, `partita connect`."""

from __future__ import annotations

import hashlib
import os
import pty
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from partitions.cli.completing import candidates
from tests.doubles.socket_programs import listening_topology

COMMAND = [sys.executable, "-m", "partitions.cli.main"]
SOCKETS = '[vm.sockets]\npath = "web.vsock"\n[vm.sockets.ports]\n"http.sock" = 80\n"echo.sock" = 7\n'
PAGE = "hello from a partition\n"


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed (apt-get install {tool})")


class Run:
    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self.process = process
        self.named = ("--host", str(process.pid))

    def connect(self, port: object, **options: object) -> subprocess.CompletedProcess[bytes]:
        call = [*COMMAND, "connect", "web", str(port), *self.named]
        return subprocess.run(call, timeout=20, check=False, cwd=self.folder, **options)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """One host for all of these tests: its start is what takes time."""
    folder = tmp_path_factory.mktemp("sockets")
    listening_topology(folder, SOCKETS)
    (folder / "runtime").mkdir(mode=0o700)
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(folder / "runtime")
    call = [*COMMAND, "run", str(folder), "--timeout", "100"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "listening" in line:
                break
        try:
            yield Run(folder, process)
        finally:
            process.terminate()
            rest, _ = process.communicate(timeout=20)
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before
    assert "Traceback" not in rest
    assert not (folder / "web.vsock").exists()


@needs("curl")
def test_curl_fetches_a_page(run: Run) -> None:
    """By the Unix socket of a port."""
    assert stat.S_IMODE((run.folder / "http.sock").stat().st_mode) == 0o600
    call = ["curl", "-sS", "--max-time", "10", "--unix-socket", "http.sock", "http://web/"]
    done = subprocess.run(call, cwd=run.folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, PAGE, "")


@needs("socat")
def test_socat_says_connect(run: Run) -> None:
    """By the words of the VM's own socket."""
    call = ["socat", "-t", "10", "-", "UNIX-CONNECT:web.vsock"]
    done = subprocess.run(
        call, input=b"CONNECT 7\nround and round", cwd=run.folder, capture_output=True, timeout=20, check=False
    )
    answer, _, rest = done.stdout.partition(b"\n")
    assert answer.startswith(b"OK ")
    assert rest == b"round and round"


@needs("socat")
@needs("curl")
def test_a_browser_gets_there_through_socat(run: Run) -> None:
    """`partita connect` behind a TCP port of the host, as a person without Unix sockets would have it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    behind = " ".join([*COMMAND, "connect", "web", "80", *run.named])
    call = ["socat", "-d", "-d", "-t", "10", f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr", f"EXEC:{behind}"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("listening" in line for line in process.stderr)
        fetch = ["curl", "-sS", "--max-time", "10", f"http://127.0.0.1:{port}/"]
        done = subprocess.run(fetch, capture_output=True, text=True, check=False)
        assert (done.stdout, done.returncode) == (PAGE, 0), done.stderr
        assert process.wait(10) == 0


def test_connect_carries_files_there_and_back(run: Run) -> None:
    """From a file into a pipe: the end of the file is passed on, and comes back as the end of the stream."""
    data = os.urandom(3_000_000)
    (run.folder / "in").write_bytes(data)
    with (run.folder / "in").open("rb") as source:
        done = run.connect(7, stdin=source, capture_output=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("said", [b"", b"a line\n"])
def test_connect_takes_what_there_is(run: Run, said: bytes) -> None:
    """A little, nothing at all."""
    done = run.connect(7, input=said, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, b"")


def test_refusals_and_usage(run: Run) -> None:
    """1 where nobody takes it, 2 for what cannot be meant, each with words."""
    for port, status, words in [
        (8, 1, b"error: web: port 8: nothing in its guest listens there\n"),
        ("http", 2, b"error: PORT: 'http' is neither a port nor the GUID of a service\n"),
    ]:
        done = run.connect(port, input=b"", capture_output=True)
        assert (done.returncode, done.stderr) == (status, words)


def test_a_reader_that_has_enough(run: Run) -> None:
    """Closes its pipe, as `head` does, and the command ends without a word, though the guest would go on."""
    call = [*COMMAND, "connect", "web", "7", *run.named]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"12345")
        process.stdin.flush()
        assert os.read(process.stdout.fileno(), 5) == b"12345"
        process.stdout.close()
        process.stdin.write(b"6")
        process.stdin.flush()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_a_person_at_a_terminal(run: Run) -> None:
    """Lines as they are typed; the terminal's end of file ends it."""
    ours, theirs = pty.openpty()
    call = [*COMMAND, "connect", "web", "7", *run.named]
    with subprocess.Popen(call, stdin=theirs, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.write(ours, b"typed\n")
        assert os.read(process.stdout.fileno(), 100) == b"typed\n"
        os.write(ours, b"\4")  # at the beginning of a line: its end
        assert process.wait(10) == 0
    os.close(ours)
    os.close(theirs)


def test_tab_offers_vms_and_no_ports(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports are the guest's to know, and files are no ports."""
    monkeypatch.setattr("partitions.control_folder._SHARED", str(run.folder))
    assert [name for name, _ in candidates(["connect", ""])] == ["web"]
    assert list(candidates(["connect", "web", ""])) == []


def test_nothing_is_left(run: Run) -> None:
    """After all of that, as soon as the last guest program has noticed."""
    call = [*COMMAND, "inspect", "vm/web/sockets", *run.named]
    for _ in range(20):
        done = subprocess.run(call, capture_output=True, text=True, check=True)
        if '"live":0,' in done.stdout:
            return
    raise AssertionError(done.stdout)
