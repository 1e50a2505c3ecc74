"""The host's end of a keyboard's channel, with no Trio in it: keys in, packets out. Root side.

    version --accepted--> ready

What a guest does not read. At most `MAX_EVENTS` strokes wait for room in its ring. A key that goes down beyond them is
refused, and counted; a key that goes up always has its place, so a key that the guest has seen go down comes up again,
whenever it reads. So no more wait than `MAX_EVENTS` and one for each key that is held.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from hypervisor.wire import BadValue
from vmbus.ring import Packet
from vsp_vsc.keyboard.protocol import (
    VERSION_1_0,
    KeyboardRequest,
    KeyboardResponse,
    KeyboardType,
    KeyFlags,
    Keystroke,
    LedIndicators,
    Leds,
    decode_message,
    encode_message,
)
from vsp_vsc.keyboard.scan_codes import CAPS_LOCK, E0, E1, PAUSE, PAUSE_SECOND

MAX_EVENTS: Final = 256
"""Strokes that wait for the guest before keys that go down are refused."""
_CODE_BITS: Final = 0x7F
_LEDS: Final = int(Leds.SCROLL_LOCK | Leds.NUM_LOCK | Leds.CAPS_LOCK)


class State(enum.Enum):
    """Where a session is."""

    VERSION = "waiting for a version"
    READY = "ready"


class SavedKeyboard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a session when its VM is saved."""

    ready: bool
    leds: int
    caps_lock: bool
    held: tuple[int, ...]
    """Keys that the guest has seen go down, and not up."""


class KeyboardSession:
    """One opening of a keyboard's channel."""

    def __init__(self) -> None:
        self.state = State.VERSION
        self.leds = Leds(0)
        """The lamps that the guest has lit."""
        self.outbox: list[Packet] = []
        """To be sent, in order; whoever sends takes from its front."""
        self.blocked = False
        """The first of it is on its way."""
        self.caps_lock = False
        """Whether letters come out large without shift, as far as the host can tell: a guest may show its lamps, and
        one that does not is taken to do with the key as all do."""
        self.strokes = 0
        """Key events that were queued."""
        self.refused = 0
        """Keys that did not go down because the guest does not read."""
        self._held: dict[int, None] = {}

    @property
    def held(self) -> tuple[int, ...]:
        """Keys that are down, in the order in which they went down."""
        return tuple(self._held)

    @property
    def ready(self) -> bool:
        """Whether keys can go down."""
        return self.state is State.READY

    def take(self, untrusted: Packet) -> None:
        """A packet from the guest. Raises `WireError`."""
        kind, body = decode_message(untrusted)
        match kind, self.state:
            case KeyboardType.PROTOCOL_REQUEST, State.VERSION:
                accepted = KeyboardRequest.decode(body).version == VERSION_1_0
                self.outbox.append(encode_message(KeyboardType.PROTOCOL_RESPONSE, KeyboardResponse(int(accepted))))
                if accepted:
                    self.state = State.READY
            case KeyboardType.LED_INDICATORS, State.READY:
                self.leds = Leds(LedIndicators.decode(body).leds & _LEDS)
                self.caps_lock = Leds.CAPS_LOCK in self.leds
            case _:
                raise BadValue(f"keyboard message {kind} from the guest, {self.state.value}")

    @property
    def room(self) -> int:
        """How many strokes more may wait."""
        return max(0, MAX_EVENTS - len(self.outbox))

    def press(self, code: int) -> bool:
        """A key goes down, or repeats; False where it is refused. Only when ready. `ValueError` for no scan code."""
        if not 1 <= code & 0xFF <= _CODE_BITS or code & ~0xFF not in (0, E0, E1):
            raise ValueError(f"{code:#x} is no scan code: 0x01 to 0x7f, with 0xe0 or 0xe1 in front or nothing")
        strokes = _strokes(code, KeyFlags(0))
        if self.room < len(strokes):
            self.refused += 1
            return False
        if code == CAPS_LOCK and code not in self._held:
            self.caps_lock = not self.caps_lock
        self._held[code] = None
        self._queue(strokes)
        return True

    def release(self, code: int) -> bool:
        """A key goes up; False where it was not down."""
        if code not in self._held:
            return False
        del self._held[code]
        self._queue(_strokes(code, KeyFlags.BREAK))
        return True

    def release_all(self) -> None:
        """Every key goes up, the last first."""
        for code in reversed(self.held):
            self.release(code)

    def unicode(self, text: str) -> bool:
        """Characters that no key has, each a stroke and its end for every UTF-16 code unit; False if refused."""
        data = text.encode("utf-16-le", "surrogatepass")
        units = [int.from_bytes(data[at : at + 2], "little") for at in range(0, len(data), 2)]
        if self.room < 2 * len(units):
            self.refused += 1
            return False
        for unit in units:
            self._queue([(unit, KeyFlags.UNICODE), (unit, KeyFlags.UNICODE | KeyFlags.BREAK)])
        return True

    def _queue(self, strokes: list[tuple[int, KeyFlags]]) -> None:
        self.strokes += len(strokes)
        self.outbox += [encode_message(KeyboardType.EVENT, Keystroke(code, 0, flags)) for code, flags in strokes]

    # --- saved and restored

    def save(self) -> bytes:
        """The session as a record. What waits for room is forgotten; keys that are down, or were, come up later."""
        waiting = (_code_of(packet) for packet in self.outbox)
        held = tuple(dict.fromkeys([*self._held, *(code for code in waiting if code is not None)]))
        return msgspec.msgpack.encode(SavedKeyboard(self.ready, int(self.leds), self.caps_lock, held))

    @classmethod
    def load(cls, untrusted: bytes) -> KeyboardSession:
        """A session that goes on where it was saved; nobody holds a key there any more. Raises `BadValue`."""
        try:
            record = msgspec.msgpack.decode(untrusted, type=SavedKeyboard)
        except ValueError as error:  # msgspec's errors are ValueErrors too
            raise BadValue(f"a saved keyboard: {error}") from None
        if len(record.held) > MAX_EVENTS or not all(0 <= code <= 0xFFFF for code in record.held):
            raise BadValue("a saved keyboard with keys that there are not")
        session = cls()
        session.state = State.READY if record.ready else State.VERSION
        session.leds = Leds(record.leds & _LEDS)
        session.caps_lock = record.caps_lock
        if record.ready:
            session._held = dict.fromkeys(record.held)
            session.release_all()
        return session


def _strokes(code: int, flags: KeyFlags) -> list[tuple[int, KeyFlags]]:
    """What goes over the bus when a key goes down, or up with `BREAK`."""
    if code & ~0xFF == E0:
        flags |= KeyFlags.E0
    elif code & ~0xFF == E1:
        flags |= KeyFlags.E1
    strokes = [(code & _CODE_BITS, flags)]
    if code == PAUSE:  # the second half has no prefix of its own
        strokes.append((PAUSE_SECOND, flags & KeyFlags.BREAK))
    return strokes


def _code_of(packet: Packet) -> int | None:
    """The key of a stroke that waits; None for another packet, or a character."""
    kind, body = decode_message(packet)
    if kind != KeyboardType.EVENT:
        return None
    stroke = Keystroke.decode(body)
    if stroke.flags & KeyFlags.UNICODE:
        return None
    return stroke.make_code | (E0 if stroke.flags & KeyFlags.E0 else E1 if stroke.flags & KeyFlags.E1 else 0)
