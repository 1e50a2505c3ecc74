"""Which devices there are: by interface GUID, the modules of both sides, loaded when one is asked for. Both sides.

Names only: a root never loads a driver and a child never loads a VSP, and whoever asks for neither pays for neither.
"""

from __future__ import annotations

import importlib
from typing import Any

import attrs

from hypervisor.wire import Guid


@attrs.frozen
class DeviceKind:
    """One kind of device pair."""

    name: str
    """For people and topologies."""
    interface: Guid
    """What its channels are offered under."""
    vsp: str
    """`module:name` of the VSP's class."""
    vsc: str
    """`module:name` of the function that opens the VSC on a channel."""

    def load_vsp(self) -> Any:
        """The VSP's class, for the root."""
        return _load(self.vsp)

    def load_vsc(self) -> Any:
        """The VSC's open function, for a child."""
        return _load(self.vsc)


KINDS = (
    DeviceKind(
        name="storage",
        interface=Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"),
        vsp="vsp_vsc.storage.vsp:StorageVsp",
        vsc="vsp_vsc.storage.vsc:open_storage",
    ),
)
BY_INTERFACE: dict[Guid, DeviceKind] = {kind.interface: kind for kind in KINDS}
BY_NAME: dict[str, DeviceKind] = {kind.name: kind for kind in KINDS}


def name_of(interface: Guid) -> str:
    """A device's name, or its interface GUID where we have no such device."""
    kind = BY_INTERFACE.get(interface)
    return kind.name if kind is not None else str(interface)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
