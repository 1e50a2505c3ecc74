"""Which port a station was heard at last; forgotten after a time, and never more than a port may have. Root side.

Each port has a share of its own, so that a VM which makes addresses up pushes out its own and nobody else's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from vsp_vsc.network.switch.ports import Port

AGEING: Final = 300 * 10_000_000
"""100 ns units after which a silent station is forgotten (IEEE 802.1Q, 8.8.3)."""
MAX_STATIONS: Final = 1024
"""That are remembered of one port."""


class Place(NamedTuple):
    """A station: an address in a VLAN."""

    vlan: int
    address: bytes


class StationTable:
    """Of one switch."""

    def __init__(self) -> None:
        self._where: dict[Place, Port] = {}
        self._heard: dict[Port, dict[Place, int]] = {}
        """By port, when each was heard; the longest silent first."""
        self.moves = 0
        """How often one was heard at another port than before."""
        self.pushed_out = 0

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[tuple[Place, Port, int]]:
        """Stations, their ports and when they were heard."""
        for port, heard in list(self._heard.items()):
            for place, when in list(heard.items()):
                yield place, port, when

    def find(self, vlan: int, address: bytes) -> Port | None:
        """The port of a station, if it is known."""
        return self._where.get(Place(vlan, address))

    def hear(self, vlan: int, address: bytes, port: Port, now: int) -> bool:
        """A station has sent something; whether anything but its time is new."""
        place = Place(vlan, address)
        before = self._where.get(place)
        heard = self._heard.setdefault(port, {})
        if before is port:
            del heard[place]
            heard[place] = now
            return False
        if before is not None:
            self.moves += 1
            del self._heard[before][place]
        elif len(heard) >= MAX_STATIONS:
            self.pushed_out += 1
            self._forget(port, next(iter(heard)))
        heard[place] = now
        self._where[place] = port
        return True

    def age(self, now: int) -> None:
        """Forget those that were silent for too long."""
        for port, heard in list(self._heard.items()):
            for place in [place for place, when in heard.items() if now - when >= AGEING]:
                self._forget(port, place)
            if not heard:
                del self._heard[port]

    def forget_port(self, port: Port) -> None:
        """All that was heard there."""
        for place in self._heard.pop(port, {}):
            del self._where[place]

    def forget_address(self, address: bytes) -> None:
        """It is a port's own from now on."""
        for place, port in [(place, port) for place, port in self._where.items() if place.address == address]:
            self._forget(port, place)

    def _forget(self, port: Port, place: Place) -> None:
        del self._heard[port][place]
        del self._where[place]
