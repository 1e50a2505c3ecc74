"""All that is shaped on a host: lanes of ports, switches' capacities, pools, and one deadline for them. Root side.

Nothing here is a task. Frames that wait have one deadline in the host's timers, and no frame waits without it; with
none under way there is no deadline. A timer that comes late changes nothing: what was due is gone through in its order,
each at its own time.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from random import Random
from typing import Final, Protocol

import attrs

from hypervisor.clock import NS_PER_TICK
from hypervisor.scheduler.divvy import Due
from hypervisor.timer_queue import Waiting
from vsp_vsc.network.shaping.bucket import Bucket
from vsp_vsc.network.shaping.entitled import entitled
from vsp_vsc.network.shaping.lane import Lane
from vsp_vsc.network.shaping.link import Link
from vsp_vsc.network.shaping.settings import DEFAULT_WEIGHT, Bandwidth, LinkSettings
from vsp_vsc.network.shaping.tree import Flow, Group, Tree
from vsp_vsc.network.switch.ports import Drop, Port

MAX_TURNS: Final = 64
"""How often in one call what has arrived may cause more to arrive at once."""
Sink = Callable[[Sequence[bytes]], None]
Held = list[tuple[bytes, int]]
"""Frames, and when they came."""


class Timers(Protocol):
    """As `hypervisor.timer_queue.TimerQueue`."""

    def set(self, waiting: Waiting, deadline: int | None) -> None:
        """Fire `waiting` once then, in 100 ns units."""


@attrs.define
class _Switch:
    bandwidth: int = 0
    """Bits a second that all its ports together may send; 0 for no limit."""
    default_weight: int = DEFAULT_WEIGHT
    """Of ports without figures of their own."""
    group: Group | None = None
    """While it has a bandwidth; ports of the others share what the host has."""


@attrs.define
class _Pool:
    parent: str
    figures: Bandwidth
    bucket: Bucket | None = None
    """Of all its groups together."""
    groups: dict[str, Group] = attrs.field(factory=dict)
    """By switch with a bandwidth; empty for all others."""


@attrs.define
class _Port:
    lane: Lane
    pool: str
    switch: str


class Shaping:
    """Of one host."""

    def __init__(self, now: Callable[[], int], timers: Timers, chance: Callable[[str], Random]) -> None:
        """`now` gives 100 ns units, `chance` a generator for each purpose."""
        self.tree = Tree()
        self.host = Group(0, "host", weight=1)
        self.tree.add(self.tree.root, self.host)
        self.lanes: dict[str, Lane] = {}
        """By port."""
        self.late_ns = 0
        """The most that a frame went later than it was due, because the host was busy."""
        self._clock = now
        self._timers = timers
        self._chance = chance
        self._ports: dict[str, _Port] = {}
        self._switches: dict[str, _Switch] = {}
        self.pools: dict[str, _Pool] = {}
        """By name."""
        self._by_flow: dict[int, Lane] = {}
        self._numbers = 0
        self._arrivals: list[tuple[int, int, Link, Sink]] = []
        self._serial = 0
        self._outbox: deque[tuple[int, Sink, list[bytes]]] = deque()
        self._running = False
        self._time: int | None = None
        """Of what is being passed on; None outside of that."""
        self._deadline: int | None = None

    # --- time

    def time(self) -> int:
        """Nanoseconds. What is passed on late is at its own time, not at that of the clock."""
        return self._clock() * NS_PER_TICK if self._time is None else self._time

    def fire(self) -> None:
        """The deadline has passed."""
        self._deadline = None
        self.run()

    def collect(self, now: int) -> None:
        """Take what is due out of queues and off cables, to be passed on by `run`."""
        lanes = self._by_flow
        for when, flow, frame, came in self.tree.advance(now):
            lane = lanes[flow.id]
            if when > came:
                lane.delayed += 1
                lane.delay_ns += when - came
            lane.depart(when, frame)
        arrivals = self._arrivals
        while arrivals and arrivals[0][0] <= now:
            when, _, link, sink = heapq.heappop(arrivals)
            if link.scheduled == when:
                link.scheduled = None
                frames = link.arrivals(when)
                if frames:
                    self._outbox.append((when, sink, frames))
                self.travels(link, sink)

    def travels(self, link: Link, sink: Sink) -> None:
        """See to it that `sink` gets the next frame when it arrives."""
        when = link.next_time
        if when is not None and (link.scheduled is None or when < link.scheduled):
            link.scheduled = when
            self._serial += 1
            heapq.heappush(self._arrivals, (when, self._serial, link, sink))

    def emit(self, now: int, sink: Sink, frame: bytes) -> None:
        """A frame that `sink` gets at once."""
        outbox = self._outbox
        if outbox and outbox[-1][0] == now and outbox[-1][1] == sink:
            outbox[-1][2].append(frame)
        else:
            outbox.append((now, sink, [frame]))

    def run(self) -> None:
        """Pass on all that is due, and see to the next deadline. From within itself: nothing, for it goes on."""
        if self._running:
            return
        self._running = True
        outbox = self._outbox
        now = self._clock() * NS_PER_TICK
        try:
            for _ in range(MAX_TURNS):
                self.collect(now)
                if not outbox:
                    break
                for _ in range(len(outbox)):
                    self._time, sink, frames = outbox.popleft()
                    self.late_ns = max(self.late_ns, now - self._time)
                    sink(frames)
        finally:
            self._time = None
            self._running = False
            self._arm(now)

    def _arm(self, now: int) -> None:
        following = self.tree.next_time
        while self._arrivals and self._arrivals[0][2].scheduled != self._arrivals[0][0]:
            heapq.heappop(self._arrivals)  # it arrives earlier than that now
        if self._arrivals and (following is None or self._arrivals[0][0] < following):
            following = self._arrivals[0][0]
        if self._outbox:
            following = now
        deadline = None if following is None else -(-following // NS_PER_TICK)
        if deadline != self._deadline:
            self._deadline = deadline
            self._timers.set(self, deadline)

    def sent(self) -> dict[int, int]:
        """Bits that each flow has sent, by its number: flows that come have new ones."""
        return {number: lane.flow.sent_bits for number, lane in self._by_flow.items() if lane.flow is not None}

    def due(self, rates: Mapping[int, int]) -> dict[str, Due]:
        """What each port (by its name), each pool (`pool/prod`) and the `host` is due, where that is shared or limited.

        `rates`: what flows have sent, in bits a second.
        """
        members = dict(entitled(self.host, rates))
        found = {self._by_flow[it.id].port.name: due for it, due in members.items() if isinstance(it, Flow)}
        for name, pool in self.pools.items():
            own = [members[group] for group in pool.groups.values()]
            if own:
                amounts = [due.amount for due in own if due.amount is not None]
                found[f"pool/{name}"] = Due(
                    sum(amounts, Fraction(0)) if len(amounts) == len(own) else None, any(due.contended for due in own)
                )
        if self.host.members:
            found["host"] = members[self.host]
        return found

    # --- who shares what

    def set_host(self, bandwidth: int) -> None:
        """What all switches together carry, in bits a second; 0 for whatever comes."""
        self.collect(self.time())
        self.host.bucket = Bucket(bandwidth, 0, self.tree.now) if bandwidth else None
        self._refresh()

    def set_switch(self, name: str, bandwidth: int, default_weight: int = DEFAULT_WEIGHT) -> None:
        """What a switch carries, in bits a second; 0 for whatever comes."""
        self.collect(self.time())
        known = self._switches.setdefault(name, _Switch())
        was, known.bandwidth, known.default_weight = known.bandwidth, bandwidth, default_weight
        if (was == 0) is not (bandwidth == 0):
            self._replant()
        elif known.group is not None:
            known.group.bucket = Bucket(bandwidth, 0, self.tree.now)
        self._refresh()

    def set_pool(self, name: str, parent: str, figures: Bandwidth) -> None:
        """A pool, new or with other figures; `parent` is empty for one below the host."""
        self.collect(self.time())
        pool = self.pools.get(name)
        if pool is None:
            pool = self.pools[name] = _Pool(parent, figures)
        moved = pool.parent != parent
        pool.parent, pool.figures = parent, figures
        pool.bucket = self._bucket(pool.bucket, figures)
        for group in pool.groups.values():
            group.weight, group.reserve, group.bucket = figures.weight, figures.reserve, pool.bucket
        if moved:
            self._replant()
        self._refresh()

    def remove_pool(self, name: str) -> None:
        """A pool less; nothing if there is none."""
        if name in self.pools:
            self._replant(without=name)

    # --- ports

    def add(self, port: Port, bandwidth: Bandwidth | None, link: LinkSettings | None, pool: str = "") -> None:
        """A port that is there. Of its switch it may be plugged out later: `moved` says so."""
        lane = self.lanes[port.name] = Lane(self, port, bandwidth, link)
        self._ports[port.name] = _Port(lane, pool, _switch_of(port))
        self._settle(port.name)

    def change(self, port: str, bandwidth: Bandwidth | None, link: LinkSettings | None, pool: str) -> None:
        """Other figures from now on, for what waits, too."""
        self.collect(self.time())
        known = self._ports[port]
        known.lane.bandwidth, known.lane.link = bandwidth, link
        if known.pool != pool:
            held = self._unplant(known.lane)
            known.pool = pool
            self._settle(port)
            self._put_back(known.lane, held)
        self._refresh()

    def moved(self, port: Port) -> None:
        """It was plugged into another switch, or into none. What waits is lost, as what is on its cable."""
        known = self._ports.get(port.name)
        if known is not None and known.switch != _switch_of(port):
            self._lose(known.lane)
            known.switch = _switch_of(port)
            self._settle(port.name)

    def remove(self, port: Port) -> None:
        """It is gone; nothing if it was never there."""
        known = self._ports.get(port.name)
        if known is not None and known.lane.port is port:
            del self._ports[port.name], self.lanes[port.name]
            self._lose(known.lane)
            port.shape(None, None)
            self.run()

    def _lose(self, lane: Lane) -> None:
        lost = len(self._unplant(lane))
        if lost:
            lane.port.drop(Drop.LINK_DOWN, lost)
        lane.cut()

    # --- the tree

    def _settle(self, name: str) -> None:
        """Give a port a flow if anything limits it, and put its lane in the way if there is something to do."""
        known = self._ports[name]
        lane, figures = known.lane, known.lane.bandwidth
        switch = self._switches.get(known.switch, _Switch())
        lane.bucket = self._bucket(lane.bucket, figures or Bandwidth())
        if lane.flow is None and known.switch and self._is_limited(known):
            parent = self._group(known.switch, known.pool)
            lane.flow = Flow(self._number(), name, weight=DEFAULT_WEIGHT)
            self.tree.add(parent, lane.flow)
            self._by_flow[lane.flow.id] = lane
        if lane.flow is not None:
            lane.flow.weight = switch.default_weight if figures is None else figures.weight
            lane.flow.reserve = 0 if figures is None else figures.reserve
            lane.flow.bucket = lane.bucket
        lane.install()

    def _refresh(self) -> None:
        """After some figure has changed."""
        for name in self._ports:
            self._settle(name)
        self.tree.changed()
        self.run()

    def _is_limited(self, known: _Port) -> bool:
        """Whether it, its switch or one of its pools has a limit: without one nobody ever waits."""
        figures = known.lane.bandwidth
        if figures is not None and figures.limit:
            return True
        if self.host.bucket is not None or self._switches.get(known.switch, _Switch()).bandwidth:
            return True
        return any(self.pools[pool].figures.limit for pool in self._way_up(known.pool))

    def _way_up(self, pool: str) -> list[str]:
        way = []
        while pool and pool in self.pools and pool not in way:
            way.append(pool)
            pool = self.pools[pool].parent
        return way

    def _group(self, switch: str, pool: str) -> Group:
        """Of a pool on a switch, or of the switch itself, or of the host where that has no bandwidth."""
        carrier = self._switches.get(switch, _Switch())
        if not carrier.bandwidth:
            switch = ""
        if pool in self.pools:
            known = self.pools[pool]
            group = known.groups.get(switch)
            if group is None:
                figures = known.figures
                group = Group(self._number(), pool, weight=figures.weight, reserve=figures.reserve, bucket=known.bucket)
                self.tree.add(self._group(switch, known.parent), group)
                known.groups[switch] = group
            return group
        if not switch:
            return self.host
        if carrier.group is None:
            bucket = Bucket(carrier.bandwidth, 0, self.tree.now)
            carrier.group = Group(self._number(), switch, weight=DEFAULT_WEIGHT, bucket=bucket)
            self.tree.add(self.host, carrier.group)
        return carrier.group

    def _replant(self, without: str = "") -> None:
        """Groups are other ones: all ports are put in anew, with what they hold."""
        held = [(known, self._unplant(known.lane)) for known in self._ports.values()]
        for pool in self.pools.values():
            for group in pool.groups.values():
                self.tree.remove(group)
            pool.groups.clear()
        for switch in self._switches.values():
            if switch.group is not None:
                self.tree.remove(switch.group)
                switch.group = None
        self.pools.pop(without, None)
        for known, frames in held:
            self._settle(known.lane.port.name)
            self._put_back(known.lane, frames)

    def _unplant(self, lane: Lane) -> Held:
        flow, lane.flow = lane.flow, None
        if flow is None:
            return []
        del self._by_flow[flow.id]
        return self.tree.remove(flow)

    def _put_back(self, lane: Lane, held: Held) -> None:
        for frame, came in held:
            if lane.flow is None:
                lane.depart(self.time(), frame)
            else:
                self.tree.put(lane.flow, came, frame)

    def _bucket(self, bucket: Bucket | None, figures: Bandwidth) -> Bucket | None:
        if not figures.limit:
            return None
        if bucket is None:
            return Bucket(figures.limit, figures.burst_bits, self.time())
        bucket.change(self.time(), figures.limit, figures.burst_bits)
        return bucket

    def new_link(self, port: str, way: str, settings: LinkSettings) -> Link:
        """A direction of a port's cable."""
        chance = self._chance(f"link {port} {way}")
        if settings.seed is not None:
            chance = Random(f"link {settings.seed} {port} {way}")
        return Link(settings, chance)

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers


def _switch_of(port: Port) -> str:
    return "" if port.switch is None else port.switch.name
