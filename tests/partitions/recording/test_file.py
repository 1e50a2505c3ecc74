"""A recording that goes to a file or a pipe: the host waits for neither, and says what is missing."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from hypervisor.trace import TO_ROOT, Layer, PacketBatch, Trace, TraceEvent
from partitions.recording import file
from partitions.recording.file import FileRecording, open_output
from partitions.recording.reader import RecordingReader
from tests.doubles.recordings import new_trace
from vmbus.ring import Packet


def packets(count: int, size: int = 64) -> list[Packet]:
    return [Packet(6, 0, number, 0, bytes(size)) for number in range(count)]


def emit(trace: Trace, batch: list[Packet]) -> bool:
    """Returns true, for loops."""

    def event_of(batch: PacketBatch, packet: Packet) -> TraceEvent:
        return TraceEvent(batch.time, Layer.PACKET, "packet_received", batch.partition, data=b"x", direction=TO_ROOT)

    trace.emit_packets(2, 1, TO_ROOT, "storage", batch, event_of)
    return True


def read(path: Path) -> tuple[list[TraceEvent], RecordingReader]:
    reader = RecordingReader(name=str(path))
    events = reader.feed(path.read_bytes())
    reader.finish()
    return events, reader


async def until(condition: Callable[[], bool]) -> None:
    """What another thread does is no event of Trio's."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.001)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for end in (read_end, write_end):
        try:
            os.close(end)
        except OSError:
            pass


@pytest.mark.parametrize("inline", [True, False])
async def test_everything_is_in_the_file_at_the_end(tmp_path: Path, inline: bool) -> None:
    """By a thread or in place: nothing is dropped and the file is whole."""
    trace, path = new_trace(), tmp_path / "run.pcapng"
    recording = FileRecording(trace, open_output(str(path)), started=7, inline=inline)
    for _ in range(200):
        emit(trace, packets(64))
    recording.close()
    recording.close()

    events, reader = read(path)
    assert len(events) == 1 + 200 * 64
    assert (reader.started, reader.truncated_at, bool(recording.dropped), trace.on) == (7, None, False, False)


async def test_blocks_reach_the_file_while_the_host_runs(tmp_path: Path) -> None:
    """Whoever reads along, or reads after a crash, finds them; nobody has to close anything."""
    trace, path = new_trace(), tmp_path / "run.pcapng"
    recording = FileRecording(trace, open_output(str(path)), started=0, inline=False)
    emit(trace, packets(3))
    await until(lambda: path.stat().st_size > 500 and not recording.recorder.waiting)
    assert len(read(path)[0]) == 4
    recording.close()


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
async def test_a_full_disk_ends_the_recording_and_not_the_host(told: list[str], inline: bool) -> None:
    """It is said once, and trace points are free again."""
    trace = new_trace()
    recording = FileRecording(trace, open_output("/dev/full"), started=0, inline=inline, tell=told.append)
    await until(lambda: not (trace.on and emit(trace, packets(64))))
    emit(trace, packets(64))
    recording.close()
    assert told == ["No space left on device; the recording ends here, the run goes on"]
    assert recording.dropped


