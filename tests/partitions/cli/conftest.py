"""Topologies to run: small folders with a guest program each."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MakeTopology = Callable[..., Path]


@pytest.fixture
def topology(tmp_path: Path) -> MakeTopology:
    """`topology(web="print('hello')", db=...)`: a folder with one VM for each program body."""

    def make(extra: str = "", **programs: str) -> Path:
        text = ""
        for name, body in programs.items():
            lines = "".join(f"    {line}\n" for line in body.splitlines())
            (tmp_path / f"{name}.py").write_text(f"import trio\n\n\nasync def main(guest):\n{lines}")
            text += f'[[vm]]\nname = "{name}"\nprogram = "{name}.py"\nmemory = "4MiB"\n{extra}\n'
        (tmp_path / "topology.toml").write_text(text)
        return tmp_path

    return make


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A suite that runs in the background of a script ignores SIGINT, and its commands would inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
