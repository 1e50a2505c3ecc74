"""The host's memory and who has it: the balancer, once a second while a VM has dynamic memory. Root side.

What VMs without dynamic memory have is theirs; all else is shared by `vsp_vsc.memory.balance`. The balancer has no
task: a timer of the hypervisor's clock fires it, which is armed while there is something to balance. It looks before
its second is over where somebody has changed a control, where a guest has begun with its memory, and where the host's
free memory has come into another state.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import TYPE_CHECKING, Final

import attrs
import msgspec
import trio

from hypervisor.clock import ticks
from hypervisor.inspect import Branch, Setting
from hypervisor.pages import PAGE_SHIFT
from hypervisor.trace import Layer
from partitions.root.hotplug import HotPlugError
from partitions.topology_controls import MemoryInUse
from vsp_vsc.memory.balance import Change, Claim, Divide, HostState, by_weight, host_state, targets, taxed

if TYPE_CHECKING:
    from hypervisor.scheduler.tree import Node
    from partitions.root.memory_pools import PoolShares
    from partitions.root.vid import Vid
    from partitions.root.vm_memory import VmMemory

TICK_SECONDS: Final = 1.0
WINDOW_SECONDS: Final = 0.1
"""An accounting window: within one, a changed control takes effect; no state of the host's has the balancer look more
often."""
_WAKE_SECONDS: Final = WINDOW_SECONDS / 4
"""Between two looks that guests bring about."""
MAKE_ROOM_SECONDS: Final = 30.0
"""How long others may take to give back what a VM needs to start."""
_LOOK_SECONDS: Final = 0.25
_TAX: Final = re.compile(r"[0-9]{1,9}(?:[./][0-9]{1,9})?")
"""No exponents: of a large one a fraction would be made digit by digit."""
_PAGE: Final = 1 << PAGE_SHIFT


class HostMemory(msgspec.Struct, frozen=True, kw_only=True):
    """How the host's memory is, in bytes."""

    capacity: int
    free: int
    """What no VM has: in Hyper-V "Available Memory"."""
    state: str
    """high, soft, hard or low."""
    pressure: int | None
    """100 x demand / assigned of all VMs whose memory is dynamic: in Hyper-V "System Current Pressure"."""


