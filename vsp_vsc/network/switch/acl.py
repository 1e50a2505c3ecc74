"""Access lists of a port, as Hyper-V's Add-VMNetworkAdapterAcl has them. Root side.

A rule names the far end, its own end, or both: by Ethernet address or by IP prefix. Of the rules of IP addresses that
fit a frame, that one decides which says most: the longest prefixes, both ends together; of two that say the same much,
the denial. So it is with the rules of Ethernet addresses. A frame passes if neither decides against it; where neither
decides at all, rules about `any` do, and without those it passes. Rules that meter count and decide nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import attrs

from vsp_vsc.network.switch.addresses import mac_words, parse_mac
from vsp_vsc.network.switch.frames import ip_addresses
from vsp_vsc.network.switch.kinds import Action, Direction

Network: TypeAlias = "ipaddress.IPv4Network | ipaddress.IPv6Network"
ANY: Final = "any"


@attrs.frozen
class End:
    """One end that a rule names. `prefix` bits of `value` are compared; no bits fit everything."""

    value: int
    prefix: int
    size: int
    """Bytes of the addresses that it is about: 6 of Ethernet, 4 of IPv4, 16 of IPv6; 0 for any."""

    def fits(self, address: bytes) -> bool:
        """Whether an address of a frame is one of these."""
        if self.size == 0:
            return True
        if len(address) != self.size:
            return False
        return int.from_bytes(address, "big") >> self.size * 8 - self.prefix == self.value

    def __str__(self) -> str:
        if self.size == 0:
            return ANY
        raw = (self.value << self.size * 8 - self.prefix).to_bytes(self.size, "big")
        return mac_words(raw) if self.size == 6 else f"{ipaddress.ip_address(raw)}/{self.prefix}"


EVERYWHERE: Final = End(0, 0, 0)


def parse_end(written: str) -> End:
    """`any`, an Ethernet address, an IP address or a prefix such as `10.0.0.0/8`. Raises `ValueError`."""
    if written.lower() in (ANY, ""):
        return EVERYWHERE
    try:
        return End(int.from_bytes(parse_mac(written), "big"), 48, 6)
    except ValueError:
        pass
    try:
        network: Network = ipaddress.ip_network(written)
    except ValueError as error:
        if "has host bits" in str(error):
            meant = ipaddress.ip_network(written, strict=False)
            raise ValueError(f'"{written}" has bits behind its prefix; write "{meant}"') from None
        wanted = 'an Ethernet address, an IP prefix such as "10.0.0.0/8", or "any"'
        raise ValueError(f'must be {wanted}, is "{written}"') from None
    size = network.max_prefixlen // 8
    return End(int(network.network_address) >> size * 8 - network.prefixlen, network.prefixlen, size)


@attrs.define(eq=False)
class Rule:
    """One rule, and what it has met."""

    action: Action
    direction: Direction = Direction.BOTH
    remote: End = EVERYWHERE
    local: End = EVERYWHERE
    frames: int = 0
    bytes: int = 0

    def __attrs_post_init__(self) -> None:
        sizes = {end.size for end in (self.remote, self.local)} - {0}
        if len(sizes) > 1:
            raise ValueError("local and remote must be addresses of one kind")

    @property
    def kind(self) -> int:
        """Bytes of the addresses that it is about; 0 if it is about any."""
        return self.remote.size or self.local.size

    @property
    def rank(self) -> tuple[int, bool]:
        """The highest decides."""
        return self.remote.prefix + self.local.prefix, self.action is Action.DENY

    def __str__(self) -> str:
        near = "" if self.local is EVERYWHERE else f", local {self.local}"
        return f"{self.action} {self.direction} {self.remote}{near}"


class AccessList:
    """The rules of one port, in the order in which they are asked."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules: tuple[Rule, ...] = tuple(sorted(rules, key=lambda rule: rule.rank, reverse=True))
        self._inward = _Lists(rule for rule in self.rules if rule.direction is not Direction.OUT)
        self._outward = _Lists(rule for rule in self.rules if rule.direction is not Direction.IN)

    def __bool__(self) -> bool:
        return bool(self.rules)

    def lets_in(self, frame: bytes) -> bool:
        """Whether an untagged frame may go to the VM."""
        addresses = ip_addresses(frame) if self._inward.ip else None
        return self._inward.lets(frame, frame[:6], frame[6:12], addresses and addresses[::-1])

    def lets_out(self, frame: bytes) -> bool:
        """Whether an untagged frame may come from the VM."""
        addresses = ip_addresses(frame) if self._outward.ip else None
        return self._outward.lets(frame, frame[6:12], frame[:6], addresses)


class _Lists:
    """The rules of one direction, by what they are about."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.ethernet: list[Rule] = []
        self.ip: list[Rule] = []
        self.any: list[Rule] = []
        for rule in rules:
            (self.any if rule.kind == 0 else self.ethernet if rule.kind == 6 else self.ip).append(rule)

    def lets(self, frame: bytes, local: bytes, remote: bytes, ip: tuple[bytes, bytes] | None) -> bool:
        """`local` and `remote` are the ends as the VM sees them, and so are those of `ip`."""
        size = len(frame)
        said = [_decide(self.ethernet, local, remote, size)]
        if ip is not None:
            if not ip[0]:
                return False  # cut off before its addresses: worth nothing to an honest receiver
            said.append(_decide(self.ip, *ip, size))
        if Action.DENY in said:
            return False
        if Action.ALLOW in said:
            return True
        return _decide(self.any, local, remote, size) is not Action.DENY


def _decide(rules: list[Rule], local: bytes, remote: bytes, size: int) -> Action | None:
    """What the first rule that fits says; the first that meters counts, too."""
    decided: Action | None = None
    metered = False
    for rule in rules:
        if not (rule.remote.fits(remote) and rule.local.fits(local)):
            continue
        meters = rule.action is Action.METER
        if metered if meters else decided is not None:
            continue
        rule.frames += 1
        rule.bytes += size
        if meters:
            metered = True
        else:
            decided = rule.action
    return decided
