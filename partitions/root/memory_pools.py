"""How pools share a host's memory: the tree of resource control, with what each VM would have. Root side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from hypervisor.pages import PAGE_SHIFT
from hypervisor.scheduler.divvy import entitle

if TYPE_CHECKING:
    from partitions.root.resources import Resources
    from partitions.root.vm_memory import VmMemory
    from vsp_vsc.memory.balance import Claim

_MORE_THAN_ANY: Final = 1 << 60
"""Bytes of a host on which only limits count."""


class PoolShares:
    """Of one round of the balancer."""

    def __init__(self, resources: Resources, vms: Mapping[str, VmMemory], capacity: int) -> None:
        """`capacity` is what all VMs together may have, in bytes."""
        self._root = resources.roots["memory"]
        self._nodes = {node.name: node for node in self._root.walk()}
        self._capacity = capacity
        tables = resources.vms
        for name, node in self._nodes.items():
            if node.inner or not node.active:
                continue
            vm = vms.get(name.removeprefix("vm/"))
            claim = None if vm is None else vm.claim()
            if claim is not None:
                node.demand = claim.wish << PAGE_SHIFT
            elif vm is not None:
                node.demand = vm.assigned << PAGE_SHIFT
            else:
                node.demand = int(tables[name.removeprefix("vm/")].memory)
        self._most = entitle(self._root, _MORE_THAN_ANY, held=True)

    def limit(self, claim: Claim) -> int | None:
        """Pages that its pools leave to a VM, where that is less than it wishes for."""
        node = self._nodes.get(f"vm/{claim.name}")
        if node is None:
            return None
        most = int(self._most[node]) >> PAGE_SHIFT
        return most if most < claim.wish else None

    def divide(self, capacity: int, claims: Sequence[Claim]) -> dict[str, int]:
        """A `Divide`; the capacity is the host's, not what is left for these."""
        amounts = entitle(self._root, max(0, self._capacity), held=True)
        return {claim.name: int(amounts[self._nodes[f"vm/{claim.name}"]]) >> PAGE_SHIFT for claim in claims}
