"""The tree of a real host: what is in it, what can be set, and that looking changes nothing."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

import partitions
from hypervisor.backend.base import Backend
from hypervisor.backend.task import TaskBackend
from hypervisor.hypervisor import Hypervisor
from hypervisor.inspect import Branch, Claim, Fault, Histogram, Setting
from hypervisor.trace import Level, TraceEvent
from hypervisor.wire import Guid
from partitions.child import kernel
from partitions.child.guest import Guest
from partitions.host import Host
from partitions.inspect import InspectError, host_tree
from partitions.inspect.walk import Mark, walk
from partitions.logs import json_sink
from partitions.root.vnc.server import Console, VncServer
from partitions.topology_schema import (
    AclTable,
    DiskTable,
    DiskType,
    HostTable,
    IntegrationName,
    NicTable,
    ScreenTable,
    Size,
    SwitchTable,
    Topology,
    VmTable,
)
from partitions.trace.filters import parse_filter
from partitions.trace.outlet import TraceOutlet
from tests.doubles.looking import faults
from vmbus.channel import Channel
from vmbus.server.offers import Offer
from vmbus.server.opened import OpenedChannel
from vsp_vsc.network.switch.kinds import Action

DOCUMENT = Path(__file__).parents[3] / "docs" / "inspect.md"
MIB = 1 << 20


async def reads_a_little(guest: Guest) -> None:
    disk = await guest.disk(0)
    await disk.write(3, bytes(512))
    await disk.read(0)
    guest.print("ready")
    await guest.sleep(100_000)


@asynccontextmanager
async def running(
    folder: Path, main: Callable[[Guest], Awaitable[None]] = reads_a_little, vms: Iterable[str] = ("web",)
) -> AsyncIterator[Host]:
    """A host whose VMs have run for a while: each with two processors, disk, DVD drive, NIC, screen, all components."""

    def backend(hypervisor: Hypervisor, vm: VmTable) -> Backend:
        return TaskBackend(hypervisor, lambda machines: kernel.boot(machines, main, name=vm.name))

    tables = [
        VmTable(
            name=name,
            processors=2,
            integration=list(IntegrationName),
            screen=ScreenTable(width=640, height=480),
            disk=[DiskTable(path=f"{name}.img", size=Size(MIB)), DiskTable(path="", type=DiskType.DVD)],
            nic=[NicTable(switch="lan", acl=[AclTable(action=Action.METER)])],
        )
        for name in vms
    ]
    topology = Topology(host=HostTable(), vm=tables, switch=[SwitchTable(name="lan")], folder=folder)
    async with partitions.open_host(topology, backends=backend) as host:
        await host.start_all()
        await trio.sleep(5.3)  # between two heartbeats
        yield host


async def test_a_way_to_everything(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Any depth, without a fault; the numbers are those that the API has elsewhere."""
    async with running(tmp_path) as host:
        tree = await host.inspect()
        assert list(tree) == ["host", "hypervisor", "vm", "switch", "trace"]
        assert not faults(tree)
        web = tree["vm"]["web"]
        statistics = host["web"].statistics()
        assert web["statistics"]["packets_in"] == statistics.packets_in > 0
        assert web["vmbus"]["limits"]["channels"] == statistics.bus.channels == len(web["vmbus"]["channels"])
        assert web["uptime"] == host["web"].uptime
        assert (web["vmbus"]["state"], web["vmbus"]["version"]) == ("connected", "6.0")
        assert web["integration"]["heartbeat"]["state"] == "ok"
        assert web["console"]["last_line"] == Claim("ready")
        disk = web["devices"]["storage"]["disks"]["0"]
        assert disk["backend"]["identity"] == str(tmp_path / "web.img")
        assert disk["backend"]["counters"]["writes"] == 1
        partition = tree["hypervisor"]["partitions"][str(web["partition"])]
        assert partition["name"] == "web"
        assert partition["memory"]["bytes"] == 64 * MIB
        assert list(partition["vps"]) == ["0", "1"]
        assert partition["vps"]["0"]["synic"]["sints"]["2"]["vector"] == 0xF3
        assert tree["host"]["memory"]["used_by_vms"] == 64 * MIB
        assert tree["host"]["vms"] == 1
        assert tree["host"]["descriptors"]["open"] > 2


