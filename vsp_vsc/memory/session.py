"""The host's end of a dynamic memory channel, with no Trio in it: questions, answers, whose a page is. Root side.

    version --accepted--> capabilities --report--> ready

One question is under way at a time. Pages that the guest gives are in `ballooned` as soon as it has named them; pages
that go back to it are out of it before it hears so, and are its own from then on. What the guest says becomes a list of
things that happened, in order, which the VSP takes off and acts on.

A guest that answers late answers what is still under way: nothing else is asked meanwhile, and the VM goes on.
"""

from __future__ import annotations

import enum
from typing import Final

import attrs
import msgspec

from hypervisor.wire import BadValue, Wire
from vmbus.ring import Packet, PacketType
from vsp_vsc.memory.protocol import (
    MAX_RANGES,
    MOST_PAGES,
    PAGE_SPACE,
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

MOST_MESSAGES: Final = 16
"""In which pages go back at a time."""
MOST_RUNS: Final = MOST_MESSAGES * MAX_RANGES
MAX_PAGE_COUNT: Final = 0
"""The kind of information that a host gives."""
_INBAND: Final = int(PacketType.INBAND)


class State(enum.Enum):
    """Where a session is."""

    VERSION = "waiting for a version"
    CAPABILITIES = "waiting for capabilities"
    READY = "ready"


class Asked(enum.Enum):
    """What the guest has to answer."""

    NOTHING = "nothing"
    BALLOON = "balloon"
    UNBALLOON = "unballoon"
    HOT_ADD = "hot add"


class Report(msgspec.Struct, frozen=True):
    """A status report, in pages. `committed` counts what was ballooned, as the guest sees it."""

    available: int
    committed: int
    page_file: int = 0


class Ballooned(msgspec.Struct, frozen=True):
    """The guest gave pages."""

    runs: tuple[Pages, ...]


class BalloonDone(msgspec.Struct, frozen=True):
    """All that it gives of what was asked for."""

    asked: int
    given: int


class UnballoonDone(msgspec.Struct, frozen=True):
    """It has its pages again."""

    pages: int


class HotAddDone(msgspec.Struct, frozen=True):
    """It took so much of the memory that was added: the first `taken` pages."""

    offered: Pages
    taken: int
    never_again: bool
    """It takes no more, now or later."""


Happened = Report | Ballooned | BalloonDone | UnballoonDone | HotAddDone


class SavedMemory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a session when its VM is saved."""

    state: str
    version: int
    capabilities: int
    last_attempt: bool
    asked: str
    wanted: int
    given: int
    offered: tuple[int, int]
    ballooned: bytes
    outbox: tuple[bytes, ...]


@attrs.define(eq=False)
class _Question:
    kind: Asked = Asked.NOTHING
    wanted: int = 0
    given: int = 0
    offered: Pages = Pages(0, 0)


class MemorySession:
    """One opening of the channel."""

    def __init__(self) -> None:
        self.state = State.VERSION
        self.version = 0
        self.capabilities = Capabilities(False, False, 0)
        self.ram = PageSet()
        """The guest's memory, which whoever serves the channel sets."""
        self.most_pages = 0
        """What the guest is told that it can ever have; 0: nothing is said."""
        self.ballooned = PageSet()
        self.report: Report | None = None
        """The last one."""
        self.reports = 0
        self.outbox: list[Packet] = []
        """To be sent, in order; whoever sends takes from its front."""
        self.blocked = False
        """The first of it is on its way."""
        self.happened: list[Happened] = []
        self._last_attempt = False
        self._transaction = 0
        self._question = _Question()

    @property
    def ready(self) -> bool:
        """Whether the guest can be asked for something."""
        return self.state is State.READY

    @property
    def asked(self) -> Asked:
        """What is under way."""
        return self._question.kind

    @property
    def offered(self) -> Pages | None:
        """Memory that was added and not taken yet."""
        return self._question.offered if self._question.kind is Asked.HOT_ADD else None

    @property
    def returning(self) -> int:
        """Pages that go back to the guest, which has not said that it has them."""
        return self._question.wanted if self._question.kind is Asked.UNBALLOON else 0

    # --- what the host asks; only when ready and with nothing under way

    def balloon(self, pages: int) -> None:
        """Ask for pages."""
        self._check_idle()
        self._question = _Question(Asked.BALLOON, wanted=pages)
        self._send(MemoryType.BALLOON_REQUEST, BalloonRequest(min(pages, 0xFFFF_FFFF)))

    def unballoon(self, pages: int) -> int:
        """Give ballooned pages back, as many of these as fit a bounded number of messages; how many."""
        self._check_idle()
        runs = self.ballooned.take(pages, longest=MOST_PAGES, most=MOST_RUNS)
        total = sum(run.count for run in runs)
        self._question = _Question(Asked.UNBALLOON, wanted=total)
        pieces = [runs[at : at + MAX_RANGES] for at in range(0, len(runs), MAX_RANGES)]
        for piece in pieces:
            head = UnballoonRequest(int(piece is not pieces[-1]), len(piece))
            self._send(MemoryType.UNBALLOON_REQUEST, head, encode_ranges(piece))
        return total

    def hot_add(self, run: Pages) -> None:
        """Offer memory that is there now, and was not before."""
        self._check_idle()
        self._question = _Question(Asked.HOT_ADD, wanted=run.count, offered=run)
        self._send(MemoryType.MEM_HOT_ADD_REQUEST, encode_ranges([run]))

    def _check_idle(self) -> None:
        assert self.ready, "the caller has looked"
        assert self.asked is Asked.NOTHING, "the caller has looked"

    def _send(self, kind: MemoryType, *parts: Wire | bytes) -> None:
        self._transaction = self._transaction + 1 & 0xFFFF_FFFF
        self.outbox.append(encode_message(kind, self._transaction, *parts))

    # --- what the guest says

    def take(self, untrusted: Packet) -> None:
        """A packet from the guest. Raises `WireError`."""
        kind, body = decode_message(untrusted)
        match kind, self.state:
            case MemoryType.VERSION_REQUEST, State.VERSION:
                self._take_version(MemoryVersionRequest.decode(body))
            case MemoryType.CAPABILITIES_REPORT, State.CAPABILITIES:
                self._take_capabilities(MemoryCapabilities.decode(body))
            case MemoryType.STATUS_REPORT, State.READY:
                self._take_status(MemoryStatus.decode(body))
            case MemoryType.BALLOON_RESPONSE, State.READY if self.asked is Asked.BALLOON:
                self._take_pages(BalloonResponse.decode(body), body[BalloonResponse.SIZE :])
            case MemoryType.UNBALLOON_RESPONSE, State.READY if self.asked is Asked.UNBALLOON:
                self.happened.append(UnballoonDone(self._question.wanted))
                self._question = _Question()
            case MemoryType.MEM_HOT_ADD_RESPONSE, State.READY if self.asked is Asked.HOT_ADD:
                self._take_added(HotAddResponse.decode(body))
            case _:
                under_way = "" if self.asked is Asked.NOTHING else f", with {self.asked.value} under way"
                raise BadValue(f"dynamic memory message {kind} from the guest, {self.state.value}{under_way}")

    def _take_version(self, request: MemoryVersionRequest) -> None:
        if self._last_attempt:
            raise BadValue(f"dynamic memory version {request.version:#x} after the guest's last attempt")
        accepted = request.version in VERSIONS
        self._last_attempt = bool(request.last_attempt & 1)
        self._send(MemoryType.VERSION_RESPONSE, MemoryAccepted(int(accepted)))
        if accepted:
            self.version = request.version
            self.state = State.CAPABILITIES

    def _take_capabilities(self, report: MemoryCapabilities) -> None:
        self.capabilities = Capabilities.of(report.capabilities)
        self._send(MemoryType.CAPABILITIES_RESPONSE, MemoryAccepted(1))
        if self.most_pages:
            info = InfoHeader(MAX_PAGE_COUNT, 8).encode() + self.most_pages.to_bytes(8, "little")
            self._send(MemoryType.INFO_MESSAGE, InfoMessage(0, len(info)), info)
        self.state = State.READY

    def _take_status(self, status: MemoryStatus) -> None:
        sizes = status.available, status.committed, status.page_file_size
        self.report = Report(*(min(pages, PAGE_SPACE) for pages in sizes))
        self.reports += 1
        self.happened.append(self.report)

    def _take_pages(self, response: BalloonResponse, untrusted_ranges: bytes) -> None:
        question = self._question
        runs = decode_ranges(untrusted_ranges, response.counts >> 1)
        given = question.given + sum(run.count for run in runs)
        if given > question.wanted:
            raise BadValue(f"{given} pages in a balloon that was to have {question.wanted}")
        taken: list[Pages] = []
        try:
            for run in runs:
                self._check_given(run)
                self.ballooned.add(run)
                taken.append(run)
        finally:  # what was named before the mistake is given all the same: the channel ends, and takes it back
            question.given += sum(run.count for run in taken)
            if taken:
                self.happened.append(Ballooned(tuple(taken)))
        if not response.counts & 1:
            self.happened.append(BalloonDone(question.wanted, question.given))
            self._question = _Question()

    def _check_given(self, run: Pages) -> None:
        if not self.ram.covers(run):
            raise BadValue(f"{run} in the balloon, which the guest does not have")
        if self.ballooned.meets(run):
            raise BadValue(f"{run} in the balloon, of which some are there already")

    def _take_added(self, response: HotAddResponse) -> None:
        offered = self._question.offered
        if response.page_count > offered.count:
            raise BadValue(f"{response.page_count} pages taken of {offered.count} that were added")
        taken = response.page_count
        # Fewer than there were is the most that it can ever have; none and a failure may be another time.
        never = 0 < taken < offered.count or (not taken and response.result != 0)
        self._question = _Question()
        self.happened.append(HotAddDone(offered, taken, never))

    # --- saved and restored

    def save(self) -> bytes:
        """The session as a record."""
        question = self._question
        record = SavedMemory(
            state=self.state.value,
            version=self.version,
            capabilities=self.capabilities.word if self.capabilities.alignment else 0,
            last_attempt=self._last_attempt,
            asked=question.kind.value,
            wanted=question.wanted,
            given=question.given,
            offered=(question.offered.first, question.offered.count),
            ballooned=self.ballooned.packed(),
            outbox=tuple(bytes(packet.payload) for packet in self.outbox),
        )
        return msgspec.msgpack.encode(record)

    @classmethod
    def load(cls, untrusted: bytes) -> MemorySession:
        """A session that goes on where it was saved. Raises `BadValue`."""
        try:
            record = msgspec.msgpack.decode(untrusted, type=SavedMemory)
            session = cls()
            session.state = State(record.state)
            session._question = _Question(Asked(record.asked), record.wanted, record.given, Pages(*record.offered))
            session.ballooned = PageSet.unpacked(record.ballooned, PAGE_SPACE)
        except ValueError as error:  # msgspec's errors are ValueErrors too
            raise BadValue(f"a saved dynamic memory session: {error}") from None
        if session.asked is Asked.HOT_ADD or not 0 <= record.given <= record.wanted <= PAGE_SPACE:
            raise BadValue("a saved dynamic memory session with a question that there cannot be")
        if record.version not in (0, *VERSIONS) or (session.ready and not record.version):
            raise BadValue("a saved dynamic memory session of a version that there is not")
        session.version = record.version
        session.capabilities = Capabilities.of(record.capabilities)
        session._last_attempt = record.last_attempt
        session.outbox = [Packet(_INBAND, 0, 0, 0, payload) for payload in record.outbox]
        return session
