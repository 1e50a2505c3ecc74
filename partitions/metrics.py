"""Figures of a host for Prometheus, over HTTP on this machine's own address. Root side.

Somebody who asks gets the rows of `partita ps` and `partita stats` as they are at that moment; nothing is counted or
kept for it. The rows are made on the Trio thread, some at a time; what prometheus-client makes of them, in another
thread, which sees finished rows only and nothing of the hypervisor.

HTTP is as much as a scraper needs: one GET a connection. Requests, connections and waits are bounded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from hypervisor.clock import seconds
from partitions.figures import VmCounters, VmFigures, counters_of, figures_of

if TYPE_CHECKING:
    from partitions.host import Host

ADDRESS: Final = "127.0.0.1"
MAX_CONNECTIONS: Final = 16
MAX_REQUEST: Final = 16 * 1024
REQUEST_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 30.0
ROWS_AT_ONCE: Final = 16
"""Rows that are made before others get their turn."""
_OWN_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")


@attrs.frozen
class Snapshot:
    """A host at one moment."""

    seconds: float
    """Since it was opened, on its clock."""
    vms: Sequence[tuple[VmFigures, VmCounters]]
    processors: int = 0
    """Logical ones."""
    contended: float = 0.0
    """Seconds in which somebody waited for one."""
    memory_free: int = 0
    """Bytes that no VM has."""


async def snapshot(host: Host) -> Snapshot:
    """The host as it is now, or over the few moments that this takes where there are many VMs."""
    from partitions.resources.collect import Source

    rows, source = [], Source(host)
    for number, vm in enumerate(list(host.values()), 1):
        rows.append((figures_of(vm), counters_of(vm, source)))
        if number % ROWS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    hypervisor = host.hypervisor
    return Snapshot(
        seconds(hypervisor.clock()),
        rows,
        processors=hypervisor.logical_processors,
        contended=hypervisor.scheduler.contended_for / 1e9,
        memory_free=int(host.vid.vm_memory_free),
    )


@attrs.frozen
class _Family:
    """One metric: of which field, and how it is called."""

    name: str
    field: str
    help: str
    counter: bool = False
    to_root: str = ""
    """The fields of a metric with a direction, in place of `field`."""
    to_child: str = ""


_FIGURES: Final = (
    _Family("partita_vm_uptime_seconds", "uptime", "Seconds since the VM's start, or of its last run."),
    _Family("partita_vm_memory_bytes", "memory", "Memory of the VM."),
    _Family("partita_vm_processors", "processors", "Virtual processors of the VM."),
    _Family("partita_vm_restarts", "restarts", "Restarts by the VM's restart policy.", counter=True),
)
_COUNTERS: Final = (
    _Family("partita_vm_processor_seconds", "cpu", "Seconds that virtual processors have worked.", counter=True),
    _Family("partita_vm_processor_ready_seconds", "ready", "Seconds of waiting while others had the processors.", True),
    _Family("partita_vm_processor_capped_seconds", "capped", "Seconds of waiting for a limit's next period.", True),
    _Family("partita_vm_processor_halted_seconds", "halted", "Seconds without anything to do.", counter=True),
    _Family("partita_vm_dispatches", "dispatches", "Times that a logical processor was given.", counter=True),
    _Family("partita_vm_processor_wait_seconds", "wait", "Seconds from ready to dispatched.", counter=True),
    _Family("partita_vm_memory_assigned_bytes", "memory_assigned", "Memory that the VM has now."),
    _Family("partita_vm_memory_demand_bytes", "memory_demand", "Memory that its guest has committed."),
    _Family("partita_vm_memory_ballooned_bytes", "memory_ballooned", "Memory in its balloon."),
    _Family("partita_vm_disk_requests", "disk_requests", "Requests to controlled disks.", counter=True),
    _Family("partita_vm_disk_normalized_operations", "disk_normalized", "The same, one for each 8 KiB begun.", True),
    _Family("partita_vm_disk_held_seconds", "disk_held", "Seconds that requests were held back.", counter=True),
    _Family("partita_vm_frames_dropped", "frames_dropped", "Frames dropped at network adapters.", counter=True),
    _Family("partita_vm_messages", "messages", "Channel messages, both ways.", counter=True),
    _Family("partita_vm_packets", "", "Ring packets.", True, "packets_in", "packets_out"),
    _Family("partita_vm_ring_bytes", "", "Bytes through rings.", True, "bytes_in", "bytes_out"),
    _Family("partita_vm_signals", "", "Event signals of channels.", True, "signals_in", "signals_out"),
    _Family("partita_vm_hypercalls", "hypercalls", "Hypercalls by the guest.", counter=True),
    _Family("partita_vm_interrupts", "interrupts", "Interrupts raised in the VM's processors.", counter=True),
    _Family("partita_vm_port_accesses", "port_accesses", "Port intercepts.", counter=True),
    _Family("partita_vm_faults", "faults", "The guest's mistakes on the bus.", counter=True),
    _Family("partita_vm_channels", "channels", "Channels that have an ID."),
    _Family("partita_vm_gpadls", "gpadls", "GPADLs, unfinished ones too."),
    _Family("partita_vm_messages_waiting", "messages_waiting", "Channel messages from the guest that wait."),
    _Family("partita_vm_messages_unsent", "messages_unsent", "Channel messages that the guest does not take."),
    _Family("partita_vm_messages_dropped", "messages_dropped", "Channel messages past the limit.", counter=True),
)


class HostCollector(Collector):
    """A snapshot as prometheus-client takes it. Counters begin again at a VM's start, as Prometheus expects of them."""

    def __init__(self, taken: Snapshot) -> None:
        self._taken = taken

    def collect(self) -> Iterator[Metric]:
        """All metrics."""
        taken = self._taken
        yield GaugeMetricFamily("partita_host_seconds", "Seconds since the host was opened.", value=taken.seconds)
        yield GaugeMetricFamily("partita_host_vms", "VMs that are defined.", value=len(taken.vms))
        yield GaugeMetricFamily("partita_host_processors", "Logical processors.", value=taken.processors)
        words = "Seconds in which a processor was waited for: shares matter only then."
        yield CounterMetricFamily("partita_host_contended_seconds", words, value=taken.contended)
        yield GaugeMetricFamily("partita_host_memory_free_bytes", "Memory that no VM has.", value=taken.memory_free)
        state = GaugeMetricFamily("partita_vm_state", "1 for the state that the VM is in.", labels=["vm", "state"])
        ok = GaugeMetricFamily("partita_vm_ok", "0 if the VM's last run ended badly.", labels=["vm"])
        for figures, _ in taken.vms:
            state.add_metric([figures.vm, figures.state], 1)
            ok.add_metric([figures.vm], int(figures.ok))
        yield state
        yield ok
        yield from _families(_FIGURES, [figures for figures, _ in taken.vms])
        yield from _families(_COUNTERS, [counters for _, counters in taken.vms])


