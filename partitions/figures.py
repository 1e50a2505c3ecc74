"""How each VM is and what went through it, as rows with stable names: for `ps`, `stats` and metrics. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from partitions.host import Vm
    from partitions.resources.collect import Source


class VmFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How a VM is: a row of `partita ps`."""

    vm: str
    state: str
    """off, running, paused, ..."""
    backend: str
    processors: int
    memory: int
    """Bytes."""
    partition: int | None
    """The hypervisor's number for it while it is on."""
    uptime: float
    """Seconds since its start, or of its last run."""
    heartbeat: str
    """Whether its kernel answers: no contact, ok, lost contact; with what it says of its programs, if it does."""
    restarts: int
    """By its restart policy."""
    mac: str | None
    """Addresses of its network adapters by their numbers, with a space between; none if it has none."""
    vnc: str | None
    """Where its VNC server listens, as `127.0.0.1:5900`."""
    exit: str | None
    """Why the last run ended; none before the first end and while it is on."""
    exit_code: int | None
    ok: bool
    """Whether it ended well, or has not ended."""
    detail: str
    """More about the end."""
    by: str
    """Who asked for the end; empty where nobody did, or the program that opened the host."""


class VmCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What went through a VM since its start: a row of `partita stats`. The first names are those of `VmStatistics`."""

    vm: str
    state: str
    uptime: float
    """Seconds."""
    cpu: float
    """Seconds that its virtual processors have worked, all together; this and the next are 0 while it is off."""
    ready: float
    """Seconds that they waited while others had the logical processors."""
    capped: float
    """Seconds that they waited because a limit was used up."""
    halted: float
    """Seconds that they had nothing to do."""
    dispatches: int
    """Times that they were given a logical processor."""
    wait: float
    """Seconds from ready to dispatched, all waits together."""
    memory_assigned: int
    """Bytes; as the next, of now."""
    memory_demand: int | None
    """What its guest says that it has committed; none where it does not say."""
    memory_ballooned: int
    disk_requests: int
    """To disks that are controlled, as all of them are where one is."""
    disk_normalized: int
    """The same in units of 8 KiB, each that is begun."""
    disk_held: float
    """Seconds that they were held back, all together."""
    frames_dropped: int
    """Of its network adapters, either way."""
    messages: int
    packets: int
    bytes: int
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int
    signals_in: int
    signals_out: int
    hypercalls: int
    interrupts: int
    port_accesses: int
    faults: int
    channels: int
    gpadls: int
    messages_waiting: int
    messages_unsent: int
    messages_dropped: int


_BUS = ("channels", "gpadls", "messages_waiting", "messages_unsent", "messages_dropped")


def figures_of(vm: Vm) -> VmFigures:
    """A VM as of now."""
    record = vm.exit
    return VmFigures(
        vm=vm.name,
        state=vm.state.value,
        backend=vm.settings.backend.value,
        processors=vm.settings.processors,
        memory=int(vm.settings.memory),
        partition=vm.partition_id,
        uptime=round(vm.uptime, 7),
        heartbeat=str(vm.heartbeat),
        restarts=vm.restarts,
        mac=" ".join(nic.mac for nic in vm.nics.values()) or None,
        vnc=None if vm.vnc_port is None else f"127.0.0.1:{vm.vnc_port}",
        exit=None if record is None else record.reason.value,
        exit_code=None if record is None else record.exit_code,
        ok=record is None or record.ok,
        detail="" if record is None else record.detail,
        by="" if record is None else record.by,
    )


def counters_of(vm: Vm, source: Source) -> VmCounters:
    """A VM's counters as of now; `source` is the host's at this moment."""
    statistics = vm.statistics()
    used = source.of(vm.name)
    disk, network = used.disk, used.network
    counted = msgspec.structs.asdict(statistics)
    bus = counted.pop("bus")
    return VmCounters(
        vm=vm.name,
        state=vm.state.value,
        uptime=round(vm.uptime, 7),
        cpu=used.cpu.run_seconds,
        ready=used.cpu.ready_seconds,
        capped=used.cpu.capped_seconds,
        halted=used.cpu.halted_seconds,
        dispatches=used.cpu.dispatches,
        wait=used.cpu.waited / 1e9,
        memory_assigned=used.memory.assigned,
        memory_demand=used.memory.demand,
        memory_ballooned=used.memory.ballooned or 0,
        disk_requests=0 if disk is None else disk.requests,
        disk_normalized=0 if disk is None else disk.normalized,
        disk_held=0.0 if disk is None else disk.waited / 1e9,
        frames_dropped=0 if network is None else network.dropped,
        **counted,
        **{name: getattr(bus, name) for name in _BUS},
    )
