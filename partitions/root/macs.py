"""Ethernet addresses of a host's adapters, each given once. Root side.

Hyper-V gives a host 256 of them, 00-15-5D, two bytes of the host's IP address and a number. Here three bytes are made
of the names of host, VM and adapter: the same in every run, and other VMs that come and go change nothing.
"""

from __future__ import annotations

import hashlib

from vsp_vsc.network.switch.addresses import MICROSOFT, mac_words


class AddressPool:
    """Of one host."""

    def __init__(self, host: str) -> None:
        """`host` is a name by which hosts on one network differ."""
        self._host = host
        self._owners: dict[bytes, str] = {}
        self._given: dict[str, bytes] = {}

    def take(self, owner: str, wanted: bytes | None = None) -> bytes:
        """The address of an owner, made if it is not `wanted`. Raises `ValueError` for one that another has."""
        if wanted is not None:
            if self._owners.get(wanted, owner) != owner:
                raise ValueError(f"{mac_words(wanted)} is the address of {self._owners[wanted]}")
            self.give_back(owner)
            self._owners[wanted] = owner
            self._given[owner] = wanted
            return wanted
        known = self._given.get(owner)
        if known is not None:
            return known
        start = int.from_bytes(hashlib.sha256(f"partita {self._host} {owner}".encode()).digest()[:3], "big")
        for step in range(1 << 24):
            made = MICROSOFT + ((start + step) % (1 << 24)).to_bytes(3, "big")
            if made not in self._owners:
                self._owners[made] = owner
                self._given[owner] = made
                return made
        raise ValueError("all 16 million addresses are taken")

    def give_back_all(self, start: str) -> None:
        """Owners whose names begin like that have none any more."""
        for owner in [owner for owner in self._given if owner.startswith(start)]:
            self.give_back(owner)

    def give_back(self, owner: str) -> None:
        """It has none any more."""
        address = self._given.pop(owner, None)
        if address is not None:
            del self._owners[address]
