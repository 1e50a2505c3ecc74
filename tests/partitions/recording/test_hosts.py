"""Recordings of whole hosts: what is read back is what a live trace had, whenever the recording began."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec

import partitions
from hypervisor.trace import Layer, TraceEvent
from partitions import determinism
from partitions.logs import vm_name
from partitions.recording.file import record_to
from partitions.recording.reader import Recording, RecordingReader, read_recording
from partitions.recording.recorder import Recorder
from tests.doubles.recordings import drain
from tests.partitions.copies import copied_example
from vmbus.protocol.versions import Version


def run_disk(path: Path, *, late: bool = False) -> list[TraceEvent]:
    """Example 03-disk on the virtual clock; returns its live trace. `late`: recorded once the writer has its disk."""
    live: list[TraceEvent] = []

    async def main() -> None:
        example = copied_example("03-disk", Path(tempfile.mkdtemp(dir=path.parent)))
        async with partitions.open_host(example) as host:

            def sink(event: TraceEvent) -> None:
                live.append(msgspec.structs.replace(event, vm=vm_name(host.trace.names, event)))

            remove = host.trace.add_sink(sink)
            recording = None if late else record_to(path, host.trace, inline=True)
            await host["writer"].start()
            if late:
                with host["writer"].console.follow() as lines:
                    await anext(aiter(lines))
                recording = record_to(path, host.trace, inline=True)
                live.clear()
            await host["reader"].start()
            await host.wait_all()
            assert recording is not None
            recording.close()
            remove()

    determinism.run(main, clock="virtual", seed=1)
    return live


def test_a_recording_of_a_run_has_every_event_of_its_live_trace(tmp_path: Path) -> None:
    """Names, words, fields, bytes, order: nothing is told apart by whether it was live."""
    path = tmp_path / "run.pcapng"
    live = run_disk(path)
    start, *events = read_recording(path)
    assert start.event == "recording_started"
    assert events == live
    assert {event.layer for event in events} == set(Layer) - {Layer.SCHEDULER}, "whose events have to be asked for"


def test_a_recording_that_begins_late_knows_what_was_there(tmp_path: Path) -> None:
    """The version that was negotiated and whose channels are open: the bytes mean nothing without."""
    path = tmp_path / "late.pcapng"
    live = run_disk(path, late=True)
    recording = Recording(path)
    start, *events = recording
    assert events == live
    assert start.fields["names"] == {"2": "writer"}
    assert start.fields["versions"]["2"] >= Version.V5_0
    assert [2, 1, "storage"] in start.fields["channels"]
    first = next(event for event in events if event.vm == "writer" and event.layer is Layer.PACKET)
    assert first.fields["device"] == "storage"
    assert recording.reader.names == {1: "root", 2: "writer", 3: "reader"}


async def test_a_recorder_of_an_idle_host_says_what_there_is() -> None:
    """As a control socket's stream begins: VMs that are on, before anything happens."""
    async with partitions.open_host("01-message") as host:
        (start,) = RecordingReader().feed(drain(Recorder(host.trace)))
    assert start.fields == {"started": 0, "names": {}, "versions": {}, "channels": []}


async def test_a_program_records_its_host(tmp_path: Path) -> None:
    """From any moment on, as long as it wants."""
    path = tmp_path / "run.pcapng"
    async with partitions.open_host("01-message") as host:
        await host.start_all()
        with host.record(path) as recording:
            await host.wait_all()
        assert not host.trace.on
    assert not recording.dropped
    reading = Recording(path)
    assert {event.event for event in reading} >= {"recording_started", "vm_ended"}
    assert reading.reader.started == host.started > 1_700_000_000


def test_a_host_on_the_virtual_clock_records_the_same_each_time(tmp_path: Path) -> None:
    async def main(path: Path) -> None:
        async with partitions.open_host("01-message") as host:
            with host.record(path):
                await host.start_all()
                await host.wait_all()

    for name in ("one", "two"):
        determinism.run(main, tmp_path / name, clock="virtual", seed=4)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert next(iter(read_recording(tmp_path / "one"))).fields["started"] == 0
