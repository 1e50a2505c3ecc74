"""Ports of a switch with queues and cables in the way, on a clock that the test moves."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from hypervisor.timer_queue import TimerQueue
from tests.doubles.switch import BROADCAST, Lan, Plug, ethernet, mac
from vsp_vsc.network.shaping.settings import CERTAIN, Bandwidth, LinkSettings
from vsp_vsc.network.shaping.shaper import MAX_TURNS, Shaping
from vsp_vsc.network.switch.kinds import LinkDirection, SwitchKind
from vsp_vsc.network.switch.ports import Drop
from vsp_vsc.network.switch.switch import VirtualSwitch

MS = 1_000_000
TICKS = 10_000
"""In a millisecond."""
MBIT = 1_000_000


class Slow(Lan):
    """A switch whose ports are shaped."""

    def __init__(self, host: str = "host") -> None:
        super().__init__()
        self.timers = TimerQueue()
        self.shaping = Shaping(lambda: self.now, self.timers, lambda purpose: random.Random(f"{host} {purpose}"))
        self.heard: list[tuple[float, str, bytes]] = []
        """When in milliseconds, at which port, what."""

    def shaped(
        self, number: int, bandwidth: Bandwidth | None = None, link: LinkSettings | None = None, pool: str = ""
    ) -> Plug:
        """A port with these controls."""
        plug = _Noting(self, number)
        self.shaping.add(plug.port, bandwidth, link, pool)
        return plug

    def until(self, milliseconds: float, late: int = 0) -> None:
        """Fire timers, each at its time or so many milliseconds late."""
        end = round(milliseconds * TICKS)
        while (deadline := self.timers.deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline + late * TICKS)
            self.timers.fire_due(self.now, 1)
        self.now = max(self.now, end)

    def times(self, name: str) -> list[float]:
        """When frames came to that port."""
        return [when for when, at, _ in self.heard if at == name]


class _Noting(Plug):
    def __init__(self, lan: Slow, number: int) -> None:
        self.lan = lan
        made = lan.plug(number)
        made.port.detach()
        super().__init__(made.port)

    def deliver(self, frames: Sequence[bytes]) -> int:
        taken = super().deliver(frames)
        self.lan.heard += [(self.lan.now / TICKS, self.port.name, frame) for frame in frames[:taken]]
        return taken


def full(to: int, source: int, number: int = 0) -> bytes:
    """A frame of 1,500 bytes."""
    return ethernet(mac(to), mac(source), number.to_bytes(4, "big")).ljust(1500, b"x")


def test_e32_through_a_port() -> None:
    """E32: ten at once, then one every 1.5 ms, packet 666 at 984 ms; each arrives 50 ms later."""
    lan = Slow()
    link = LinkSettings(delay=50 * MS, direction=LinkDirection.OUT)
    a, b = lan.shaped(1, Bandwidth(limit=8 * MBIT, burst=15_000), link), lan.shaped(2)
    a.port.transmit([full(2, 1, number) for number in range(666)])
    lan.until(2000)
    assert lan.times(b.port.name) == [50.0] * 10 + [50 + 1.5 * number for number in range(1, 657)]
    assert lan.times(b.port.name)[-1] == 984 + 50
    assert [int.from_bytes(frame[14:18], "big") for frame in b.got] == list(range(666))
    assert len(lan.timers) == 0, "nothing waits, so nobody is woken"


def test_a_late_timer_changes_nothing() -> None:
    """What was due leaves in its order, at its own time: with timers 7 ms late all the same frames arrive, each at most
    so much later, though it passed three of them."""
    found = []
    for late in (0, 7):
        lan = Slow()
        link = LinkSettings(delay=20 * MS, jitter=9 * MS, loss=CERTAIN // 10)
        a, b = lan.shaped(1, Bandwidth(limit=8 * MBIT, burst=3000), link), lan.shaped(2, None, link)
        a.port.transmit([full(2, 1, number) for number in range(100)])
        lan.until(500, late)
        found.append((b.got, a.port.drops, b.port.drops, lan.times(b.port.name)))
        assert (lan.shaping.late_ns >= MS) is (late > 0)
    assert found[0][:3] == found[1][:3]
    assert all(0 <= after - before <= 7.1 for before, after in zip(found[0][3], found[1][3], strict=True))


def test_a_port_without_controls_has_nothing_in_the_way() -> None:
    """Its frames go as ever, in the same call, while others wait."""
    lan = Slow()
    a, b, c = lan.shaped(1, Bandwidth(limit=MBIT)), lan.shaped(2), lan.shaped(3)
    assert b.port.outlet is None
    assert b.port.adapter is b
    a.port.transmit([full(2, 1)] * 20)
    b.port.transmit([full(3, 2)] * 5)
    assert len(c.got) == 5
    assert len(b.got) == 10


def test_a_link_is_both_ways_unless_it_says_one() -> None:
    """A ping takes the delay twice; with `direction` once."""
    for direction, times in ((LinkDirection.BOTH, 2), (LinkDirection.OUT, 1), (LinkDirection.IN, 1)):
        lan = Slow()
        a, b = lan.shaped(1, None, LinkSettings(delay=30 * MS, direction=direction)), lan.shaped(2)
        b.answer = lambda _: full(1, 2)
        a.port.transmit([full(2, 1)])
        lan.until(200)
        assert lan.times(a.port.name) == [30.0 * times]


def test_a_queue_has_an_end() -> None:
    """What comes on top is dropped and counted, and shown to who watches; the burst finds its way first."""
    lan = Slow()
    a, b = lan.shaped(1, Bandwidth(limit=8 * MBIT, burst=15_000, queue=5)), lan.shaped(2)

    class Tap:
        seen: list[Drop | None] = []

        def sent(self, frame: bytes, drop: Drop | None) -> None:
            self.seen.append(drop)

        def received_frames(self, frames: Sequence[bytes], taken: int) -> None:
            pass

    tap = Tap()
    a.port.watch(tap)
    a.port.transmit([full(2, 1)] * 100)
    assert lan.drops(a) == {"bandwidth": 85}
    lan.until(1000)
    assert len(b.got) == 15
    assert tap.seen.count(Drop.BANDWIDTH) == 85
    assert tap.seen.count(None) == 15
    figures = lan.shaping.lanes["vm1/0"].figures()
    assert (figures.sent_bits, figures.dropped, figures.queued_frames, figures.delayed_frames) == (180_000, 85, 0, 5)
    assert figures.delay_ns == sum(1_500_000 * number for number in range(1, 6))


def test_lost_frames_are_counted_where_they_were_lost() -> None:
    """At the port of the cable, on the way out and on the way in."""
    lan = Slow()
    lossy = LinkSettings(loss=CERTAIN)
    a, b, c = lan.shaped(1, None, lossy), lan.shaped(2, None, lossy), lan.shaped(3)
    a.port.transmit([full(3, 1)] * 3)
    c.port.transmit([full(2, 3)] * 2)
    assert lan.drops(a) == {"link_loss": 3}
    assert lan.drops(b) == {"link_loss": 2}
    assert not a.got + b.got + c.got


def test_a_switch_that_carries_little_is_shared() -> None:
    """By weight, by reservation; a port without figures has the switch's default weight."""
    lan = Slow()
    lan.shaping.set_switch("lan", 10 * MBIT, default_weight=200)
    senders = [
        lan.shaped(1, Bandwidth(weight=100, queue=5000)),
        lan.shaped(2, Bandwidth(reserve=5 * MBIT, weight=1, queue=5000)),
        lan.shaped(3),
    ]
    sink = lan.shaped(4)
    lan.shaping.lanes["vm3/0"].bandwidth = None
    for number, plug in enumerate(senders, 1):
        plug.port.transmit([full(4, number)] * 900)
    lan.until(1200)
    sources = [frame[6:12] for _, at, frame in lan.heard if at == sink.port.name]
    counts = [sources.count(mac(number)) for number in (1, 2, 3)]
    assert sum(counts) == 1001, "10 Mbit/s for 1.2 s, the first at once"
    assert counts[1] == pytest.approx(500, abs=2)
    assert counts[0] == pytest.approx(500 / 3, abs=2)
    assert counts[2] == pytest.approx(1000 / 3, abs=2)


