"""What a guest hears of its bus: a second telling of the rules, for devices that start and stop at once or when told.

It shares no code with the server. A channel is what its guest thinks of it and whether a device still runs; the
server's ten states do not occur.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from vmbus.protocol.versions import Version

GRANTED = 0x2F
OFF = 0xFFFF_FFFF
FAILURE = 0x8000_FFFF
VPS = 2
Heard = tuple[object, ...]
"""A message's name, and what matters in it."""


@attrs.define(eq=False)
class Gpadl:
    """Pages that a guest has named, or is naming."""

    number: int
    gpns: tuple[int, ...]
    ring: bool
    """One range of whole pages."""
    good: bool
    """Makes sense."""
    owned: bool
    """All pages are the guest's."""
    words: int
    missing: int = 0
    """Words of these that are still to come."""
    going: bool = False
    silent: bool = False
    seen: bool = True
    """Made while the device was there."""
    views: int = 0


@attrs.define(eq=False)
class Open:
    """What the guest asked for."""

    gpadl: int
    downstream: int
    vp: int
    open_id: int
    connection: int
    flag: int


@attrs.define(eq=False)
class Line:
    """One channel."""

    key: tuple[int, int]
    live: bool = True
    number: int = 0
    view: str = "none"
    """The guest's: none, closed, open, closing, gone."""
    back: bool = False
    """Offered again before it was released."""
    due: bool = False
    rescind_due: bool = False
    monitored: bool = False
    reserved: bool = False
    request: Open | None = None
    again: Open | None = None
    running: bool = False
    """From the open to the end of the stop."""
    stopping: bool = False
    serving: bool = False
    """The device's task."""
    faulty: bool = False
    """The guest has broken its ring."""
    held: list[Gpadl] = attrs.field(factory=list)
    ring: Gpadl | None = None
    subs: list[Line] = attrs.field(factory=list)
    gpadls: dict[int, Gpadl] = attrs.field(factory=dict)


