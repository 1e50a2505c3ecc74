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
    ring_bytes: int = 128 * 1024
    """What a driver opens each of its rings with, the control page included; both defaults are Linux's."""
    wants_bus: bool = False
    """Whether the VSC's open function takes a `DriverBus` too; such a driver closes its channels itself."""

    def load_vsp(self) -> Any:
        """The VSP's class, for the root."""
        return _load(self.vsp)

    def load_vsc(self) -> Any:
        """The VSC's open function, for a child."""
        return _load(self.vsc)


INTEGRATION_RING_BYTES = 16 * 1024

KINDS = (
    DeviceKind(
        name="storage",
        interface=Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"),
        vsp="vsp_vsc.storage.vsp:StorageVsp",
        vsc="vsp_vsc.storage.vsc:open_storage",
    ),
    DeviceKind(
        name="network",
        interface=Guid("f8615163-df3e-46c5-913f-f2d2f965ed0e"),
        vsp="vsp_vsc.network.vsp:NetworkVsp",
        vsc="vsp_vsc.network.vsc:open_network",
        wants_bus=True,
    ),
    DeviceKind(
        name="heartbeat",
        interface=Guid("57164f39-9115-4e78-ab55-382f3bd5422d"),
        vsp="vsp_vsc.integration.heartbeat.vsp:HeartbeatVsp",
        vsc="vsp_vsc.integration.heartbeat.vsc:open_heartbeat",
        ring_bytes=INTEGRATION_RING_BYTES,
    ),
    DeviceKind(
        name="shutdown",
        interface=Guid("0e0b6031-5213-4934-818b-38d90ced39db"),
        vsp="vsp_vsc.integration.shutdown.vsp:ShutdownVsp",
        vsc="vsp_vsc.integration.shutdown.vsc:open_shutdown",
        ring_bytes=INTEGRATION_RING_BYTES,
    ),
    DeviceKind(
        name="time-sync",
        interface=Guid("9527e630-d0ae-497b-adce-e80ab0175caf"),
        vsp="vsp_vsc.integration.time_sync.vsp:TimeSyncVsp",
        vsc="vsp_vsc.integration.time_sync.vsc:open_time_sync",
        ring_bytes=INTEGRATION_RING_BYTES,
    ),
    DeviceKind(
        name="kvp",
        interface=Guid("a9a0f4e7-5a45-4d96-b827-8a841e8c03e6"),
        vsp="vsp_vsc.integration.kvp.vsp:KvpVsp",
        vsc="vsp_vsc.integration.kvp.vsc:open_kvp",
        ring_bytes=INTEGRATION_RING_BYTES,
    ),
    DeviceKind(
        name="vss",
        interface=Guid("35fa2e29-ea23-4236-96ae-3a6ebacba440"),
        vsp="vsp_vsc.integration.vss.vsp:VssVsp",
        vsc="vsp_vsc.integration.vss.vsc:open_vss",
        ring_bytes=INTEGRATION_RING_BYTES,
    ),
    DeviceKind(
        name="file-copy",
        interface=Guid("34d14be3-dee4-41c8-9ae7-6b174977c192"),
        vsp="vsp_vsc.integration.file_copy.vsp:FileCopyVsp",
        vsc="vsp_vsc.integration.file_copy.vsc:open_file_copy",
        ring_bytes=INTEGRATION_RING_BYTES,
    ),
    DeviceKind(
        name="video",
        interface=Guid("da0a7802-e377-4aac-8e77-0558eb1073f8"),
        vsp="vsp_vsc.video.vsp:VideoVsp",
        vsc="vsp_vsc.video.vsc:open_video",
        ring_bytes=256 * 1024,
    ),
    DeviceKind(
        name="keyboard",
        interface=Guid("f912ad6d-2b17-48ea-bd65-f927a61c7684"),
        vsp="vsp_vsc.keyboard.vsp:KeyboardVsp",
        vsc="vsp_vsc.keyboard.vsc:open_keyboard",
        ring_bytes=36 * 1024,
    ),
    DeviceKind(
        name="mouse",
        interface=Guid("cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a"),
        vsp="vsp_vsc.mouse.vsp:MouseVsp",
        vsc="vsp_vsc.mouse.vsc:open_mouse",
        ring_bytes=40 * 1024,
    ),
    DeviceKind(
        name="dynamic-memory",
        interface=Guid("525074dc-8985-46e2-8057-a307dc18a502"),
        vsp="vsp_vsc.memory.vsp:MemoryVsp",
        vsc="vsp_vsc.memory.vsc:open_memory",
        ring_bytes=20 * 1024,
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
