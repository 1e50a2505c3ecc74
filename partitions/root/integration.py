"""The integration components of one running VM, as people use them. Root side.

Every VM of the kvm backend has all of them, because every kernel that is a Hyper-V guest has drivers for them; a VM
that runs a program has those that its topology names. Offering them costs the host little, but a model guest would open
four more channels at each boot.
"""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from hypervisor.inspect import Branch
from hypervisor.trace import Trace
from partitions.topology_schema import Backend, VmTable
from partitions.topology_schema import IntegrationName as Name
from vsp_vsc.integration.component import Contact, IntegrationVsp, NoAnswer, PartitionTime, Unavailable
from vsp_vsc.integration.heartbeat.vsp import Heartbeat, HeartbeatVsp
from vsp_vsc.integration.kvp.protocol import Pool, Value
from vsp_vsc.integration.shutdown.protocol import ShutdownFlags
from vsp_vsc.integration.time_sync.vsp import GuestTime, TimeSyncVsp
from vsp_vsc.integration.vss.vsp import HOLD_SECONDS, FreezeState, VssVsp

if TYPE_CHECKING:
    from vmbus.server.offers import Device
    from vsp_vsc.integration.file_copy.vsp import FileCopyVsp
    from vsp_vsc.integration.kvp.ip_info import IpInfo
    from vsp_vsc.integration.kvp.vsp import KvpVsp
    from vsp_vsc.integration.shutdown.vsp import ShutdownVsp

__all__ = [
    "HOLD_SECONDS",
    "Contact",
    "FreezeState",
    "GuestTime",
    "Heartbeat",
    "Integration",
    "Kvp",
    "NoAnswer",
    "Pool",
    "ShutdownFlags",
    "Unavailable",
    "Value",
    "need",
]
C = TypeVar("C", bound=IntegrationVsp)