def test_a_pool_has_one_limit_for_all_switches() -> None:
    """A user's machines under one common limit, whatever they are plugged into."""
    lan = Slow()
    lan.shaping.set_pool("user", "", Bandwidth(limit=2 * MBIT, burst=3000))
    lan.shaping.set_switch("lan", 100 * MBIT)
    other = VirtualSwitch("wan", SwitchKind.PRIVATE, lambda: lan.now)
    a, sink = lan.shaped(1, pool="user"), lan.shaped(2)
    b, far = lan.plug(3), lan.plug(4)
    for plug in (b, far):
        lan.switch.disconnect(plug.port)
        other.connect(plug.port)
    lan.shaping.add(b.port, None, None, "user")
    a.port.transmit([full(2, 1)] * 500)
    b.port.transmit([full(4, 3)] * 500)
    lan.until(1200)
    both = len(sink.got) + len(far.got)
    assert both == 2 + 200
    assert abs(len(sink.got) - len(far.got)) <= 3


def test_pools_nest() -> None:
    """A pool's limit is inside its parent's; its weight counts beside its siblings there."""
    lan = Slow()
    lan.shaping.set_pool("all", "", Bandwidth(limit=8 * MBIT, burst=1600))
    lan.shaping.set_pool("gold", "all", Bandwidth(weight=300))
    lan.shaping.set_pool("lead", "all", Bandwidth(weight=100, limit=6 * MBIT))
    sink = lan.shaped(9)
    for number, pool in ((1, "gold"), (2, "lead"), (3, "lead")):
        lan.shaped(number, Bandwidth(queue=5000), pool=pool).port.transmit([full(9, number)] * 2000)
    lan.until(1500)
    sources = [frame[6:12] for frame in sink.got]
    assert sources.count(mac(1)) == pytest.approx(750, abs=3)
    assert sources.count(mac(2)) == pytest.approx(125, abs=3)


