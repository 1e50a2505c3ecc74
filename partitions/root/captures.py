"""Captures at ports of a host's switches: which ports there are, and who watches them. Root side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from partitions.recording.ethernet import EthernetCapture
from partitions.recording.file import FileWriter, open_output
from partitions.root.nic_state import NicError
from partitions.surroundings import is_virtual
from partitions.topology_networks import port_name
from partitions.topology_schema import numbers_of
from partitions.topology_source import nearest

if TYPE_CHECKING:
    from partitions.host import Host
    from partitions.recording.buffer import BlockBuffer


def port_names(host: Host) -> list[str]:
    """Ports of all VMs' adapters, on or off, and of the host."""
    of_vms = [port_name(name, number) for name, vm in host.items() for number in numbers_of(vm.settings.nic)]
    made = host.network.made
    return list(dict.fromkeys([*of_vms, *(() if made is None else made.ports)]))


def check_ports(host: Host, ports: Sequence[str]) -> None:
    """Raises `NicError` for a port that there is not, or that somebody watches."""
    known = port_names(host)
    for port in ports:
        if port not in known:
            near = nearest(port, known)
            hint = f'did you mean "{near}"?' if near else f"there are: {', '.join(known) or 'none'}"
            raise NicError(f'no port is called "{port}"; {hint}')
        if host.network.switches().is_watched(port):
            raise NicError(f"{port} is captured already")


@contextmanager
def watched(host: Host, capture: EthernetCapture, ports: Sequence[str]) -> Iterator[None]:
    """The capture sees these ports, which `check_ports` has seen, until the block ends."""
    switches = host.network.switches()
    ports = list(dict.fromkeys(ports))
    for port in ports:
        switches.watch(port, capture.tap(port))
    try:
        yield
    finally:
        for port in ports:
            switches.watch(port, None)


@contextmanager
def captured(
    host: Host,
    path: str | os.PathLike[str] | int,
    ports: Sequence[str],
    tell: Callable[[str], object] = lambda text: None,
) -> Iterator[FileWriter]:
    """Ports to a new file, or a descriptor, until the block ends. Raises `NicError`, `OSError`."""
    check_ports(host, ports)
    made: list[EthernetCapture] = []

    def make(ready: Callable[[], None], ready_at: int, hidden: bool) -> BlockBuffer:
        made.append(EthernetCapture(host.hypervisor.clock, started=host.started, ready=ready, ready_at=ready_at))
        return made[0]

    descriptor = path if isinstance(path, int) else open_output(os.fspath(path))
    writer = FileWriter(descriptor, make, inline=is_virtual(None), tell=tell)
    try:
        with watched(host, made[0], ports):
            yield writer
    finally:
        writer.close()
