"""A host's switches: their uplinks, and the ports of VMs' adapters. Root side.

Made with the host if its topology has switches, and at the first adapter else. An uplink is a TAP device or a socket at
a port `lan:host` of an internal switch, `lan:uplink` of an external one. A port of an adapter is there as long as its
VM is on; it may be plugged into another switch, or into none, meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import trio

from hypervisor.inspect import Branch, Many
from hypervisor.trace import Trace
from partitions.root.macs import AddressPool
from partitions.root.nic_state import NicError, NicState
from partitions.root.tap import open_tap
from partitions.root.uplinks import StreamLink, TapLink
from partitions.topology_networks import host_port_name, own_address, port_name, port_settings
from partitions.topology_schema import NicTable, SwitchTable, VmTable, numbers_of
from vsp_vsc.network.switch.addresses import NO_ADDRESS, mac_words
from vsp_vsc.network.switch.kinds import SwitchKind
from vsp_vsc.network.switch.ports import Port, Tap
from vsp_vsc.network.switch.settings import ALL_VLANS, PortSettings
from vsp_vsc.network.switch.switch import VirtualSwitch

if TYPE_CHECKING:
    from hypervisor.scheduler.divvy import Due
    from partitions.root.host_network import HostNetwork
    from partitions.root.network_controls import NetworkControls
    from vsp_vsc.network.shaping.figures import PortFigures

Link: TypeAlias = TapLink | StreamLink


class Switches:
    """Of one host."""

    def __init__(self, host: str, now: Callable[[], int], trace: Trace, network: HostNetwork | None = None) -> None:
        """`host` is a name by which hosts on one network differ; `now` gives 100 ns units.

        Without `network`, nothing can be shaped.
        """
        self.switches: dict[str, VirtualSwitch] = {}
        """By name."""
        self.ports: dict[str, Port] = {}
        """Of VMs that are on, and of the host; by name, whether plugged in or not."""
        self._addresses = AddressPool(host)
        self._now = now
        self._trace = trace
        self._links: dict[str, Link] = {}
        self._taps: dict[str, Tap] = {}
        """Who watches, by the name of the port, which may come and go."""
        self._network = network
        self._tables: dict[str, SwitchTable] = {}
        self._nics: dict[str, tuple[str, int, NicTable]] = {}
        """VM, number and settings of the ports of adapters."""
        self._controls: NetworkControls | None = None
        if network is not None and network.controlled():
            self._controls = network.controls()

    # --- the host's side

    def make(self, table: SwitchTable) -> VirtualSwitch:
        """A switch without uplinks. Raises `ValueError` for a name that is taken."""
        if table.name in self.switches:
            raise ValueError(f"there is a switch {table.name!r} already")
        made = self.switches[table.name] = VirtualSwitch(table.name, table.kind, self._now)
        self._tables[table.name] = table
        if self._controls is not None:
            self._controls.add_switch(table)
        return made

    def reserve(self, vms: Sequence[VmTable]) -> None:
        """Addresses for all adapters, those first that name their own: who starts first changes nothing."""
        nics = [(vm, number, nic) for vm in vms for number, nic in zip(numbers_of(vm.nic), vm.nic, strict=True)]
        for vm, number, nic in sorted(nics, key=lambda one: one[2].mac == ""):
            self._addresses.take(port_name(vm.name, number), own_address(nic))

    async def open_uplink(self, table: SwitchTable, folder: Path) -> Link | None:
        """What joins a switch to the host, if anything; `run` it, `close` it. Raises `SwitchError`."""
        switch = self.switches[table.name]
        if table.kind is SwitchKind.PRIVATE:
            return None
        internal, name = table.kind is SwitchKind.INTERNAL, host_port_name(table)
        if internal:
            settings = PortSettings(mtu=table.mtu, vlan=table.vlan, spoofing=True, storm_limit=0)
        else:
            settings = PortSettings(mtu=table.mtu, trunk=ALL_VLANS, spoofing=True, storm_limit=0)
        link: Link
        if table.listen or table.connect:
            port = Port(name, NO_ADDRESS, settings)
            link = StreamLink(port, folder / (table.listen or table.connect), self._trace)
            try:
                if table.listen:
                    link.listen()
                else:
                    await link.connect()
            except BaseException:
                link.close()
                raise
        else:
            device = open_tap(
                table.name,
                name=table.tap,
                mac=self._addresses.take(name) if internal else None,
                mtu=table.mtu,
                address=table.address,
                bridge=table.bridge,
            )
            port = Port(name, device.mac if internal else NO_ADDRESS, settings)
            link = TapLink(device, port, self._trace)
        self.ports[name] = port
        self._links[table.name] = link
        switch.connect(port)
        if self._controls is not None:
            self._controls.add(port, "", None)
        return link

    # --- VMs' side

    def connect(self, vm: str, number: int, table: NicTable) -> Port:
        """A port for an adapter, plugged in as its table says. Raises `NicError`."""
        name = port_name(vm, number)
        try:
            port = Port(name, self._addresses.take(name, own_address(table)), port_settings(table))
            port.enabled = table.connected
            port.tap = self._taps.get(name)
            if table.switch:
                self._find(table.switch).connect(port)
        except ValueError as error:
            raise NicError(str(error)) from None
        self.ports[name] = port
        self._nics[name] = vm, number, table
        if self._network is not None:
            port.show_controls = partial(self._show_controls, name)
        if self._controls is not None:
            self._controls.add(port, vm, table)
        return port

    def disconnect(self, port: Port) -> None:
        """Its VM is off, or has lost the adapter."""
        if self._controls is not None:
            self._controls.shaping.remove(port)
        self._nics.pop(port.name, None)
        if port.switch is not None:
            port.switch.disconnect(port)
        self.ports.pop(port.name, None)

    @contextlib.contextmanager
    def connected(self, vm: str, number: int, table: NicTable) -> Iterator[Port]:
        """A port for an adapter, until the block ends. Raises `NicError`."""
        port = self.connect(vm, number, table)
        try:
            yield port
        finally:
            self.disconnect(port)

    def plug(self, vm: str, number: int, switch: str) -> None:
        """Plug the port of a VM that is on into another switch, or none if `switch` is empty. Raises `NicError`."""
        port = self.ports.get(port_name(vm, number))
        if port is None:
            return
        target = self._find(switch) if switch else None
        if port.switch is not target:
            if port.switch is not None:
                port.switch.disconnect(port)
            if target is not None:
                try:
                    target.connect(port)
                except ValueError as error:
                    raise NicError(str(error)) from None
            if self._controls is not None:
                self._controls.shaping.moved(port)
        if target is not None:
            port.set_enabled(True)

    def check(self, vm: str, number: int, table: NicTable) -> None:
        """Whether an adapter can be had; its address is its own from then on. Raises `NicError`."""
        if table.switch:
            self._find(table.switch)
        try:
            self._addresses.take(port_name(vm, number), own_address(table))
        except ValueError as error:
            raise NicError(str(error)) from None

    def forget(self, vm: str, number: int) -> None:
        """An adapter is gone from its VM's settings; its address is free."""
        self._addresses.give_back(port_name(vm, number))

    def forget_vm(self, vm: str) -> None:
        """A VM is gone for good, and its addresses with it."""
        self._addresses.give_back_all(port_name(vm, 0).removesuffix("0"))

    def state(self, vm: str, number: int, table: NicTable) -> NicState:
        """How an adapter is."""
        name = port_name(vm, number)
        port = self.ports.get(name)
        up = table.connected and table.switch != "" if port is None else port.link_up
        return NicState(
            number=number,
            port=name,
            name=table.name,
            switch=table.switch,
            mac=mac_words(self._addresses.take(name, own_address(table))),
            vlan=table.vlan,
            mtu=table.mtu,
            link="up" if up else "down",
        )

    def _find(self, name: str) -> VirtualSwitch:
        switch = self.switches.get(name)
        if switch is None:
            from partitions.topology_source import nearest

            near = nearest(name, self.switches)
            hint = f'did you mean "{near}"?' if near else f"there are: {', '.join(self.switches) or 'none'}"
            raise NicError(f'no switch is called "{name}"; {hint}')
        return switch

    # --- who may send how much, and cables that are bad

    def sent(self) -> dict[int, int]:
        """Of flows that are shaped, by their numbers; see `Shaping.sent`."""
        return {} if self._controls is None else self._controls.shaping.sent()

    def due(self, rates: Mapping[int, int]) -> dict[str, Due]:
        """See `Shaping.due`; nothing where nothing is shaped."""
        return {} if self._controls is None else self._controls.shaping.due(rates)

    def controls(self) -> NetworkControls:
        """Made when somebody asks, with all ports that are there."""
        if self._controls is None:
            assert self._network is not None, "only a host shapes its ports"
            self._controls = self._network.controls()
            for table in self._tables.values():
                self._controls.add_switch(table)
            for name, port in self.ports.items():
                vm, _, nic = self._nics.get(name, ("", 0, None))
                self._controls.add(port, vm, nic)
        return self._controls

    def settled(self, table: VmTable) -> None:
        """The settings of a VM are these from now on: its adapters' bandwidth and cables, and its pool."""
        for number, nic in zip(numbers_of(table.nic), table.nic, strict=True):
            name = port_name(table.name, number)
            if name not in self._nics:
                continue
            self._nics[name] = table.name, number, nic
            if self._controls is not None or nic.bandwidth is not None or nic.link is not None:
                self.controls().change(name, table.name, nic)

    def figures(self) -> dict[str, PortFigures]:
        """What each port of an adapter has done, by its name: `web/0`."""
        from vsp_vsc.network.shaping.figures import plain_figures

        controls = self._controls
        if controls is None:
            return {name: plain_figures(self.ports[name]) for name in self._nics}
        return {name: controls.figures(name) for name in self._nics}

    def figures_of(self, name: str) -> PortFigures | None:
        """Those of one port; None for one that is not an adapter's, or not there."""
        if name not in self._nics:
            return None
        from vsp_vsc.network.shaping.figures import plain_figures

        controls = self._controls
        return plain_figures(self.ports[name]) if controls is None else controls.figures(name)

    def _show_controls(self, name: str) -> Mapping[str, Branch]:
        from partitions.root.network_controls import Change, port_controls

        if name not in self._nics:
            return {}
        nic = self._nics[name][2]
        lane = None if self._controls is None else self._controls.shaping.lanes.get(name)
        return port_controls(nic, lane, Change(self.set_control, name))

    def set_control(self, name: str, key: str, written: str) -> None:
        """A key of the adapter at a port, such as `link.delay`, as somebody has written it. Raises `ValueError`."""
        if name not in self._nics:
            raise ValueError(f"the port {name} is gone")
        vm, number, before = self._nics[name]
        resources = None if self._network is None else self._network.resources
        if resources is None or vm not in resources.machines.tables():
            from partitions.root.network_controls import edited_nic

            nic = edited_nic(before, name, key, written)
            self._nics[name] = vm, number, nic
            self.controls().change(name, vm, nic)
            return
        from hypervisor.scheduler.tree import ResourceError

        try:
            resources().set(f"vm/{vm}", f"nic.{number}.{key}", written)
        except ResourceError as error:
            raise ValueError(str(error)) from None

    # --- watching

    def watch(self, name: str, tap: Tap | None) -> None:
        """Show a port to a tap from now on, also if it comes later; or to none."""
        if tap is None:
            self._taps.pop(name, None)
        else:
            self._taps[name] = tap
        port = self.ports.get(name)
        if port is not None:
            port.watch(tap)

    def is_watched(self, name: str) -> bool:
        """Whether a tap sees the port of that name."""
        return name in self._taps

    def inspect(self) -> Branch:
        """Switches by name."""
        return Many(self.switches, str, show=self._show)

    def _show(self, switch: VirtualSwitch) -> Branch:
        seen = dict(switch.inspect().children)
        link = self._links.get(switch.name)
        if link is not None:
            seen["uplink"] = link.inspect
        if self._network is not None:
            seen["controls"] = partial(self._show_switch, switch.name)
        return Branch(seen)

    def _show_switch(self, name: str) -> Branch:
        from partitions.root.network_controls import Change, switch_controls

        table = self._tables[name] if self._controls is None else self._controls.switches[name]
        return switch_controls(table, Change(self._set_switch, name))

    def _set_switch(self, name: str, key: str, written: str) -> None:
        self.controls().set_switch(name, key, written)


@asynccontextmanager
async def open_uplinks(switches: Switches, tables: Sequence[SwitchTable], folder: Path) -> AsyncIterator[None]:
    """All switches of a topology, joined to the host until the block ends. Raises `SwitchError`."""
    for table in tables:
        switches.make(table)
    async with contextlib.AsyncExitStack() as stack:
        links = []
        for table in tables:
            link = await switches.open_uplink(table, folder)
            if link is not None:
                stack.callback(link.close)
                links.append(link)
        try:
            async with trio.open_nursery() as nursery:
                for link in links:
                    nursery.start_soon(link.run)
                yield
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # What the caller's block raises, as it was: nothing else is in this nursery that does.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