def test_a_change_holds_at_once_for_what_waits_too() -> None:
    """Limit raised, lowered, taken away; no frame is lost by it or overtakes."""
    lan = Slow()
    a, b = lan.shaped(1, Bandwidth(limit=80_000, burst=1500)), lan.shaped(2)
    a.port.transmit([full(2, 1, number) for number in range(100)])
    lan.until(150)
    assert len(b.got) == 2, "one each 150 ms"
    lan.shaping.change("vm1/0", Bandwidth(limit=8 * MBIT, burst=1500), None, "")
    lan.until(165)
    assert len(b.got) == 2 + 10
    lan.shaping.change("vm1/0", Bandwidth(limit=80_000, burst=1500), None, "")
    lan.until(620)
    assert len(b.got) == 12 + 3
    lan.shaping.change("vm1/0", None, None, "")
    assert [int.from_bytes(frame[14:18], "big") for frame in b.got] == list(range(100))
    assert lan.timers.deadline() is None


def test_a_slow_cable_is_of_use_at_once_when_it_is_made_fast() -> None:
    """Ten frames of 12 s each wait for 1 kbit/s, and a thousand that it lost; at 12 Mbit/s each takes its 1 ms."""
    lan = Slow()
    out = LinkDirection.OUT
    a, b = lan.shaped(1, None, LinkSettings(rate=1000, delay=50 * MS, direction=out)), lan.shaped(2)
    a.port.transmit([full(2, 1, number) for number in range(10)])
    lan.shaping.change("vm1/0", None, LinkSettings(rate=1000, delay=50 * MS, loss=CERTAIN, direction=out), "")
    a.port.transmit([full(2, 1, number) for number in range(1000)])
    lan.until(12_051)
    assert len(b.got) == 1
    lan.shaping.change("vm1/0", None, LinkSettings(rate=12 * MBIT, delay=50 * MS, direction=out), "")
    a.port.transmit([full(2, 1, 10)])
    lan.until(13_000)
    assert lan.times(b.port.name)[1:] == [12_051 + 50 + number for number in range(1, 11)]
    assert [int.from_bytes(frame[14:18], "big") for frame in b.got] == list(range(11))
    assert len(lan.timers) == 0


def test_pools_and_switches_change_under_waiting_frames() -> None:
    """Into another pool, a pool into another, a switch that gets a capacity and loses it: all arrive, in order."""
    lan = Slow()
    for name in ("one", "two"):
        lan.shaping.set_pool(name, "", Bandwidth(limit=800_000, burst=1600))
    a, b = lan.shaped(1, pool="one"), lan.shaped(2)
    a.port.transmit([full(2, 1, number) for number in range(60)])
    lan.until(30)
    lan.shaping.change("vm1/0", None, None, "two")
    lan.until(60)
    lan.shaping.set_switch("lan", 400_000)
    lan.until(150)
    assert len(b.got) == 6 + 3
    lan.shaping.set_pool("two", "one", Bandwidth())
    lan.shaping.set_switch("lan", 0)
    lan.until(210)
    assert len(b.got) == 9 + 5
    lan.shaping.change("vm1/0", None, None, "")
    lan.shaping.remove_pool("two")
    lan.shaping.remove_pool("one")
    lan.until(10_000)
    assert [int.from_bytes(frame[14:18], "big") for frame in b.got] == list(range(60))


