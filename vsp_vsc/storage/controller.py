"""A controller's disks, and what concerns all of its channels: resets, and disks that come, go and grow. Root side.

All channels are one initiator to the disks, so each disk has one nexus here. No Trio and no packets: sessions ask, and
are told. Commands are never torn from the host's storage, which may still be writing to the guest's pages: a reset has
them end as aborted, and is done when the last of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

import attrs

from hypervisor.inspect import Branch, Log2Counts, Setting
from vsp_vsc.storage.protocol import MAX_AT_DISK
from vsp_vsc.storage.scsi.nexus import CommandGate, Nexus
from vsp_vsc.storage.scsi.sense import Reason
from vsp_vsc.storage.scsi.unit import LogicalUnit

if TYPE_CHECKING:
    from vsp_vsc.storage.scsi.answer import ScsiResult, Tag

MAX_LUNS = 255
"""An SRB names a unit in one byte, and Linux looks at 255 of them."""


class Gate(CommandGate, Protocol):
    """What holds a disk's commands back, as a controller and its sessions know it."""

    def end(self, wanted: Callable[[Tag], bool], result: ScsiResult) -> None:
        """Those that wait and are wanted end with this result, and are not carried out."""


class Controls(Protocol):
    """What can be said of how much I/O a disk may do."""

    def inspect(self) -> Branch:
        """Figures, and controls that can be set."""


@attrs.define(eq=False)
class Unit:
    """One disk at its address."""

    lun: int
    nexus: Nexus
    queue_depth: int
    """Commands that may be under way; a guest is told to send what goes past it again."""
    stale: int = 0
    """Commands under way that a reset has ended."""
    resets: list[Reset] = attrs.field(factory=list)
    """That wait for them."""
    on_idle: Callable[[], object] | None = None
    """Called whenever nothing is under way any more."""
    latency: Log2Counts = attrs.field(factory=Log2Counts)
    """In microseconds, of commands that had to wait; most are answered at once."""
    gate: Gate | None = None
    """What its commands go through, if anything holds them back."""
    controls: Controls | None = None

    def pass_through(self, gate: Gate | None) -> None:
        """From now on commands go through a gate, or through none."""
        self.gate = gate
        self.nexus.pass_through(gate)

    @property
    def target(self) -> LogicalUnit:
        """The disk itself."""
        return self.nexus.unit

    def inspect(self) -> Branch:
        """The disk, and this guest's way to it."""
        nexus = self.nexus
        depth = Setting(self.queue_depth, self._set_depth, f"commands under way at once, 1 to {MAX_AT_DISK}")
        return Branch(
            {
                "queue_depth": depth,
                **(self.controls.inspect().children if self.controls is not None else {}),
                "under_way": nexus.under_way,
                "stale": self.stale,
                "attentions": ", ".join(reason.value[3] for reason in nexus.attentions) or "none",
                "latency_of_waits": self.latency.histogram("us"),
                **self.target.inspect().children,
            }
        )

    def _set_depth(self, text: str) -> None:
        if not text.isdecimal() or not 1 <= int(text) <= MAX_AT_DISK:
            raise ValueError(f"a queue depth is a number from 1 to {MAX_AT_DISK}, not {text!r}")
        self.queue_depth = int(text)

    def ended(self, *, aborted: bool) -> None:
        """A command that was under way has been answered."""
        if aborted and self.stale:
            self.stale -= 1
            if not self.stale:
                for reset in self.resets[:]:
                    reset.unit_done(self)
        if self.on_idle is not None and not self.nexus.under_way:
            self.on_idle()


@attrs.define(eq=False)
class Reset:
    """A reset that waits until all commands which it ended have let go of the guest's pages."""

    done: Callable[[], object]
    waits_for: set[Unit]

    def unit_done(self, unit: Unit) -> None:
        """Nothing that was reset is under way at this unit any more."""
        unit.resets.remove(self)
        self.waits_for.discard(unit)
        if not self.waits_for:
            self.done()


class Member(Protocol):
    """What a controller wants from each of its sessions."""

    def forget(self) -> None:
        """Drop shortcuts to units: one is gone."""

    def announce(self) -> None:
        """Tell the guest that disks came, went or changed, if this is the channel for it."""


def address(lun: int, *, target: int = 0, path: int = 0) -> int:
    """Where a disk is, as the key under which sessions look for it."""
    return path | target << 8 | lun << 16


class Controller:
    """All disks of one controller. Adding and removing them takes effect with the next command."""

    def __init__(self, disks: Mapping[int, LogicalUnit], initiator: str) -> None:
        """Disks by LUN; `initiator` names the guest to them. ValueError for a LUN that cannot be."""
        self.units: dict[int, Unit] = {}
        """By `address`."""
        self.sessions: list[Member] = []
        self.resets = 0
        self._initiator = initiator
        for lun, target in disks.items():
            self._place(lun, target)

    @property
    def disks(self) -> dict[int, LogicalUnit]:
        """By LUN."""
        return {unit.lun: unit.target for unit in self.units.values()}

    def add(self, lun: int, target: LogicalUnit) -> None:
        """A disk comes. ValueError for a LUN that is taken or cannot be."""
        unit = self._place(lun, target)
        # Who has not looked since another disk left this place must not take this one for it.
        unit.nexus.attend(Reason.POWER_ON_OR_RESET)
        self._inventory_changed(but=unit)

    def remove(self, lun: int) -> Unit:
        """A disk goes; what it has under way ends as it would have. KeyError if there is none."""
        unit = self.units.pop(address(lun))
        self._gone()
        return unit

    def remove_all(self) -> list[Unit]:
        """All disks go at once, which the guest hears once."""
        units = list(self.units.values())
        self.units.clear()
        self._gone()
        return units

    def announce(self) -> None:
        """Have the guest look again."""
        for session in self.sessions:
            session.announce()

    def reset(self, units: Iterable[Unit], reason: Reason, done: Callable[[], object]) -> None:
        """End what these units have under way, and call `done` when all of it has been answered, which may be now."""
        self.resets += 1
        reset = Reset(done, set())
        for unit in units:
            unit.stale = unit.nexus.under_way
            unit.target.reset(reason)
            if unit.stale:
                unit.resets.append(reset)
                reset.waits_for.add(unit)
        if not reset.waits_for:
            done()

    def disconnected(self) -> None:
        """The guest has closed the primary channel: what the disks knew of it is forgotten, as at power off."""
        for unit in self.units.values():
            unit.nexus.close()
            unit.nexus = unit.target.connect(self._initiator)
            unit.nexus.pass_through(unit.gate)

    def _place(self, lun: int, target: LogicalUnit) -> Unit:
        if not 0 <= lun < MAX_LUNS:
            raise ValueError(f"LUNs are 0 to {MAX_LUNS - 1}, not {lun}")
        if address(lun) in self.units:
            raise ValueError(f"LUN {lun} is taken")
        unit = self.units[address(lun)] = Unit(lun, target.connect(self._initiator), MAX_AT_DISK)
        return unit

    def _gone(self) -> None:
        for session in self.sessions:
            session.forget()
        self._inventory_changed()

    def _inventory_changed(self, but: Unit | None = None) -> None:
        """Each disk tells, but for those with removable media: there a guest would take it for another medium."""
        for unit in self.units.values():
            if unit is not but and not unit.target.removable:
                unit.nexus.attend(Reason.REPORTED_LUNS_DATA_HAS_CHANGED)
        self.announce()
