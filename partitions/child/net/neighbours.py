"""Who has which MAC address: the ARP cache. Child side.

Lookups, ARP packets and times in; requests to send, packets whose way is known now, and packets that nobody will ever
take, out. RFC 826 for what is learned from whom; times are near Linux's. Everything has a limit: addresses that are
known, addresses that are asked for, packets that wait for one.
"""

from __future__ import annotations

import attrs

from hypervisor.clock import TICKS_PER_SECOND

ASK_EVERY = TICKS_PER_SECOND
"""Between two requests for the same address."""
TRIES = 3
"""Requests for an address before it counts as not there."""
REFRESH = 30 * TICKS_PER_SECOND
"""An address that was confirmed so long ago is asked for again when it is used, and used meanwhile."""
LIFETIME = 60 * TICKS_PER_SECOND
"""An address that was confirmed so long ago is not used any more."""
MAX_KNOWN = 256
MAX_ASKED = 64
MAX_WAITING = 16
"""Packets that wait for one address; one more, and the oldest is given up."""


@attrs.define
class _Entry:
    """One neighbour."""

    mac: bytes | None = None
    """None while it is asked for the first time."""
    confirmed: int = 0
    asked: int = 0
    """When it was asked for last."""
    tries: int = 0
    waiting: list[bytes] = attrs.field(factory=list)
    """IPv4 packets that go when it answers."""


class Neighbours:
    """The cache of one interface."""

    def __init__(self) -> None:
        self._entries: dict[bytes, _Entry] = {}
        self.requests: list[tuple[bytes, bytes | None]] = []
        """Addresses to ask for: to this MAC only, or to all. The owner takes and sends them."""
        self.lost: list[bytes] = []
        """Packets that are given up. The owner takes them and tells who wanted to send them."""

    def __len__(self) -> int:
        return len(self._entries)

    def table(self, now: int) -> dict[bytes, tuple[bytes | None, float]]:
        """MAC and seconds since it was confirmed, by address; without a MAC it is asked for."""
        return {
            address: (entry.mac, (now - entry.confirmed) / TICKS_PER_SECOND if entry.mac else 0.0)
            for address, entry in self._entries.items()
        }

    @property
    def deadline(self) -> int | None:
        """When `tick` is due for those that are asked for."""
        return min((entry.asked + ASK_EVERY for entry in self._entries.values() if entry.mac is None), default=None)

    def lookup(self, address: bytes, now: int) -> bytes | None:
        """Its MAC if that is known; else `wait` for it. May ask again for one that has been silent for long."""
        entry = self._entries.get(address)
        if entry is None or entry.mac is None:
            return None
        age = now - entry.confirmed
        if age >= LIFETIME:
            del self._entries[address]
            return None
        if age >= REFRESH and now - entry.asked >= ASK_EVERY:
            entry.asked = now
            self.requests.append((address, entry.mac))
        return entry.mac

    def wait(self, address: bytes, packet: bytes, now: int) -> None:
        """Keep a packet until the address, which `lookup` did not know, has answered."""
        entry = self._entries.get(address)
        if entry is None:
            asked = [known for known, other in self._entries.items() if other.mac is None]
            if len(asked) >= MAX_ASKED:
                self.lost += self._entries.pop(asked[0]).waiting
            entry = self._entries[address] = _Entry(asked=now, tries=1)
            self.requests.append((address, None))
        if len(entry.waiting) >= MAX_WAITING:
            self.lost.append(entry.waiting.pop(0))
        entry.waiting.append(packet)

    def learn(self, address: bytes, mac: bytes, now: int, *, create: bool) -> list[bytes]:
        """Somebody said where an address is; the packets that waited for it. New ones are taken in if `create`."""
        entry = self._entries.get(address)
        if entry is None:
            if not create:
                return []
            self._make_room()
            entry = self._entries[address] = _Entry()
        entry.mac, entry.confirmed, entry.tries = mac, now, 0
        waiting, entry.waiting = entry.waiting, []
        return waiting

    def tick(self, now: int) -> None:
        """Ask again, or give up."""
        for address, entry in list(self._entries.items()):
            if entry.mac is not None or now - entry.asked < ASK_EVERY:
                continue
            if entry.tries >= TRIES:
                del self._entries[address]
                self.lost += entry.waiting
            else:
                entry.tries += 1
                entry.asked = now
                self.requests.append((address, None))

    def forget(self) -> None:
        """The link was down: others may be there now. What waits goes on waiting."""
        self._entries = {address: entry for address, entry in self._entries.items() if entry.mac is None}

    def _make_room(self) -> None:
        known = [address for address, entry in self._entries.items() if entry.mac is not None]
        if len(known) >= MAX_KNOWN:
            del self._entries[min(known, key=lambda address: self._entries[address].confirmed)]