class MemoryDesk:
    """One host's. Made with the host; costs nothing until a VM joins."""

    def __init__(self, vid: Vid) -> None:
        self._vid = vid
        self._hypervisor = vid.hypervisor
        self._vms: dict[str, VmMemory] = {}
        self._wanted = 0
        """Pages that VMs wait for which are to start."""
        self._changed: int | None = None
        """When it looks before its second is over: a control has changed."""
        self._crossed: int | None = None
        """The same: the host is in another state, unless it comes back until then."""
        self._looked = 0
        self.state = HostState.HIGH
        host = None if vid.resources is None else vid.resources.topology.host
        tax = None if host is None else host.idle_memory_tax
        self.idle_tax: Fraction | None = None if tax is None else Fraction(str(tax))
        """From 0 to 1: what idle memory costs its owner where memory is short. None: shares by weight alone."""
        self.active = MemoryInUse.COMMITTED if host is None else host.active_memory
        """What of it is not idle."""

    # --- who has memory

    @contextmanager
    def joined(self, vm: VmMemory) -> Iterator[None]:
        """A VM that is on, until the block ends."""
        self._vms[vm.name] = vm
        vm.settle, vm.wake = functools.partial(self._settle, vm.name), self._look_soon
        vm.make_room = self.make_room
        self._arm()
        try:
            yield
        finally:
            del self._vms[vm.name]
            vm.settle = None
            self._arm()

    def _settle(self, name: str, values: Mapping[str, object]) -> None:
        if self._vid.resources is not None:
            self._vid.resources().change(f"vm/{name}", values)

    def settled(self, node: Node) -> None:
        """Somebody has changed the settings of a VM, or of a pool: who should have what is found anew at once."""
        self._follow(node)
        self._look_now()

    def _follow(self, node: Node) -> None:
        vmms = None if self._vid.resources is None else self._vid.resources.machines.vmms
        name = node.name.removeprefix("vm/")
        managed = None if vmms is None or name == node.name else vmms.vms.get(name)
        if managed is None or managed.worker is None:
            return
        table = managed.settings
        if managed.worker.memory is None and table.memory == managed.worker.memory_at_start:
            return
        with contextlib.suppress(HotPlugError):  # it is not on yet, or no more: it starts with its new settings
            managed.worker.movable_memory().follow(table)

    def amount_changed(self) -> None:
        """The host has more or less free memory than before; where that is another state, it cannot wait."""
        before = self._crossed
        if self._state_now() is self.state:
            self._crossed = None
        elif before is None:
            self._crossed = max(self._hypervisor.clock(), self._looked + ticks(WINDOW_SECONDS))
        if self._crossed != before:
            self._arm()

    def _look_now(self) -> None:
        self._changed = self._hypervisor.clock()
        self._arm()

    def _look_soon(self) -> None:
        """What a guest can bring about as often as it likes: by opening its channel, or a reset."""
        self._changed = max(self._hypervisor.clock(), self._looked + ticks(_WAKE_SECONDS))
        self._arm()

    def _arm(self) -> None:
        if not any(vm.moving for vm in self._vms.values()):
            self._changed = self._crossed = None
            self._hypervisor.timers.set(self, None)
            return
        # Between whole seconds, where programs act: who is first at one moment nobody knows.
        period = ticks(TICK_SECONDS)
        past = (self._hypervisor.clock() - period // 2) // period
        moments = [(past + 1) * period + period // 2, self._changed, self._crossed]
        self._hypervisor.timers.set(self, min(moment for moment in moments if moment is not None))

    def figures(self) -> HostMemory:
        """As of now."""
        vms = [vm for vm in self._vms.values() if vm.demand is not None]
        assigned = sum(vm.assigned for vm in vms)
        demand = sum(vm.demand or 0 for vm in vms)
        return HostMemory(
            capacity=self._vid.vm_memory,
            free=self._vid.vm_memory_free,
            state=self._state_now().value,
            pressure=round(100 * demand / assigned) if assigned else None,
        )

    def inspect(self) -> Branch:
        """The same, and what can be set."""
        figures = self.figures()
        tax = "none" if self.idle_tax is None else str(self.idle_tax)
        what = 'what idle memory costs: "none", or from 0 to 1, as 3/4 or 0.75'
        used = 'what is not idle: "committed" by a guest, or "sampled", what it touches'
        return Branch(
            {
                "capacity": figures.capacity,
                "available_memory": figures.free,
                "state": figures.state,
                "system_current_pressure": figures.pressure,
                "idle_tax": Setting(tax, self._set_tax, what),
                "active_memory": Setting(self.active.value, self._set_active, used),
            }
        )

    def _set_tax(self, written: str) -> None:
        self.idle_tax = None if written == "none" else self._read_tax(written)
        self._look_now()

    def _set_active(self, written: str) -> None:
        try:
            self.active = MemoryInUse(written)
        except ValueError:
            raise ValueError(f'what is not idle is "committed" or "sampled", not {written[:40]!r}') from None
        self._look_now()

    @staticmethod
    def _read_tax(written: str) -> Fraction:
        if _TAX.fullmatch(written) is None:
            raise ValueError(f'the tax is "none" or a number from 0 to 1, not {written[:40]!r}')
        try:
            tax = Fraction(written)
        except ZeroDivisionError:
            raise ValueError(f"the tax is from 0 to 1, not {written}") from None
        if not 0 <= tax <= 1:
            raise ValueError(f"the tax is from 0 to 1, not {written}")
        return tax

    # --- once a second

    def fire(self) -> None:
        """The timer's: one round, and the next in a second."""
        self.balance()
        self._arm()

    def balance(self) -> None:
        """Set targets, and take one step towards each where its guest has nothing to answer."""
        self.state, self._looked = self._state_now(), self._hypervisor.clock()
        self._changed = self._crossed = None
        shares = self._pools()
        claims = self._claims(shares)
        capacity = self._free_pages() - self._wanted + sum(claim.assigned for claim in claims)
        found = targets(max(0, capacity), claims, self._divide(shares))
        now = self._hypervisor.clock()
        free = max(0, self._free_pages() - self._wanted)
        # Those in need first; what they get is not free for the next.
        order = sorted(claims, key=lambda claim: _turn(claim, found[claim.name].pages))
        for claim in order:
            vm = self._vms[claim.name]
            vm.target = found[claim.name]
            vm.sweep(now)
            room = None if shares is None else shares.room(claim.name)
            most = free if room is None else min(free, max(0, room))
            step = vm.next_step(self.state, most, over=max(0, -(room or 0)))
            if step.change is Change.NOTHING or not step.pages:
                continue
            self._tell(vm, step.change, step.pages)
            vm.apply(step)
            gives = step.change is Change.BALLOON
            if shares is not None:
                shares.moved(claim.name, -step.pages if gives else step.pages)
            if not gives:
                free = max(0, min(free - step.pages, self._free_pages() - self._wanted))

    def _claims(self, shares: PoolShares | None) -> list[Claim]:
        claims = []
        for vm in self._vms.values():
            vm.limit = None
            vm.sample(on=vm.dynamic and self.active is MemoryInUse.SAMPLED)
            vm.look_for_answers()
            claim = vm.claim()
            if claim is None:
                continue
            if shares is not None:
                vm.limit = shares.limit(claim)
                claim = attrs.evolve(claim, limit=vm.limit)
            claims.append(claim)
        return claims

    def _divide(self, shares: PoolShares | None) -> Divide:
        if shares is not None:
            return shares.divide
        return by_weight if self.idle_tax is None else taxed(self.idle_tax)

    def _pools(self) -> PoolShares | None:
        """How pools share the host's memory, if there are any."""
        resources = None if self._vid.resources is None else self._vid.resources.made
        if resources is None or not resources.pools:
            return None
        from partitions.root.memory_pools import PoolShares

        return PoolShares(resources, self._vms, self._vid.vm_memory - self._wanted * _PAGE, self.idle_tax)

    def _state_now(self) -> HostState:
        return host_state(self.state, self._free_pages() - self._wanted, self._vid.vm_memory >> PAGE_SHIFT)

    def _free_pages(self) -> int:
        return self._vid.vm_memory_free >> PAGE_SHIFT

    def _tell(self, vm: VmMemory, change: Change, pages: int) -> None:
        trace = self._hypervisor.trace
        if trace.on and vm.target is not None:
            target = vm.target.pages * _PAGE
            words = f"{change.value} {pages * _PAGE >> 20} MiB: has {vm.assigned * _PAGE >> 20}, target {target >> 20}"
            trace.emit(
                *(Layer.DEVICE, "memory_balanced", vm.partition_id),
                words=f"{words} MiB; host {self.state.value}",
                assigned=vm.assigned * _PAGE,
                target=target,
                demand=None if vm.demand is None else vm.demand * _PAGE,
                state=self.state.value,
            )

    # --- room for a VM that is to start

    async def make_room(self, size: int) -> None:
        """Have others give back what they can, until `size` bytes are free or they have no more. Raises nothing."""
        if self._vid.vm_memory_free >= size or not any(vm.dynamic for vm in self._vms.values()):
            return
        pages = size >> PAGE_SHIFT
        self._wanted += pages
        try:
            with trio.move_on_after(MAKE_ROOM_SECONDS):
                while self._vid.vm_memory_free < size and self._spare():
                    self.balance()
                    await trio.sleep(_LOOK_SECONDS)
        finally:
            self._wanted -= pages

    def _spare(self) -> bool:
        """Whether anybody may still give something."""
        return any(
            vm.dynamic and vm.answers and vm.device.ready and vm.assigned > vm.minimum and not vm.refuses
            for vm in self._vms.values()
        )


def _turn(claim: Claim, target: int) -> tuple[bool, bool, Fraction]:
    """For the order in which free memory is given: below its minimum, below its target, how pressed it is."""
    assigned = claim.assigned
    return assigned >= claim.least, assigned >= target, -Fraction(claim.demand or 0, max(1, assigned))
