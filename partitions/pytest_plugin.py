"""The pytest fixture `partita_host`: hosts inside a test, for this project's tests and other people's. Root side.

    async def test_my_guest(partita_host):
        host = await partita_host("my_topology/")
        await host["web"].start()
        assert (await host["web"].wait()).exit_code == 0

It works wherever pytest-trio (or another plugin that runs async fixtures under Trio) is installed. Hosts opened by a
test are closed when it ends, the last one first; a failure inside one fails the test. Installing Partita costs other
projects nothing: this module imports pytest and nothing of ours until a test asks for the fixture.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import trio

    from partitions.host import Host
    from partitions.topology import Topology

    HostFactory = Callable[..., Awaitable[Host]]


@pytest.fixture
async def partita_host() -> AsyncIterator[HostFactory]:
    """A factory: `await partita_host(topology, **options)` opens a host until the test ends, and gives it.

    `topology` is a `Topology`, or what `load_topology` takes; the options are those of `partitions.open_host`.
    """
    import trio

    from partitions.host import open_host
    from partitions.topology import load_topology

    closing: list[tuple[trio.Event, trio.Event]] = []

    async def keep_open(
        topology: Topology,
        options: dict[str, Any],
        *,
        task_status: trio.TaskStatus[tuple[Host, trio.Event, trio.Event]],
    ) -> None:
        # The host is opened and closed in one task: a nursery must not be entered in the test's task and left in the
        # fixture's.
        close, closed = trio.Event(), trio.Event()
        try:
            async with open_host(topology, **options) as host:
                task_status.started((host, close, closed))
                await close.wait()
        finally:
            closed.set()

    async with trio.open_nursery() as nursery:

        async def factory(topology: Topology | str | os.PathLike[str], **options: Any) -> Host:
            loaded = load_topology(topology) if isinstance(topology, str | os.PathLike) else topology
            host, close, closed = await nursery.start(keep_open, loaded, options)
            closing.append((close, closed))
            return host  # type: ignore[no-any-return]

        yield factory
        for close, closed in reversed(closing):
            close.set()
            await closed.wait()