class Integration:
    """What a VM has of them; those that it has not are None."""

    def __init__(
        self,
        settings: VmTable,
        *,
        wall_clock: Callable[[], datetime.datetime],
        reference_time: Callable[[], int],
        trace: Trace,
        partition_id: int,
        virtual: bool = False,
    ) -> None:
        wanted = components_of(settings)
        time = PartitionTime(reference_time)
        more = (time, trace, partition_id)
        self.heartbeat = HeartbeatVsp(*more) if Name.HEARTBEAT in wanted else None
        self.shutdown: ShutdownVsp | None = None
        self.time_sync = TimeSyncVsp(wall_clock, *more) if Name.TIME_SYNC in wanted else None
        self.kvp: KvpVsp | None = None
        self.vss = VssVsp(*more) if Name.VSS in wanted else None
        self.file_copy: FileCopyVsp | None = None
        # A run whose VMs have none of these does not load them.
        if Name.SHUTDOWN in wanted:
            from vsp_vsc.integration.shutdown.vsp import ShutdownVsp

            self.shutdown = ShutdownVsp(*more)
        if Name.KVP in wanted:
            from vsp_vsc.integration.kvp.vsp import KvpVsp

            self.kvp = KvpVsp(*more, host_items=_host_items(settings, virtual))
        if Name.FILE_COPY in wanted:
            from vsp_vsc.integration.file_copy.vsp import FileCopyVsp

            self.file_copy = FileCopyVsp(*more)

    @property
    def components(self) -> tuple[IntegrationVsp, ...]:
        """Those that this VM has."""
        every = (self.heartbeat, self.shutdown, self.time_sync, self.kvp, self.vss, self.file_copy)
        return tuple(component for component in every if component is not None)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The same, for the bus."""
        return self.components

    @property
    def contacts(self) -> dict[str, Contact]:
        """How each stands with the guest, by name."""
        return {component.words: component.contact for component in self.components}

    def inspect(self) -> Branch:
        """The components by name."""
        return Branch({component.words.replace(" ", "_"): component.inspect for component in self.components})

    def resumed(self) -> None:
        """The VM was paused, and its clock is behind."""
        if self.time_sync is not None:
            self.time_sync.sync_soon()

    async def request_shutdown(self, flags: ShutdownFlags = ShutdownFlags.NONE, text: str = "") -> bool:
        """Ask the guest to go down; whether it said that it will. False where it has no driver, too.

        `shutdown.outcome` has it in words.
        """
        if self.shutdown is None:
            return False
        try:
            await self.shutdown.request(flags, text=text)
        except NoAnswer:
            return False
        return True


class Kvp:
    """A VM's key-value pairs. Every call raises `NoAnswer` where the guest has no driver, does not answer, or cannot.

    Linux answers once `hv_kvp_daemon` runs in it. What comes from there is the guest's text: show it, do not obey it.
    """

    def __init__(self, find: Callable[[], Integration | None]) -> None:
        self._find = find

    @property
    def contact(self) -> Contact:
        """How it stands with the guest."""
        integration = self._find()
        if integration is None or integration.kvp is None:
            return Contact.NONE
        return integration.kvp.contact

    async def items(self, pool: Pool = Pool.AUTO) -> Mapping[str, Value]:
        """All items of a pool, read now; by default what the guest says of itself."""
        return await self._component().items(pool)

    async def ip_info(self, adapter: str) -> IpInfo | None:
        """The addresses of a guest's adapter, which Linux knows by its MAC; None if it has none of that name."""
        return await self._component().ip_info(adapter)

    async def set_ip_info(self, info: IpInfo) -> None:
        """Have the guest give an adapter these addresses; Linux knows it by the GUID of its device on the bus."""
        await self._component().set_ip_info(info)

    async def get(self, key: str, pool: Pool = Pool.GUEST) -> Value | None:
        """One item, read now; None if the guest has none of that key.

        Looked up among all items of the pool: Linux's driver takes a single value from the wrong place in its daemon's
        answer, four bytes too far on.
        """
        return (await self._component().items(pool)).get(key)

    async def set(self, key: str, value: Value, pool: Pool = Pool.EXTERNAL) -> None:
        """Store an item in the guest. `ValueError` for what cannot be stored."""
        await self._component().set(key, value, pool)

    async def delete(self, key: str, pool: Pool = Pool.EXTERNAL) -> bool:
        """Remove an item; False if the guest has none of that key. `ValueError` for a key that cannot be."""
        return await self._component().delete(key, pool)

    def _component(self) -> KvpVsp:
        return need(self._find(), lambda it: it.kvp, "kvp")


def need(integration: Integration | None, pick: Callable[[Integration], C | None], name: str) -> C:
    """A component that something is asked of. Raises `Unavailable` while the VM is off, and where it has it not."""
    if integration is None:
        raise Unavailable(f"{name}: the VM is off; start it")
    component = pick(integration)
    if component is None:
        raise Unavailable(f'{name}: the VM has no such component; its topology gives it with integration = ["{name}"]')
    return component


@asynccontextmanager
async def frozen(vss: VssVsp, hold: float) -> AsyncIterator[None]:
    """A guest whose file systems stand still. Raises as `VssVsp.freeze` and `thaw` do."""
    number = await vss.freeze(hold)
    try:
        yield
    except BaseException:
        vss.thaw_soon(number)
        raise
    await vss.thaw(number)


def _host_items(settings: VmTable, virtual: bool) -> dict[str, Any]:
    from partitions.root.host_facts import host_items

    return dict(host_items(settings.name, virtual=virtual, dynamic_memory=settings.dynamic_memory is not None))


def components_of(settings: VmTable) -> frozenset[Name]:
    """What a VM gets: what its topology names, or its backend's default."""
    if settings.integration is not None:
        return frozenset(settings.integration)
    match settings.backend:
        case Backend.KVM:
            return frozenset(Name)
        case Backend.TASK | Backend.PROCESS:
            return frozenset()
