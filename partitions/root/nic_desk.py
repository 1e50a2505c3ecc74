"""Changing a VM's network adapters, whether it is on or off: its settings, and the bus while there is one. Root side.

What is added, removed or plugged elsewhere stays so until the VM is forgotten: it is in the settings that the VM has
when it starts again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from partitions.root.devices import nic_name
from partitions.root.hotplug import HotPlugError
from partitions.root.nic_state import NicError, NicState
from partitions.topology_check import Check
from partitions.topology_schema import MAX_NICS, NicTable, numbers_of

if TYPE_CHECKING:
    from partitions.root.host_network import HostNetwork
    from partitions.root.hotplug import HotPlug
    from partitions.root.management import ManagedVm


class NicDesk:
    """Where the adapters of one VM are changed."""

    def __init__(self, managed: ManagedVm, network: HostNetwork) -> None:
        self._managed = managed
        self._network = network

    def states(self) -> dict[int, NicState]:
        """By number: of the running VM, or as its settings say."""
        tables = self._tables()
        if not tables:
            return {}
        switches = self._network.switches()
        return {number: switches.state(self._managed.name, number, table) for number, table in sorted(tables.items())}

    def add(self, keys: Mapping[str, Any]) -> int:
        """An adapter more, of the keys of `[[vm.nic]]`; its number. Raises `NicError`."""
        table = _read(keys)
        tables, switches, vm = self._tables(), self._network.switches(), self._managed.name
        if len(tables) == MAX_NICS:
            raise NicError(f"a VM has at most {MAX_NICS} adapters")
        number = _free_number(tables, self._managed.highest_nic) if table.number is None else table.number
        table = msgspec.structs.replace(table, number=number)
        if number not in range(MAX_NICS):
            raise NicError(f"number: must be 0 to {MAX_NICS - 1}, is {number}")
        if number in tables:
            raise NicError(f"number {number} is taken; leave it out, and a free one is used")
        _check(table, list(switches.switches))
        hotplug = self._hotplug()
        switches.check(vm, number, table)
        try:
            with self._reserved([*self._numbered(), table]):
                if hotplug is not None:
                    hotplug.add(nic_name(number), table)
        except (HotPlugError, NicError) as error:
            switches.forget(vm, number)
            raise NicError(str(error)) from error
        self._settle([*self._numbered(), table])
        self._managed.highest_nic = max(number, self._managed.highest_nic)
        return number

    async def remove(self, number: int) -> None:
        """An adapter less; returns when it serves nobody any more. Raises `NicError`."""
        self._table(number)
        hotplug = self._hotplug()
        self._managed.highest_nic = max(*self._tables(), self._managed.highest_nic)
        left = [table for table in self._numbered() if table.number != number]
        with self._reserved(left):
            self._settle(left)
        if hotplug is not None and nic_name(number) in hotplug.devices:
            try:
                await hotplug.remove(nic_name(number))
            except HotPlugError as error:
                raise NicError(str(error)) from error
        self._network.switches().forget(self._managed.name, number)

    def plug(self, number: int, switch: str) -> None:
        """Into another switch, or into none if `switch` is empty. Raises `NicError`."""
        table = msgspec.structs.replace(self._table(number), switch=switch, connected=True)
        switches = self._network.switches()
        switches.check(self._managed.name, number, table)
        switches.plug(self._managed.name, number, switch)
        self._settle([table if other.number == number else other for other in self._numbered()])

    # --- inside

    @contextmanager
    def _reserved(self, tables: Sequence[NicTable]) -> Iterator[None]:
        """Have what these adapters reserve granted, for good if the block ends well. Raises `NicError`."""
        resources = self._network.resources
        if resources is None or resources.made is None:
            yield
            return
        from hypervisor.scheduler.tree import ResourceError

        before = self._managed.settings
        try:
            resources.made.devices_changed(before.name, msgspec.structs.replace(before, nic=list(tables)))
        except ResourceError as error:
            raise NicError(str(error)) from None
        try:
            yield
        except BaseException:
            resources.made.devices_changed(before.name, before)
            raise

    def _hotplug(self) -> HotPlug | None:
        worker = self._managed.worker
        if worker is None:
            return None
        if worker.hotplug is None:
            raise NicError(f"VM {self._managed.name!r} is {self._managed.state.value}: wait until it runs or is off")
        return worker.hotplug

    def _tables(self) -> dict[int, NicTable]:
        tables = self._managed.settings.nic
        return dict(zip(numbers_of(tables), tables, strict=True))

    def _table(self, number: int) -> NicTable:
        tables = self._tables()
        if number not in tables:
            there = ", ".join(map(str, sorted(tables)))
            hint = f"there are: {there}" if there else "the VM has none: `partita add-nic` gives it one"
            raise NicError(f"there is no adapter {number}; {hint}")
        return tables[number]

    def _numbered(self) -> list[NicTable]:
        """The settings' adapters with their numbers written out: those that stay keep theirs."""
        return [msgspec.structs.replace(table, number=number) for number, table in self._tables().items()]

    def _settle(self, tables: Sequence[NicTable]) -> None:
        self._managed.settings = msgspec.structs.replace(self._managed.settings, nic=list(tables))


def _free_number(taken: dict[int, NicTable], highest: int) -> int:
    """One that no adapter had so far, as long as there are some: a guest may still think of the old one there."""
    highest = max([-1, highest, *taken])
    if highest + 1 < MAX_NICS:
        return highest + 1
    return min(number for number in range(MAX_NICS) if number not in taken)


def _read(keys: Mapping[str, Any]) -> NicTable:
    """By the topology's own rules. Raises `NicError` with their words."""
    check = Check({}, Path(), programs=False)
    table = check.table(NicTable, dict(keys), ())
    _refuse(check)
    return table


def _check(table: NicTable, switches: Sequence[str]) -> None:
    from partitions.topology_networks import check_nic

    check = Check({}, Path(), programs=False)
    check_nic(check, table, switches, ())
    _refuse(check)


def _refuse(check: Check) -> None:
    for keys, reason in check.found.items():
        raise NicError(f"{'.'.join(map(str, keys))}: {reason}")
