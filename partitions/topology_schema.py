"""The tables of a topology file as typed structs, with the words that editors show beside each key. Root side.

Everything here comes from outside, so every struct refuses unknown keys. Rules that need more than one key (duplicates,
files, sums) are in `partitions.topology`; tables whose feature is not built yet are read here and refused there.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from partitions.topology_controls import (
    DEFAULT_WEIGHT,
    MOST_IOPS,
    MOST_PROCESSORS,
    DynamicMemoryTable,
    MemoryInUse,
    Name,
    amount,
)
from partitions.topology_controls import CpuTable as CpuTable
from partitions.topology_controls import IopsTable as IopsTable
from partitions.topology_controls import PoolTable as PoolTable
from partitions.topology_links import BandwidthTable, LinkTable
from partitions.topology_question import QuestionTable
from partitions.topology_units import Duration, Rate
from partitions.topology_units import Size as Size
from partitions.topology_units import size_words as size_words
from vmbus.protocol.hvsocket import LARGEST_PORT
from vsp_vsc.network.switch.kinds import DEFAULT_STORM_LIMIT, MAX_VLAN, Mirroring, SwitchKind
from vsp_vsc.network.switch.kinds import Action as AclAction
from vsp_vsc.network.switch.kinds import Direction as AclDirection

DEFAULT_COMMAND_LINE = "console=ttyS0 quiet panic=-1"
"""Messages on COM1, few of them since each byte costs, and a panic that ends the VM."""
MAX_PROCESSORS = 64
"""Virtual processors a VM; one 64-bit mask holds them all, and so do the guest's interrupt targets."""


class Backend(enum.StrEnum):
    """How a VM's virtual processors execute."""

    TASK = "task"
    PROCESS = "process"
    KVM = "kvm"


class Restart(enum.StrEnum):
    """What the VMMS does when a VM has ended and nobody had asked for that."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    """Start it again after a crash, an exit code other than 0, or a fault of the host."""
    ALWAYS = "always"
    """After a power-off, too."""


class IntegrationName(enum.StrEnum):
    """An integration component."""

    HEARTBEAT = "heartbeat"
    SHUTDOWN = "shutdown"
    TIME_SYNC = "time-sync"
    KVP = "kvp"
    VSS = "vss"
    FILE_COPY = "file-copy"


class InputName(enum.StrEnum):
    """A device that people use a VM with."""

    KEYBOARD = "keyboard"
    MOUSE = "mouse"


def _size(description: str, default: str | None = None) -> Meta:
    return Meta(description=description, extra_json_schema={} if default is None else {"default": default})


class HostTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the machine under all partitions has, as model figures: real memory is used only when touched."""

    logical_processors: Annotated[
        int, Meta(ge=1, le=MOST_PROCESSORS, description="Logical processors of the host.")
    ] = 4
    memory: Annotated[Size, _size("Memory for all VMs together.", "8GiB")] = msgspec.field(
        default_factory=lambda: Size(8 << 30)
    )
    quantum_ms: Annotated[
        int, Meta(ge=1, le=100, description="Milliseconds that a virtual processor runs before another's turn.")
    ] = 10
    switch_us: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Microseconds that a logical processor loses when it goes from one virtual one to another.",
        ),
    ] = 0
    disk_iops: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_IOPS,
            description="What its storage can do, normalized I/O operations a second; 0: not modelled.",
        ),
    ] = 0
    bandwidth: Annotated[Rate, amount("What its network can do, bits a second; 0: not modelled.", 0)] = msgspec.field(
        default_factory=lambda: Rate(0)
    )
    idle_memory_tax: (
        Annotated[
            float,
            Meta(
                ge=0, le=1, description="What idle memory costs its VM where memory is short; 0.75: four times as much."
            ),
        ]
        | None
    ) = None
    active_memory: Annotated[
        MemoryInUse,
        Meta(description='What is not idle: "committed" by a guest, or "sampled", what it touches of it.'),
    ] = MemoryInUse.COMMITTED
    seed: Annotated[int, Meta(ge=0, description="Fixes task order and random numbers; `--seed` wins.")] | None = None


class DiskType(enum.StrEnum):
    """What a SCSI unit is to the guest."""

    DISK = "disk"
    DVD = "dvd"


BLOCK_SIZES = (512, 4096)
"""Bytes in a logical block of a disk; a DVD has 2048."""
DVD_BLOCK_SIZE = 2048
MAX_DISKS = 64
"""Disks on one SCSI controller, as Hyper-V has it."""


class DiskTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A SCSI disk or DVD drive of the VM."""

    path: Annotated[
        str, Meta(description="Raw or ISO image, from the topology's folder if relative; empty for an empty drive.")
    ]
    type: Annotated[DiskType, Meta(description='"disk", or "dvd" for a drive with an ISO image in it.')] = DiskType.DISK
    lun: Annotated[int, Meta(ge=0, lt=MAX_DISKS, description="By default the lowest that is free.")] | None = None
    size: Annotated[Size, _size("The image is made with this size if it is missing.")] | None = None
    block_size: Annotated[int, Meta(description="Bytes in a logical block: 512, or 4096.")] = 512
    read_only: Annotated[bool, Meta(description="Never written; several VMs may share it.")] = False
    iops: IopsTable | None = None


def luns_of(disks: Sequence[DiskTable]) -> list[int]:
    """The LUN of each: its own, else the lowest that is left."""
    return _numbered([disk.lun for disk in disks])


def _numbered(wanted: Sequence[int | None]) -> list[int]:
    taken = set(wanted)
    free = (number for number in itertools.count() if number not in taken)
    return [next(free) if number is None else number for number in wanted]


MAX_NICS = 64
"""Network adapters of a VM, as Hyper-V has it since 2019."""


class AclTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A rule of an adapter's access list: of those that fit a frame, the longest prefix decides."""

    action: Annotated[AclAction, Meta(description='"allow", "deny", or "meter", which only counts.')]
    direction: Annotated[AclDirection, Meta(description='As the VM sees it: "in", "out" or "both".')] = (
        AclDirection.BOTH
    )
    remote: Annotated[
        str, Meta(description='The far end: a MAC, an IP address or prefix such as "10.0.0.0/8", or "any".')
    ] = "any"
    local: Annotated[str, Meta(description="The VM's own end, in the same way.")] = "any"


class NicTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A network adapter of the VM."""

    switch: Annotated[str, Meta(description="The [[switch]] that it is plugged into; none by default.")] = ""
    name: Annotated[str, Meta(description="What people call it.")] = ""
    number: Annotated[int, Meta(ge=0, lt=MAX_NICS, description="By default the lowest that is free.")] | None = None
    mac: Annotated[
        str, Meta(description='Such as "00-15-5D-01-02-03"; by default one that is made from the names.')
    ] = ""
    vlan: Annotated[int, Meta(ge=0, le=MAX_VLAN, description="Of its untagged frames; 0 is the network without.")] = 0
    trunk: Annotated[str, Meta(description='VLANs that come and go with a tag, such as "1-10, 20".')] = ""
    mtu: Annotated[int, Meta(ge=576, le=9000, description="Bytes of a packet.")] = 1500
    connected: Annotated[bool, Meta(description="Whether its cable is in.")] = True
    spoofing: Annotated[bool, Meta(description="It may send from other addresses than its own.")] = False
    dhcp_guard: Annotated[bool, Meta(description="What only a DHCP server sends is dropped.")] = False
    router_guard: Annotated[bool, Meta(description="Router advertisements and redirects are dropped.")] = False
    isolated: Annotated[bool, Meta(description="It reaches no port that is isolated, too.")] = False
    mirroring: Annotated[
        Mirroring, Meta(description='"source": what it sends and gets is shown to each "destination" of its switch.')
    ] = Mirroring.NONE
    storm_limit: Annotated[
        int, Meta(ge=0, description="Frames to more than one receiver that it may send in a second; 0: any number.")
    ] = DEFAULT_STORM_LIMIT
    acl: list[AclTable] = msgspec.field(default_factory=list)
    bandwidth: BandwidthTable | None = None
    link: LinkTable | None = None


def numbers_of(nics: Sequence[NicTable]) -> list[int]:
    """The number of each adapter: its own, else the lowest that is left."""
    return _numbered([nic.number for nic in nics])


class ScreenTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A screen for the VM, with keyboard and mouse."""

    width: Annotated[int, Meta(ge=640, le=1920, description="Pixels across that its guest is asked to show.")] = 1024
    height: Annotated[int, Meta(ge=480, le=1200, description="Pixels down.")] = 768
    vnc: (
        Annotated[
            int, Meta(ge=0, le=65535, description="Port of its VNC server on loopback, 0 for any; by default none.")
        ]
        | None
    ) = None


class SocketsTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Unix sockets of the host that lead to the VM's Hyper-V sockets. They are there while it is on."""

    path: Annotated[
        str,
        Meta(
            description='A socket whose clients say "CONNECT PORT"; programs that listen beside it, at PATH_PORT, take '
            "what the guest connects to."
        ),
    ] = ""
    ports: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=LARGEST_PORT)]],
        Meta(description="Sockets that lead to one port each, without a word: path = port."),
    ] = msgspec.field(default_factory=dict)


class DeviceTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A VMBus device of your own; the guest program brings its VSC."""

    vsp: Annotated[str, Meta(description='File and class of the VSP, such as "echo.py:Echo".')]
    arrives: Annotated[float, Meta(ge=0, description="Seconds after the VM's start at which it is plugged in.")] = 0.0
    leaves: Annotated[float, Meta(ge=0, description="Seconds after the start at which it is pulled out.")] | None = None


class VmTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One virtual machine."""

    name: Name
    backend: Annotated[Backend, Meta(description='"task" runs a program, "kvm" a kernel.')] = Backend.TASK
    program: Annotated[str, Meta(description="Python file with `async def main(guest)`, or a built-in program.")] = ""
    args: Annotated[dict[str, Any], Meta(description="For the guest program, as `guest.args`.")] = msgspec.field(
        default_factory=dict
    )
    kernel: Annotated[str, Meta(description="A Linux bzImage, with backend kvm; from the topology's folder.")] = ""
    initrd: Annotated[str, Meta(description="Its initial RAM disk, with backend kvm.")] = ""
    cmdline: Annotated[str, Meta(description="The kernel's command line, with backend kvm.")] = DEFAULT_COMMAND_LINE
    memory: Annotated[Size, _size("A multiple of 4096 bytes.", "64MiB")] = msgspec.field(
        default_factory=lambda: Size(64 << 20)
    )
    processors: Annotated[int, Meta(ge=1, le=MAX_PROCESSORS, description="Virtual processors.")] = 1
    restart: Annotated[Restart, Meta(description="Whether it starts again after its end.")] = Restart.NEVER
    integration: (
        Annotated[
            list[IntegrationName],
            Meta(description="Integration components that the guest is offered; by default all with kvm, else none."),
        ]
        | None
    ) = None
    synthetic_timers: (
        Annotated[
            bool,
            Meta(
                description="Offer Hyper-V's synthetic timers; by default with task only: Linux would use them, and "
                "programming one leaves the virtual processor, as its local APIC's timer does not."
            ),
        ]
        | None
    ) = None
    input: Annotated[list[InputName], Meta(description="Keyboard and mouse; a VM with a screen has both.")] = (
        msgspec.field(default_factory=list)
    )
    screen: ScreenTable | None = None
    sockets: SocketsTable | None = None
    pool: Annotated[str, Meta(description="The [[pool]] that it is in; the host by default.")] = ""
    cpu: CpuTable | None = None
    dynamic_memory: DynamicMemoryTable | None = None
    disk: list[DiskTable] = msgspec.field(default_factory=list)
    nic: list[NicTable] = msgspec.field(default_factory=list)
    device: list[DeviceTable] = msgspec.field(default_factory=list)


class SwitchTable(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A virtual switch."""

    name: Name
    kind: Annotated[
        SwitchKind, Meta(description='"private": VMs only; "internal": the host, too; "external": a network outside.')
    ] = SwitchKind.PRIVATE
    tap: Annotated[
        str, Meta(description="Name of the TAP device, which is made if it is missing; by default one that is free.")
    ] = ""
    listen: Annotated[
        str,
        Meta(description="Instead of TAP: a Unix socket to make, for one peer that speaks as QEMU's -netdev stream."),
    ] = ""
    connect: Annotated[str, Meta(description="Instead of TAP: a Unix socket of such a peer.")] = ""
    bridge: Annotated[str, Meta(description="A Linux bridge that the TAP device joins; external only.")] = ""
    address: Annotated[
        str, Meta(description='The host\'s address and prefix on an internal switch, such as "10.0.0.1/24".')
    ] = ""
    vlan: Annotated[int, Meta(ge=0, le=MAX_VLAN, description="The host's VLAN on an internal switch.")] = 0
    mtu: Annotated[int, Meta(ge=576, le=9000, description="Bytes of a packet on the host's side.")] = 1500
    bandwidth: Annotated[Rate, amount("What all its ports together may send, bits a second; 0: whatever comes.", 0)] = (
        msgspec.field(default_factory=lambda: Rate(0))
    )
    default_weight: Annotated[
        int, Meta(ge=1, le=10000, description="Of ports without a `bandwidth`, the host's own among them.")
    ] = DEFAULT_WEIGHT
    link: LinkTable | None = None


class TopologyFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A Partita topology: the host and its virtual machines."""

    host: HostTable = msgspec.field(default_factory=HostTable)
    vm: Annotated[list[VmTable], Meta(min_length=1)]
    switch: list[SwitchTable] = msgspec.field(default_factory=list)
    pool: list[PoolTable] = msgspec.field(default_factory=list)
    question: QuestionTable | None = None


class Topology(TopologyFile, kw_only=True):
    """A topology that was read and checked. `load_topology` makes it; change a copy with `msgspec.structs.replace`."""

    folder: Path
    """Where relative paths start: the folder that holds the file."""


def decode_hook(kind: type, value: object) -> object:
    """msgspec's hook for the types here that it does not know."""
    if kind is Size:
        return Size.parse(value)
    if kind is Rate:
        return Rate.parse(value)
    if kind is Duration:
        return Duration.parse(value)
    raise NotImplementedError(kind)


def schema() -> dict[str, Any]:
    """The JSON Schema of a topology file, for editors; `partita schema` prints it."""

    def hook(kind: type) -> dict[str, Any]:
        assert kind in (Size, Rate, Duration), kind
        if kind is Duration:
            return {"anyOf": [{"const": 0}, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ns|us|ms|s)\s*$"}]}
        units = "([KMGT]iB|B)?" if kind is Size else "([KMGT]?bit)?(/s)?"
        text = {"type": "string", "pattern": rf"^\s*\d+(\.\d+)?\s*{units}\s*$"}
        return {"anyOf": [{"type": "integer", "minimum": 0}, text]}

    made = msgspec.json.schema(TopologyFile, schema_hook=hook)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Partita topology", **made}
