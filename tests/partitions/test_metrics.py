"""Figures for Prometheus: the numbers of `ps` and `stats`, in a format that its own parser takes, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from partitions import metrics
from partitions.figures import counters_of
from partitions.host import Host, open_host
from partitions.metrics import Asked, open_metrics, parse
from partitions.resources.collect import Source
from tests.doubles.root import bare_host, idle, vm_table


@asynccontextmanager
async def scraped(path: Path) -> AsyncIterator[tuple[Host, int]]:
    async with bare_host(idle, vm_table("web"), vm_table("db"), folder=path) as host, open_metrics(host, 0) as port:
        yield host, port


async def ask(port: int, head: bytes) -> tuple[str, dict[str, str], str]:
    """Status line, headers, body."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(head)
        answer = b""
        while data := await stream.receive_some():
            answer += data
    top, _, body = answer.decode().partition("\r\n\r\n")
    status, *lines = top.split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), body


async def test_the_numbers_of_stats(tmp_path: Path) -> None:
    """Every sample is what the row has, by VM and direction; counters are called so."""
    async with scraped(tmp_path) as (host, port):
        await host["web"].start()
        status, headers, body = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: localhost:1\r\n\r\n")
        row = counters_of(host["web"], Source(host))
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert int(headers["Content-Length"]) == len(body.encode())
    families = {family.name: family for family in text_families(body)}
    labels = ("vm", "state", "direction")
    values = {
        (sample.name, *(sample.labels[name] for name in labels if name in sample.labels)): sample.value
        for family in families.values()
        for sample in family.samples
    }
    assert values["partita_host_vms",] == 2
    assert values["partita_vm_state", "web", "running"] == values["partita_vm_state", "db", "off"] == 1
    assert values["partita_vm_port_accesses_total", "web"] == row.port_accesses > 0
    assert values["partita_vm_packets_total", "web", "to_root"] == row.packets_in
    assert values["partita_vm_memory_bytes", "db"] == host["db"].settings.memory
    assert families["partita_vm_hypercalls"].type == "counter"
    assert all(name.startswith("partita_") for name in families)


async def test_both_directions(tmp_path: Path) -> None:
    """What the guest sent and what it was sent are samples of one metric, each with its own number."""
    async with bare_host(idle, folder=tmp_path) as host:
        (row,) = (await metrics.snapshot(host)).vms
    counters = msgspec.structs.replace(row[1], packets_in=3, packets_out=5, bytes_in=30, bytes_out=50)
    body, _ = metrics.rendered(metrics.Snapshot(1.0, [(row[0], counters)]), "")
    assert b'partita_vm_packets_total{direction="to_root",vm="web"} 3.0\n' in body
    assert b'partita_vm_packets_total{direction="to_child",vm="web"} 5.0\n' in body
    assert b'partita_vm_ring_bytes_total{direction="to_child",vm="web"} 50.0\n' in body


async def test_the_newer_format(tmp_path: Path) -> None:
    """A scraper that prefers OpenMetrics gets it, whole: its parser insists on the last line."""
    async with scraped(tmp_path) as (_, port):
        head = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n"
        _, headers, body = await ask(port, head)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert {"partita_vm_state", "partita_vm_hypercalls"} <= {family.name for family in open_families(body)}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"GET /metrics?name=x HTTP/1.0\n\n", "200 OK"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", "200 OK"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed"),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403 Forbidden"),
        (b"GET /metrics HTTP/1.1\r\nHost: [::1]:9464\r\n\r\n", "200 OK"),
        (b"\x16\x03\x01\x02\x00 hello\r\n\r\n", "400 Bad Request"),
        (b"x" * 20_000, "400 Bad Request"),
    ],
)
async def test_requests_of_all_kinds(tmp_path: Path, head: bytes, status: str) -> None:
    """What is no request for the figures gets a status and the connection's end; the next one is served."""
    async with scraped(tmp_path) as (_, port):
        said, headers, body = await ask(port, head)
        assert said == f"HTTP/1.1 {status}"
        assert headers["Connection"] == "close"
        assert bool(body) == (status in ("200 OK", "404 Not Found") and not head.startswith(b"HEAD"))
        assert (await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 200 OK"


@given(st.binary(max_size=200))
def test_no_head_is_an_exception(untrusted_head: bytes) -> None:
    """Whatever the bytes, there is a request or there is none."""
    assert isinstance(parse(untrusted_head), Asked | None)


async def test_silent_peers_are_bounded(
    tmp_path: Path, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says nothing is closed after a while, one too many at once."""
    monkeypatch.setattr(metrics, "MAX_CONNECTIONS", 2)
    async with scraped(tmp_path) as (_, port):
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        assert await silent[2].receive_some() == b""
        began = trio.current_time()
        assert await silent[0].receive_some() == b""
        assert trio.current_time() - began == pytest.approx(metrics.REQUEST_SECONDS)
        for stream in silent:
            await stream.aclose()


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=1.x.0",
        "application/openmetrics-text;version=1.x.0;escaping=none",
        "application/openmetrics-text; version=; escaping=",
        "text/plain;version=1.x;escaping=allow-utf-8",
        ";;=;q=",
    ],
)
async def test_no_accept_ends_the_host(tmp_path: Path, accept: str) -> None:
    """One request of any user of the machine cut the power of every VM: the library raised over its version."""
    async with scraped(tmp_path) as (host, port):
        status, _, body = await ask(port, f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n".encode())
        assert status == "HTTP/1.1 200 OK"
        assert "partita_host_vms" in body
        assert len(host) == 2


async def test_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    """Only the loopback address, and a port that is taken is an error of the start."""
    async with scraped(tmp_path) as (host, port):
        with pytest.raises(OSError, match="in use"):
            async with open_metrics(host, port):
                pass


async def test_a_thousand_vms_do_not_hold_the_loop(tmp_path: Path) -> None:
    """Others get their turn between rows: no more of them than `ROWS_AT_ONCE` are made in one go."""
    made: list[int] = []
    vms = [vm_table(f"vm{number}") for number in range(100)]
    async with bare_host(idle, *vms, folder=tmp_path) as host, trio.open_nursery() as nursery:

        async def other() -> None:
            while True:
                made.append(0)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        made.clear()
        assert len((await metrics.snapshot(host)).vms) == 100
        nursery.cancel_scope.cancel()
    assert len(made) >= 100 // metrics.ROWS_AT_ONCE - 1


async def test_curl_and_a_run_of_an_example(tmp_path: Path) -> None:
    """A client that nobody here wrote."""
    async with open_host("01-message") as host, open_metrics(host, 0) as port:
        await host.start_all()
        await host.wait_all()
        call = ["curl", "--silent", "--show-error", "--fail", f"http://localhost:{port}/metrics"]
        try:
            done = await trio.run_process(call, capture_stdout=True)
        except FileNotFoundError:
            pytest.skip("curl is not installed")
        except subprocess.CalledProcessError as error:
            raise AssertionError(error.stderr) from error
    assert b'partita_vm_state{state="off",vm="alpha"} 1.0\n' in done.stdout
