"""What it costs to be watched, and to be able to be: the tap with nobody looking, a recording, a reader. Both sides.

The traffic is a guest's on a whole host: batches of 64 packets of 64 bytes to a VSP that answers each with itself, so
that each crosses the tap twice; the same one packet at a time, both ends asleep in between; and 4 KiB disk reads.

`record_slowdown` is the first of them with everything recorded to a file, hypercalls and interrupts too, until the last
byte is written and with nothing dropped. `filter_events_per_s` goes through a recording for a few events of many.

`off_cost_ratio` cannot be timed as a difference, which would be lost in the noise: what stands in a packet's way when
nobody looks is counted and timed alone, and set against what the packet costs. The worst kind of traffic counts.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
import timeit
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import trio

import partitions
from benchmarks import storage
from benchmarks.host import BENCH_MEMORY, guest_of
from benchmarks.host import topology as disk_topology
from benchmarks.measure import ROUNDS, compare, table
from benchmarks.scale import Echo, open_echo, server_of
from hypervisor.trace import Trace
from partitions.child.guest import Guest
from partitions.recording.file import FileRecording, open_output
from partitions.recording.reader import read_recording
from partitions.trace.filters import parse_filter
from vmbus.channel import RECEIVED, Channel
from vmbus.ring import Packet, PacketType

BATCH = 64
BODY = 64
BATCHES = 800
"""There and back in a round."""
SINGLES = 800
READ_BATCHES = 3000
"""What the recording has that is read and filtered."""
FILTERS = ("layer=control|state", "vm=bench,channel=2,direction=root", "time=0..0.001", "vm=nobody")
"""All want few events or none: what counts is how quickly the others are left behind."""
GUARDS = 200_000


def packets(count: int) -> list[Packet]:
    return [Packet(PacketType.INBAND, 0, number, 0, bytes([number]) * BODY) for number in range(count)]


@attrs.frozen
class Traffic:
    """One kind of it: `open` what is used, and `run` it there. `run` says how many packets that was, both ways."""

    open: Callable[[Guest], Awaitable[Any]]
    run: Callable[[Any], Awaitable[int]]


async def batches(channel: Channel, count: int = BATCHES) -> int:
    batch = packets(BATCH)
    for _ in range(count):
        await channel.send_batch(batch)
        left = BATCH
        while left:
            left -= len(await channel.receive_batch())
    return 2 * count * BATCH


async def singles(channel: Channel, count: int = SINGLES) -> int:
    (packet,) = packets(1)
    for _ in range(count):
        await channel.send(packet)
        await channel.receive()
    return 2 * count


async def reads(disk: Any) -> int:
    await storage.random_batches(disk)
    return 2 * storage.RANDOM_READS


IN_BATCHES = Traffic(open_echo, batches)
ONE_BY_ONE = Traffic(open_echo, singles)
DISK_READS = Traffic(lambda guest: guest.disk(0), reads)
KINDS = {"in batches": IN_BATCHES, "one by one": ONE_BY_ONE, "disk reads": DISK_READS}
Watch = Callable[[partitions.Host], Callable[[], None]]
"""Is called before the first packet, and what it returns after the last; both take their time out of the traffic's."""


def on_host(image: Path, traffic: Traffic, watch: Watch) -> float:
    """Seconds a packet."""
    figures: list[float] = []

    async def main() -> None:
        async def program(guest: Guest) -> None:
            opened = await traffic.open(guest)
            begin = time.perf_counter()
            end = watch(host)
            count = await traffic.run(opened)
            end()
            figures.append((time.perf_counter() - begin) / count)

        async with partitions.open_host(disk_topology(image, BENCH_MEMORY), backends=guest_of(program)) as host:
            await host["bench"].start()
            server_of(host, "bench").offer(Echo())
            ended = await host["bench"].wait()
            assert ended.ok, ended

    trio.run(main)
    return figures[0]


def nobody(host: partitions.Host) -> Callable[[], None]:
    return lambda: None


def recorded(path: Path) -> Watch:
    """Everything to this file."""

    def watch(host: partitions.Host) -> Callable[[], None]:
        recording = FileRecording(host.trace, open_output(str(path)), started=0, inline=False)

        def end() -> None:
            recording.close()
            assert not recording.dropped, recording.dropped

        return end

    return watch


# --- recording


