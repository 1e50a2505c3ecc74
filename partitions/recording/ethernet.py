"""Ethernet at ports of a switch as pcapng: what an adapter sends is outbound, what it gets is inbound. Root side.

Each port is an interface. A frame that went no further is there all the same, with a comment that says why. What came
faster than it was written is missing, and counted in the interface's statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from partitions.recording import pcapng
from partitions.recording.buffer import BUFFER_BYTES, BlockBuffer, Dropped
from vsp_vsc.network.switch.ports import Drop

LINK_TYPE: Final = 1
"""LINKTYPE_ETHERNET."""
APPLICATION: Final = "Partita"


class EthernetCapture(BlockBuffer):
    """Of any number of ports of one host: each is watched by a `tap`."""

    def __init__(
        self,
        clock: Callable[[], int],
        *,
        started: int = 0,
        limit: int = BUFFER_BYTES,
        ready: Callable[[], None] = lambda: None,
        ready_at: int = 1,
    ) -> None:
        """`clock` gives 100 ns units since `started`, in Unix seconds. The rest is a `BlockBuffer`'s."""
        super().__init__(limit=limit, ready=ready, ready_at=ready_at)
        self._clock = clock
        self._started = started
        self._taps: dict[str, PortTap] = {}
        self._open = True
        self._put(pcapng.section(APPLICATION, b""))

    def tap(self, port: str) -> PortTap:
        """Whoever watches the port of that name: the same one each time."""
        known = self._taps.get(port)
        if known is None:
            known = self._taps[port] = PortTap(self, len(self._taps))
            self._put(pcapng.interface(LINK_TYPE, port, self._started))
        return known

    def frame(self, tap: PortTap, frame: bytes, outbound: bool, why: str) -> None:
        """One more."""
        if not self._open:
            return
        time = self._clock()
        tap.received += 1
        more = (pcapng.option(pcapng.Opt.COMMENT, f"dropped: {why}".encode()),) if why else ()
        if self._fits(time, pcapng.packet(tap.number, time, frame, outbound, *more), 1, 0):
            self.written.packets += 1
        else:
            tap.dropped += 1
            self._drop(1, 0)

    def detach(self) -> None:
        """Record nothing more."""
        self._open = False

    def finish(self) -> None:
        """Say at the end what each port had, and what of it is missing."""
        self.detach()
        self._put(self.gap())

    def gap(self) -> bytes:
        """The counts so far: whoever looks at them in the middle sees where something is missing."""
        self._lost = Dropped()
        now = self._clock()
        return b"".join(pcapng.statistics(tap.number, now, tap.received, tap.dropped) for tap in self._taps.values())


class PortTap:
    """Watches one port."""

    def __init__(self, capture: EthernetCapture, number: int) -> None:
        self._capture = capture
        self.number = number
        """Of the interface."""
        self.received = 0
        self.dropped = 0
        """From the capture, not from the port."""

    def sent(self, frame: bytes, drop: Drop | None) -> None:
        """The adapter sent it."""
        self._capture.frame(self, frame, True, "" if drop is None else drop.value)

    def received_frames(self, frames: Sequence[bytes], taken: int) -> None:
        """The switch had them for the adapter."""
        for number, frame in enumerate(frames):
            self._capture.frame(self, frame, False, "" if number < taken else Drop.ADAPTER_FULL.value)
