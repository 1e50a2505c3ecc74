"""What each was due in one window: the tree of one resource, with the demand that was measured in it. Root side.

Amounts are whole numbers of the resource in the window: nanoseconds of processors, normalized operations, bits. The
division itself is `hypervisor.scheduler.divvy`; here a tree is made for one window and walked bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Final, NamedTuple

from hypervisor.scheduler.divvy import Claim, State, at_most, divide, set_aside, wishes
from hypervisor.scheduler.tree import Node
from partitions.resources.sample import HOST

AT_ONCE: Final = 64
"""Leaves that are made before others get their turn."""


class PoolClaim(NamedTuple):
    """One pool's controls."""

    parent: str
    """Another's name; empty for the host."""
    reservation: int
    limit: int | None
    shares: int
    own: int = 0
    """What it has for itself, used or not, and it gets nothing else."""


class LeafClaim(NamedTuple):
    """One virtual processor, disk or adapter."""

    owner: str
    """Whose it is, such as `vm/web`; one may have several."""
    pool: str
    """Empty for the host."""
    reservation: int
    limit: int | None
    shares: int
    demand: int
    batch: bool = False
    """Gets only what the others leave."""


class Entitled(NamedTuple):
    """The result."""

    amounts: dict[str, Fraction]
    """By owner, `pool/NAME` and `host`."""
    contended: dict[str, bool]
    """Of pools and the host: whether those in it wanted more than there was for them."""
    worth: dict[str, Fraction]
    """Of pools and the host where weights decide: what a weight of 1 comes to."""


def entitled(capacity: int, pools: Mapping[str, PoolClaim], leaves: Iterable[LeafClaim]) -> Iterator[Entitled | None]:
    """Ends with the result; None as often as others should get their turn."""
    root = Node.host(capacity)
    places: dict[str, Node] = {"": root}
    for name in pools:
        _pool(name, pools, places)
    owners: dict[Node, str] = {}
    batch: list[LeafClaim] = []
    for number, leaf in enumerate(leaves, 1):
        if leaf.batch:
            batch.append(leaf)
        else:
            node = places[leaf.pool].add(
                f"{leaf.owner}#{number}",
                reservation=leaf.reservation,
                limit=leaf.limit,
                shares=leaf.shares,
                demand=leaf.demand,
                active=True,
            )
            owners[node] = leaf.owner
        if number % AT_ONCE == 0:
            yield None
    wanted = wishes(root)
    yield None
    found = Entitled({}, {}, {})
    whole = set_aside(root, [places[name] for name, claim in pools.items() if claim.own], capacity)
    apart = {node: at_most(own, wanted[node].hi) for node, own in whole.items()}
    due = dict(apart)
    for node in root.walk():
        if not node.inner:
            owner = owners[node]
            found.amounts[owner] = found.amounts.get(owner, Fraction(0)) + due[node]
            continue
        path = node.name
        found.amounts[path] = due[node]
        # Who wants nothing takes no part, and an idle VM costs nothing.
        sharing = [child for child in node.children.values() if not child.dedicated]
        children = [child for child in sharing if wanted[child].hi != 0]
        due |= dict.fromkeys(sharing, Fraction(0))
        # Those that claim the same get the same: as one with as many times the claim, they are divided much faster.
        alike: dict[Claim, list[Node]] = {}
        for child in children:
            alike.setdefault(Claim(*wanted[child], child.shares), []).append(child)
        division = divide(due[node], [_times(claim, len(same)) for claim, same in alike.items()])
        for amount, same in zip(division.amounts, alike.values(), strict=True):
            due |= dict.fromkeys(same, amount / len(same))
        found.contended[path] = division.state is not State.UNCONTENDED
        if division.lam is not None:
            found.worth[path] = division.lam
        yield None
    for node, amount in apart.items():
        for above in () if node.parent is None else node.parent.upwards():
            found.amounts[above.name] += amount
    if batch:
        for node, own in whole.items():
            inside = [leaf for leaf in batch if _home(leaf.pool, pools) == node.name]
            _leftover(node.name, at_most(own, node.limit) - apart[node], inside, pools, found)
    yield found


def _times(claim: Claim, count: int) -> Claim:
    return Claim(claim.lo * count, None if claim.hi is None else claim.hi * count, claim.weight * count)


def _pool(name: str, pools: Mapping[str, PoolClaim], places: dict[str, Node]) -> Node:
    """A pool's node, its parent's first."""
    if name not in places:
        claim = pools[name]
        above = _pool(claim.parent, pools, places)
        places[name] = above.add(
            f"pool/{name}",
            inner=True,
            reservation=claim.reservation,
            limit=claim.limit,
            shares=claim.shares,
            dedicated=claim.own,
        )
    return places[name]


def _home(pool: str, pools: Mapping[str, PoolClaim]) -> str:
    """The path of who has that for himself which a pool divides: one around it, or the host."""
    return next((f"pool/{name}" for name in _upwards(pool, pools) if pools[name].own), HOST)


def _leftover(
    home: str, left: Fraction, batch: list[LeafClaim], pools: Mapping[str, PoolClaim], found: Entitled
) -> None:
    """What normal ones leave goes to the batch class by its own weights, within the limits of the pools around it."""
    claims = []
    for leaf in batch:
        most = Fraction(leaf.demand if leaf.limit is None else min(leaf.demand, leaf.limit))
        for name in _upwards(leaf.pool, pools):
            limit = pools[name].limit
            if limit is not None:
                most = min(most, limit - found.amounts[f"pool/{name}"])
        claims.append(Claim(0, max(0, int(most)), leaf.shares))
    division = divide(left, claims)
    for leaf, amount in zip(batch, division.amounts, strict=True):
        for path in (leaf.owner, HOST, *(f"pool/{name}" for name in _upwards(leaf.pool, pools))):
            found.amounts[path] = found.amounts.get(path, Fraction(0)) + amount
    if division.state is not State.UNCONTENDED:
        found.contended[home] = True


def _upwards(pool: str, pools: Mapping[str, PoolClaim]) -> Iterator[str]:
    """A pool and those around it."""
    while pool:
        yield pool
        pool = pools[pool].parent
