"""Requests, put together from trace events: every hop of a ring packet and of its answer, by cause. Root side.

A request is a ring packet whose sender wants a completion; the host's integration components ask without saying so, in
band, and are answered so. Everything in a trace happened in one thread, so causes stand before effects, and what
belongs together stands together:

    signal_event >root, interrupt, hypercall    one HvSignalEvent of the guest's, told when it returns
    packet_received ...                         the batch that the root took from the ring because of it
    a device's events                           they name the packet's transaction ID
    packet_sent ...                             a batch of answers
    signal_event >child, interrupt, hypercall   and the one signal for them, at once

One signal may stand for many packets: they share its hops. None is needed while the other side is still looking at the
ring, so a packet without a signal is usual. A signal without a hypercall was KVM's doorbell or a monitor page's.
Whatever a guest does, the memory that is held is bounded, and what had to be forgotten is counted.
"""

from __future__ import annotations

import enum
import re
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal

import attrs
import msgspec

from hypervisor.trace import TO_CHILD, TO_ROOT, Layer, TraceEvent
from partitions.logs import ROOT_PARTITION, vm_name
from vmbus.protocol.identifiers import SHARED_EVENT_CONNECTION, SHARED_EVENT_FLAG, event_connection_id
from vmbus.ring import COMPLETION_REQUESTED, PacketType

MAX_OPEN: Final = 4096
"""Unanswered requests of one channel; the oldest is forgotten for one more."""
MAX_OPEN_IN_ALL: Final = 65_536
MAX_HOPS: Final = 64
"""Of one request. No request of an honest device comes near it."""
MAX_UNTOLD: Final = 256
"""Answers of one channel that wait for the look at the monitor page."""
MAX_HELD_BYTES: Final = 16 << 20
"""Packet bytes kept with open requests; past it hops are kept without."""
MAX_CHANNELS: Final = 65_536
MAX_NUMBERED: Final = 65_536
"""Transaction IDs, of all channels, whose uses are counted. The one unused for longest is counted from 1 again."""

Place = Literal["guest", "hypervisor", "root"]
"""Who acts in a hop."""

_INTEGRATION: Final = frozenset({"heartbeat", "shutdown", "time-sync", "kvp", "vss", "file-copy"})
"""Devices whose host asks and whose guest answers, by in-band packets without flags."""
_NAMED: Final = frozenset({"storage", "ide"})
"""Devices whose events name the request that they are about; what they say without is about none."""
_CONNECTION = re.compile(r"\bconnection_id=(0x[0-9a-f]+)")


class Hop(msgspec.Struct, frozen=True, gc=False):
    """One step of a request's way."""

    time: int
    """When it began, as far as is known, in 100 ns units: the hypercall that signals, when it set the flag."""
    place: Place
    event: TraceEvent


class Outcome(enum.StrEnum):
    """How a request ended, for people."""

    ANSWERED = "answered"
    CLOSED = "channel closed"
    """Nobody answers it any more."""
    FORGOTTEN = "forgotten"
    """By this tracker: too many were open at once."""
    OPEN = "not answered yet"


