"""The guest's end of a dynamic memory channel, with no Trio in it, after Linux's hv_balloon. Child side.

Pages leave in units of 2 MiB and then of 4 KiB, until what was asked for is there or the guest has no more than its
floor: what is free first, then what the kernel can swap out for it. Without swap Linux's driver stops at the floor of
free memory, and so does this one; with swap, pages of programs that could be swapped out count as well, since they are
there for whoever needs them. Memory that is added goes to the kernel at once. What the driver reports as committed
counts its balloon and its floor, since a host takes what is committed for what is needed; its page file is as large as
what is in it.
"""

from __future__ import annotations

from typing import Final, Protocol

from hypervisor.wire import BadValue, Wire
from vmbus.ring import Packet
from vsp_vsc.memory.protocol import (
    BALLOON_UNIT,
    MAX_RANGES,
    VERSIONS,
    BalloonRequest,
    BalloonResponse,
    Capabilities,
    HotAddResponse,
    InfoHeader,
    InfoMessage,
    MemoryAccepted,
    MemoryCapabilities,
    MemoryStatus,
    MemoryType,
    MemoryVersionRequest,
    Pages,
    UnballoonRequest,
    decode_message,
    decode_ranges,
    encode_message,
    encode_ranges,
)
from vsp_vsc.memory.ranges import PageSet

_MIB: Final = 256
"""Pages."""
_FLOORS: Final = ((128, 8, 1), (512, 40, 2), (2048, 104, 3), (8192, 232, 4))
"""Memory below so many MiB, a base in MiB, and by how many bits the memory is shifted down on top of it."""
ALIGNMENT: Final = 1 * _MIB
"""Pages that a model guest's kernel wants added memory at a multiple of; Linux wants 128 MiB."""
_LAST_PAGE: Final = 0xFFFF_FFFF_FFFF_FFFF


def floor_pages(total: int) -> int:
    """Pages that a guest with `total` of them keeps available: Linux's compute_balloon_floor."""
    for below, base, shift in _FLOORS:
        if total < below * _MIB:
            return base * _MIB + (total >> shift)
    return 488 * _MIB + (total >> 5)


class PageHeap(Protocol):
    """The kernel's pages, as its balloon driver needs them."""

    hot_add: bool
    """Linux's module parameter: a guest without it answers that it never takes any."""

    @property
    def total(self) -> int:
        """All that there are, ballooned or not."""

    @property
    def available(self) -> int:
        """Free, and what can be made free without swapping."""

    @property
    def committed(self) -> int:
        """In use by the kernel and by programs, swapped out or not; not the balloon's."""

    @property
    def swapped_pages(self) -> int:
        """Of programs' pages, those that are not in memory."""

    @property
    def swappable(self) -> int:
        """Of programs' pages in memory, as many as there is room for where they would be swapped out to."""

    def swap_out(self, count: int) -> float:
        """Make `count` of the swappable pages free; the seconds that it takes."""

    def take(self, count: int) -> Pages | None:
        """`count` adjacent pages out of use, a unit of 2 MiB at a multiple of its size; None where there are none."""

    def give(self, run: Pages) -> None:
        """Pages that were taken are free again, and zero."""

    def online(self, run: Pages) -> int:
        """Memory that there was not before; how many of its pages the kernel takes."""


class Refused(BadValue):
    """The host speaks no version that we know."""


