"""What a shaped port has between adapter and switch: a queue, and a cable that may be bad. Root side.

    adapter -> bandwidth (queue, reserve, limit, weight) -> cable out -> switch -> cable in -> adapter

Bandwidth is of what the VM sends, as Hyper-V has it and ESX's standard switch; a cable is bad in both directions unless
its settings name one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hypervisor.inspect import Branch
from vsp_vsc.network.shaping.bucket import Bucket
from vsp_vsc.network.shaping.figures import PortFigures
from vsp_vsc.network.shaping.link import Fate, Link
from vsp_vsc.network.shaping.settings import Bandwidth, LinkSettings
from vsp_vsc.network.shaping.tree import Flow
from vsp_vsc.network.switch.kinds import LinkDirection
from vsp_vsc.network.switch.ports import Drop, Port

if TYPE_CHECKING:
    from vsp_vsc.network.shaping.shaper import Shaping


class Lane:
    """Of one port: its outlet, and its adapter as the switch sees it."""

    def __init__(self, shaping: Shaping, port: Port, bandwidth: Bandwidth | None, link: LinkSettings | None) -> None:
        """Nothing is in the way yet."""
        self.port = port
        self.bandwidth = bandwidth
        self.link = link
        self.flow: Flow | None = None
        self.bucket: Bucket | None = None
        self.out: Link | None = None
        self.into: Link | None = None
        self.delayed = self.delay_ns = self.full = 0
        self._shaping = shaping
        self._received_before = 0

    # --- out

    def transmit(self, frames: Sequence[bytes]) -> None:
        """From the adapter. Past the queue's end they are dropped, and counted at the port."""
        shaping, flow = self._shaping, self.flow
        now = shaping.time()
        if flow is None:
            for frame in frames:
                self.depart(now, frame)
        else:
            shaping.collect(now)
            put, waiting = shaping.tree.put, flow.frames
            room = (Bandwidth() if self.bandwidth is None else self.bandwidth).queue
            stuck = False
            for frame in frames:
                if len(waiting) >= room and not stuck:
                    shaping.collect(now)
                    stuck = len(waiting) >= room  # at this moment no more will leave
                if len(waiting) < room:
                    put(flow, now, frame)
                else:
                    self.full += 1
                    self._drop(Drop.BANDWIDTH, frame)
        shaping.run()

    def depart(self, now: int, frame: bytes) -> None:
        """Its turn has come."""
        if self.out is None:
            self._shaping.emit(now, self._to_switch, frame)
            return
        fate = self.out.send(now, frame)
        if fate is Fate.ARRIVES:
            self._shaping.travels(self.out, self._to_switch)
        else:
            self._drop(Drop.LINK_LOSS if fate is Fate.LOST else Drop.LINK_FULL, frame)

    def _to_switch(self, frames: Sequence[bytes]) -> None:
        port = self.port
        if port.switch is None or not port.enabled:
            for frame in frames:
                self._drop(Drop.LINK_DOWN, frame)
        else:
            port.switch.transmit(port, frames)

    def _drop(self, reason: Drop, frame: bytes) -> None:
        self.port.drop(reason)
        if self.port.tap is not None:
            self.port.tap.sent(frame, reason)

    # --- in

    def deliver(self, frames: Sequence[bytes]) -> int:
        """From the switch, for the adapter."""
        assert self.into is not None, "the switch sees the lane only where the way in is bad"
        now = self._shaping.time()
        for frame in frames:
            fate = self.into.send(now, frame)
            if fate is Fate.ARRIVES:
                self._shaping.travels(self.into, self._to_adapter)
            else:
                self.port.drop(Drop.LINK_LOSS if fate is Fate.LOST else Drop.LINK_FULL)
        self._shaping.run()
        return len(frames)

    def _to_adapter(self, frames: Sequence[bytes]) -> None:
        port, driver = self.port, self.port.driver
        if driver is None or not port.link_up:
            port.drop(Drop.NO_ADAPTER if driver is None else Drop.LINK_DOWN, len(frames))
            return
        taken = driver.deliver(frames)
        if taken < len(frames):
            port.drop(Drop.ADAPTER_FULL, len(frames) - taken)

    def link_changed(self, up: bool) -> None:
        """Never called: a port tells its adapter itself."""

    # --- set up

    def install(self) -> None:
        """Stand in the way as far as there is something to do. What is on a cable that is good again still arrives."""
        link, port = self.link, self.port
        good = LinkSettings()
        out = link if link is not None and link.direction is not LinkDirection.IN else None
        into = link if link is not None and link.direction is not LinkDirection.OUT else None
        if out is not None and self.out is None:
            self.out = self._shaping.new_link(port.name, "out", out)
        if into is not None and self.into is None:
            self.into = self._shaping.new_link(port.name, "in", into)
            self._received_before = port.received_bytes
        now = self._shaping.time()
        if self.out is not None:
            self.out.change(now, out or good)
            self._shaping.travels(self.out, self._to_switch)
        if self.into is not None:
            self.into.change(now, into or good)
            self._shaping.travels(self.into, self._to_adapter)
        in_the_way = self.flow is not None or self.out is not None
        port.shape(self if in_the_way else None, None if self.into is None else self)

    def cut(self) -> None:
        """The cable is pulled: what is on it is lost."""
        for link in (self.out, self.into):
            if link is not None and (lost := link.cut()):
                self.port.drop(Drop.LINK_DOWN, lost)

    # --- looking

    def figures(self) -> PortFigures:
        """As of now."""
        port, flow = self.port, self.flow
        on_the_way = sum(len(link) for link in (self.out, self.into) if link is not None)
        into = self.into
        received = port.received_bytes if into is None else self._received_before + into.arrived_bytes
        return PortFigures(
            sent_bits=8 * port.sent_bytes,
            received_bits=8 * received,
            dropped=sum(port.drops.values()),
            queued_frames=on_the_way + (0 if flow is None else len(flow.frames)),
            queued_bits=0 if flow is None else 8 * flow.queued_bytes,
            delayed_frames=self.delayed,
            delay_ns=self.delay_ns,
        )

    def counters(self) -> dict[str, Branch]:
        """Of its queue, and of its cable in each direction."""
        shown = {}
        flow = self.flow
        if flow is not None:
            shown["queue"] = Branch(
                {
                    "sent_bits": flow.sent_bits,
                    "queued_frames": len(flow.frames),
                    "queued_bits": 8 * flow.queued_bytes,
                    "dropped": self.full,
                    "delayed": self.delayed,
                    "mean_delay_ms": round(self.delay_ns / self.delayed / 1e6, 3) if self.delayed else 0.0,
                }
            )
        for name, link in (("out", self.out), ("in", self.into)):
            if link is not None:
                shown[name] = Branch(
                    {
                        "frames": link.sent,
                        "bits": 8 * link.sent_bytes,
                        "arrived": link.arrived,
                        "on_the_way": len(link),
                        "lost": link.lost,
                        "full": link.full,
                        "duplicated": link.duplicated,
                        "reordered": link.reordered,
                        "corrupted": link.corrupted,
                    }
                )
        return shown
