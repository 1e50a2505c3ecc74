"""ssh with `partita connect` as its ProxyCommand, and Debian's own sshd behind a guest's port.

What it proves: a real protocol with its own flow control, keys and half closes goes both ways through the bus, byte for
byte. sshd is a process of this machine that the guest program has joined to its port, so nobody logs into a partition.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "partitions.cli.main"]
SEPARATION = Path("/run/sshd")
"""sshd does not run without this folder."""
PROGRAM = """
import subprocess

import trio


async def join(stream, process):
    async with process.stdin:
        async for piece in stream:
            await process.stdin.send_all(piece)


async def main(guest):
    async def serve(stream):
        process = await trio.lowlevel.open_process(guest.args["sshd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(join, stream, process)
                async for piece in process.stdout:
                    await stream.send_all(piece)
                await stream.send_eof()
        except* trio.BrokenResourceError:
            pass  # the client hung up first
        await process.wait()

    listener = await guest.listen(22)
    guest.print("listening")
    await trio.serve_listeners(serve, [listener])
"""
CONFIGURATION = """
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
StrictModes no
UsePAM no
PermitRootLogin yes
PidFile none
LogLevel ERROR
"""


def lack() -> str:
    """Why this cannot run here; empty where it can."""
    for tool, package in (("ssh", "openssh-client"), ("ssh-keygen", "openssh-client"), ("sshd", "openssh-server")):
        if shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin") is None:
            return f"{tool} is not installed (Debian: apt-get install {package})"
    if os.getuid() != 0 and not SEPARATION.is_dir():
        return f"there is no {SEPARATION}, and only root can make it"
    return ""


pytestmark = pytest.mark.skipif(bool(lack()), reason=lack())


@pytest.fixture
def separation() -> Iterator[None]:
    there = SEPARATION.is_dir()
    SEPARATION.mkdir(mode=0o755, exist_ok=True)
    yield
    if not there:
        SEPARATION.rmdir()


def test_ssh_gets_through(tmp_path: Path, separation: None) -> None:
    """A command's words and status come back, and a megabyte goes there and returns the same."""
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(key, check=True, stdin=subprocess.DEVNULL)
    (tmp_path / "sshd_config").write_text(CONFIGURATION.format(folder=tmp_path))
    (tmp_path / "guest.py").write_text(PROGRAM)
    sshd = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin")
    args = f'args = {{ sshd = ["{sshd}", "-i", "-e", "-f", "{tmp_path}/sshd_config"] }}\n'
    (tmp_path / "topology.toml").write_text(f'[[vm]]\nname = "web"\nprogram = "guest.py"\nmemory = "8MiB"\n{args}')
    control = tmp_path / "it.sock"
    call = [*COMMAND, "run", str(tmp_path), "--timeout", "60", "--control", str(control)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert any("listening" in line for line in process.stdout)
        proxy = " ".join([*COMMAND, "connect", "web", "22", "--host", str(control)])
        options = {
            "ProxyCommand": proxy,
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "ConnectTimeout": "20",
        }
        ssh = ["ssh", "-F", "none", "-i", str(tmp_path / "user")]
        ssh += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        try:
            said = subprocess.run([*ssh, "web", "echo hello; exit 3"], capture_output=True, timeout=30, check=False)
            assert (said.returncode, said.stdout) == (3, b"hello\n"), said.stderr
            data = os.urandom(1 << 20)
            back = subprocess.run([*ssh, "web", "cat"], input=data, capture_output=True, timeout=30, check=True).stdout
            assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
        finally:
            process.terminate()
            rest, _ = process.communicate(timeout=20)
    assert "Traceback" not in rest
