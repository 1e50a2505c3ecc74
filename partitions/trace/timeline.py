"""A trace as Chrome trace events, which Perfetto and chrome://tracing draw as a timeline. Root side.

    a process for each VM   its state; a track for each virtual processor with interrupts, hypercalls and registers; a
                            track for each channel with its packets; requests from question to answer; counters
    hypervisor              event flags and messages, by VM
    root                    its own processors, and a track for each device's work, by VM and channel

Arrows follow a request: the hypercall that signals, the packet, the device's work, the answer, the guest's interrupt.

The file is a JSON array without its end until the end comes: readers take what a killed run has left. Events are
written as they come, those of a request when it is over, so memory stays bounded by what is under way. Readers sort by
time and break ties by place in the file; to leave no ties, what happened in one tick of 100 ns is told 1 ns apart.

Format: Trace Event Format (Google, 2016), array form; as Perfetto reads it: slices of a thread nest, tids are unique
in the whole file, flows bind to the slice of a thread that is open at their time, and an asynchronous track has the
name of its first slice. Tried with Perfetto 52.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import attrs
import msgspec

from hypervisor.clock import TICKS_PER_SECOND
from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, Level, TraceEvent
from partitions.logs import ROOT_NAME, ROOT_PARTITION, printable
from partitions.recording.event_codec import STARTED
from partitions.trace.channel_names import ChannelNames
from partitions.trace.requests import Outcome, Request, RequestTracker

_HYPERVISOR: Final = "\0"
"""No VM is called that."""
_FIRST_TID: Final = 100_000
"""Above every process ID: a thread with its process's ID would be taken for its main thread."""
_BIN: Final = 100_000
"""How long bytes are added up for one point of a rate: 10 ms in ticks."""
_BINS_A_SECOND: Final = TICKS_PER_SECOND // _BIN
_WRITE_AT: Final = 1 << 16
"""Characters that are kept before they are written, for a second at most while anything happens."""
_SAFE: Final = msgspec.json.Encoder(enc_hook=str)


@attrs.define
class _Channel:
    """What is counted of one channel."""

    name: str
    in_flight: int = 0
    bin: int = 0
    data: int = 0
    ring: int = 0
    lanes: list[int] = attrs.field(factory=list)
    """When the last request of each lane ended, in ns."""


