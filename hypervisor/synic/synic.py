"""One virtual processor's synthetic interrupt controller: SINTs, message slots and queues, event flags. Hypervisor.

A guest may run at the same time on another thread, so three rules hold here (measured; see also the ring):
- a word that publishes something is stored whole, through a cast view; `struct.pack_into` shows a zero first;
- a message's type, which is what publishes it, is stored last;
- what the guest does next is looked at only after a full fence, or a wake-up is lost about once in ten thousand.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable

import attrs
import msgspec

from hypervisor.inspect import Branch, Claim, Hex, Many
from hypervisor.overlay import OverlayMap, OverlayPage
from hypervisor.pages import PAGE_SHIFT
from hypervisor.synic.messages import (
    EVENT_FLAGS_SIZE,
    FLAGS_OFFSET,
    LEAST_VECTOR,
    MESSAGE_PENDING,
    PAYLOAD_MAX,
    SINT_COUNT,
    SINT_RESET,
    SLOT_SIZE,
    MessageHeader,
    Sint,
)

ENABLED = 1
"""Bit 0 of SCONTROL, SIMP and SIEFP."""
_VECTOR, _MASKED, _AUTO_EOI, _POLLING = int(Sint.VECTOR), int(Sint.MASKED), int(Sint.AUTO_EOI), int(Sint.POLLING)
_NO_INTERRUPT = int(Sint.MASKED | Sint.POLLING)
_WORDS_A_SLOT = SLOT_SIZE // 4
_FLAGS_SHOWN = 16
_fence_lock = threading.Lock()
_acquire, _release = _fence_lock.acquire, _fence_lock.release


def fence() -> None:
    """A full memory fence: stores before it are seen before loads after it are made. 60 ns."""
    _acquire()
    _release()


class Message(msgspec.Struct):
    """A message on its way: the buffer that holds it until its slot is free."""

    message_type: int
    payload: bytes
    """At most 240 bytes."""
    origination_id: int = 0
    release: Callable[[], None] | None = None
    """Gives the buffer back to the port."""
    sender: object = None
    """The processor whose intercept it tells, or the timer that expired, since each has one buffer only."""
    at_delivery: Callable[[], bytes] | None = None
    """Makes the payload anew as it goes into its slot, for a message that says when that was."""


@attrs.define(eq=False, slots=True)
class Synic:
    """The registers and queues. Values written to registers are checked by the MSR table, not here."""

    overlays: OverlayMap
    raise_interrupt: Callable[[int], None]
    scontrol: int = 0
    siefp: int = 0
    simp: int = 0
    sints: list[int] = attrs.field(factory=lambda: [SINT_RESET] * SINT_COUNT)
    message_page: OverlayPage = attrs.field(factory=lambda: OverlayPage("SIM page"))
    event_page: OverlayPage = attrs.field(factory=lambda: OverlayPage("SIEF page"))
    queues: defaultdict[int, deque[Message]] = attrs.field(factory=lambda: defaultdict(deque))
    """By SINT, for those that ever had a message: an empty deque takes 600 bytes."""
    queued: int = 0
    """Messages in all queues."""

    @property
    def takes_messages(self) -> bool:
        """Whether a message may be posted here."""
        return bool(self.scontrol & self.simp & ENABLED)

    def takes_events(self, sint: int) -> bool:
        """Whether an event flag of this SINT may be set."""
        return bool(self.scontrol & self.siefp & ENABLED) and not self.sints[sint] & _MASKED

    def inspect(self) -> Branch:
        """Registers, and the SINTs that are unmasked or have something waiting, with their message slots and flags."""
        used = {n: n for n in range(SINT_COUNT) if self.sints[n] != SINT_RESET or self.queues.get(n)}
        return Branch(
            {
                "scontrol": Hex(self.scontrol),
                "simp": Hex(self.simp),
                "siefp": Hex(self.siefp),
                "queued_messages": self.queued,
                "sints": Many(used, int, show=self._inspect_sint),
            }
        )

    def _inspect_sint(self, sint: int) -> Branch:
        value = self.sints[sint]
        slot = self.message_page.words[sint * _WORDS_A_SLOT]
        flags = bytes(self.event_page.view[sint * EVENT_FLAGS_SIZE : (sint + 1) * EVENT_FLAGS_SIZE])
        return Branch(
            {
                "vector": Hex(value & _VECTOR),
                "masked": bool(value & _MASKED),
                "auto_eoi": bool(value & _AUTO_EOI),
                "polling": bool(value & _POLLING),
                "slot_message_type": Claim(Hex(slot)),
                "queued_messages": len(self.queues.get(sint, ())),
                "event_flags_set": Claim(_flags_set(flags)),
            }
        )

    # --- registers

    def write_scontrol(self, value: int) -> None:
        """Turn the controller on or off; on, it delivers what waits."""
        self.scontrol = value
        self.deliver_waiting()

    def write_simp(self, value: int) -> None:
        """Place or remove the message page. Past the end of memory it is accepted and out of the guest's reach."""
        self.simp = value
        _place(self.overlays, self.message_page, value)
        self.deliver_waiting()

    def write_siefp(self, value: int) -> None:
        """Place or remove the event flags page."""
        self.siefp = value
        _place(self.overlays, self.event_page, value)

    def reset(self) -> None:
        """Registers as at creation, pages cleared and removed, waiting messages dropped and their buffers freed."""
        self.scontrol = self.siefp = self.simp = 0
        self.sints[:] = [SINT_RESET] * SINT_COUNT
        for page in (self.message_page, self.event_page):
            self.overlays.remove(page)
            page.view[:] = bytes(len(page.view))
        self.drop(lambda _: True)

    # --- messages

    def slot_free(self, sint: int) -> bool:
        """Whether nothing is in a slot."""
        return not self.message_page.words[sint * _WORDS_A_SLOT]

    def post(self, sint: int, message: Message) -> None:
        """Take one message at the end of its SINT's queue, whose first goes into the slot if that is empty."""
        self.queues[sint].append(message)
        self.queued += 1
        if not self._deliver(sint):
            self._announce(sint)

    def deliver_waiting(self) -> None:
        """What EOM does: fill every empty slot that has a queue. Nothing happens while a slot is occupied."""
        if not self.queued:
            return
        for sint, queue in sorted(self.queues.items()):
            if queue and not self._deliver(sint):
                self._announce(sint)

    def drop(self, unwanted: Callable[[Message], bool]) -> None:
        """Forget waiting messages; slots that are filled already stay."""
        for sint, queue in self.queues.items():
            kept = deque[Message]()
            for message in queue:
                if unwanted(message):
                    self.queued -= 1
                    if message.release is not None:
                        message.release()
                else:
                    kept.append(message)
            self.queues[sint] = kept

    def _announce(self, sint: int) -> None:
        """Set MessagePending in the occupied slot. A guest that has emptied it meanwhile will not write EOM."""
        self.message_page.view[sint * SLOT_SIZE + FLAGS_OFFSET] |= MESSAGE_PENDING
        fence()
        self._deliver(sint)

    def _deliver(self, sint: int) -> bool:
        """Move the first waiting message into its slot, if that is empty."""
        if not self.takes_messages:
            return False
        words = self.message_page.words
        if words[sint * _WORDS_A_SLOT]:
            return False
        queue = self.queues[sint]
        message = queue.popleft()
        self.queued -= 1
        payload = message.payload if message.at_delivery is None else message.at_delivery()
        flags = MESSAGE_PENDING if queue else 0
        header = MessageHeader(0, len(payload), flags, 0, message.origination_id).encode()
        start = sint * SLOT_SIZE
        # The whole slot is written, so that no byte of an older message is left behind; the type comes last.
        self.message_page.view[start + 4 : start + SLOT_SIZE] = header[4:] + payload.ljust(PAYLOAD_MAX, b"\0")
        words[sint * _WORDS_A_SLOT] = message.message_type
        if message.release is not None:
            message.release()
        self._interrupt(sint)
        return True

    # --- event flags

    def set_flag(self, sint: int, flag: int) -> bool:
        """Set one event flag; an interrupt comes only if it was clear. Returns whether it was.

        A flag that is set is not stored again. So an interrupt follows whenever the byte is stored, and a neighbour
        that the guest clears in between, and that the store sets again, is only looked at once more.
        """
        index = sint * EVENT_FLAGS_SIZE + (flag >> 3)
        bit = 1 << (flag & 7)
        flags = self.event_page.view
        fence()  # what the flag tells of is visible before we trust a flag that is still set
        old = flags[index]
        if old & bit:
            return False
        flags[index] = old | bit
        self._interrupt(sint)
        return True

    def _interrupt(self, sint: int) -> None:
        value = self.sints[sint]
        if not value & _NO_INTERRUPT:
            vector = value & 0xFF
            if vector >= LEAST_VECTOR:
                self.raise_interrupt(vector)


def _flags_set(flags: bytes) -> str:
    """The numbers of the first flags that are set."""
    left = int.from_bytes(flags, "little")
    found: list[str] = []
    while left and len(found) < _FLAGS_SHOWN:
        lowest = left & -left
        found.append(str(lowest.bit_length() - 1))
        left ^= lowest
    more = [f"and {left.bit_count()} more"] if left else []
    return " ".join(found + more) or "none"


def _place(overlays: OverlayMap, page: OverlayPage, value: int) -> None:
    if value & ENABLED:
        overlays.put(page, value >> PAGE_SHIFT)
    else:
        overlays.remove(page)
