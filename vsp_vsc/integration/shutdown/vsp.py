"""The shutdown VSP: asks the guest to power off, restart or hibernate. Root side.

The guest's "I will" ends the conversation; whether it does shows when its processors write to the power ports.
"""

from __future__ import annotations

from typing import Final

from hypervisor.inspect import Branch
from vsp_vsc.integration.component import IntegrationVsp, NoAnswer, Unavailable
from vsp_vsc.integration.protocol import Component, Status, status_words
from vsp_vsc.integration.shutdown.protocol import (
    LEAST_VERSION,
    PLANNED,
    ShutdownFlags,
    ShutdownRequest,
    describe,
    encode_text,
)

ANSWER_SECONDS: Final = 5.0
"""How long a guest may think about it."""


class ShutdownRefused(NoAnswer):
    """The guest answered no; `status` is what it gave as its reason."""

    def __init__(self, status: int) -> None:
        super().__init__(f"shutdown: the guest refused ({status_words(status)})")
        self.status = status


class ShutdownVsp(IntegrationVsp):
    """One VM's shutdown component."""

    component = Component.SHUTDOWN

    _under_way = False
    outcome = ""
    """What became of the last request, in words; empty before the first."""

    def inspect(self) -> Branch:
        """The contact, and the last request."""
        return Branch({**super().inspect().children, "asking": self._under_way, "outcome": self.outcome or None})

    async def request(
        self,
        flags: ShutdownFlags = ShutdownFlags.NONE,
        *,
        reason: int = PLANNED,
        timeout: float = 0,
        text: str = "",
    ) -> None:
        """Ask; returns when the guest has said that it will. `timeout` (seconds) and `text` are for its people.

        Raises `ShutdownRefused`, `Unavailable` (no driver, a request under way, a flag that its version does not know),
        `NoAnswer` within five seconds.
        """
        try:
            await self._request(flags, reason, timeout, text)
        except NoAnswer as error:
            self.outcome = str(error)
            raise
        self.outcome = "accepted"

    async def _request(self, flags: ShutdownFlags, reason: int, timeout: float, text: str) -> None:
        if self._under_way:
            raise Unavailable("shutdown: already in progress")
        for flag, least in LEAST_VERSION.items():
            if flags & flag and self.ready and self.agreed < least:
                raise Unavailable(f"shutdown: {flag.name} needs version {least}, the guest speaks {self.agreed}")
        body = ShutdownRequest(reason, round(timeout), int(flags), encode_text(text)).encode()
        self._under_way = True
        try:
            answer = await self.ask(body, ANSWER_SECONDS, describe(body))
        finally:
            self._under_way = False
        if answer.status != Status.SUCCESS:
            raise ShutdownRefused(answer.status)
