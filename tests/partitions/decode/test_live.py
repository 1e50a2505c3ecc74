"""The decoders beside a host that runs: the same words, and no fault in what our own two halves say to each other."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import partitions
from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.trace import Layer, TraceEvent
from partitions.child import kernel
from partitions.child.guest import Guest
from partitions.decode.message import decode_channel_message
from partitions.decode.packet import DEVICES, decode_ring_packet
from partitions.decode.summary import event_of_message, summary
from partitions.examples import examples
from partitions.host import Pool
from partitions.topology_schema import HostTable, IntegrationName, Topology, VmTable
from tests.partitions.decode.trees import check_tree


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the example, since some of them make images beside their topology."""
    source = next(example.folder for example in examples() if example.name == request.param)
    return shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("*.img", "__pycache__"))


class Versions:
    """Which version each partition speaks, from its messages."""

    def __init__(self) -> None:
        self._asked: dict[int, int] = {}
        self._spoken: dict[int, int] = {}

    def of(self, event: TraceEvent) -> int | None:
        if event.event == "initiate_contact":
            self._asked[event.partition] = int.from_bytes(event.data[8:12], "little")
        elif event.event == "version_response" and event.data[8]:
            self._spoken[event.partition] = self._asked[event.partition]
        return self._spoken.get(event.partition)


def check_crossing(event: TraceEvent, version: int | None) -> None:
    """One event that has bytes: its line from the bytes is its own, and its tree has no fault."""
    device = event.fields.get("device", "")
    assert summary(event.layer, event.data, device, event.direction, version) == event.words
    if event.layer is Layer.CONTROL:
        assert event_of_message(event.data, version) == event.event
        field = decode_channel_message(event.data, event.direction, version)
    else:
        field = decode_ring_packet(event.data, device, event.direction)
        if device in DEVICES:
            assert not field.faults, field.faults
    check_tree(field, event.data)


async def traced(folder: Path) -> list[TraceEvent]:
    """All events of a run of an example."""
    seen: list[TraceEvent] = []
    async with partitions.open_host(folder, clock="virtual", sinks=[seen.append]) as host:
        with trio.fail_after(3600):
            await host.start_all()
            await host.wait_all()
    return seen


@pytest.mark.parametrize(
    "folder", ["02-channel", "03-disk", "04-hotplug", "07-versions", "10-ping", "13-integration"], indirect=True
)
async def test_examples(folder: Path, autojump_clock: MockClock) -> None:
    """Every message and packet of an example, at every version that it goes through."""
    seen = await traced(folder)
    versions, crossings = Versions(), 0
    for event in seen:
        version = versions.of(event) if event.layer is Layer.CONTROL and event.data else None
        if event.data:
            crossings += 1
            check_crossing(event, version)
    assert crossings > 20


@pytest.mark.parametrize("folder", ["03-disk"], indirect=True)
async def test_storage_in_the_words_of_its_device(folder: Path, autojump_clock: MockClock) -> None:
    """What the VSP says of each command and result is what the packet's bytes say."""
    seen = await traced(folder)
    told: dict[tuple[int, str, int], list[str]] = {}
    for event in seen:
        if event.event in ("scsi_command", "scsi_result", "srb_ended"):
            told.setdefault((event.partition, event.direction, event.fields["transaction"]), []).append(event.words)
    compared = 0
    for event in seen:
        if event.layer is Layer.PACKET and event.fields["device"] == "storage":
            words = summary(Layer.DEVICE, event.data, "storage", event.direction)
            said = told.get((event.partition, event.direction, event.fields["transaction_id"]))
            if said and not words.startswith(("COMPLETE_IO", "BEGIN", "QUERY", "END")):
                assert said.pop(0) == words
                compared += 1
    assert compared > 20


@contextlib.asynccontextmanager
async def with_components(seen: list[TraceEvent]) -> AsyncIterator[partitions.Host]:
    """A host whose only VM has all integration components and does nothing else."""

    async def main(guest: Guest) -> None:
        await guest.sleep(10_000)

    def backend(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        return TaskBackend(hypervisor, lambda machines: kernel.boot(machines, main, name=vm.name))

    table = VmTable(name="web", integration=list(IntegrationName))
    topology = Topology(host=HostTable(), vm=[table], folder=Path())
    async with partitions.open_host(topology, backends=backend, sinks=[seen.append]) as host:
        yield host


async def test_integration_components_in_the_words_of_their_devices(autojump_clock: MockClock) -> None:
    """Each question and answer of heartbeat, time synchronization, key-value pairs and shutdown."""
    seen: list[TraceEvent] = []
    async with with_components(seen) as host:
        vm = host["web"]
        await vm.start()
        await trio.sleep(30)
        await vm.kvp.set("color", "blue", Pool.EXTERNAL)
        await vm.kvp.get("color", Pool.EXTERNAL)
        await vm.shut_down()
    told = [event for event in seen if event.event == "integration_message"]
    assert all(event.channel is not None for event in told), "by which `device=kvp` finds them"
    meant = []
    for event in seen:
        if event.layer is Layer.PACKET and event.fields["device"] in DEVICES:
            field = decode_ring_packet(event.data, event.fields["device"], event.direction)
            check_tree(field, event.data)
            assert not field.faults, field.faults
            words = summary(Layer.DEVICE, event.data, event.fields["device"], event.direction)
            if not words.startswith("negotiate"):
                meant.append((event.direction, event.fields["device"], words))
    names = {"time sync": "time-sync"}
    said = [(one.direction, names.get(one.fields["component"], one.fields["component"]), one.words) for one in told]
    assert sorted(said) == sorted(meant)
    assert {device for _, device, _ in meant} == {"heartbeat", "shutdown", "time-sync", "kvp"}
