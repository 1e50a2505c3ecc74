"""Reserve, limit and weight of the disks of running VMs: where the tree of resources meets the arbiter. Root side.

A host without such controls loads nothing of it. From the first control on, whether it stands in the topology or comes
while VMs run, there is an arbiter (`vsp_vsc.storage.qos`) that has all disks; it follows the tree of the resource
`disk`, in which every change is checked and every reservation granted first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Final

import attrs

from hypervisor.inspect import Branch, Setting
from partitions.root.host_resources import HostResources
from partitions.topology_controls import DEFAULT_WEIGHT, IopsTable

if TYPE_CHECKING:
    from hypervisor.hypervisor import Hypervisor
    from hypervisor.scheduler.tree import Node
    from vsp_vsc.storage.controller import Unit
    from vsp_vsc.storage.qos.arbiter import DiskQos, Flow, FlowFigures
    from vsp_vsc.storage.qos.meter import Meter
    from vsp_vsc.storage.qos.policy import IopsPolicy

_KEYS: Final = ("limit", "reserve", "weight")


@attrs.define(eq=False)
class DiskControl:
    """One disk of a VM that is on."""

    owner: DiskControls
    vm: str
    name: str
    """In the tree, such as `disk/0`; another word for a disk of a controller that was plugged in by hand."""
    unit: Unit
    table: IopsTable | None
    """What it came with."""
    flow: Flow | None = None
    _setters: dict[str, Callable[[str], None]] = attrs.field(init=False, repr=False)
    """Made once: who looks twice and finds the same shall see the same."""

    @_setters.default
    def _make_setters(self) -> dict[str, Callable[[str], None]]:
        return {key: partial(self._set, key) for key in _KEYS}

    @property
    def policy(self) -> IopsPolicy:
        """As it is now."""
        node = self.owner.node_of(self)
        return _policy(self.table) if node is None else _policy_of(node)

    def inspect(self) -> Branch:
        """See `controller.Controls`."""
        from vsp_vsc.storage.qos.policy import HELP

        policy = self.policy
        settings = {f"iops_{key}": Setting(getattr(policy, key), self._setters[key], HELP[key]) for key in _KEYS}
        return Branch(settings if self.flow is None else {**settings, **self.flow.inspect().children})

    def close(self) -> None:
        """The disk has gone."""
        self.owner.remove(self)

    def _set(self, key: str, text: str) -> None:
        """What goes together is checked by whoever has the figures: the tree, or the disk itself if it is not there."""
        from vsp_vsc.storage.qos.policy import figure_of

        figure, resources = figure_of(key, text), self.owner.resources()
        if self.owner.node_of(self) is None:
            policy = self.policy.with_figure(key, figure)
            self.table = IopsTable(reserve=policy.reserve, limit=policy.limit, weight=policy.weight)
            self.owner.changed(self)
            return
        from hypervisor.scheduler.tree import ResourceError

        try:
            resources.set(f"vm/{self.vm}", f"{self.name.replace('/', '.')}.iops.{key}", figure)
        except ResourceError as error:
            raise ValueError(str(error)) from None


class DiskControls:
    """One host's. Everything runs in the Trio thread."""

    def __init__(self, resources: HostResources, hypervisor: Hypervisor) -> None:
        self.resources = resources
        self.qos: DiskQos | None = None
        """Once something is controlled."""
        self._hypervisor = hypervisor
        self._disks: dict[tuple[str, str], DiskControl] = {}
        """By VM and name."""
        resources.on_change("disk", self._follow)
        resources.disks = self

    def add(self, vm: str, name: str, table: IopsTable | None, unit: Unit) -> DiskControl:
        """A disk comes, with the controls of its settings. `name` is `disk/LUN` for one that the settings have."""
        control = DiskControl(self, vm, name, unit, table)
        self._disks[vm, name] = control
        unit.controls = control
        if self.resources.topology.host.disk_iops:
            self.resources()  # its storage is shared, whether or not anybody has said how
        self.changed(control)
        return control

    def remove(self, control: DiskControl) -> None:
        """For `DiskControl.close`."""
        self._disks.pop((control.vm, control.name), None)
        control.unit.controls = None
        flow, control.flow = control.flow, None
        if flow is not None:
            flow.close()
        if self.qos is not None:
            self.qos.remove_if_empty(f"vm/{control.vm}")
            self._regroup(control.vm)

    def changed(self, control: DiskControl) -> None:
        """A disk is new, or has controls that the tree does not know."""
        if self.qos is None:
            self._make_if_needed()
        elif control.flow is None:
            self._attach(control)
        else:
            control.flow.set_policy(control.policy)

    def node_of(self, control: DiskControl) -> Node | None:
        """A disk's place in the tree, if there is a tree with it."""
        made = self.resources.made
        if made is None or control.vm not in made.vms:
            return None
        return made.node("disk", f"vm/{control.vm}").children.get(control.name)

    def figures(self) -> dict[str, FlowFigures]:
        """See `DiskQos.figures`; empty where nothing is controlled."""
        return dict(self.each())

    def each(self) -> Iterator[tuple[str, FlowFigures]]:
        """The same, one by one, for those who give others their turn meanwhile."""
        return iter(()) if self.qos is None else self.qos.each()

    def spans(self) -> dict[str, tuple[int, int]]:
        """See `DiskQos.spans`; empty where nothing is controlled."""
        return {} if self.qos is None else self.qos.spans()

    def meters(self, vm: str, names: Iterable[str]) -> list[Meter]:
        """What the disks of a VM have counted, by their names such as `disk/0`; of those that are counted."""
        found = [self._disks.get((vm, name)) for name in names]
        return [one.flow.meter for one in found if one is not None and one.flow is not None]

    # --- inside

    def _make_if_needed(self) -> None:
        """The arbiter, with all disks that there are."""
        made = self.resources.made
        nodes = [] if made is None else list(made.roots["disk"].walk())[1:]
        if not (
            self.resources.topology.host.disk_iops
            or any(one.table is not None for one in self._disks.values())
            or any(node.reservation or node.limit is not None or node.shares != DEFAULT_WEIGHT for node in nodes)
        ):
            return
        from vsp_vsc.storage.qos.arbiter import DiskQos

        hypervisor = self._hypervisor
        capacity = self.resources.topology.host.disk_iops
        self.qos = DiskQos(hypervisor.clock, hypervisor.timers, capacity=capacity)
        for control in self._disks.values():
            self._attach(control)

    def _attach(self, control: DiskControl) -> None:
        assert self.qos is not None
        group = f"vm/{control.vm}"
        made = self.resources.made
        if made is not None and control.vm in made.vms:
            self._group(made.node("disk", group))
        else:
            self.qos.set_group(group, "", _policy(None))
        control.flow = self.qos.add_disk(group, control.name, control.policy, control.unit)

    def _regroup(self, vm: str) -> None:
        """A VM weighs what its disks do together."""
        made = self.resources.made
        if self.qos is not None and self.qos.has_group(f"vm/{vm}") and made is not None and vm in made.vms:
            self._group(made.node("disk", f"vm/{vm}"))

    def _group(self, node: Node) -> None:
        """Have the arbiter follow a pool or VM, and all around it."""
        assert self.qos is not None
        above = "" if node.parent is None or node.parent.parent is None else node.parent.name
        if above and node.parent is not None:
            self._group(node.parent)
        self.qos.set_group(node.name, above, _policy_of(node))

    def _follow(self, node: Node) -> None:
        """The tree has changed."""
        if self.qos is None:
            self._make_if_needed()
            return
        if node.inner:
            if node.parent is None:
                self.qos.remove_if_empty(node.name)
            elif self.qos.has_group(node.name):
                self._group(node)
        elif node.parent is not None:
            control = self._disks.get((node.parent.name.removeprefix("vm/"), node.name))
            if control is not None and control.flow is not None:
                control.flow.set_policy(_policy_of(node))


def _policy_of(node: Node) -> IopsPolicy:
    from vsp_vsc.storage.qos.policy import IopsPolicy

    return IopsPolicy(node.reservation, node.limit or 0, node.shares)


def _policy(table: IopsTable | None) -> IopsPolicy:
    from vsp_vsc.storage.qos.policy import NONE, IopsPolicy

    return NONE if table is None else IopsPolicy(table.reserve, table.limit, table.weight)
