"""A network namespace of the test's own, with the real tools in it. Removed at the end, and what is in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count

import attrs
import pytest
import trio

_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
PACKAGES = {"ip": "iproute2", "ping": "iputils-ping", "arping": "arping", "nmap": "nmap", "curl": "curl"}
_numbers = count()


def tool(name: str) -> str:
    """Its path; of those for administrators, too, which are not on everybody's."""
    found = shutil.which(name, path=_PATH)
    assert found is not None, name
    return found


@cache
def lack(*tools: str) -> str:
    """Why tests with TAP devices and these tools cannot run; empty where they can."""
    for name in ("ip", *tools):
        if shutil.which(name, path=_PATH) is None:
            return f"{name} is not installed (Debian: apt-get install {PACKAGES[name]})"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    probe = f"partita-probe-{os.getpid()}"
    done = subprocess.run([tool("ip"), "netns", "add", probe], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"network namespaces are for root here: {done.stderr.strip()}"
    subprocess.run([tool("ip"), "netns", "del", probe], check=True)
    return ""


def needs(*tools: str) -> pytest.MarkDecorator:
    """Skip where TAP devices, namespaces or one of these tools are missing."""
    reason = lack(*tools)
    return pytest.mark.skipif(bool(reason), reason=reason)


@attrs.frozen
class Namespace:
    """One network namespace."""

    name: str

    def ip(self, *arguments: str) -> str:
        """`ip` in it."""
        return subprocess.run(
            [tool("ip"), "-n", self.name, *arguments], capture_output=True, text=True, check=True
        ).stdout

    def take(self, device: str, address: str) -> None:
        """Move a device into it, and give it an address there."""
        subprocess.run([tool("ip"), "link", "set", device, "netns", self.name], check=True)
        self.ip("addr", "add", address, "dev", device)
        self.ip("link", "set", device, "up")

    async def run(self, name: str, *arguments: str) -> str:
        """A tool in it; what it says, well or badly."""
        command = [tool("ip"), "netns", "exec", self.name, tool(name), *arguments]
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
        return done.stdout.decode(errors="replace")


@contextmanager
def namespace() -> Iterator[Namespace]:
    """One that nobody else uses."""
    made = Namespace(f"partita-{os.getpid()}-{next(_numbers)}")
    subprocess.run([tool("ip"), "netns", "add", made.name], check=True)
    try:
        yield made
    finally:
        subprocess.run([tool("ip"), "netns", "del", made.name], check=True)


def device_exists(name: str) -> bool:
    """Whether this namespace has such a device."""
    return subprocess.run([tool("ip"), "link", "show", "dev", name], capture_output=True, check=False).returncode == 0
