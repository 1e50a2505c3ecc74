"""Guests on switches, through everything between them: programs, drivers, bus, hypervisor, VSPs, switch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from hypervisor.trace import Layer, TraceEvent
from partitions.host import ExitReason, Host, open_host
from partitions.topology_schema import HostTable, NicTable, Size, SwitchTable, Topology, VmTable
from partitions.trace.requests import track
from tests.doubles.tshark import assert_clean, needs_tshark, read_info

MIB = 1 << 20
ECHO = """
async def main(guest):
    ip = await guest.ip(guest.args["address"], vlan=guest.args.get("vlan", 0))
    with ip.udp(7) as socket:
        print("up")
        while True:
            data, peer = await socket.receive_from()
            await socket.send_to(data, peer)
"""
LISTENS = """
async def main(guest):
    network = await guest.network()
    print(network.channels, network.mtu, network.link_up)
    ip = await guest.ip("10.0.0.1/24")
    for size in (0, 1472, 30000):
        print(await ip.ping("10.0.0.2", size=size, timeout=5) < 1)
    for index in range(50):
        with ip.udp() as socket:
            await socket.send_to(b"data", ("10.0.0.2", 7))
            await socket.receive_from(timeout=1)
    await guest.unbind("network")
    try:
        await ip.ping("10.0.0.2")
    except OSError as error:
        print(error)
    try:
        await guest.network()
    except LookupError as error:
        print(error)
"""
TALKS = """
import trio
async def main(guest):
    changes = guest.device_changes()
    while True:
        await guest.settled()
        try:
            ip = await guest.ip("10.0.0.1/24")
        except LookupError as error:
            print("without:", str(error).split(";")[0])
            await changes.receive()
            continue
        print("answered", await ip.ping("10.0.0.2", timeout=10) < 9)
        network = await guest.network()
        try:
            while True:
                await network.send_batch([network.mac + bytes(6) + bytes(1000)] * 64)
                await guest.sleep(0.0001)
        except OSError as error:
            print(error)
        change = await changes.receive()
        await guest.departure(change.device)
"""
LINK = """
async def main(guest):
    network = await guest.network()
    print("link", network.link_up)
    while True:
        print("link", await network.link_change())
"""
HEARS = """
async def main(guest):
    network = await guest.network()
    print("up")
    while True:
        frames = await network.receive_batch()
        print(len(frames), {len(frame) for frame in frames})
"""


def vm(
    name: str, folder: Path, program: str, *nics: NicTable, args: Mapping[str, Any] | None = None, **more: Any
) -> VmTable:
    (folder / f"{name}.py").write_text(program)
    more.setdefault("memory", Size(16 * MIB))
    return VmTable(name=name, program=f"{name}.py", nic=list(nics), args=dict(args or {}), **more)


def topology(folder: Path, *vms: VmTable) -> Topology:
    return Topology(
        host=HostTable(memory=Size(512 * MIB)),
        switch=[SwitchTable(name="lan"), SwitchTable(name="other")],
        vm=list(vms),
        folder=folder,
    )


async def said(host: Host, name: str, words: str, times: int = 1) -> None:
    """Until it stands on the console so often."""
    console = host[name].console
    new = console.follow()
    left = times - sum(words in line for line in console.lines())
    if left > 0:
        async for line in new:
            left -= words in line.text
            if left <= 0:
                break


async def test_guests_with_several_processors(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A subchannel for each further one, jumbo frames; a driver that is unbound takes the address with it."""
    nic = NicTable(switch="lan", mtu=9000)
    args = {"network_mtu": 9000}
    host_of = topology(
        tmp_path,
        vm("one", tmp_path, LISTENS, nic, args=args, processors=4),
        vm("two", tmp_path, ECHO, nic, args={**args, "address": "10.0.0.2/24", "network_channels": 2}, processors=3),
    )
    with trio.fail_after(100):
        async with open_host(host_of, clock="virtual") as host:
            await host["two"].start()
            await said(host, "two", "up")
            await host["one"].start()
            end = await host["one"].wait()
            assert (end.reason, end.exit_code) == (ExitReason.POWERED_OFF, 0)
            *told, gone, none = host["one"].console.lines()
            assert told == ["4 9000 True", "True", "True", "True"]
            assert gone == "the network device is gone"
            assert none.startswith("no network adapter 0: this guest has none; the host offers device network")
            assert len(await host.inspect("vm/two/vmbus/channels")) == 2  # type: ignore[arg-type]


