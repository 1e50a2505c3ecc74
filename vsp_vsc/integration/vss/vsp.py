"""The volume snapshot VSP: has the guest freeze its file systems, and thaw them, whatever happens. Root side.

    thawed --freeze--> freezing --yes--> frozen --thaw, or time is up--> thawing --> thawed

A guest that stands still for long loses its users, so no freeze lasts longer than its time: then the host thaws by
itself, and whoever froze it is told at the end that what was copied may not be whole. One task sends every thaw, so a
thaw goes out even where the one who froze has been cancelled, and is sent again until a mute guest has heard it.
"""

from __future__ import annotations

import enum
from typing import Final

import trio

from hypervisor.clock import seconds, ticks
from hypervisor.inspect import Branch
from hypervisor.trace import Trace
from vsp_vsc.integration.component import IntegrationVsp, NoAnswer, PartitionTime, Unavailable
from vsp_vsc.integration.protocol import Component, status_words
from vsp_vsc.integration.vss.protocol import FREEZE_VERSION, VssOperation, describe, encode_vss

HOLD_SECONDS: Final = 60.0
"""How long a guest stands still at most, unless who freezes it says otherwise."""
FREEZE_SECONDS: Final = 60.0
"""How long it may take to write out what it has in memory."""
ANSWER_SECONDS: Final = 10.0
"""For the other questions."""


class FreezeState(enum.Enum):
    """How a guest's file systems are, as far as the host knows."""

    THAWED = "thawed"
    FREEZING = "freezing"
    FROZEN = "frozen"
    THAWING = "thawing"


class VssRefused(NoAnswer):
    """The guest could not do it; `status` is what it gave as its reason."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"vss: {what}: {status_words(status)}")
        self.status = status


class ThawedEarly(NoAnswer):
    """The guest did not stand still until its thaw: what was copied meanwhile may not be whole."""


class VssVsp(IntegrationVsp):
    """One VM's file systems."""

    component = Component.VSS

    def __init__(self, time: PartitionTime, trace: Trace, partition_id: int, name: str = "") -> None:
        super().__init__(time, trace, partition_id, name)
        self.state = FreezeState.THAWED
        self.freezes = 0
        """That succeeded; the last one's number."""
        self.late_thaws = 0
        """Freezes whose time was up."""
        self._until = 0
        """By the partition's time, while frozen."""
        self._early: ThawedEarly | None = None
        """Why the last freeze ended before its thaw, if it did."""
        self._problem: NoAnswer | None = None
        """What became of the last attempt to thaw."""
        self._wake = trio.Event()
        self._changed = trio.Event()

    def inspect(self) -> Branch:
        """The contact, and whether it stands still."""
        left = seconds(self._until - self._time.now()) if self.state is FreezeState.FROZEN else None
        seen: dict[str, object] = {"state": self.state.value, "seconds_left": left, "freezes": self.freezes}
        seen |= {"late_thaws": self.late_thaws, "problem": None if self._problem is None else str(self._problem)}
        return Branch({**super().inspect().children, **seen})

    async def freeze(self, hold: float = HOLD_SECONDS) -> int:
        """Freeze, for `hold` seconds of the guest's time at most; the freeze's number, for `thaw`.

        Raises `VssRefused`, `Unavailable` (no driver, frozen already, a version that cannot), `NoAnswer`.
        """
        if self.state is not FreezeState.THAWED:
            raise Unavailable(f"vss: already {self.state.value}")
        if self.ready and self.agreed < FREEZE_VERSION:
            raise Unavailable(f"vss: to freeze needs version {FREEZE_VERSION}, the guest speaks {self.agreed}")
        link = self._link
        self._move(FreezeState.FREEZING)
        try:
            await self._do(VssOperation.HOT_BACKUP, ANSWER_SECONDS)
        except BaseException:
            self._move(FreezeState.THAWED)
            raise
        assert link is not None, "it has answered"
        link.session.frozen = True
        try:
            await self._do(VssOperation.FREEZE, FREEZE_SECONDS)
            if self._link is not link:
                raise NoAnswer("vss: the channel was closed")
        except BaseException:
            # Whether it refused or kept silent: some of its file systems may stand still by now, or will.
            self._move(FreezeState.THAWING if self._link is link else FreezeState.THAWED)
            raise
        self.freezes += 1
        self._early = None
        self._until = self._time.now() + ticks(hold)
        self._move(FreezeState.FROZEN)
        return self.freezes

    async def thaw(self, number: int | None = None) -> None:
        """Thaw; returns when the guest has. Raises `ThawedEarly` where that freeze did not last, `NoAnswer`."""
        if number is None and self.state is FreezeState.THAWED:
            raise Unavailable("vss: not frozen")
        if number is not None and (self._early is not None or number != self.freezes):
            raise self._early or ThawedEarly("vss: it was thawed before")
        self.thaw_soon(number)
        while self.state is not FreezeState.THAWED and self._problem is None:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        if number is not None and self._early is not None:
            raise self._early
        if self._problem is not None:
            raise self._problem

    def thaw_soon(self, number: int | None = None) -> None:
        """Thaw, and do not wait for it; nothing where that freeze is over."""
        if self.state is FreezeState.FROZEN and number in (None, self.freezes):
            self._move(FreezeState.THAWING)

    async def _duty(self) -> None:
        link = self._link
        assert link is not None, "it is ready"
        if link.session.frozen:  # saved in the middle: its backup ended with its life, or was that very save
            self._move(FreezeState.THAWING)
        while True:
            match self.state:
                case FreezeState.THAWED | FreezeState.FREEZING:
                    await self._wake.wait()
                case FreezeState.FROZEN:
                    wake = self._wake
                    await self._time.wait_for(wake, max(0, seconds(self._until - self._time.now())))
                    if not wake.is_set():
                        self.late_thaws += 1
                        self._early = ThawedEarly("vss: frozen for too long; the host has thawed it")
                        self._move(FreezeState.THAWING)
                case FreezeState.THAWING:
                    await self._thaw()

    async def _thaw(self) -> None:
        """One attempt; a mute guest is asked again, one that refuses is not."""
        try:
            await self._do(VssOperation.THAW, ANSWER_SECONDS)
        except VssRefused as refused:
            self._problem = refused
        except NoAnswer as mute:
            if not self.ready:
                raise
            self._problem = mute
            self._tell()
            return
        if self._link is not None:
            self._link.session.frozen = False
        self._move(FreezeState.THAWED)

    async def _do(self, operation: VssOperation, limit: float) -> None:
        body = encode_vss(operation)
        words = describe(body)
        answer = await self.ask(body, limit, words)
        if answer.status:
            raise VssRefused(words, answer.status)

    def _lost(self) -> None:
        if self.state in (FreezeState.FROZEN, FreezeState.THAWING):
            self._early = self._early or ThawedEarly("vss: the guest's driver has gone, or the guest was reset")
        if self.state is not FreezeState.FREEZING:  # whose own task sees it, and ends it
            self._move(FreezeState.THAWED)

    def _move(self, state: FreezeState) -> None:
        if state in (FreezeState.FREEZING, FreezeState.THAWING):
            self._problem = None
        self.state = state
        self._tell()

    def _tell(self) -> None:
        """Whoever waits looks again."""
        for event in (self._wake, self._changed):
            event.set()
        self._wake, self._changed = trio.Event(), trio.Event()