def slowdowns(image: Path, rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """The ratios, and the medians of traffic that nobody looks at."""
    watch = recorded(image.with_name("run.pcapng"))
    medians = compare(
        {
            f"{name}{suffix}": functools.partial(on_host, image, kind, how)
            for name, kind in KINDS.items()
            for suffix, how in (("", nobody), (", recorded", watch))
        },
        rounds,
    )
    print("\na packet through a host\n" + table(medians, "in batches"))
    ratios = {name: medians[f"{name}, recorded"] / medians[name] for name in KINDS}
    return {
        "trace.record_slowdown": ratios["in batches"],
        "trace.record_slowdown.one_by_one": ratios["one by one"],
        "trace.record_slowdown.disk_reads": ratios["disk reads"],
    }, {name: medians[name] for name in KINDS}


# --- nobody looking


class Counted(Trace):
    """A trace that is off and counts how often it was asked whether it is on."""

    __slots__ = ()
    asked = 0

    @property
    def on(self) -> bool:  # type: ignore[override]
        Counted.asked += 1
        return False


@attrs.define
class Asked:
    """What stood in the way of so many packets."""

    guards: int = 0
    taps: int = 0
    packets: int = 0

    def tapped(self, tap: Callable[..., None], *batch: Any) -> None:
        """In the place of a channel's tap."""
        self.taps += 1
        tap(*batch)


def asked_by(image: Path, traffic: Traffic) -> Asked:
    """Guards that are asked, and taps that are called, while nobody looks."""
    asked = Asked()

    def watch(host: partitions.Host) -> Callable[[], None]:
        for offered in server_of(host, "bench").offered:
            channel = offered.channel
            if channel is not None and channel.on_packets is not None:
                channel.on_packets = functools.partial(asked.tapped, channel.on_packets)
        host.trace.__class__ = Counted
        Counted.asked = 0

        def end() -> None:
            asked.guards = Counted.asked
            host.trace.__class__ = Trace

        return end

    async def run(opened: Any) -> int:
        asked.packets = await traffic.run(opened)
        return asked.packets

    on_host(image, Traffic(traffic.open, run), watch)
    return asked


def guard_seconds() -> float:
    """Of one `if self._trace.on`, without what a loop costs."""

    class Owner:
        def __init__(self) -> None:
            self._trace = Trace(lambda: 0)

    owner = Owner()
    timers = [timeit.Timer(text, globals={"self": owner}) for text in ("if self._trace.on: pass", "pass")]
    with_guard, without = (min(timer.repeat(ROUNDS, GUARDS)) for timer in timers)
    return (with_guard - without) / GUARDS


def tap_seconds(image: Path) -> float:
    """Of one call of a channel's tap, the guard in it included."""
    figures: list[float] = []

    def watch(host: partitions.Host) -> Callable[[], None]:
        (offered,) = (offered for offered in server_of(host, "bench").offered if offered.offer.name == "echo")
        assert offered.channel is not None
        names = {"tap": offered.channel.on_packets, "way": RECEIVED, "batch": packets(BATCH)}
        with_tap, without = (
            min(timeit.Timer(text, globals=names).repeat(ROUNDS, GUARDS)) for text in ("tap(way, batch)", "pass")
        )
        figures.append((with_tap - without) / GUARDS)
        return lambda: None

    on_host(image, attrs.evolve(ONE_BY_ONE, run=functools.partial(singles, count=1)), watch)
    return figures[0]


def off_cost_ratio(image: Path, costs: dict[str, float]) -> float:
    """The worst kind of traffic; `costs` are its seconds a packet."""
    guard, tap = guard_seconds(), tap_seconds(image)
    print(f"\nnobody looks: a guard {guard * 1e9:.1f} ns, a channel's tap {tap * 1e9:.1f} ns a batch")
    ratios = {}
    for name, traffic in KINDS.items():
        asked = asked_by(image, traffic)
        inside = asked.guards - asked.taps  # each tap has one guard of its own
        ratios[name] = 1 + (inside * guard + asked.taps * tap) / asked.packets / costs[name]
        print(
            f"{name}: {asked.guards / asked.packets:.2f} guards a packet, {(ratios[name] - 1) * 100:.2f} % of its cost"
        )
    return max(ratios.values())


# --- reading


def filtering(image: Path) -> float:
    """Events a second, the median over filters that want few of them."""
    path = image.with_name("large.pcapng")
    on_host(image, Traffic(open_echo, functools.partial(batches, count=READ_BATCHES)), recorded(path))
    events = sum(1 for _ in read_recording(path))
    speeds = []
    for text in FILTERS:
        chosen = parse_filter(text)
        begin = time.perf_counter()
        found = sum(chosen(event, event.vm) for event in read_recording(path, chosen.wanted()))
        seconds = time.perf_counter() - begin
        speeds.append(events / seconds)
        print(f"{text}: {found} of {events} events in {seconds * 1e3:.0f} ms")
    return statistics.median(speeds)


def measure(rounds: int = ROUNDS) -> dict[str, float]:
    """All keys of this file; prints what they are made of."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.raw"
        storage.make_image(image)
        figures, costs = slowdowns(image, rounds)
        return {
            "trace.off_cost_ratio": off_cost_ratio(image, costs),
            **figures,
            "trace.filter_events_per_s": filtering(image),
        }


if __name__ == "__main__":
    print(measure())
