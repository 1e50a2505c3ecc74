"""What each port and pool is entitled to send, by the same division as every other resource. Pure. Root side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hypervisor.scheduler import divvy
from hypervisor.scheduler.tree import Node
from vsp_vsc.network.shaping.tree import Flow, Group, Member


def entitled(host: Group, sent: Mapping[int, int]) -> Iterator[tuple[Member, divvy.Due]]:
    """What each member below `host`, and that itself, is due.

    Who has frames waiting wants all that there is; who has none wants what it `sent`, in bits a second, by its number.
    Where the host has no bandwidth only limits bound anything.
    """
    capacity = _limit(host)
    bound = _all_limits(host, sent) if capacity is None else capacity
    top = Node.host(bound)
    there: dict[Member, Node] = {host: top}
    _copy(host, top, there, sent)
    divided = divvy.entitlements(top, bound)
    bounded: dict[Member, bool] = {host: capacity is not None}
    for member, node in there.items():
        if member is not host:
            assert member.parent is not None, "who is in a group has it"
            bounded[member] = bounded[member.parent] or member.bucket is not None
        yield member, divvy.due(*divided[node], bounded=bounded[member])


def _copy(group: Group, made: Node, there: dict[Member, Node], sent: Mapping[int, int]) -> None:
    for member in group.members.values():
        limit = _limit(member)
        leaf = isinstance(member, Flow)
        there[member] = copy = made.add(
            str(member.id),
            inner=not leaf,
            reservation=member.reserve if limit is None else min(member.reserve, limit),
            limit=limit,
            shares=max(member.weight, 1),
            demand=None if isinstance(member, Flow) and member.frames else sent.get(member.id, 0),
            active=leaf,
        )
        if isinstance(member, Group):
            _copy(member, copy, there, sent)


def _limit(member: Member) -> int | None:
    return None if member.bucket is None else member.bucket.rate


def _all_limits(member: Member, sent: Mapping[int, int]) -> int:
    """More than all that are limited can have together, and what the others have."""
    own = _limit(member) or sent.get(member.id, 0)
    below = member.members.values() if isinstance(member, Group) else ()
    return own + sum(_all_limits(other, sent) for other in below)