@pytest.mark.parametrize("inline", [True, False])
async def test_a_disk_that_fills_up_leaves_whole_blocks(
    tmp_path: Path, told: list[str], inline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that Wireshark opens without complaint, though the last write was cut in the middle of a block."""
    trace, path = new_trace(), tmp_path / "run.pcapng"
    room = 100_001
    write = os.write

    def full(descriptor: int, data: memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(28, "No space left on device")
        written = write(descriptor, data[:room])
        room -= written
        return written

    monkeypatch.setattr(file.os, "write", full)
    recording = FileRecording(trace, open_output(str(path)), started=0, inline=inline, tell=told.append)
    for _ in range(100):
        emit(trace, packets(64))
    recording.close()
    events, reader = read(path)
    assert 99_000 < path.stat().st_size < 100_001
    assert (reader.truncated_at, len(told)) == (None, 1)
    assert recording.recorder.written.packets <= len(events) - 1


@pytest.mark.parametrize("inline", [True, False])
async def test_a_reader_that_has_gone_ends_the_recording_and_not_the_host(
    told: list[str], inline: bool, pipe: tuple[int, int]
) -> None:
    trace = new_trace()
    os.close(pipe[0])
    recording = FileRecording(trace, os.dup(pipe[1]), started=0, inline=inline, tell=told.append)
    await until(lambda: not (trace.on and emit(trace, packets(64))))
    recording.close()
    assert told == ["its reader has gone; the recording ends here, the run goes on"]


async def test_a_reader_that_stalls_costs_a_bounded_buffer_and_no_time(
    told: list[str], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host goes on, all that does not fit is counted, and even the end does not wait for ever."""
    monkeypatch.setattr(file, "STALL_SECONDS", 0.05)
    trace = new_trace()
    limit = 1 << 20
    recording = FileRecording(trace, os.dup(pipe[1]), started=0, inline=False, tell=told.append, limit=limit)
    for _ in range(400):
        emit(trace, packets(64))
        assert recording.recorder.waiting <= limit
    recording.close()
    assert recording.stalled
    assert recording.dropped.packets > 10_000
    assert recording.dropped.packets + recording.recorder.written.packets == 400 * 64
    assert told == ["is written too slowly; what does not fit into the buffer is left out and counted"]


async def test_the_host_stands_aside_for_a_writer_that_has_fallen_behind(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long recording at full speed lost packets with an idle disk: its thread never got the interpreter.

    For one whose reader is stalled, which no pause helps, the host does so a few times and no more.
    """
    pauses: list[float] = []
    monkeypatch.setattr(file, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(file.time, "sleep", pauses.append)
    trace = new_trace()
    recording = FileRecording(trace, os.dup(pipe[1]), started=0, inline=False, limit=16 << 20)
    while not recording.dropped:
        emit(trace, packets(64, size=1024))
    for _ in range(100):
        emit(trace, packets(64, size=1024))
    recording.close()
    assert 1 <= len(pauses) <= 16
    assert set(pauses) == {file.PAUSE_SECONDS}


async def test_the_end_waits_for_a_reader_that_takes_less_than_one_write(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow is not stalled: as long as something is taken the end waits, however large the piece under way is."""
    monkeypatch.setattr(file, "STALL_SECONDS", 0.4)
    trace = new_trace()
    recording = FileRecording(trace, os.dup(pipe[1]), started=0, inline=False)
    for _ in range(200):
        emit(trace, packets(64))
    taken = bytearray()

    def take() -> None:
        while piece := os.read(pipe[0], 65536):
            taken.extend(piece)
            time.sleep(0.03)  # all of it takes longer than STALL_SECONDS, what is written at once a third of them

    reader = threading.Thread(target=take, daemon=True)
    reader.start()
    recording.close()
    assert not recording.stalled
    os.close(pipe[1])
    reader.join()
    events = RecordingReader().feed(bytes(taken))
    assert sum(event.layer is Layer.PACKET for event in events) == 200 * 64


async def test_on_the_virtual_clock_a_reader_that_stalls_is_given_up(
    told: list[str], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run waits for its reader there, but not for ever: a blocked write could not even be interrupted."""
    monkeypatch.setattr(file, "INLINE_STALL_SECONDS", 0.05)
    trace = new_trace()
    recording = FileRecording(trace, os.dup(pipe[1]), started=0, inline=True, tell=told.append)
    for _ in range(100):
        emit(trace, packets(64))
    assert not trace.on
    recording.close()
    assert told == ["its reader has stopped reading; the recording ends here, the run goes on"]


async def test_a_slow_reader_gets_all_and_learns_what_is_missing(pipe: tuple[int, int]) -> None:
    """It stops for a while and goes on: the stream it gets is whole blocks with the gap marked."""
    trace = new_trace()
    recording = FileRecording(trace, os.dup(pipe[1]), started=0, inline=False, limit=1 << 20)
    for _ in range(400):
        emit(trace, packets(64))
    reader = RecordingReader()
    kept: list[TraceEvent] = []

    def take() -> None:
        while piece := os.read(pipe[0], 65536):
            kept.extend(reader.feed(piece))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, take)
        await until(lambda: not recording.recorder.waiting)
        emit(trace, packets(5))
        await trio.to_thread.run_sync(recording.close)
        os.close(pipe[1])
    reader.finish()
    received = sum(event.layer is Layer.PACKET for event in kept)
    assert received + recording.dropped.packets == 400 * 64 + 5
    assert (reader.dropped.packets, reader.truncated_at) == (recording.dropped.packets, None)
    assert recording.dropped.packets


async def test_a_filter_holds_for_a_recording_too(tmp_path: Path) -> None:
    """Packets come to it one by one then."""
    trace, path = new_trace(), tmp_path / "run.pcapng"
    recording = FileRecording(
        trace,
        open_output(str(path)),
        started=0,
        inline=True,
        select_from=lambda sink: lambda event: sink(event) if event.layer is Layer.PACKET else None,
    )
    emit(trace, packets(3))
    trace.emit(Layer.STATE, "vm_state", 2)
    recording.close()
    assert [event.event for event in read(path)[0]] == ["recording_started"] + 3 * ["packet_received"]


async def test_a_new_recording_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    path.write_bytes(bytes(100_000))
    recording = FileRecording(new_trace(), open_output(str(path)), started=0, inline=True)
    recording.close()
    assert len(read(path)[0]) == 1
    assert stat.S_IMODE(path.stat().st_mode) & 0o111 == 0