def _families(families: Iterable[_Family], rows: Sequence[VmFigures | VmCounters]) -> Iterator[Metric]:
    for family in families:
        make: Any = CounterMetricFamily if family.counter else GaugeMetricFamily
        made = make(family.name, family.help, labels=["vm"] if family.field else ["vm", "direction"])
        for row in rows:
            if family.field:
                value = getattr(row, family.field)
                if value is not None:
                    made.add_metric([row.vm], value)
            else:
                made.add_metric([row.vm, "to_root"], getattr(row, family.to_root))
                made.add_metric([row.vm, "to_child"], getattr(row, family.to_child))
        yield made


def rendered(taken: Snapshot, accept: str) -> tuple[bytes, str]:
    """The body and its content type, in the format that a scraper prefers. Needs nothing but its arguments."""
    collector = HostCollector(taken)
    try:
        encode, content_type = choose_encoder(accept)
        return encode(collector), content_type
    except Exception:  # a stranger's header, which prometheus_client takes to be well made
        encode, content_type = choose_encoder("")
        return encode(collector), content_type


@asynccontextmanager
async def open_metrics(host: Host, port: int) -> AsyncIterator[int]:
    """Answer scrapers of this machine until the block ends; the port, which is a free one for 0. Raises `OSError`."""
    listeners = await trio.open_tcp_listeners(port, host=ADDRESS)
    try:
        async with trio.open_nursery() as nursery:
            limiter = trio.CapacityLimiter(MAX_CONNECTIONS)

            async def serve(stream: trio.SocketStream) -> None:
                try:
                    limiter.acquire_on_behalf_of_nowait(stream)
                except trio.WouldBlock:
                    await trio.aclose_forcefully(stream)
                    return
                try:
                    await _serve(host, stream)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # the scraper has gone
                finally:
                    limiter.release_on_behalf_of(stream)
                    await trio.aclose_forcefully(stream)

            nursery.start_soon(_accept, serve, listeners, name="metrics")
            yield int(listeners[0].socket.getsockname()[1])
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # A nursery wraps what the caller's block raises; the caller wants it as it was.
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def _accept(serve: Callable[[trio.SocketStream], Awaitable[None]], listeners: list[trio.SocketListener]) -> None:
    await trio.serve_listeners(serve, listeners)


async def _serve(host: Host, stream: trio.SocketStream) -> None:
    """One request, one answer."""
    untrusted_head = b""
    with trio.move_on_after(REQUEST_SECONDS) as patience:
        while b"\r\n\r\n" not in untrusted_head and b"\n\n" not in untrusted_head:
            data = await stream.receive_some(4096)
            untrusted_head += data
            if not data or len(untrusted_head) > MAX_REQUEST:
                break
    if patience.cancelled_caught or not untrusted_head:
        return
    status, content_type, body, head_only = "200 OK", "text/plain; charset=utf-8", b"", False
    asked = parse(untrusted_head)
    if asked is None:
        status = "400 Bad Request"
    elif asked.host not in ("", *_OWN_NAMES):
        # A page in a browser may not read this by a name of its own that it has led here.
        status = "403 Forbidden"
    elif asked.method not in ("GET", "HEAD"):
        status = "405 Method Not Allowed\r\nAllow: GET, HEAD"
    elif asked.path != "/metrics":
        status, body = "404 Not Found", b"There is nothing here but /metrics.\n"
    else:
        body, content_type = await trio.to_thread.run_sync(rendered, await snapshot(host), asked.accept)
    head_only = asked is not None and asked.method == "HEAD"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with trio.move_on_after(ANSWER_SECONDS):
        await stream.send_all(head.encode() + (b"" if head_only else body))
        await stream.send_eof()


@attrs.frozen
class Asked:
    """What matters of a request."""

    method: str
    path: str
    host: str
    """The name that it was sent to, without a port; empty where it does not say."""
    accept: str


def parse(untrusted_head: bytes) -> Asked | None:
    """A request's line and headers, or None for what is no HTTP/1 request."""
    first, *others = untrusted_head.decode("latin-1").split("\n")
    words = first.split()
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return None
    headers = {}
    for line in others:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    name = headers.get("host", "")
    name = name if name.endswith("]") else name.rpartition(":")[0] or name
    return Asked(words[0], words[1].partition("?")[0], name.lower(), headers.get("accept", ""))
