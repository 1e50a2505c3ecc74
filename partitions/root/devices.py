"""The devices of one VM: its disks on a synthetic SCSI controller, and VSPs that the topology names. Root side."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hypervisor.inspect import Branch, Gone, shown
from hypervisor.trace import Trace
from hypervisor.wire import Guid
from partitions.root.disk_state import DeviceError
from partitions.root.nic_state import NicError
from partitions.topology_schema import DeviceTable, VmTable, numbers_of
from vmbus.channel import ChannelStatistics
from vmbus.server.offers import Device, InspectableDevice, LeavingDevice, Offer, SavableDevice
from vmbus.server.saved import CannotRestore, CannotSave

if TYPE_CHECKING:
    from partitions.root.disk_controls import DiskControls
    from partitions.root.disks import Control, VmDisks
    from partitions.root.host_network import HostNetwork
    from vmbus.channel import Channel
    from vmbus.server.opened import OpenedChannel

CONTROLLER: Final = "storage"
"""The name of the controller with the topology's disks."""
MAX_NIC_SUB_CHANNELS: Final = 7
"""Eight channels an adapter, as Linux's driver opens at most by itself."""
_module_numbers: Final = itertools.count(1)


class CountedDevice:
    """Passes everything on to a device, and remembers what went through its channels after they are closed."""

    def __init__(self, device: Device, disks: VmDisks | None = None) -> None:
        self.device = device
        self.disks = disks
        """Of a storage controller."""
        self._serving: list[Channel] = []
        self._ended = ChannelStatistics()
        """The sum of all channels that are served no more: a guest opens and closes as often as it likes."""

    @property
    def offer(self) -> Offer:
        """The device's own."""
        return self.device.offer

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """The device's own."""
        self._serving.append(channel)
        try:
            await self.device.serve(channel, opened)
        finally:
            self._serving.remove(channel)
            self._ended += channel.statistics()

    async def leave(self) -> None:
        """The device's own; nothing if it has none."""
        if isinstance(self.device, LeavingDevice):
            await self.device.leave()

    def save(self, channel_id: int) -> bytes | None:
        """The device's own; `CannotSave` if it has none."""
        if not isinstance(self.device, SavableDevice):
            raise CannotSave(f"{self.offer} cannot be saved while its channel is open")
        return self.device.save(channel_id)

    def load(self, untrusted: bytes) -> object:
        """The device's own; `CannotRestore` if it has none."""
        if not isinstance(self.device, SavableDevice):
            raise CannotRestore(f"{self.offer} cannot be restored")
        return self.device.load(untrusted)

    def inspect(self) -> Branch:
        """The device's own, as far as it has any."""
        return Branch({"serving": len(self._serving), **shown(self.device).children})

    def inspect_channel(self, channel_id: int) -> Branch:
        """The device's own. Raises `Gone` if it has none."""
        if not isinstance(self.device, InspectableDevice):
            raise Gone
        return self.device.inspect_channel(channel_id)

    def channel_statistics(self) -> ChannelStatistics:
        """What went through all the channels that the guest has ever opened to it."""
        return sum((channel.statistics() for channel in self._serving), self._ended)


def instance_of(vm: str, device: str) -> Guid:
    """The instance GUID of a VM's device: the same in every run, another for every VM and device."""
    digest = bytearray(hashlib.sha256(f"partita {vm} {device}".encode()).digest()[:16])
    digest[7] = digest[7] & 0x0F | 0x80  # version 8, "made in its own way"; the third group is little-endian
    digest[8] = digest[8] & 0x3F | 0x80
    return Guid(bytes(digest))


@contextlib.contextmanager
def open_devices(
    vm: VmTable,
    *,
    folder: Path,
    inline_io: bool,
    trace: Trace,
    partition_id: int,
    network: HostNetwork,
    disk_controls: DiskControls | None = None,
    controller_name: str = CONTROLLER,
) -> Iterator[list[CountedDevice]]:
    """Open the images, plug in the adapters, load the VSPs; until the end. Raises `DeviceError`.

    Each controller of a VM needs a name of its own.
    """
    with contextlib.ExitStack() as stack:
        devices: list[CountedDevice] = []
        if vm.disk:
            # A VM without disks starts without the storage stack.
            from partitions.root.disks import VmDisks
            from vsp_vsc.storage.protocol import MAX_SUB_CHANNELS

            control = None if disk_controls is None else _control(disk_controls, vm.name, controller_name)
            disks = stack.enter_context(VmDisks(folder, inline=inline_io, control=control))
            controller = disks.make_controller(
                vm.disk,
                instance_of(vm.name, controller_name),
                trace,
                partition_id,
                f"{vm.name} {controller_name}",
                max_sub_channels=min(vm.processors - 1, MAX_SUB_CHANNELS),  # one for each processor, as on Hyper-V
            )
            devices.append(CountedDevice(controller, disks))
        if vm.nic:
            from vsp_vsc.device import BY_NAME

            make_vsp = BY_NAME["network"].load_vsp()
            switches = network.switches()
            for number, nic in zip(numbers_of(vm.nic), vm.nic, strict=True):
                name = nic_name(number)
                try:
                    port = stack.enter_context(switches.connected(vm.name, number, nic))
                except NicError as error:
                    raise DeviceError(f"{name}: {error}") from error
                vsp = make_vsp(
                    port,
                    instance_of(vm.name, name),
                    trace,
                    partition_id,
                    f"{vm.name} {name}",
                    max_sub_channels=min(vm.processors - 1, MAX_NIC_SUB_CHANNELS),
                )
                devices.append(CountedDevice(vsp))
        for table in vm.device:
            devices.append(CountedDevice(load_vsp(table, folder)))
        yield devices


def _control(controls: DiskControls, vm: str, controller: str) -> Control:
    """Has the disks of a VM's controller controlled; those of its first are known by their LUNs alone."""
    prefix = "disk" if controller == CONTROLLER else f"disk/{controller}"
    return lambda lun, table, unit: controls.add(vm, f"{prefix}/{lun}", table.iops, unit)


def nic_name(number: int) -> str:
    """What an adapter is called on the bus."""
    return f"nic{number}"


def load_vsp(table: DeviceTable, folder: Path) -> Device:
    """An instance of the class that `file.py:Class` names, out of a module of its own. Raises `DeviceError`."""
    file, _, name = table.vsp.partition(":")
    path = folder / file
    spec = importlib.util.spec_from_file_location(f"partita_vsp_{next(_module_numbers)}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise DeviceError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        made: Any = getattr(module, name)()
    except Exception as error:  # other people's code: whatever it raises, this VM does not start
        # The innermost line of the device's own file: what it calls is seldom wrong.
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        at = f", line {lines[-1]}" if lines else ""
        raise DeviceError(f"{table.vsp}{at}: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(made, "offer", None), Offer) or not callable(getattr(made, "serve", None)):
        raise DeviceError(f"{table.vsp}: a VSP has an `offer` (vmbus.server.offers.Offer) and an async `serve`")
    device: Device = made
    return device