def test_a_cable_that_is_pulled_loses_what_waits() -> None:
    """Into another switch, or out for good: counted as `link_down`, and no timer is left."""
    lan = Slow()
    other = VirtualSwitch("wan", SwitchKind.PRIVATE, lambda: lan.now)
    a, b = lan.shaped(1, Bandwidth(limit=800_000, burst=1500), LinkSettings(delay=5 * MS)), lan.shaped(2)
    a.port.transmit([full(2, 1)] * 5)
    lan.until(7)
    assert len(b.got) == 1
    a.port.transmit([full(2, 1)] * 2)
    lan.switch.disconnect(a.port)
    other.connect(a.port)
    lan.shaping.moved(a.port)
    assert lan.drops(a) == {"link_down": 6}
    lan.until(1000)
    assert len(b.got) == 1
    a.port.transmit([ethernet(BROADCAST, mac(1))])
    lan.shaping.remove(a.port)
    assert a.port.outlet is None
    assert lan.drops(a) == {"link_down": 7}
    lan.until(2000)
    assert lan.timers.deadline() is None


def test_what_arrives_where_nobody_is_any_more() -> None:
    """The adapter has gone, or its cable is out, while frames were on their way in."""
    lan = Slow()
    a, b = lan.shaped(1), lan.shaped(2, None, LinkSettings(delay=5 * MS, direction=LinkDirection.IN))
    a.port.transmit([full(2, 1)])
    b.port.detach()
    lan.until(10)
    assert lan.drops(b) == {"no_adapter": 1}
    b.port.attach(b)
    a.port.transmit([full(2, 1)])
    b.port.set_enabled(False)
    lan.until(20)
    assert lan.drops(b) == {"no_adapter": 1, "link_down": 1}
    b.port.set_enabled(True)
    assert b.links == [False, True], "the adapter hears of its cable, whatever stands before it"
    b.room = 1
    a.port.transmit([full(2, 1)] * 3)
    lan.until(30)
    assert lan.drops(b)["adapter_full"] == 2
    lan.shaping.remove(b.port)
    assert b.port.adapter is b


@pytest.mark.parametrize("controls", [(None, LinkSettings()), (Bandwidth(limit=10**9, burst=10**6), None)], ids=str)
def test_adapters_that_answer_at_once_do_not_stop_the_host(
    controls: tuple[Bandwidth | None, LinkSettings | None],
) -> None:
    """Over perfect cables two would play ball for ever: after some turns others come first."""
    lan = Slow()
    a, b = lan.shaped(1, *controls), lan.shaped(2, *controls)
    a.answer = lambda _: full(2, 1)
    b.answer = lambda _: full(1, 2)
    a.port.transmit([full(2, 1)])
    assert 0 < len(a.got) <= MAX_TURNS
    assert lan.timers.deadline() == lan.now


def test_a_link_has_its_own_chances() -> None:
    """Each direction of each port; a seed of its own makes them the same on any host."""

    def arrived(host: str, number: int, seed: int | None, direction: LinkDirection) -> list[int]:
        lan = Slow(host)
        link = LinkSettings(loss=CERTAIN // 2, seed=seed, direction=direction)
        a, b = lan.shaped(number, None, link), lan.shaped(9)
        if direction is LinkDirection.OUT:
            a.port.transmit([full(9, number, index) for index in range(64)])
        else:
            b.port.transmit([full(number, 9, index) for index in range(64)])
        return [int.from_bytes(frame[14:18], "big") for frame in a.got + b.got]

    out, into = LinkDirection.OUT, LinkDirection.IN
    traces = [
        arrived("one", 1, None, out),
        arrived("one", 2, None, out),
        arrived("one", 1, None, into),
        arrived("two", 1, None, out),
    ]
    assert len({tuple(one) for one in traces}) == 4
    assert arrived("one", 1, None, out) == traces[0]
    assert arrived("one", 1, 7, out) == arrived("two", 1, 7, out) != traces[0]
