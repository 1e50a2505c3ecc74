"""Declared layouts against tables that were written by hand from other sources than the declarations, both ways."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from hypervisor import intercept, monitor_page
from hypervisor.hypercall import event_log_layouts, layouts, processor_layouts, statistics_layouts, system_layouts
from hypervisor.synic import timer_registers
from hypervisor.wire import Wire
from partitions.decode import layouts as layouts_of_rings
from vmbus.protocol import hvsocket, messages
from vsp_vsc.integration.file_copy import protocol as file_copy
from vsp_vsc.integration.vss import protocol as vss
from vsp_vsc.keyboard import protocol as keyboard
from vsp_vsc.memory import protocol as memory
from vsp_vsc.mouse import protocol as mouse
from vsp_vsc.network import ndis, rndis
from vsp_vsc.network import protocol as network
from vsp_vsc.storage import protocol as storage
from vsp_vsc.video import protocol as video

DECLARED: dict[str, tuple[ModuleType, ...]] = {
    "hypercalls": (layouts, processor_layouts, system_layouts, event_log_layouts, intercept),
    "monitor": (monitor_page,),
    "statistics": (statistics_layouts,),
    "timers": (timer_registers,),
    "vmbus": (messages,),
    "sockets": (hvsocket,),
    "storage": (storage,),
    # What this host does not serve, and people look at all the same.
    "rings": (layouts_of_rings,),
    "network": (network, rndis, ndis),
    "input": (keyboard, mouse),
    "video": (video,),
    "utility": (vss, file_copy),
    "dynamic_memory": (memory,),
}
"""The table in `layouts/` and the modules that declare what stands in it."""
BASES = (messages.Message,)
Layout = dict[str, tuple[int, int]]


def golden(table: str) -> dict[str, Layout]:
    """Struct name to field name to (offset, size); field `*` is the whole."""
    structs: dict[str, Layout] = {}
    for line in (Path(__file__).parent / "layouts" / f"{table}.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            struct, field, offset, size, _ = line.split(None, 4)
            fields = structs.setdefault(struct, {})
            assert field not in fields, f"{struct}.{field} stands twice"
            fields[field] = (int(offset), int(size))
    return structs


def declared(table: str) -> dict[str, type[Wire]]:
    """Every layout that the table's modules declare themselves."""
    return {
        name: value
        for module in DECLARED[table]
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Wire)
        and value not in BASES
        and value.__module__ == module.__name__
    }


@pytest.mark.parametrize("table", DECLARED)
def test_the_table_and_the_code_know_the_same_structs(table: str) -> None:
    """A struct that only one of them has is a mistake in the other."""
    assert set(golden(table)) == set(declared(table))


@pytest.mark.parametrize("table", DECLARED)
def test_offsets_and_sizes(table: str) -> None:
    """Each field lies where the sources put it, no field is missing, and none is ours."""
    due = golden(table)
    for name, struct in declared(table).items():
        found = {field.name: (field.offset, field.size) for field in struct.FIELDS}
        assert {"*": (0, struct.SIZE), **found} == due[name], name
