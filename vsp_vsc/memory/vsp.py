"""The dynamic memory VSP: what a host asks of one guest's memory, and what came of it. Root side.

It keeps nothing but the session; whose memory it is, and what the host does with pages that it gets, is its owner's
(`partitions.root.memory_desk`), who is told of each thing that happens, in order and at once.

A channel that closes ends the balloon: the guest's driver is gone, or its mistakes have ended it, and what it gave may
be used again by a guest that knows nothing of it. What was added stays the guest's until it is reset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from hypervisor.trace import TO_CHILD, Layer, Trace
from hypervisor.wire import BadValue
from vmbus.ring import Packet
from vmbus.server.offers import Offer
from vsp_vsc.input_device import InputVsp
from vsp_vsc.memory.protocol import MEMORY_INSTANCE, MEMORY_INTERFACE, Pages, pages_words, version_words
from vsp_vsc.memory.ranges import PageSet
from vsp_vsc.memory.session import (
    Asked,
    BalloonDone,
    Ballooned,
    HotAddDone,
    MemorySession,
    Report,
    UnballoonDone,
)

if TYPE_CHECKING:
    from vmbus.channel import Channel
    from vmbus.server.opened import OpenedChannel


class MemoryOwner(Protocol):
    """Who has the guest's memory to give and to take. Raises nothing."""

    ram: PageSet
    """What the guest has, or had before it gave some."""

    @property
    def most_pages(self) -> int:
        """What the guest is told that it can ever have; 0: it is told nothing."""

    def began(self) -> None:
        """The guest can be asked for something."""

    def reported(self, report: Report) -> None:
        """How much memory the guest needs."""

    def restored(self, pages: int) -> None:
        """So many pages are in the balloon of a guest that was saved, and goes on."""

    def given(self, runs: Sequence[Pages]) -> None:
        """Pages that are not the guest's any more; they were in `ram`, and not given before."""

    def balloon_done(self, asked: int, given: int) -> None:
        """All of them are there, or there are no more."""

    def unballoon_done(self, pages: int) -> None:
        """The guest knows that it has them again."""

    def hot_add_done(self, offered: Pages, taken: int, never_again: bool) -> None:
        """The guest took the first `taken` pages of what was added."""

    def session_ended(self, offered: Pages | None) -> None:
        """The balloon is gone, and what was offered is not taken."""


class MemoryVsp(InputVsp[MemorySession]):
    """The dynamic memory device of one VM."""

    def __init__(self, trace: Trace, partition_id: int, owner: MemoryOwner, name: str = "dynamic-memory") -> None:
        super().__init__(Offer(MEMORY_INTERFACE, MEMORY_INSTANCE, name=name), MemorySession, trace, partition_id)
        self._owner = owner
        self._changed = trio.Event()

    # --- how it stands

    @property
    def session(self) -> MemorySession | None:
        """While the guest has its channel open; for looking at."""
        return self._session

    @property
    def asked(self) -> Asked:
        """What the guest has to answer now."""
        return Asked.NOTHING if self._session is None else self._session.asked

    @property
    def idle(self) -> bool:
        """Whether the guest can be asked for something."""
        return self.ready and self.asked is Asked.NOTHING

    @property
    def ballooned(self) -> PageSet:
        """Pages that the guest has given."""
        return PageSet() if self._session is None else self._session.ballooned

    async def changed(self) -> None:
        """Until something happens: an answer, a report, the session's beginning or its end."""
        await self._changed.wait()

    # --- what to ask; only when `idle`

    def balloon(self, pages: int) -> None:
        """Ask for so many pages."""
        self._ask(f"balloon: {pages_words(pages)} wanted", lambda session: session.balloon(pages))

    def unballoon(self, pages: int) -> int:
        """Give pages back; how many, which are the guest's from now on."""
        given = 0

        def ask(session: MemorySession) -> None:
            nonlocal given
            given = session.unballoon(pages)

        self._ask(f"balloon: {pages_words(pages)} go back", ask)
        return given

    def hot_add(self, run: Pages) -> None:
        """Offer memory that is mapped there."""
        self._ask(f"hot add: {run}", lambda session: session.hot_add(run))

    def _ask(self, words: str, ask: Callable[[MemorySession], None]) -> None:
        session = self._ready_session()
        ask(session)
        self._tell("asked", words, TO_CHILD)
        self._send_soon()

    # --- for `InputVsp`

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Negotiate, then ask and listen until the channel closes. Raises `WireError` where the guest errs."""
        if isinstance(opened.restored, MemorySession):
            self._owner.restored(opened.restored.ballooned.total)
        await super().serve(channel, opened)

    def load(self, untrusted: bytes) -> MemorySession:
        """What `serve` goes on with. Raises `WireError`, also for a balloon with pages that the guest has not."""
        session = super().load(untrusted)
        if not session.ballooned.within(self._owner.ram):
            raise BadValue("a saved balloon with pages that the guest does not have")
        return session

    def _take(self, session: MemorySession, untrusted: Packet) -> None:
        session.ram, session.most_pages = self._owner.ram, self._owner.most_pages
        before = session.ready
        try:
            super()._take(session, untrusted)
        finally:  # what came before a mistake has happened
            self._act(session)
        if session.ready and not before:
            self._owner.began()

    def _act(self, session: MemorySession) -> None:
        happened, session.happened = session.happened, []
        owner = self._owner
        for one in happened:
            match one:
                case Report():
                    owner.reported(one)
                case Ballooned():
                    owner.given(one.runs)
                case BalloonDone():
                    short = "" if one.given == one.asked else f" of {pages_words(one.asked)}: it has no more to give"
                    self._tell("answered", f"balloon: {pages_words(one.given)} given{short}")
                    owner.balloon_done(one.asked, one.given)
                case UnballoonDone():
                    self._tell("answered", f"balloon: it has {pages_words(one.pages)} again")
                    owner.unballoon_done(one.pages)
                case HotAddDone():
                    taken, offered = pages_words(one.taken), pages_words(one.offered.count)
                    self._tell("answered", f"hot add: {taken} of {offered} taken")
                    owner.hot_add_done(one.offered, one.taken, one.never_again)
        self._wake_all()

    def _ended(self, session: MemorySession) -> None:
        offered = session.offered
        session.ballooned.clear()
        self._owner.session_ended(offered)
        self._wake_all()

    def _wake_all(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _negotiated(self) -> str:
        session = self._ready_session()
        can = [words for words, has in zip(("balloon", "hot add"), session.capabilities, strict=False) if has]
        return f"version {version_words(session.version)}, {' and '.join(can) or 'nothing'}"

    def _shown(self) -> dict[str, object]:
        session = self._session
        if session is None or not session.ready:
            return {}
        can = session.capabilities
        return {
            "version": version_words(session.version),
            "balloon": can.balloon,
            "hot_add": can.hot_add,
            "hot_add_alignment": can.alignment << 12,
            "asked": session.asked.value,
            "reports": session.reports,
            "ballooned_runs": len(session.ballooned),
        }

    def _tell(self, event: str, words: str, direction: str = "") -> None:
        if not self._trace.on:
            return
        if direction:
            self._trace.emit(
                *(Layer.DEVICE, f"{self.offer}_{event}", self._partition_id),
                direction=direction,
                channel=self._channel_id,
                words=f"{self.offer}: {words}",
            )
        else:
            self._emit(event, words)
