"""How a VM ended: the record that its worker leaves behind. Root side."""

from __future__ import annotations

import enum
import traceback

import attrs

from hypervisor.clock import seconds
from hypervisor.crash import CrashReport
from hypervisor.inspect import Branch, Claim


class CannotStart(Exception):
    """The host cannot give a VM what its definition asks for: nobody's bug, and the words are for people."""


class ExitReason(enum.Enum):
    """Why a VM is off."""

    POWERED_OFF = "powered off"
    """The guest did it, by the power port."""
    TURNED_OFF = "turned off"
    """Somebody did it from outside, or the host ended."""
    SAVED = "saved"
    """Its state is in a file, and goes on from there."""
    CRASHED = "crashed"
    """The guest wrote the crash registers."""
    TRIPLE_FAULT = "unrecoverable exception"
    """The guest's software is gone and could not even say so."""
    MEMORY_INTERCEPT = "memory intercept"
    """The guest touched memory that it has not got, where only the root could help, and the root does not."""
    INTERCEPT = "intercept"
    """The hypervisor stopped a processor for another reason."""
    STOPPED = "stopped"
    """The guest's software ended and left its processors halted for good."""
    NOT_STARTED = "not started"
    """The host refused: a disk image in use, no memory left."""
    WORKER_FAILED = "worker failed"
    """A bug of ours, in the worker or a device of this VM; its traceback is kept."""


@attrs.frozen
class ExitRecord:
    """The end of one run of a VM."""

    vm: str
    reason: ExitReason
    exit_code: int | None = None
    """What the guest's program told; None if it told nothing."""
    detail: str = ""
    """One line for people."""
    crash: CrashReport | None = None
    failure: BaseException | None = attrs.field(default=None, repr=False)
    """The exception of ours behind WORKER_FAILED and NOT_STARTED, or of a model guest behind TRIPLE_FAULT."""
    console_tail: tuple[str, ...] = ()
    """The last lines on the console."""
    started_at: int = 0
    """100 ns units on the host's clock."""
    ended_at: int = 0
    resets: int = 0
    by: str = ""
    """Who asked for the end; empty where nobody did, or the program that opened the host."""
    gave_up_after: int = 0
    """Restarts in a row after which its restart policy let it stay off; 0 where it did not come to that."""

    def inspect(self) -> Branch:
        """For people who ask why it is off."""
        return Branch(
            {
                "reason": self.reason.value,
                "ok": self.ok,
                "exit_code": self.exit_code,
                "detail": self.detail if self.crash is None else Claim(self.detail),
                "by": self.by or None,
                "started_at": seconds(self.started_at),
                "ended_at": seconds(self.ended_at),
                "resets": self.resets,
                "gave_up_after": self.gave_up_after,
            }
        )

    @property
    def ok(self) -> bool:
        """True if the guest powered off with exit code 0, or was turned off from outside; not if restarts gave up."""
        if self.gave_up_after:
            return False
        match self.reason:
            case ExitReason.POWERED_OFF:
                return not self.exit_code
            case ExitReason.TURNED_OFF | ExitReason.SAVED:
                return True
            case _:
                return False

    @property
    def uptime(self) -> float:
        """Seconds between start and end on the host's clock."""
        return seconds(self.ended_at - self.started_at)

    @property
    def traceback(self) -> str:
        """The failure's traceback as text; empty if there is none."""
        return "" if self.failure is None else "".join(traceback.format_exception(self.failure))

    def __str__(self) -> str:
        words = self.reason.value
        if self.reason is ExitReason.POWERED_OFF and self.exit_code:
            words += f", exit code {self.exit_code}"
        if self.detail:
            words += f": {self.detail}"
        return f"{words}; stays off after {self.gave_up_after} restarts in a row" if self.gave_up_after else words

    def raise_worker_failure(self) -> None:
        """Raise the exception behind WORKER_FAILED again: what a test wants to see. Does nothing otherwise."""
        if self.reason is ExitReason.WORKER_FAILED and self.failure is not None:
            raise self.failure