class Timeline:
    """Takes events in order and writes what they come to. `finish` it once, or leave the file as it is."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._waiting: list[str] = []
        self._size = 0
        self._written = 0
        """When, in ticks."""
        self._last = -1
        self._names = ChannelNames()
        self._partitions: dict[int, str] = {}
        self._tracker = RequestTracker()
        self._processes: dict[str, int] = {}
        self._open: set[str] = set()
        """Tracks with a slice that has begun and not ended."""
        self._tracks: dict[tuple[Any, ...], str] = {}
        self._channels: dict[tuple[str, int], _Channel] = {}
        self._work: dict[tuple[str, int], list[int]] = {}
        """When the last work of each lane of a device's channel ended, in ns."""
        self._calls: dict[int, tuple[int, int]] = {}
        """By caller, the last signal or message: its connection and its time. Its hypercall has not returned."""
        self._flows = 0
        self._empty = True
        self._process(_HYPERVISOR, 1_000_000)
        self._process(ROOT_NAME, 1_000_001)

    # --- taking events

    def feed(self, event: TraceEvent, vm: str) -> None:
        """One more thing happened, to this VM."""
        self._names.learn(event, vm)
        if event.event == STARTED:
            return
        self._last = at = max(event.time * 100, self._last + 1)
        partition = event.partition
        if vm.startswith("#"):
            vm = self._partitions.get(partition, "")
        elif partition:
            self._partitions[partition] = vm
        again = TraceEvent(
            *(at, event.layer, event.event, partition, event.level, event.direction),
            *(event.channel, event.size, event.words, event.fields, vm or _HYPERVISOR),
        )
        over = self._tracker.feed(again)
        match event.layer:
            case Layer.HYPERCALL:
                self._hypercall(again)
            case Layer.MSR | Layer.PORT | Layer.INTERRUPT:
                self._on_processor(again)
            case Layer.SYNIC:
                self._synic(again)
            case Layer.CONTROL:
                self._instant(self._thread(again.vm, "control messages", 1_000), again)
            case Layer.PACKET:
                self._packet(again, event.time)
            case Layer.DEVICE:
                self._device(again, event.time)
            case Layer.STATE:
                self._state(again)
            case Layer.SCHEDULER:
                self._scheduled(again)
        for request in over:
            self._request(request)
            if request.outcome is not Outcome.ANSWERED:
                self._count(request.vm, request.partition, request.channel, at)
        if self._size >= _WRITE_AT or event.time - self._written >= TICKS_PER_SECOND:
            self._written = event.time
            self.flush()

    def finish(self) -> None:
        """End the file. What is still open ends here."""
        for request in [*self._tracker.finish(), *self._tracker.open]:
            self._request(request)
        self._last += 1
        for track in sorted(self._open):
            self._end(track, self._last)
        for (vm, number), channel in self._channels.items():
            self._rate(vm, number, channel, None)
        self.flush()
        self._write(b"\n]\n")

    def flush(self) -> None:
        """Write what is kept."""
        if self._waiting:
            waiting, self._waiting, self._size = self._waiting, [], 0
            self._write("".join(waiting).encode())

    # --- writing

    def _record(self, phase: str, at: int, track: str, rest: str = "") -> None:
        # The time comes before any text: Perfetto has had readers that look for it without decoding strings.
        self._add(f'"ph":"{phase}","ts":{at // 1000}.{at % 1000:03},{track}{rest}')

    def _add(self, fields: str) -> None:
        line = f"{_BEGIN if self._empty else _COMMA}{{{fields}}}"
        self._empty = False
        self._waiting.append(line)
        self._size += len(line)

    def _slice(self, at: int, until: int, track: str, category: str, name: str, arguments: Mapping[str, Any]) -> None:
        long = until - at
        self._record(
            "X",
            at,
            track,
            f',"dur":{long // 1000}.{long % 1000:03},"cat":"{category}","name":{_quoted(name)},'
            f'"args":{_arguments(arguments)}',
        )

    def _instant(self, track: str, event: TraceEvent, name: str = "") -> None:
        """A slice that takes no time, so that arrows can begin and end at it."""
        name = name or event.words or event.event.replace("_", " ")
        if event.level >= Level.WARNING:
            name = f"{event.level.name.lower()}: {name}"
        arguments = event.fields if event.size is None else {"size": event.size, **event.fields}
        self._slice(event.time, event.time, track, event.layer, name, arguments)

    def _meta(self, name: str, key: str, value: str | int, pid: int, tid: int) -> None:
        self._add(f'"ph":"M","pid":{pid},"tid":{tid},"name":"{name}","args":{{"{key}":{_quoted(value)}}}')

    # --- tracks

    def _process(self, name: str, place: int | None = None) -> int:
        pid = self._processes.get(name)
        if pid is None:
            pid = self._processes[name] = len(self._processes) + 1
            title = "hypervisor" if name == _HYPERVISOR else name
            self._meta("process_name", "name", title, pid, pid)
            self._meta("process_sort_index", "sort_index", place or pid, pid, pid)
        return pid

    def _thread(self, process: str, name: str, place: int) -> str:
        """The part of a record that says which track, made and named when it is first used."""
        track = self._tracks.get((process, name))
        if track is None:
            pid, tid = self._process(process), _FIRST_TID + len(self._tracks)
            track = self._tracks[process, name] = f'"pid":{pid},"tid":{tid}'
            self._meta("thread_name", "name", name, pid, tid)
            self._meta("thread_sort_index", "sort_index", place, pid, tid)
        return track

    def _processor(self, partition: int, vm: str, index: object) -> str:
        number = index if isinstance(index, int) else 0
        whose = ROOT_NAME if partition == ROOT_PARTITION else self._partitions.get(partition, vm)
        return self._thread(whose, f"VP {number}", 10 + number)

    def _channel_name(self, vm: str, number: int) -> str:
        device = self._names.device(vm, number)
        return f"channel {number} {device}".rstrip()

    def _channel(self, vm: str, number: int) -> _Channel:
        channel = self._channels.get((vm, number))
        if channel is None:
            channel = self._channels[vm, number] = _Channel(self._channel_name(vm, number))
        return channel

    def _packets(self, vm: str, number: int) -> str:
        return self._thread(vm, self._channel(vm, number).name, 2_000 + number)

    # --- layer by layer

    def _hypercall(self, event: TraceEvent) -> None:
        """Told at its return: of those that signal and post, the slice begins where they took effect."""
        caller, start = _int(event, "caller", event.partition), event.time
        if found := _CONNECTION.search(event.words):
            connection, sent = self._calls.pop(caller, (-1, 0))
            start = sent if connection == int(found[1], 16) else start
        track = self._processor(caller, event.vm, event.fields.get("vp"))
        call = str(event.fields.get("call", event.event))
        self._slice(start, event.time, track, event.layer, call, {"is": event.words.removesuffix(" -> SUCCESS")})

    def _on_processor(self, event: TraceEvent) -> None:
        match event.event:
            case "interrupt":
                name = f"interrupt {_int(event, 'vector'):#x}"
            case "read_msr" | "write_msr":
                name = f"{event.event[:-4]} {event.words}"
            case "port_in" | "port_out":
                name = f"{event.event[5:]} {_int(event, 'port'):#x}"
            case _:
                name = ""
        self._instant(self._processor(event.partition, event.vm, event.fields.get("vp")), event, name)

    def _synic(self, event: TraceEvent) -> None:
        connection = event.fields.get("connection")
        if isinstance(connection, int):
            caller = event.partition if event.direction == TO_ROOT else ROOT_PARTITION
            self._calls[caller] = connection, event.time
        way = event.direction or "to itself"
        name = f"{event.event.replace('_', ' ')} {way}"
        if event.event == "signal_event":
            name = f"event flag {event.fields.get('flag')} {way}"
        elif event.event == "post_message":
            name = f"message of {event.size} bytes {way}"
        self._instant(self._thread(_HYPERVISOR, f"SynIC {event.vm if event.vm != _HYPERVISOR else ''}", 0), event, name)

    def _packet(self, event: TraceEvent, time: int) -> None:
        if event.channel is None:
            return
        self._instant(self._packets(event.vm, event.channel), event)
        self._count(event.vm, event.partition, event.channel, event.time)
        self._moved(event.vm, event.channel, time, ring=event.size or 0)

    def _device(self, event: TraceEvent, time: int) -> None:
        number, channel = event.fields.get("transaction"), event.channel
        if channel is None:
            self._instant(
                self._thread(ROOT_NAME, f"{event.fields.get('component', 'device')} {event.vm}", 3_000), event
            )
            return
        if event.direction == TO_CHILD and event.size:
            self._moved(event.vm, channel, time, data=event.size)
        if not isinstance(number, int) or not self._tracker.waits(event.partition, channel, number):
            self._instant(self._device_track(event.vm, channel, 0), event)

    def _state(self, event: TraceEvent) -> None:
        track = self._thread(event.vm, "state", 0)
        if event.event in ("vp_suspended", "vp_resumed"):
            self._stopped(event)
        elif event.event != "vm_state":
            self._instant(track, event, f"{event.event.replace('_', ' ')}: {event.words}" if event.words else "")
        else:
            self._end(track, event.time)
            self._begin(track, event.time, event.words.rpartition("-> ")[2] or "unknown")

    def _stopped(self, event: TraceEvent) -> None:
        """How long a processor stood still, beside its track: it may have stopped in the middle of something."""
        number = _int(event, "vp")
        track = self._thread(event.vm, f"VP {number} stopped", 10 + number)
        self._end(track, event.time)
        if event.event == "vp_suspended":
            self._begin(track, event.time, f"suspended {event.words}".rstrip())

    def _scheduled(self, event: TraceEvent) -> None:
        """One track a logical processor, with whom it executes; why it stopped stands at the processor's own."""
        lp, vp = _int(event, "lp"), _int(event, "vp")
        if event.event == "continue":
            return
        track = self._thread(_HYPERVISOR, f"LP {lp}", 100 + lp)
        self._end(track, event.time)
        if event.event == "dispatch":
            self._begin(track, event.time, f"{event.vm} VP {vp}")
        else:
            self._instant(self._processor(event.partition, event.vm, vp), event)

    def _begin(self, track: str, at: int, name: str) -> None:
        self._open.add(track)
        self._record("B", at, track, f',"cat":"state","name":{_quoted(name)}')

    def _end(self, track: str, at: int) -> None:
        if track in self._open:
            self._open.remove(track)
            self._record("E", at, track)

    # --- requests

    def _device_track(self, vm: str, channel: int, lane: int) -> str:
        device = self._names.device(vm, channel) or "device"
        more = f" ({lane + 1})" if lane else ""
        return self._thread(ROOT_NAME, f"{device} VSP, {vm} channel {channel}{more}", 4_000 + 64 * channel + lane)

    def _request(self, request: Request) -> None:
        """All of one request: its slice, the device's work in it, and the arrows between."""
        vm, number = request.vm, request.channel
        channel, packets = self._channel(vm, number), self._packets(vm, number)
        ended = max(request.ended, request.started)
        if request.outcome is Outcome.OPEN:
            ended = max(ended, self._last)
        lane, is_new = _lane(channel.lanes, request.started, ended)
        # A local ID is of one process; Perfetto puts those that are not beside all processes.
        thread = int(packets.rpartition(":")[2])
        track = f'{packets},"cat":"request","id2":{{"local":"{thread << 16 | lane:#x}"}}'
        if is_new:
            # An asynchronous track has no name of its own: it is called as the first thing on it.
            self._record("n", request.started, track, f',"name":{_quoted(f"{channel.name}, requests")}')
        told = _arguments(
            {"request": request.name, "outcome": request.result or request.outcome.value, "bytes": request.size}
        )
        name = _quoted(request.words or "request")
        self._record("b", request.started, track, f',"name":{name},"args":{told}')
        work = [hop.event for hop in request.hops if hop.event.layer is Layer.DEVICE]
        on_device = ""
        if work:
            first, last = work[0].time, work[-1].time
            inner = _quoted(self._names.device(vm, number) or "device")
            self._record("b", first, track, f',"name":{inner}')
            self._record("e", last, track, f',"name":{inner}')
            on_device = self._device_track(vm, number, _lane(self._work.setdefault((vm, number), []), first, last)[0])
            self._slice(first, last, on_device, "device", request.words, {"request": request.name})
        self._record("e", ended, track, f',"name":{name}')
        self._arrows(request, packets, on_device)

    def _arrows(self, request: Request, packets: str, on_device: str) -> None:
        """From the signal over the packet, the device and the answer to the interrupt, as far as there were such."""
        points: dict[int, str] = {}
        worked = False
        for hop in request.hops:
            event = hop.event
            match event.layer:
                case Layer.PACKET:
                    points[event.time] = packets
                case Layer.DEVICE if not worked:
                    worked = True
                    points[event.time] = on_device
                case Layer.HYPERCALL | Layer.INTERRUPT if hop.place == "guest":
                    who = _int(event, "caller", event.partition)
                    points[event.time] = self._processor(who, request.vm, event.fields.get("vp"))
                case _:
                    pass
        if len(points) < 2:
            return
        self._flows += 1
        last = len(points) - 1
        for index, at in enumerate(sorted(points)):
            phase = "s" if index == 0 else "f" if index == last else "t"
            binds = ',"bp":"e"' if phase == "f" else ""
            self._record(phase, at, points[at], f',"cat":"request","name":"request","id":{self._flows}{binds}')

    # --- counters

    def _count(self, vm: str, partition: int, number: int, at: int) -> None:
        """How many requests are under way on a channel, where that has changed."""
        channel, waiting = self._channel(vm, number), self._tracker.open_on(partition, number)
        if waiting != channel.in_flight:
            channel.in_flight = waiting
            self._counter(vm, number, at, "in flight", f'{{"requests":{waiting}}}')

    def _counter(self, vm: str, number: int, at: int, what: str, values: str) -> None:
        name = _quoted(f"{what}, {self._channel(vm, number).name}")
        self._record("C", at, self._packets(vm, number), f',"name":{name},"args":{values}')

    def _moved(self, vm: str, number: int, time: int, *, data: int = 0, ring: int = 0) -> None:
        channel = self._channel(vm, number)
        now = time // _BIN
        if now != channel.bin:
            self._rate(vm, number, channel, now)
            channel.bin = now
        channel.data += data
        channel.ring += ring

    def _rate(self, vm: str, number: int, channel: _Channel, now: int | None) -> None:
        """Tell of the bin that is over, and of the silence behind it."""
        if channel.data or channel.ring:
            values = f'{{"data":{channel.data * _BINS_A_SECOND},"ring":{channel.ring * _BINS_A_SECOND}}}'
            self._counter(vm, number, channel.bin * _BIN * 100, "bytes/s", values)
            if now is None or now > channel.bin + 1:
                self._counter(vm, number, (channel.bin + 1) * _BIN * 100, "bytes/s", '{"data":0,"ring":0}')
        channel.data = channel.ring = 0


