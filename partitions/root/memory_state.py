"""How the memory of a VM is, for people, and why it is not what they asked for. Root side."""

from __future__ import annotations

import msgspec

from hypervisor.inspect import Branch
from partitions.topology_schema import VmTable


class CannotResize(Exception):
    """Memory that did not become what was asked for; the text says why, and what to do."""


class MemoryState(msgspec.Struct, frozen=True, kw_only=True):
    """How the memory of a VM is, in bytes. The names in quotes are Hyper-V's performance counters."""

    dynamic: bool
    startup: int
    minimum: int
    maximum: int
    buffer: int
    """Percent."""
    weight: int
    assigned: int
    """What it has: "Physical Memory"."""
    visible: int
    """What its guest sees, ballooned or not: "Guest Visible Physical Memory"."""
    demand: int | None
    """What its guest has committed; None before it has said."""
    active: int | None
    """What its guest uses, by a sample: in esxtop ACTV. None where nobody samples, or its guest does not tell."""
    target: int | None
    """Where the host takes it."""
    pressure: int | None
    """100 x demand / assigned: "Current Pressure"."""
    ballooned: int
    added: int
    swapped: int | None
    """What its guest says that its page files hold: of a model guest what is swapped out. None before it has said."""
    added_memory: int
    """All that it ever got while it ran: "Added Memory"."""
    removed_memory: int
    """All that was ever taken from it: "Removed Memory"."""
    driver: str
    """How its driver is: no driver, negotiating, ready, does not answer."""
    cause: str
    """Why it has less than it was built with: idle, host, limit, asked; empty where it has not."""


def fixed_memory(settings: VmTable) -> MemoryState:
    """Of a VM whose memory nobody changes."""
    size = int(settings.memory)
    return MemoryState(
        dynamic=False,
        startup=size,
        minimum=size,
        maximum=size,
        buffer=0,
        weight=0,
        assigned=size,
        visible=size,
        demand=None,
        active=None,
        target=None,
        pressure=None,
        ballooned=0,
        added=0,
        swapped=None,
        added_memory=0,
        removed_memory=0,
        driver="none",
        cause="",
    )


def shown(state: MemoryState, *, last_refusal: str | None = None, **counters: int | None) -> Branch:
    """The same to look at: Hyper-V's counters by their names, in bytes and percent, and counters that have more."""
    names = ("guest_available_memory", "average_pressure", "minimum_pressure", "maximum_pressure")
    operations = ("memory_add_operations", "memory_remove_operations", "used_while_ballooned")
    found: dict[str, object] = {
        "physical_memory": state.assigned,
        "guest_visible_physical_memory": state.visible,
        "guest_available_memory": counters.get(names[0]),
        "demand": state.demand,
        "active": state.active,
        "target": state.target,
        "ballooned": state.ballooned,
        "added": state.added,
        "swapped": state.swapped,
        "current_pressure": state.pressure,
        **{name: counters.get(name) for name in names[1:]},
        "added_memory": state.added_memory,
        "removed_memory": state.removed_memory,
        **{name: counters.get(name, 0) for name in operations},
        "startup": state.startup,
        "driver": state.driver,
        "cause": state.cause or None,
        "last_refusal": last_refusal,
    }
    if state.dynamic:
        found |= {"minimum": state.minimum, "maximum": state.maximum, "buffer": state.buffer, "weight": state.weight}
    return Branch(found)
