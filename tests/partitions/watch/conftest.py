"""One browser for all tests here, and runs to show in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import partitions
from hypervisor.trace import TraceEvent
from partitions import determinism
from partitions.watch.export import Exporter
from tests.doubles.browser import Browser, open_browser

ROOT = Path(__file__).parents[3]
Run = tuple[list[TraceEvent], dict[int, str]]
MakePage = Callable[..., str]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Chromium without a window."""
    with open_browser(lambda: tmp_path_factory.mktemp("profile")) as found:
        yield found


def record(topology: Path) -> Run:
    """The events of a run on the virtual clock."""
    events: list[TraceEvent] = []

    async def run() -> dict[int, str]:
        async with partitions.open_host(topology, sinks=[events.append]) as host:
            await host.start_all()
            await host.wait_all()
            return dict(host.trace.names)

    return events, determinism.run(run, clock="virtual", seed=1)


@pytest.fixture(scope="session")
def disk_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two VMs; one reads its disk, the other falls."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "reader.py").write_text(
        "async def main(guest):\n"
        "    disk = await guest.disk(0)\n"
        "    for block in range(4):\n"
        "        await disk.read(block, 1)\n"
        "        await guest.sleep(0.25)\n"
    )
    (folder / "faller.py").write_text("async def main(guest):\n    await guest.sleep(0.3)\n    1 / 0\n")
    (folder / "topology.toml").write_text(
        '[[vm]]\nname = "reader"\nprogram = "reader.py"\nmemory = "8MiB"\nintegration = ["heartbeat"]\n'
        '[[vm.disk]]\npath = "disk.img"\nsize = "1MiB"\n'
        '[[vm]]\nname = "faller"\nprogram = "faller.py"\nmemory = "4MiB"\n'
    )
    return record(folder)


@pytest.fixture
def page_of(tmp_path: Path) -> MakePage:
    """`page_of(events, names)`: the address of a page with these events."""

    def make(events: Sequence[TraceEvent], names: dict[int, str] | None = None, *, title: str = "run") -> str:
        exporter = Exporter(names or {}, limit=max(1, len(events)))
        exporter.take(events)
        target = tmp_path / "page.html"
        target.write_bytes(exporter.finish(title).page)
        return target.as_uri()

    return make