class Request(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One packet that wants a completion, and what came of it. Times in 100 ns units."""

    vm: str
    partition: int
    channel: int
    transaction_id: int
    number: int
    """Which use of the transaction ID on this channel, from 1."""
    by_host: bool = False
    """Asked by the root, answered by the guest: integration components do, and network cards."""
    device: str = ""
    """Short name, such as `storage`."""
    words: str = ""
    """What was asked, in the device's words, or else what the packet's bytes say."""
    result: str = ""
    """What the device made of it, in its words."""
    size: int = 0
    """Bytes that the device moved, or else of the packet's payload."""
    started: int
    ended: int
    """The receiver's interrupt, or the answer in the ring where none was needed; of an open one, its last hop."""
    hops: list[Hop]
    outcome: Outcome = Outcome.OPEN
    hops_left_out: int = 0

    @property
    def name(self) -> str:
        """`reader/1/0x4`, `reader/1/0x4.2` for the ID's second use, `web/3/host:0x1` for one of the host's."""
        again = f".{self.number}" if self.number > 1 else ""
        return f"{self.vm}/{self.channel}/{'host:' if self.by_host else ''}{self.transaction_id:#x}{again}"

    @property
    def duration(self) -> int:
        """In 100 ns units."""
        return self.ended - self.started


@attrs.define(eq=False)
class _Signal:
    """One setting of an event flag, and what it brought about."""

    event: TraceEvent
    hops: list[Hop]
    interrupted: bool = False

    def completed_by(self, event: TraceEvent) -> bool:
        """Whether this is the hypercall that did it."""
        caller = ROOT_PARTITION if self.event.direction == TO_CHILD else self.event.partition
        if event.layer is not Layer.HYPERCALL or event.fields.get("caller") != caller:
            return False
        if event.fields.get("call") != "HvSignalEvent":
            return False
        found = _CONNECTION.search(event.words)
        return found is None or int(found[1], 16) == self.event.fields.get("connection")


@attrs.define(eq=False)
class _Channel:
    """What is open on one channel."""

    open: dict[tuple[bool, int], deque[Request]] = attrs.field(factory=dict)
    """By direction and transaction ID, the oldest first."""
    order: OrderedDict[int, Request] = attrs.field(factory=OrderedDict)
    """All of them by age, by `id`."""
    signal: _Signal | None = None
    """The guest's last signal, until a batch was taken because of it."""
    announced: TraceEvent | None = None
    """What the root's device has said it will ask, until the packet that does."""
    monitored: bool = False
    """The host's signals come by a monitor page: later, when somebody looks at it."""
    answered: list[Request] = attrs.field(factory=list)
    """Of a monitored channel: what is in the guest's ring and was not signaled yet."""
    shared_seen: int = 0
    """The number of the last shared signal that a batch of this channel was taken because of."""


@attrs.define(eq=False)
class _Sending:
    """A batch that goes into the guest's ring now: the signal for it, if any, comes next."""

    partition: int
    channel: int
    answered: list[Request]
    asked: list[Request]
    signal: _Signal | None = None


class RequestTracker:
    """Takes events in order and gives back requests that are over. Raises nothing over what events hold."""

    def __init__(self, names: Mapping[int, str] | None = None) -> None:
        """`names` says which VM a partition is, for events that do not say so themselves."""
        self.forgotten: Counter[tuple[int, int]] = Counter()
        """How many requests were dropped unanswered because too many were open, by partition and channel."""
        self._names = {} if names is None else names
        self._vms: dict[int, str] = {}
        self._channels: OrderedDict[tuple[int, int], _Channel] = OrderedDict()
        self._uses: OrderedDict[tuple[str, int, bool, int], int] = OrderedDict()
        """By VM, since one that starts again is another partition."""
        self._count = 0
        self._held = 0
        self._signal: _Signal | None = None
        """The one whose hypercall has not returned."""
        self._shared: dict[int, tuple[int, _Signal]] = {}
        """The last signal that was for all of a partition's channels, and its number."""
        self._shared_count = 0
        self._taking: tuple[int, int] | None = None
        """The channel of which a batch is being taken, while one packet follows the other."""
        self._taken_because: list[Hop] = []
        self._sending: _Sending | None = None

    @property
    def open(self) -> list[Request]:
        """Requests that nobody has answered, oldest first in each channel."""
        return [request for channel in self._channels.values() for request in channel.order.values()]

    def open_on(self, partition: int, channel: int) -> int:
        """How many requests of a channel nobody has answered."""
        found = self._channels.get((partition, channel))
        return 0 if found is None else len(found.order)

    def waits(self, partition: int, channel: int, transaction_id: int) -> bool:
        """Whether a request with this transaction ID is open, asked by either side."""
        found = self._channels.get((partition, channel))
        return found is not None and ((False, transaction_id) in found.open or (True, transaction_id) in found.open)

    def feed(self, event: TraceEvent) -> list[Request]:
        """One more thing happened. Returns the requests that are over, which may be those of events before."""
        over = [] if self._sending is None else self._told(event, self._sending)
        if event.layer is not Layer.PACKET:
            self._taking = None
        match event.layer:
            case Layer.PACKET:
                over += self._packet(event)
            case Layer.SYNIC if event.event == "signal_event":
                if event.direction == TO_ROOT:
                    self._signaled(event)
                elif self._sending is None:
                    self._signaled_late(event)
            case Layer.INTERRUPT | Layer.HYPERCALL if self._signal is not None:
                self._signal = None if self._signaling(self._signal, event) else self._signal
            case Layer.DEVICE:
                self._device(event)
            case Layer.CONTROL | Layer.STATE:
                over += self._ended(event)
            case _:
                pass
        return over

    def finish(self) -> list[Request]:
        """There are no more events: what was being told of is over. What was not answered stays in `open`."""
        over = [] if self._sending is None else self._sent(self._sending)
        for channel in self._channels.values():
            over += channel.answered
            channel.answered = []
        return over

    # --- signals

    def _signaled(self, event: TraceEvent) -> None:
        """The guest has set a flag of the root's."""
        signal = self._signal = _Signal(event, [Hop(event.time, "hypervisor", event)])
        connection = event.fields.get("connection")
        if connection == SHARED_EVENT_CONNECTION:
            self._shared_count += 1
            self._shared[event.partition] = self._shared_count, signal
            return
        base = event_connection_id(0)
        if isinstance(connection, int) and connection > base:
            # Packets that nobody has looked for are all told of by the last signal as well as by those before.
            self._channel(event.partition, connection - base).signal = signal

    def _signaled_late(self, event: TraceEvent) -> None:
        """The guest's flag is set long after the packets were sent: a monitor page was looked at."""
        flag = event.fields.get("flag")
        if not isinstance(flag, int) or (channel := self._channels.get((event.partition, flag))) is None:
            return
        channel.monitored = True
        answered, channel.answered = channel.answered, []
        signal = _Signal(event, [Hop(event.time, "hypervisor", event)])
        self._sending = _Sending(event.partition, flag, answered, [], signal)

    def _signaling(self, signal: _Signal, event: TraceEvent) -> bool:
        """Take what happens inside the hypercall that signals. Returns whether it has returned."""
        if event.layer is Layer.INTERRUPT:
            to_child = signal.event.direction == TO_CHILD
            whose = signal.event.partition if to_child else ROOT_PARTITION
            if not signal.interrupted and event.partition == whose:
                signal.interrupted = True
                signal.hops.append(Hop(event.time, "guest" if to_child else "root", event))
            return False
        if not signal.completed_by(event):
            return False
        # It is told of when it returns; it was called before the flag was set.
        place: Place = "root" if signal.event.direction == TO_CHILD else "guest"
        signal.hops.insert(0, Hop(signal.event.time, place, event))
        return True

    def _cause(self, key: tuple[int, int], channel: _Channel) -> list[Hop]:
        """The hops of the signal because of which a batch is taken, once; none if nobody had to signal."""
        signal, channel.signal = channel.signal, None
        number, shared = self._shared.get(key[0], (0, None))
        if shared is not None and number > channel.shared_seen:
            channel.shared_seen = number
            signal = signal or shared
        return [] if signal is None else signal.hops

    # --- packets

    def _packet(self, event: TraceEvent) -> list[Request]:
        if event.channel is None:
            return []
        key = event.partition, event.channel
        received = event.event == "packet_received"
        if received and self._taking != key:
            self._taking, self._taken_because = key, self._cause(key, self._channel(*key))
        elif not received:
            self._taking = None
            if self._sending is None:
                self._sending = _Sending(*key, [], [])
        kind, flags = _int(event, "type"), _int(event, "flags")
        over: list[Request] = []
        if received and (late := self._channel(*key)).answered:
            over, late.answered = late.answered, []  # whoever goes on to ask has seen them
        if (answered := self._answered(key, event, kind, flags, by_guest=received)) is not None:
            answered.outcome = Outcome.ANSWERED
            for hop in self._taken_because if received else ():
                self._add(answered, hop)
            self._hop(answered, "root", event)
            answered.ended = event.time
            if received:
                over.append(answered)
            else:
                assert self._sending is not None
                self._sending.answered.append(answered)
        elif kind != PacketType.COMPLETION and (flags & COMPLETION_REQUESTED or _asks_in_band(event, kind)):
            over += self._asked(key, event, by_host=not received)
        return over

    def _answered(
        self, key: tuple[int, int], event: TraceEvent, kind: int, flags: int, *, by_guest: bool
    ) -> Request | None:
        """The request that this packet answers, no longer open."""
        channel = self._channels.get(key)
        if channel is None:
            return None
        by_host, number = by_guest, _int(event, "transaction_id")
        waiting = channel.open.get((by_host, number))
        if not waiting:
            return None
        if kind != PacketType.COMPLETION:
            # Guests answer integration components by a packet like the one that asked, and not by a completion.
            asked = next((hop.event for hop in waiting[0].hops if hop.event.layer is Layer.PACKET), None)
            same = asked is not None and kind == _int(asked, "type") == PacketType.INBAND
            if not by_guest or not same or flags & COMPLETION_REQUESTED:
                return None
        return self._close(channel, waiting[0])

    def _asked(self, key: tuple[int, int], event: TraceEvent, *, by_host: bool) -> list[Request]:
        channel = self._channel(*key)
        over = []
        while len(channel.order) >= MAX_OPEN or (self._count >= MAX_OPEN_IN_ALL and channel.order):
            over.append(self._give_up(key, channel, next(iter(channel.order.values())), Outcome.FORGOTTEN))
        if self._count >= MAX_OPEN_IN_ALL:
            self.forgotten[key] += 1
            return over
        number, vm = _int(event, "transaction_id"), self._vm(event)
        request = Request(
            vm=vm,
            partition=event.partition,
            channel=key[1],
            transaction_id=number,
            number=self._use(vm, key[1], by_host, number),
            by_host=by_host,
            device=str(event.fields.get("device", "")),
            words=event.words,
            size=event.size or 0,
            started=event.time,
            ended=event.time,
            hops=[],
        )
        announced, channel.announced = channel.announced, None
        if by_host and announced is not None:
            request.words = announced.words or request.words
            self._hop(request, "root", announced)
        for hop in () if by_host else self._taken_because:
            self._add(request, hop)
        self._hop(request, "root", event)
        request.started = request.hops[0].time
        channel.open.setdefault((by_host, number), deque()).append(request)
        channel.order[id(request)] = request
        self._count += 1
        if by_host:
            assert self._sending is not None
            self._sending.asked.append(request)
        return over

    def _use(self, *key: *tuple[str, int, bool, int]) -> int:
        uses = self._uses.pop(key, 0) + 1
        self._uses[key] = uses
        if len(self._uses) > MAX_NUMBERED:
            self._uses.popitem(last=False)
        return uses

    def _told(self, event: TraceEvent, sending: _Sending) -> list[Request]:
        """What follows a batch for the guest: more of it, the signal for it, or something else."""
        if sending.signal is not None:
            if event.layer in (Layer.INTERRUPT, Layer.HYPERCALL):
                if not self._signaling(sending.signal, event):
                    return []
                return self._sent(sending)
            return self._sent(sending)
        if event.partition == sending.partition:
            if event.layer is Layer.PACKET and event.event == "packet_sent" and event.channel == sending.channel:
                return []
            signals = event.layer is Layer.SYNIC and event.event == "signal_event" and event.direction == TO_CHILD
            if signals and event.fields.get("flag") in (sending.channel, SHARED_EVENT_FLAG):
                sending.signal = _Signal(event, [Hop(event.time, "hypervisor", event)])
                return []
        return self._sent(sending)

    def _sent(self, sending: _Sending) -> list[Request]:
        """The guest has been told, or need not be. Its interrupt is the end of what was answered."""
        self._sending = None
        channel = self._channels.get((sending.partition, sending.channel))
        if sending.signal is None and channel is not None and channel.monitored:
            channel.answered += sending.answered
            over, channel.answered = channel.answered[:-MAX_UNTOLD], channel.answered[-MAX_UNTOLD:]
            return over
        if sending.signal is not None:
            for request in sending.answered + sending.asked:
                for hop in sending.signal.hops:
                    self._add(request, hop)
                    request.ended = hop.time
        return sending.answered

    # --- devices, ends

    def _device(self, event: TraceEvent) -> None:
        if event.channel is None:
            return
        channel = self._channel(event.partition, event.channel)
        number = event.fields.get("transaction")
        request = None
        if isinstance(number, int):
            waiting = channel.open.get((False, number)) or channel.open.get((True, number))
            request = waiting[0] if waiting else None
        elif len(channel.order) == 1:
            # Who names no transaction can only mean the one that there is, or, where requests are named, none.
            alone = next(iter(channel.order.values()))
            # Frames go both ways at once: those for the guest are about what the host is about to ask, if about any.
            other = alone.device == "network" and (event.direction == TO_CHILD or alone.by_host)
            request = None if alone.device in _NAMED or other else alone
        if request is None:
            channel.announced = event if event.direction == TO_CHILD else None
            return
        told_before = any(hop.event.layer is Layer.DEVICE for hop in request.hops)
        self._hop(request, "root", event)
        request.ended = event.time
        if event.direction == (TO_ROOT if request.by_host else TO_CHILD):
            request.result = event.words
        elif not told_before:
            request.words = event.words
            request.size = event.size if event.size is not None else request.size

    def _ended(self, event: TraceEvent) -> list[Request]:
        """Whether a channel's life is over, and what nobody answers any more."""
        match event.layer, event.event:
            case Layer.CONTROL, "close_channel" | "open_channel" if event.channel is not None:
                return self._drop((event.partition, event.channel))
            case Layer.CONTROL, "unload" | "initiate_contact":
                return self._drop_all(event.partition)
            case Layer.STATE, "partition_reset" | "vm_ended":
                return self._drop_all(event.partition)
            case Layer.STATE, "partition_state" if event.fields.get("state") == "deleted":
                over = self._drop_all(event.partition)
                self._vms.pop(event.partition, None)
                return over
            case _:
                return []

    def _drop(self, key: tuple[int, int]) -> list[Request]:
        channel = self._channels.pop(key, None)
        if channel is None:
            return []
        given_up = [self._give_up(key, channel, request, Outcome.CLOSED) for request in list(channel.order.values())]
        return channel.answered + given_up

    def _drop_all(self, partition: int) -> list[Request]:
        self._shared.pop(partition, None)
        keys = [key for key in self._channels if key[0] == partition]
        return [request for key in keys for request in self._drop(key)]

    def _give_up(self, key: tuple[int, int], channel: _Channel, request: Request, outcome: Outcome) -> Request:
        if outcome is Outcome.FORGOTTEN:
            self.forgotten[key] += 1
        request.outcome = outcome
        return self._close(channel, request)

    # --- pieces

    def _channel(self, partition: int, channel: int) -> _Channel:
        key = partition, channel
        found = self._channels.get(key)
        if found is None:
            if len(self._channels) >= MAX_CHANNELS:
                oldest, dropped = self._channels.popitem(last=False)
                for request in list(dropped.order.values()):
                    self._give_up(oldest, dropped, request, Outcome.FORGOTTEN)
            found = self._channels[key] = _Channel()
        return found

    def _close(self, channel: _Channel, request: Request) -> Request:
        _say(request)
        key = request.by_host, request.transaction_id
        waiting = channel.open[key]
        waiting.remove(request)
        if not waiting:
            del channel.open[key]
        del channel.order[id(request)]
        self._count -= 1
        self._held -= sum(len(hop.event.data) for hop in request.hops)
        return request

    def _hop(self, request: Request, place: Place, event: TraceEvent) -> None:
        if event.data and self._held + len(event.data) > MAX_HELD_BYTES:
            event = msgspec.structs.replace(event, data=b"")
        self._add(request, Hop(event.time, place, event))

    def _add(self, request: Request, hop: Hop) -> None:
        if len(request.hops) >= MAX_HOPS:
            request.hops_left_out += 1
            return
        request.hops.append(hop)
        if request.outcome is Outcome.OPEN:
            self._held += len(hop.event.data)

    def _vm(self, event: TraceEvent) -> str:
        """Live events have no name in them; it is looked up once, since a partition's name goes with it."""
        if event.vm:
            return event.vm
        known = self._vms.get(event.partition)
        if known is None:
            known = vm_name(self._names, event)
            if not known.startswith("#"):
                self._vms[event.partition] = known
        return known


def track(events: Iterable[TraceEvent], names: Mapping[int, str] | None = None) -> Iterator[Request]:
    """The requests of a whole trace: those that ended in the order of their ends, then those that did not."""
    tracker = RequestTracker(names)
    for event in events:
        yield from tracker.feed(event)
    yield from tracker.finish()
    yield from tracker.open


def _say(request: Request) -> None:
    """Of a request of which no device said what it is, what its bytes say, where they are there."""
    asked = next((hop.event for hop in request.hops if hop.event.layer is Layer.PACKET), None)
    if asked is None or not asked.data or request.words != asked.words:
        return
    # The decoder is wanted by few, and brings every device's layouts along.
    from partitions.decode.packet import payload_words

    request.words = payload_words(asked.data, request.device, asked.direction) or request.words


def _asks_in_band(event: TraceEvent, kind: int) -> bool:
    """What the host says on an integration component's channel is always a question."""
    return event.event == "packet_sent" and kind == PacketType.INBAND and event.fields.get("device") in _INTEGRATION


def _int(event: TraceEvent, name: str) -> int:
    value = event.fields.get(name, 0)
    return value if isinstance(value, int) else 0