class BalloonDriver:
    """The driver on one channel."""

    def __init__(self, heap: PageHeap, *, versions: tuple[int, ...] = VERSIONS) -> None:
        self._heap = heap
        self._versions = list(versions)
        self.version = 0
        self.ready = False
        self.ballooned = PageSet()
        """Pages that the host has."""
        self.added = 0
        """Pages that the host has added."""
        self.most_pages = 0
        """That the host will ever give, if it has said so."""
        self._transaction = 0
        self._busy = 0.0

    def begin(self) -> Packet:
        """The first version. Another follows where that is refused."""
        self.version = self._versions.pop(0)
        last = not self._versions
        return self._message(MemoryType.VERSION_REQUEST, MemoryVersionRequest(self.version, int(last)))

    def report(self) -> Packet:
        """How much memory the guest needs."""
        heap = self._heap
        committed = heap.committed + self.ballooned.total + floor_pages(heap.total)
        return self._message(MemoryType.STATUS_REPORT, MemoryStatus(heap.available, committed, heap.swapped_pages))

    def busy(self) -> float:
        """Seconds that what was last taken keeps the driver busy before it can answer; asked for once."""
        busy, self._busy = self._busy, 0.0
        return busy

    def take(self, untrusted: Packet) -> list[Packet]:
        """A host's packet; what to answer. Raises `WireError`."""
        kind, body = decode_message(untrusted)
        match kind:
            case MemoryType.VERSION_RESPONSE:
                return [self._take_version(MemoryAccepted.decode(body))]
            case MemoryType.CAPABILITIES_RESPONSE:
                self.ready = True
                return []
            case MemoryType.BALLOON_REQUEST:
                return self._inflate(BalloonRequest.decode(body).pages)
            case MemoryType.UNBALLOON_REQUEST:
                return self._deflate(UnballoonRequest.decode(body), body[UnballoonRequest.SIZE :])
            case MemoryType.MEM_HOT_ADD_REQUEST:
                return [self._add(decode_ranges(body, 1)[0])]
            case MemoryType.INFO_MESSAGE:
                self._inform(body)
                return []
            case _:
                raise BadValue(f"dynamic memory message {kind} from the host")

    def _take_version(self, answer: MemoryAccepted) -> Packet:
        if not answer.accepted & 1:
            if not self._versions:
                raise Refused("the host speaks no version of dynamic memory that this driver knows")
            return self.begin()
        word = Capabilities(balloon=True, hot_add=True, alignment=ALIGNMENT).word
        return self._message(MemoryType.CAPABILITIES_REPORT, MemoryCapabilities(word, 0, _LAST_PAGE))

    def _inflate(self, wanted: int) -> list[Packet]:
        """All messages of the answer: fewer pages where the floor is reached."""
        heap = self._heap
        left = min(wanted, max(0, heap.available + heap.swappable - floor_pages(heap.total)))
        if left > heap.available:
            self._busy += heap.swap_out(left - heap.available)
        messages: list[list[Pages]] = [[]]
        unit = BALLOON_UNIT
        while left:
            run = heap.take(unit) if left >= unit else None
            if run is None:
                if unit == 1:
                    break
                unit = 1
                continue
            if len(messages[-1]) == MAX_RANGES:
                messages.append([])
            messages[-1].append(run)
            self.ballooned.add(run)
            left -= run.count
        return [
            self._message(
                MemoryType.BALLOON_RESPONSE,
                BalloonResponse(0, len(runs) << 1 | (number < len(messages))),
                encode_ranges(runs),
            )
            for number, runs in enumerate(messages, 1)
        ]

    def _deflate(self, request: UnballoonRequest, ranges: bytes) -> list[Packet]:
        for run in decode_ranges(ranges, request.range_count):
            if not self.ballooned.covers(run):
                raise BadValue(f"{run} from the host, which are not in the balloon")
            self.ballooned.remove(run)
            self._heap.give(run)
        return [] if request.more & 1 else [self._message(MemoryType.UNBALLOON_RESPONSE)]

    def _add(self, run: Pages) -> Packet:
        heap = self._heap
        taken = heap.online(run) if heap.hot_add else 0
        self.added += taken
        result = int(taken > 0 or not heap.hot_add)
        return self._message(MemoryType.MEM_HOT_ADD_RESPONSE, HotAddResponse(taken, result))

    def _inform(self, body: bytes) -> None:
        info = body[InfoMessage.SIZE :]
        header = InfoHeader.decode(info)
        if header.kind == 0 and header.data_size == 8:
            self.most_pages = int.from_bytes(info[InfoHeader.SIZE : InfoHeader.SIZE + 8], "little")

    def let_go(self) -> None:
        """The channel is closed, and with it the balloon's end: its pages are the guest's again."""
        for run in self.ballooned:
            self._heap.give(run)
        self.ballooned.clear()

    def _message(self, kind: MemoryType, *parts: Wire | bytes) -> Packet:
        self._transaction = self._transaction + 1 & 0xFFFF_FFFF
        return encode_message(kind, self._transaction, *parts)