async def test_adapters_that_come_and_go_while_they_are_busy(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A program sends as fast as it can; the adapter is pulled, and plugged in again, and the program goes on."""
    host_of = topology(
        tmp_path,
        vm("one", tmp_path, TALKS),
        vm("two", tmp_path, ECHO, NicTable(switch="lan"), args={"address": "10.0.0.2/24"}),
    )
    with trio.fail_after(100):
        async with open_host(host_of, clock="virtual") as host:
            await host["two"].start()
            await said(host, "two", "up")
            await host["one"].start()
            await said(host, "one", "without: no network adapter 0")
            for life in range(1, 4):
                number = await host["one"].add_nic("lan")
                await said(host, "one", "answered True", life)
                await trio.sleep(0.01)
                await host["one"].remove_nic(number)
                await trio.sleep(0.01)
            assert host["one"].console.lines().count("the host has closed the network adapter's channel") == 3
            assert host["two"].state.name == "RUNNING"


async def test_a_guest_is_reset_in_the_middle_of_traffic(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Its next life begins anew, and its neighbour has noticed nothing."""
    host_of = topology(
        tmp_path,
        vm("one", tmp_path, TALKS, NicTable(switch="lan")),
        vm("two", tmp_path, ECHO, NicTable(switch="lan"), args={"address": "10.0.0.2/24"}),
    )
    with trio.fail_after(100):
        async with open_host(host_of, clock="virtual") as host:
            await host["two"].start()
            await said(host, "two", "up")
            await host["one"].start()
            for life in range(1, 4):
                await said(host, "one", "answered True", life)
                await host["one"].reset()
            assert host["one"].state.name == host["two"].state.name == "RUNNING"


async def test_the_cable(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Pulled out and plugged in elsewhere: the guest's driver hears of it."""
    with trio.fail_after(100):
        async with open_host(
            topology(tmp_path, vm("one", tmp_path, LINK, NicTable(switch="lan"))), clock="virtual"
        ) as host:
            await host["one"].start()
            await said(host, "one", "link True")
            await host["one"].connect_nic(0, None)
            await said(host, "one", "link False")
            await host["one"].connect_nic(0, "other")
            await trio.sleep(0.01)
            assert host["one"].console.lines() == ["link True", "link False", "link True"]


async def test_vlans_are_networks_apart(tmp_path: Path, autojump_clock: MockClock) -> None:
    """A guest that tags its own frames reaches the VLAN's port and no other."""
    pings = """
async def main(guest):
    ip = await guest.ip("10.0.0.1/24", vlan=7)
    print(await ip.ping("10.0.0.2") < 1)
    try:
        await ip.ping("10.0.0.3", timeout=0.5)
    except TimeoutError:
        print("apart")
"""
    host_of = topology(
        tmp_path,
        vm("one", tmp_path, pings, NicTable(switch="lan", trunk="1-10")),
        vm("two", tmp_path, ECHO, NicTable(switch="lan", vlan=7), args={"address": "10.0.0.2/24"}),
        vm("three", tmp_path, ECHO, NicTable(switch="lan", vlan=8), args={"address": "10.0.0.3/24"}),
    )
    with trio.fail_after(100):
        async with open_host(host_of, clock="virtual") as host:
            for name in ("two", "three"):
                await host[name].start()
                await said(host, name, "up")
            await host["one"].start()
            await host["one"].wait()
            assert host["one"].console.lines() == ["True", "apart"]


async def test_what_a_guest_was_started_with_is_checked(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Words that mean nothing end the driver, not the guest, and it says what they can be."""
    program = """
async def main(guest):
    await guest.settled()
"""
    host_of = topology(tmp_path, vm("one", tmp_path, program, NicTable(switch="lan"), args={"network_mtu": "large"}))
    with trio.fail_after(100):
        async with open_host(host_of, clock="virtual") as host:
            await host["one"].start()
            end = await host["one"].wait()
            assert end.exit_code == 0
            assert host["one"].console.lines() == [
                "driver of channel 1: network_mtu: 'large' is no number from 1500 to 9202"
            ]


async def test_the_story_of_each_frame_is_in_order(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Frames go both ways at once; what a trace says of a request is about that one, and no hop is before another."""
    pings = """
async def main(guest):
    ip = await guest.ip("10.0.0.1/24")
    for _ in range(20):
        await ip.ping("10.0.0.2", size=3000)
"""
    events: list[TraceEvent] = []
    host_of = topology(
        tmp_path,
        vm("one", tmp_path, pings, NicTable(switch="lan")),
        vm("two", tmp_path, ECHO, NicTable(switch="lan"), args={"address": "10.0.0.2/24"}),
    )
    with trio.fail_after(100):
        async with open_host(host_of, clock="virtual") as host:
            await host["two"].start()
            await said(host, "two", "up")
            host.trace.add_sink(events.append)
            await host["one"].start()
            await host["one"].wait()
    order = {id(event): number for number, event in enumerate(events)}
    requests = [request for request in track(events, {}) if request.device == "network"]
    assert len(requests) > 80
    for request in requests:
        # A hypercall is told when it is over, so after what it did.
        hops = [hop.event for hop in request.hops if hop.event.layer in (Layer.PACKET, Layer.DEVICE)]
        places = [order[id(event)] for event in hops]
        assert places == sorted(places), request.name
    given = [request.words for request in requests if request.by_host]
    assert sum(words.startswith("3 frames: ICMP echo request") for words in given) >= 20


@needs_tshark
async def test_recordings_tell_what_was_said(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Wireshark finds nothing wrong on the bus, and has words for each message."""
    pings = """
async def main(guest):
    ip = await guest.ip("10.0.0.1/24")
    await ip.ping("10.0.0.2", size=3000)
"""
    host_of = topology(
        tmp_path,
        vm("one", tmp_path, pings, NicTable(switch="lan")),
        vm("two", tmp_path, ECHO, NicTable(switch="lan"), args={"address": "10.0.0.2/24"}),
    )
    bus = tmp_path / "bus.pcapng"
    with trio.fail_after(100):
        async with open_host(host_of, clock="virtual") as host:
            await host["two"].start()
            await said(host, "two", "up")
            with host.record(bus):
                await host["one"].start()
                await host["one"].wait()
    assert_clean(bus)
    told = " ".join(read_info(bus))
    for words in (
        "network: INIT version 6.1",
        "SEND_NDIS_CONFIG MTU 1514",
        "SEND_RECEIVE_BUFFER",
        "SEND_SEND_BUFFER",
        "SEND_RNDIS_PACKET",
    ):
        assert words in told, words
