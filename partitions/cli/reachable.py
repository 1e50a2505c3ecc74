"""How others reach a run: its control socket, and its metrics where they are asked for. Root side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from partitions.cli.common import Refusal
from partitions.root.control_socket import open_control_socket

if TYPE_CHECKING:
    import argparse

    from partitions.host import Host
    from partitions.root.control_socket import ControlSocket


def wanted(options: argparse.Namespace) -> bool:
    """Whether there is a control socket: on the virtual clock only if it is asked for, since nothing that comes in from
    outside is repeatable.
    """
    return not options.no_control and (options.control is not None or options.clock == "real")


@asynccontextmanager
async def reachable(
    host: Host, options: argparse.Namespace, note: Callable[[str], None]
) -> AsyncIterator[ControlSocket | None]:
    """Open what the options say until the block ends. `note` tells a person that there is no socket, and why.

    Raises `Refusal` for a place that was asked for by name and cannot be had.
    """
    async with AsyncExitStack() as stack:
        control: ControlSocket | None = None
        if wanted(options):
            path = None if options.control in (None, "auto") else options.control
            try:
                control = await stack.enter_async_context(open_control_socket(host, path, topology=options.target))
            except OSError as error:
                reason = error.strerror or str(error)
                if path is not None:
                    raise Refusal(f"--control {path}: {reason}") from None
                note(f"note: no control socket, so `partita ps` and others will not find this run: {reason}")
        if options.metrics is not None:
            try:
                port = await stack.enter_async_context(_metrics(host, options.metrics))
            except OSError as error:
                words = f"{error.strerror or error}; name another port, or 0 for any"
                raise Refusal(f"--metrics {options.metrics}: {words}") from None
            note(f"metrics: http://localhost:{port}/metrics")
        yield control


def _metrics(host: Host, port: int) -> AbstractAsyncContextManager[int]:
    try:
        from partitions.metrics import open_metrics
    except ImportError:
        raise Refusal("--metrics needs prometheus-client; install it with: pip install 'partita[metrics]'") from None
    return open_metrics(host, port)