def _lane(lanes: list[int], start: int, end: int) -> tuple[int, bool]:
    """Take a lane that is free from `start` on, of those the one that was free for the shortest time, or a new one."""
    best = -1
    for index, free in enumerate(lanes):
        if free < start and (best < 0 or free > lanes[best]):
            best = index
    if best >= 0:
        lanes[best] = end
        return best, False
    lanes.append(end)
    return len(lanes) - 1, True


_BEGIN: Final = "[\n"
_COMMA: Final = ",\n"


_CONNECTION = re.compile(r"\bconnection_id=0x([0-9a-f]{1,8})\b")


def _int(event: TraceEvent, name: str, otherwise: int = 0) -> int:
    value = event.fields.get(name)
    return value if isinstance(value, int) else otherwise


@lru_cache(maxsize=4096)
def _quoted(text: str | int) -> str:
    return _SAFE.encode(printable(text) if isinstance(text, str) else text).decode()


def _arguments(values: Mapping[str, Any]) -> str:
    try:
        return _SAFE.encode(values).decode()
    except (UnicodeEncodeError, ValueError, OverflowError):
        # Lone surrogates in guest text, integers past 64 bits: as words rather than not at all.
        return _SAFE.encode({key: printable(str(value)) for key, value in values.items()}).decode()