class BusModel:
    """The bus as its guest sees it. `heard` and `faults` gather what each move has to bring about."""

    def __init__(self) -> None:
        self.lines: dict[tuple[int, int], Line] = {}
        self.phase = "none"
        self.version = 0
        self.features = 0
        self.asked = False
        self.paused = False
        self.kept: list[Heard] = []
        self.after: tuple[int, int] | str = ""
        self.slow: set[int] = set()
        """Devices that take their time to stop."""
        self.heard: list[Heard] = []
        self.faults = 0
        self.ending: list[Line] = []
        """Devices that end once the move at hand is done."""
        self.ended = 0
        """How many have, in this step; in which order is Trio's to say."""

    # --- looking

    def named(self, number: int) -> Line | None:
        """The channel that a guest's message means."""
        return next((line for line in self.numbered() if line.number == number and line.view != "none"), None)

    def numbered(self) -> list[Line]:
        return [line for line in self.lines.values() if line.number]

    @property
    def offering(self) -> bool:
        return self.phase == "connected" and self.asked

    def say(self, *heard: object) -> None:
        if self.paused:
            self.kept.append(heard)
        else:
            self.heard.append(heard)

    def fault(self) -> None:
        self.faults += 1

    def speaks(self, least: int, feature: int = 0) -> bool:
        """Whether the guest may send this now, to be looked at; a fault if not."""
        if (
            self.phase != "connected"
            or self.paused
            or self.version < least
            or (feature and not self.features & feature)
        ):
            self.fault()
            return False
        return True

    # --- connection

    def contact(self, version: int, features: int) -> None:
        if self.phase == "none":
            if version not in list(Version):
                self.fault()
                self.say("VERSION_RESPONSE", 0)
                return
            self.phase, self.version, self.asked = "connected", version, False
            self.features = features & GRANTED if version == Version.V6_0 else 0
            self.say("VERSION_RESPONSE", 1)
        else:
            self.leave((version, features))

    def unload(self) -> None:
        if self.phase == "none":
            self.fault()
        else:
            self.leave("unload")

    def leave(self, after: tuple[int, int] | str) -> None:
        self.after = after
        if self.phase == "connected" or (after == "reset" and self.numbered()):
            self.phase = "leaving"
            self.paused = False
            self.kept.clear()
        if self.phase == "leaving":
            for line in self.numbered():
                if line.reserved and line.view != "none" and after != "reset":
                    self.silence(line, [one for one in line.gpadls.values() if one.missing or one.going])
                elif line.view != "none":
                    self.release_line(line)

    def settle(self) -> None:
        if self.phase != "leaving" or not all(line.reserved and line.view != "none" for line in self.numbered()):
            return
        version, after = self.version, self.after
        self.phase, self.version, self.features, self.asked = "none", 0, 0, False
        if isinstance(after, tuple):
            self.contact(*after)
        elif after == "unload" and version >= Version.V1_1:
            self.say("UNLOAD_COMPLETE")

    def request_offers(self) -> None:
        if not self.speaks(0):
            return
        if self.asked:
            self.fault()
            return
        self.asked = True
        for line in sorted(self.lines.values(), key=lambda line: line.key):
            if line.view == "none" and not line.number:
                self.offer_line(line)
            elif line.view == "closed":
                self.say("OFFER_CHANNEL", line.number, *line.key)
        self.say("ALL_OFFERS_DELIVERED")

    def pause(self) -> None:
        if self.speaks(Version.V6_0, 0x20):
            self.say("PAUSE_RESPONSE")
            self.paused = True

    def resume(self) -> None:
        if self.phase != "connected" or not self.features & 0x20 or not self.paused:
            self.fault()
            return
        self.paused = False
        self.heard += self.kept
        self.kept = []

    def modify_connection(self, fine: bool) -> None:
        if not self.speaks(Version.V6_0, 4):
            return
        fine = fine and not any(line.monitored and line.running for line in self.numbered())
        if not fine:
            self.fault()
        self.say("MODIFY_CONNECTION_RESPONSE", 0 if fine else 2)

    # --- the host's devices

    def offer(self, key: tuple[int, int]) -> None:
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(key)
            if self.offering:
                self.offer_line(line)
            return
        line.live = True
        if line.view == "gone":
            line.back = True
        else:
            line.due = True

    def offer_line(self, line: Line) -> None:
        if not line.number:
            taken = {other.number for other in self.lines.values()}
            line.number = next(number for number in range(1, 2048) if number not in taken)
        line.due, line.view = False, "closed"
        self.say("OFFER_CHANNEL", line.number, *line.key)

    def rescind(self, line: Line) -> None:
        if line.key[1] == 0:
            for sub in [one for one in self.lines.values() if one.live and one.key[0] == line.key[0]]:
                if sub is not line:
                    self.rescind_line(sub)
        self.rescind_line(line)

    def rescind_line(self, line: Line) -> None:
        line.live, line.due = False, False
        if line.view == "none":
            self.free(line)
        elif line.view == "gone":
            line.back = False
        elif line.reserved and self.phase != "connected":
            self.release_line(line)
        else:
            line.view, line.reserved, line.again, line.rescind_due = "gone", False, None, True
            self.stop(line)
            self.rescind_now(line)

    def rescind_now(self, line: Line) -> None:
        if line.rescind_due and not any(one.going and not one.silent for one in line.gpadls.values()):
            line.rescind_due = False
            self.say("RESCIND_CHANNEL_OFFER", line.number)

    def subchannels(self, line: Line, count: int) -> None:
        while len(line.subs) < count:
            key = line.key[0], len(line.subs) + 1
            self.offer(key)
            line.subs.append(self.lines[key])

    # --- devices run and stop

    def stop(self, line: Line) -> None:
        if line.running and not line.stopping:
            line.stopping = True
            if not line.serving or line.key[0] not in self.slow:
                self.ending.append(line)

    def break_ring(self, line: Line) -> None:
        line.faulty = True
        if line.key[0] not in self.slow:
            self.ending.append(line)

    def let_go(self, device: int) -> None:
        self.slow.discard(device)
        for line in list(self.lines.values()):
            if line.key[0] == device and line.serving and (line.stopping or line.faulty):
                self.ending.append(line)

    def finish(self) -> None:
        """What follows of itself when a move is done."""
        self.settle()
        while self.ending:
            line = self.ending.pop(0)
            self.ended += 1
            if line.serving:
                self.served(line)
            else:
                self.stopped(line)
            self.settle()

    def served(self, line: Line) -> None:
        """The device's task has ended."""
        line.serving = False
        while line.subs:
            sub = line.subs.pop()
            if sub.live and self.lines.get(sub.key) is sub:
                self.rescind_line(sub)
        for one in line.held:
            self.unview(line, one)
        line.held = []
        if line.stopping:
            self.stopped(line)

    def stopped(self, line: Line) -> None:
        ring, line.ring = line.ring, None
        if ring is not None:
            self.unview(line, ring)
        line.running = line.stopping = line.faulty = False
        line.request = None
        if line.view == "closing":
            line.view = "closed"
            again, line.again = line.again, None
            if line.reserved:
                line.reserved = False
                self.heard.append(("CLOSE_RESERVED_RESPONSE", line.number))
                if self.phase != "connected":
                    self.release_line(line)
            elif again is not None:
                self.begin(line, again)
        else:
            self.free(line)

    def unview(self, line: Line, gpadl: Gpadl) -> None:
        gpadl.views -= 1
        if gpadl.going and not gpadl.views:
            self.torn_down(line, gpadl)

    # --- channels

    def open(self, number: int, request: Open) -> None:
        if not self.speaks(0):
            return
        line = self.named(number)
        if line is None or line.view == "open" or line.again is not None or (line.view == "closing" and line.reserved):
            self.fault()
        elif line.view == "closed":
            self.begin(line, request)
        elif line.view == "closing":
            line.again = request

    def begin(self, line: Line, request: Open) -> None:
        gpadl = line.gpadls.get(request.gpadl)
        status = FAILURE
        if not self.is_ring(gpadl, request):
            self.fault()
        elif self.can_signal(line, request):
            assert gpadl is not None
            status = 0
            line.view, line.request = "open", request
            line.running = line.serving = True
            line.ring, gpadl.views = gpadl, gpadl.views + 1
        result = ("OPEN_CHANNEL_RESULT", line.number, request.open_id, status)
        if line.reserved:
            self.heard.append(result)
            line.reserved = not status
        else:
            self.say(*result)

    @staticmethod
    def is_ring(gpadl: Gpadl | None, request: Open) -> bool:
        return (
            gpadl is not None
            and not gpadl.missing
            and not gpadl.going
            and gpadl.ring
            and gpadl.seen
            and 2 <= request.downstream <= len(gpadl.gpns) - 2
        )

    def can_signal(self, line: Line, request: Open) -> bool:
        """Whether the guest's terms can be had: a processor, a flag, and a connection ID that nobody uses."""
        taken = {other.request.connection for other in self.numbered() if other is not line and other.request}
        if request.connection in taken | {1, 4}:
            return False
        return request.vp == OFF or (request.vp < VPS and request.flag < 2048)

    def reserve(self, number: int, gpadl: int, downstream: int) -> None:
        if not self.speaks(Version.V4_0):
            return
        line = self.named(number)
        if line is None or line.view in ("open", "closing"):
            self.fault()
        elif line.view == "closed":
            line.reserved = True
            self.begin(line, Open(gpadl, downstream, OFF, 0, 0x2000 | number, number))

    def close_reserved(self, number: int) -> None:
        line = self.named(number)
        if self.paused or line is None or (line.view != "gone" and not (line.reserved and line.view == "open")):
            self.fault()
        elif line.view == "open":
            line.view = "closing"
            self.stop(line)

    def close(self, number: int) -> None:
        if not self.speaks(0):
            return
        line = self.named(number)
        if line is None or line.view in ("closed", "closing") or line.reserved:
            self.fault()
        elif line.view == "open":
            line.view = "closing"
            self.stop(line)

    def release(self, number: int) -> None:
        if self.phase == "none" or not self.speaks(0):
            return
        line = self.named(number)
        if line is None or line.view == "open" or line.again is not None or line.reserved:
            self.fault()
            return
        line.due = line.back
        self.release_line(line)

    def release_line(self, line: Line) -> None:
        line.view, line.again, line.reserved, line.back, line.rescind_due = "none", None, False, False, False
        self.stop(line)
        self.silence(line, line.gpadls.values())
        self.free(line)

    def free(self, line: Line) -> None:
        if line.view != "none" or line.running or line.gpadls or self.lines.get(line.key) is not line:
            return
        if line.number and line.due and self.offering:
            self.offer_line(line)
            return
        line.number, line.monitored = 0, False
        if not line.live:
            del self.lines[line.key]

    def modify(self, number: int, vp: int) -> None:
        if not self.speaks(Version.V4_1):
            return
        line = self.named(number)
        request = line.request if line is not None and line.view == "open" and not line.reserved else None
        if request is None or OFF in (vp, request.vp):
            self.fault()
            status = FAILURE
        else:
            status = 0 if vp < VPS and request.flag < 2048 else FAILURE
            if not status:
                request.vp = vp
        if self.version >= Version.V5_3:
            self.say("MODIFY_CHANNEL_RESPONSE", number, status)

    # --- GPADLs

    def header(self, number: int, gpadl: Gpadl, words: int) -> None:
        """`words` of it are in the header."""
        if not self.speaks(0):
            return
        line = self.named(number)
        elsewhere = any(
            other is not line and gpadl.number in other.gpadls and other.gpadls[gpadl.number].missing
            for other in self.numbered()
        )
        if (
            line is None
            or line.reserved
            or gpadl.number in line.gpadls
            or (not gpadl.good and not gpadl.missing)
            or (gpadl.missing and elsewhere)
        ):
            self.fault()
            self.say("GPADL_CREATED", number, gpadl.number, FAILURE)
            return
        line.gpadls[gpadl.number] = gpadl
        if not gpadl.missing:
            self.complete(line, gpadl)

    def body(self, number: int, words: int) -> None:
        if not self.speaks(0):
            return
        for line in self.numbered():
            gpadl = line.gpadls.get(number)
            if gpadl is not None and gpadl.missing:
                gpadl.missing = max(0, gpadl.missing - words)
                if not gpadl.missing:
                    self.complete(line, gpadl)
                return
        self.fault()

    def complete(self, line: Line, gpadl: Gpadl) -> None:
        gpadl.seen = line.view != "gone"
        fine = gpadl.good and (gpadl.owned or not gpadl.seen)
        if not fine:
            self.fault()
            del line.gpadls[gpadl.number]
        self.say("GPADL_CREATED", line.number, gpadl.number, 0 if fine else FAILURE)

    def teardown(self, number: int, gpadl_number: int) -> None:
        if not self.speaks(0):
            return
        line = self.named(number)
        gpadl = line.gpadls.get(gpadl_number) if line is not None else None
        if line is None or gpadl is None or gpadl.missing or gpadl.going or line.reserved:
            self.fault()
        else:
            self.tear_down(line, gpadl)

    def tear_down(self, line: Line, gpadl: Gpadl) -> None:
        gpadl.going = True
        if not gpadl.views:
            self.torn_down(line, gpadl)

    def torn_down(self, line: Line, gpadl: Gpadl) -> None:
        del line.gpadls[gpadl.number]
        if not gpadl.silent:
            self.say("GPADL_TORNDOWN", gpadl.number)
        self.rescind_now(line)
        self.free(line)

    def silence(self, line: Line, gpadls: Iterable[Gpadl]) -> None:
        for gpadl in list(gpadls):
            gpadl.silent = True
            if not gpadl.going:
                self.tear_down(line, gpadl)
