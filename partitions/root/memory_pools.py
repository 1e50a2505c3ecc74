"""How pools share a host's memory: the tree of resource control, with what each VM would have. Root side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from hypervisor.pages import PAGE_SHIFT
from hypervisor.scheduler.divvy import Holder, entitle, idle_tax_targets, wishes

if TYPE_CHECKING:
    from fractions import Fraction

    from hypervisor.scheduler.tree import Node
    from partitions.root.resources import Resources
    from partitions.root.vm_memory import VmMemory
    from vsp_vsc.memory.balance import Claim

_MORE_THAN_ANY: Final = 1 << 60
"""Bytes of a host on which only limits count."""


class PoolShares:
    """Of one round of the balancer."""

    def __init__(
        self, resources: Resources, vms: Mapping[str, VmMemory], capacity: int, tax: Fraction | None = None
    ) -> None:
        """`capacity` is what all VMs together may have, in bytes; `tax` what idle memory costs its owner."""
        self._root = resources.roots["memory"]
        self._nodes = {node.name: node for node in self._root.walk()}
        self._capacity = capacity
        self._tax = tax
        self._in_use: dict[Node, int] = {}
        """Bytes of a VM's that no tax is on."""
        self._demands: dict[Node, int] = {}
        """What it wants now; the tree has what its settings say."""
        self._has: dict[Node, int] = {}
        """Pages of all that is in a pool with a limit."""
        tables = resources.vms
        for name, node in self._nodes.items():
            if node.inner or not node.active:
                continue
            vm = vms.get(name.removeprefix("vm/"))
            claim = None if vm is None else vm.claim()
            if claim is not None:
                demand = claim.wish << PAGE_SHIFT
            elif vm is not None:
                demand = vm.assigned << PAGE_SHIFT
            else:
                demand = int(tables[name.removeprefix("vm/")].memory)
            self._demands[node] = demand
            has = int(tables[name.removeprefix("vm/")].memory) >> PAGE_SHIFT if vm is None else vm.assigned
            for pool in _limited(node):
                self._has[pool] = self._has.get(pool, 0) + has
            self._in_use[node] = demand if claim is None else claim.in_use << PAGE_SHIFT
        self._most = entitle(self._root, _MORE_THAN_ANY, held=True, demands=self._demands)

    def limit(self, claim: Claim) -> int | None:
        """Pages that its pools leave to a VM, where that is less than it wishes for."""
        node = self._nodes.get(f"vm/{claim.name}")
        if node is None:
            return None
        most = int(self._most[node]) >> PAGE_SHIFT
        return most if most < claim.wish else None

    def room(self, name: str) -> int | None:
        """Pages that a VM can have more before a pool around it has more than its limit; less than none where one has.

        None where no pool has a limit.
        """
        node = self._nodes.get(f"vm/{name}")
        pools = () if node is None else _limited(node)
        return min([((pool.limit or 0) >> PAGE_SHIFT) - self._has.get(pool, 0) for pool in pools], default=None)

    def moved(self, name: str, pages: int) -> None:
        """A VM gets more, or is asked for some: it counts for those after it in the same round."""
        node = self._nodes.get(f"vm/{name}")
        for pool in () if node is None else _limited(node):
            self._has[pool] = self._has.get(pool, 0) + pages

    def divide(self, capacity: int, claims: Sequence[Claim]) -> dict[str, int]:
        """A `Divide`; the capacity is the host's, not what is left for these."""
        amounts = self._divided(max(0, self._capacity))
        return {claim.name: int(amounts[self._nodes[f"vm/{claim.name}"]]) >> PAGE_SHIFT for claim in claims}

    def _divided(self, capacity: int) -> Mapping[Node, int | Fraction]:
        """At each level with the tax, if there is one: a pool pays for what is idle in it."""
        if self._tax is None:
            return entitle(self._root, capacity, held=True, demands=self._demands)
        wanted = wishes(self._root, held=True, demands=self._demands)
        most = {node: _MORE_THAN_ANY if wish.hi is None else wish.hi for node, wish in wanted.items()}
        used: dict[Node, int] = {}
        for node in reversed(list(self._root.walk())):
            below = sum(used[child] for child in node.children.values())
            used[node] = min(below if node.inner else self._in_use.get(node, 0), most[node])
        amounts: dict[Node, int | Fraction] = {self._root: min(capacity, most[self._root])}
        for node in self._root.walk():
            below_it = list(node.children.values())
            holders = [Holder(child.shares, used[child], wanted[child].lo, most[child]) for child in below_it]
            amounts.update(zip(below_it, idle_tax_targets(amounts[node], holders, self._tax).amounts, strict=True))
        return amounts


def tightest(resources: Resources, name: str) -> Node | None:
    """The pool around a VM that leaves it least, by its limit alone; None where none has a limit."""
    node = next((node for node in resources.roots["memory"].walk() if node.name == f"vm/{name}"), None)
    pools = [] if node is None else _limited(node)
    return min(pools, key=lambda pool: pool.limit or 0, default=None)


def _limited(node: Node) -> list[Node]:
    """The pools around it that have a limit."""
    return [pool for pool in node.upwards() if pool.inner and pool.parent is not None and pool.limit is not None]
