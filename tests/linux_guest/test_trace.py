"""A stock kernel's traffic, recorded while it boots: read by tshark, and compared with the kernel's own trace of it."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, TraceEvent
from partitions.decode.ftrace import FtraceReader, is_ftrace
from partitions.host import Host, Vm
from partitions.recording.file import FileRecording, record_to
from partitions.recording.reader import Recording
from partitions.topology_schema import DiskTable
from partitions.trace.requests import RequestTracker
from tests.doubles import tshark
from tests.linux_guest import guest

MIB = 1 << 20
READS = 40
TRACED = """
mount -t tracefs none /sys/kernel/tracing || exit 1
cd /sys/kernel/tracing
echo 1 > events/hyperv/enable
for each in vmbus_chan_sched vmbus_setevent vmbus_on_event; do echo 0 > events/hyperv/$each/enable; done
"""
STEPS = {
    "bus": "load hv_vmbus",
    "traced": TRACED,
    "disk": "all; await 60 test -b /dev/sda",
    "read": f"dd if=/dev/sda of=/dev/null bs=4k count={READS} iflag=direct",
    "ftrace": "cd /sys/kernel/tracing; echo 0 > tracing_on; cat trace",
    "over": "true",
}
Boot = tuple[guest.Evidence, Path, list[TraceEvent]]


@pytest.fixture(scope="module")
def boot(tmp_path_factory: pytest.TempPathFactory) -> Boot:
    """One disk, all of the traffic from before the bus driver is loaded, and what was recorded of it."""
    folder = tmp_path_factory.mktemp("trace")
    (folder / "disk.raw").write_bytes(bytes(8 * MIB))
    capture = folder / "boot.pcapng"
    made: list[FileRecording] = []

    async def begin(host: Host, _vm: Vm) -> None:
        made.append(record_to(capture, host.trace, inline=False))

    async def end(_host: Host, _vm: Vm) -> None:
        made[0].close()

    plan = guest.Plan(steps=STEPS, disks=[DiskTable(path=str(folder / "disk.raw"), read_only=True)])
    evidence = guest.boot(plan, folder, {"bus": begin, "over": end})
    assert not made[0].dropped
    return evidence, capture, list(Recording(capture))


def messages(events: list[TraceEvent]) -> list[TraceEvent]:
    return [event for event in events if event.layer is Layer.CONTROL and event.direction]


def test_every_step_was_done(boot: Boot) -> None:
    """The guest's own word for it."""
    evidence, _, _ = boot
    for step in STEPS:
        assert evidence.steps[step].status == 0, evidence.steps[step].output


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed (Debian: tshark)")
def test_tshark_finds_nothing_malformed(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """Each packet and message of a real driver is read by the dissector, field by field, without a fault."""
    _, capture, events = boot
    tshark.assert_clean(capture)
    info = tshark.read_info(capture)
    evidence("tshark", f"{len(info)} frames of a boot, none malformed\n" + "\n".join(info[:12]))
    assert len(info) >= sum(event.layer in (Layer.CONTROL, Layer.PACKET) for event in events) > READS


def test_the_kernel_traces_the_same_messages(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """What hv_vmbus says of itself by its tracepoints, put into words here, is what the host saw: names and numbers."""
    told, _, events = boot
    reader = FtraceReader("linux")
    lines = [line for line in told["ftrace"].splitlines() if is_ftrace(line)]
    theirs = [event for line in lines if (event := reader.feed(line)) is not None and event.layer is Layer.CONTROL]
    assert not list(reader.notes())
    ours = messages(events)
    for direction, names in (
        (TO_ROOT, ("open_channel", "gpadl_header", "gpadl_body")),
        (TO_CHILD, ("open_channel_result", "gpadl_created")),
    ):
        for name in names:
            mine = [event for event in ours if event.event == name and event.direction == direction]
            seen = [event for event in theirs if event.event == name and event.direction == direction]
            # The host has also seen what came before the tracepoints were on: the integration components' channels.
            assert seen, f"no {name} in\n" + "\n".join(lines)
            assert not Counter((e.event, e.channel) for e in seen) - Counter((e.event, e.channel) for e in mine)
    evidence("hyperv tracepoints", "\n".join(f"{event.event:22} {event.words}" for event in theirs[:14]))


def test_each_read_is_a_request_with_an_answer(boot: Boot, evidence: Callable[[str, str], None]) -> None:
    """Doorbell, interrupt, packet, SCSI command, completion and the guest's interrupt, for each of them."""
    _, _, events = boot
    tracker = RequestTracker()
    done = [request for event in events for request in tracker.feed(event)]
    reads = [request for request in done if "READ(10)" in request.words]
    assert len(reads) >= READS
    assert all(request.ended >= request.started for request in reads)
    slowest = max(reads, key=lambda request: request.ended - request.started)
    evidence("a read's hops", "\n".join(f"{hop.place:10} {hop.event.event}" for hop in slowest.hops))


def test_the_bytes_make_the_words(boot: Boot) -> None:
    """Read back from the file, every message has its words, and none of a real driver's is unknown."""
    _, _, events = boot
    for event in messages(events):
        assert event.data
        assert event.words
        assert event.event != "unknown"