async def test_a_look_changes_nothing(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """No event, no counter, no register that goes up when it is read: two looks at one moment are the same."""
    events: list[TraceEvent] = []
    async with running(tmp_path) as host:
        host.trace.add_sink(events.append)
        first = list(walk(host_tree(host)))
        assert list(walk(host_tree(host))) == first
        assert not events


async def test_rings_in_a_guest_s_hands(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Whatever a guest writes into its control pages is shown as its word, and as impossible where it is."""
    async with running(tmp_path) as host:
        channels = await host.inspect("vm/web/vmbus/channels")
        number = next(name for name, each in channels.items() if each["device"] == "web storage")
        path = f"vm/web/vmbus/channels/{number}/ring"
        before = await host.inspect(path)
        # The guest's outgoing ring comes first in its GPADL, and is our incoming one.
        gpadl = await host.inspect(f"vm/web/vmbus/gpadls/{channels[number]['ring_gpadl']}")
        assert (gpadl["kind"], gpadl["views"], gpadl["channel"]) == ("ring", 1, int(number))
        ring_bytes = before["incoming"]["size"] + 4096
        worker = host.vmms.find("web").worker
        assert worker is not None
        assert worker.partition is not None
        memory = worker.partition.memory
        assert await host.inspect(f"{path}/incoming/in") == Claim(before["incoming"]["out"])

        memory.write(gpadl["first_gpa"], (0xFFFF_FFF0).to_bytes(4, "little"))
        memory.write(gpadl["first_gpa"] + ring_bytes + 4, (13).to_bytes(4, "little"))
        memory.write(gpadl["first_gpa"] + ring_bytes + 8, b"\xff" * 8)
        after = await host.inspect(path)
        assert after["incoming"]["in"] == Claim(0xFFFF_FFF0, f"past the end of a ring of {ring_bytes - 4096:#x} bytes")
        assert after["outgoing"]["out"] == Claim(13, "no multiple of 8")
        assert after["outgoing"]["pending_send_size"] == Claim(0xFFFF_FFFF)
        assert after["incoming"]["free_bytes"] is None
        assert not faults(after)

        assert worker.server is not None
        for offered in worker.server.offered:
            if offered.channel_id == int(number) and offered.channel is not None:
                offered.channel.wake()
        await trio.sleep(1)
        assert await host.inspect(f"{path}/incoming/fault") is not None


async def test_what_a_vm_that_is_off_shows(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Its end, its settings and its last counters; no bus, and a path into it says so."""
    async with running(tmp_path) as host:
        await host["web"].turn_off()
        web = await host.inspect("vm/web")
        assert not faults(web)
        assert web["state"] == "off"
        assert web["exit"]["reason"] == "turned off"
        assert web["statistics"]["packets_in"] > 0
        with pytest.raises(InspectError, match='there is no "vmbus" in vm/web'):
            await host.inspect("vm/web/vmbus/channels")


async def test_vms_that_go_while_they_are_shown(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The walk goes on through what is left, whatever ends between two steps of it."""
    async with running(tmp_path, vms=[f"vm-{number}" for number in range(4)]) as host:
        shown = []
        steps = walk(host_tree(host))
        for _, name, what in steps:
            shown.append(name)
            assert not isinstance(what, Fault)
            if name == "outgoing" and shown.count(name) == 1:
                await host["vm-0"].turn_off()
                host.destroy("vm-0")
                await host["vm-2"].turn_off()
                host.destroy("vm-2")
                await host["vm-1"].remove_device("storage")
        # The first VM's rings are gone in the middle of the first of them.
        assert shown.count("outgoing") == 1 + 11 + 12
        assert "vm-2" not in shown


async def test_vms_that_go_before_each_step(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A VM may end at every step of a walk through it."""
    async with running(tmp_path, main=until_stopped) as host:
        end = sum(1 for _ in walk(host_tree(host)))
        for stop_at in range(0, end, max(1, end // 12)):
            for number, (_, _, what) in enumerate(walk(host_tree(host))):
                assert not isinstance(what, Fault)
                if number == stop_at:
                    await host["web"].turn_off()
            await host["web"].start()
            await trio.sleep(1)


async def until_stopped(guest: Guest) -> None:
    await guest.sleep(100_000)


async def test_contacts_say_why(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Which version a guest asked for, in which order, and what came of each."""
    async with running(tmp_path) as host:
        worker = host.vmms.find("web").worker
        assert worker is not None
        assert worker.server is not None
        worker.server._state.max_version = 0x0005_0002
        await host["web"].reset()
        await trio.sleep(5)
        contacts = await host.inspect("vm/web/vmbus/contacts")
        told = [(each["asked"], each["accepted"], each["why"]) for each in contacts.values()]
        assert told[0] == ("6.0", True, "both speak it; guests ask from their highest down")
        assert told[1:] == [
            ("6.0", False, "above 5.2, the highest here"),
            ("5.3", False, "above 5.2, the highest here"),
            ("5.2", True, "both speak it; guests ask from their highest down"),
        ]
        assert await host.inspect("vm/web/vmbus/version") == "5.2"


async def test_the_queue_depth_of_a_disk(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """It counts from the next command on; past it a guest is told to come again."""
    path = "vm/web/devices/storage/disks/0/queue_depth"
    async with running(tmp_path) as host:
        assert await host.inspect(path) == 1024
        assert host.update(path, "7") == "7"
        assert await host.inspect(path) == 7
        for wrong in ("0", "1025", "-1", "many", "", "7.5"):
            with pytest.raises(InspectError, match="queue depth is a number from 1 to 1024"):
                host.update(path, wrong)
        assert await host.inspect(path) == 7
        assert isinstance(await host.inspect("vm/web/devices/storage/disks/0/latency_of_waits"), Histogram)


async def test_the_filter_of_a_trace(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """What a run shows can be changed while it runs; a filter that cannot be read is refused in its own words."""
    with (tmp_path / "log").open("wb") as file:
        async with running(tmp_path) as host:
            log = json_sink(file, host.trace)
            chosen = parse_filter("vm=web", vms=["web"])
            host.trace.add_sink(TraceOutlet("log", log, host.trace, chosen, least=Level.INFO, vms=lambda: host))
            path = "trace/sinks/log"
            await trio.sleep(5)
            assert await host.inspect(path) == {"filter": "vm=web,level=info", "passed": 0}
            host.update(f"{path}/filter", "vm=web")
            await trio.sleep(5)
            before = await host.inspect(path)
            assert before["passed"] > 0
            assert before["filter"] == "vm=web"
            assert host.update(f"{path}/filter", "vm=web,layer=port") == "vm=web,layer=port"
            await trio.sleep(5)
            assert await host.inspect(path) == {"filter": "vm=web,layer=port", "passed": before["passed"]}
            for wrong, why in (
                ("layer=prot", 'did you mean "port"'),
                ("vm=wbe", 'did you mean "web"'),
                ("x", "key=value"),
            ):
                with pytest.raises(InspectError, match=why):
                    host.update(f"{path}/filter", wrong)
            host.update(f"{path}/filter", "")
            await trio.sleep(5)
            assert await host.inspect(f"{path}/passed") > before["passed"]


class Mine:
    """A device of somebody's own, which shows something of itself."""

    offer = Offer(Guid("00000000-1111-2222-3333-444444444444"), Guid("00000000-1111-2222-3333-444444444444"))

    async def serve(self, channel: Channel, opened: OpenedChannel) -> None:
        """Nothing."""

    def inspect(self) -> Branch:
        return Branch({"wishes": 3})


class Wrong(Mine):
    """One whose own mistake must not cost anybody the rest."""

    offer = Offer(Guid("00000000-1111-2222-3333-555555555555"), Guid("00000000-1111-2222-3333-555555555555"))

    def inspect(self) -> Branch:
        raise ZeroDivisionError


async def test_devices_of_your_own(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """What a VSP's `inspect` gives is below its name; one that fails is a fault in its place."""
    async with running(tmp_path) as host:
        await host["web"].add_device("lib/mine.py:Mine", Mine())
        await host["web"].add_device("wrong", Wrong())
        assert await host.inspect("vm/web/devices/lib/mine.py:Mine/wishes") == 3
        devices = await host.inspect("vm/web/devices")
        assert devices["lib/mine.py:Mine"]["channel_state"] == "closed"
        assert faults(devices) == ["/wrong: ZeroDivisionError: "]


BY_NAME = ("/counters", "/warnings", "/registers", "/overlays", "/properties", "/keys", "/settings")
"""Branches whose values are named by what was counted or found, or in another document."""
_NUMBER = re.compile(r"(?:0x[0-9a-f]+|\d+)(?:@\d+)?")
_NAMES = {"vm": "NAME", "devices": "DEVICE", "sinks": "SINK", "switch": "SWITCH", "ports": "PORT", "stations": "MAC"}


def table_of(host: Host) -> dict[str, list[str]]:
    """Of each branch, numbers and people's names as placeholders, the names of its values."""
    rows: dict[str, list[str]] = {}
    path: list[str] = []
    for level, name, what in walk(host_tree(host)):
        if what is Mark.CLOSE:
            continue
        shown = "N" if _NUMBER.fullmatch(name) else _NAMES.get(path[level - 1] if level else "", name)
        path[level:] = [shown]
        place, above = "/".join(path), "/".join(path[:level])
        if any(f"{above}/".find(f"{known}/") > 0 for known in BY_NAME):
            continue
        if isinstance(what, Mark):
            rows.setdefault(place, [])
        elif name not in rows[above]:
            rows[above].append(name)
    return rows


def documented() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `([^`]+)` \| .* \| ([^|]*) \|$", DOCUMENT.read_text(), re.M)
    return {path: re.findall(r"`([^`]+)`", names) for path, names in rows}


async def test_the_document_tells_the_truth(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """docs/inspect.md has each branch of a host on which all is running, its values' names, and what can be set."""
    async with running(tmp_path) as host, trio.open_nursery() as nursery:
        host.trace.add_sink(TraceOutlet("log", lambda event: None, host.trace, None, vms=lambda: host))
        web = host.vmms.find("web")
        nothing = Console(lambda: None, lambda: None, lambda: None, trio.Event)  # and no port on this clock
        web.vnc = VncServer("web", (640, 480), nothing, host.trace)
        nursery.start_soon(web.vnc.serve, trio.testing.memory_stream_pair()[0], "127.0.0.1:50000")
        await trio.testing.wait_all_tasks_blocked()
        found = table_of(host)
        nursery.cancel_scope.cancel()
        can_be_set = settings_of(host)
    assert documented() == found, "\n".join(
        f"| `{path}` | | {' '.join(f'`{name}`' for name in names)} |" for path, names in found.items()
    )
    settable = DOCUMENT.read_text().split("## What can be set")[1].split("##")[0]
    rows = re.findall(r"^\| (`.*?) \|", settable, re.M)
    patterns = [pattern for row in rows for pattern in re.findall(r"`(.*?)`", row)]
    assert [path for path in can_be_set if not any(covers(pattern, path) for pattern in patterns)] == []
    without = [pattern for pattern in patterns if not pattern.startswith("resources/")]  # nothing is controlled here
    assert [pattern for pattern in without if not any(covers(pattern, path) for path in can_be_set)] == []


def settings_of(host: Host) -> list[list[str]]:
    """The paths of all that can be set."""
    found: list[list[str]] = []
    place: list[str] = []
    for _, name, what in walk(host_tree(host)):
        if what is Mark.OPEN:
            place.append(name)
        elif what is Mark.CLOSE:
            place.pop()
        elif isinstance(what, Setting):
            found.append([*place, name])
    return found


def covers(pattern: str, path: list[str]) -> bool:
    """Whether a path of the document means this one: by its last name, or by the branch before its "/..."."""
    names = [name for name in pattern.split("/") if not name.isupper()]
    return names[-2] in path[:-1] if names[-1] == "..." else names[-1] == path[-1]
