"""A host's switches: ports of VMs that come and go, adapters that are plugged elsewhere, captures."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from partitions.host import Host, NicError, Vm, open_host
from partitions.recording.ethernet import EthernetCapture
from partitions.root.macs import AddressPool
from partitions.topology import parse_topology
from tests.doubles.switch import Lan, ethernet, mac
from tests.doubles.tshark import needs_tshark, run_tshark
from vsp_vsc.network.switch.addresses import MICROSOFT, parse_mac
from vsp_vsc.network.switch.ports import Drop, Port

LISTENS = """
import trio
async def main(guest):
    changes = guest.device_changes()
    print("up")
    async with trio.open_nursery() as nursery:
        for number in range(guest.args.get("nics", 0)):
            network = await guest.network(number)
            nursery.start_soon(follow, guest, network)
        async for change in changes:
            if change.arrived:
                await guest.settled()
                network = await guest.network(len(guest.args) and guest.args["nics"])
                nursery.start_soon(follow, guest, network)

async def follow(guest, network):
    name, up = network.mac.hex("-").upper(), None
    print(name, "is here")
    try:
        while True:
            if network.link_up != up:
                up = network.link_up
                print(name, "up" if up else "down")
            await guest.sleep(0.1)
    except trio.EndOfChannel:
        print(name, "is gone")
"""
TWO = """
[[vm]]
name = "web"
program = "guest.py"
args = { nics = 1 }
[[vm.nic]]
switch = "lan"
[[vm]]
name = "db"
program = "guest.py"
[[switch]]
name = "lan"
[[switch]]
name = "wan"
"""


def host_of(folder: Path, text: str = TWO, guest: str = LISTENS) -> object:
    """A host on this topology."""
    (folder / "guest.py").write_text(guest)
    return open_host(parse_topology(text, folder))


async def said(vm: Vm, text: str) -> None:
    """Until its guest has said that."""
    with trio.fail_after(60), vm.console.listen() as news:
        while text not in vm.console.text:
            await news.receive()


async def ports(host: Host, switch: str = "lan") -> list[str]:
    """Ports of a switch, by the tree."""
    return list(await host.inspect(f"switch/{switch}/ports", depth=1))


async def test_a_port_is_there_while_its_vm_is_on(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """With its address in the switch's table, from before its guest boots until it is off."""
    async with host_of(tmp_path) as host:  # type: ignore[attr-defined]
        assert await ports(host) == []
        nic = host["web"].nics[0]
        assert (nic.port, nic.switch, nic.link, nic.vlan) == ("web/0", "lan", "up", 0)
        for _ in range(2):
            await host["web"].start()
            assert await ports(host) == ["web/0"]
            assert await host.inspect("switch/lan/ports/web/0/mac") == nic.mac
            assert await host.inspect(f"switch/lan/stations/{nic.mac}/port") == "web/0"
            await said(host["web"], f"{nic.mac} up")
            assert await host.inspect("switch/lan/ports/web/0/adapter") != "none"
            await host["web"].turn_off()
            assert await ports(host) == []
        assert list(host.switches) == ["lan", "wan"]


async def test_addresses_are_the_same_in_every_run(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Whoever starts first, and whatever else is in the topology; each from Hyper-V's range and once."""
    more = TWO.replace('name = "db"\nprogram = "guest.py"\n', 'name = "db"\nprogram = "guest.py"\n[[vm.nic]]\n' * 1)
    async with host_of(tmp_path) as host:  # type: ignore[attr-defined]
        first = host["web"].nics[0].mac
    async with host_of(tmp_path, more) as host:  # type: ignore[attr-defined]
        await host["db"].start()
        assert host["web"].nics[0].mac == first
        assert host["db"].nics[0].mac != first
        assert parse_mac(host["db"].nics[0].mac)[:3] == MICROSOFT


def test_addresses_are_given_once() -> None:
    """One that is taken is passed over, one that is wanted twice is refused, one that was given back is free."""
    pool = AddressPool("host")
    made = pool.take("web/0")
    assert made == pool.take("web/0") == AddressPool("host").take("web/0")
    assert made != AddressPool("other").take("web/0")
    other = AddressPool("host")
    other.take("rude/0", made)
    assert other.take("web/0") != made
    with pytest.raises(ValueError, match="is the address of rude/0"):
        other.take("third/0", made)
    other.give_back("rude/0")
    assert other.take("third/0", made) == made


async def test_an_adapter_comes_and_goes_while_its_vm_runs(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The guest drives it at once; its number does not come back; its place in the settings is kept over a restart."""
    async with host_of(tmp_path) as host:  # type: ignore[attr-defined]
        vm = host["web"]
        await vm.start()
        first = vm.nics[0].mac
        await said(vm, f"{first} up")
        assert await vm.add_nic("wan", name="back", vlan=7) == 1
        second = vm.nics[1]
        assert (second.name, second.switch, second.vlan, second.link) == ("back", "wan", 7, "up")
        await said(vm, f"{second.mac} up")
        assert await ports(host, "wan") == ["web/1"]
        await vm.remove_nic(1)
        assert await ports(host, "wan") == []
        assert list(vm.nics) == [0]
        assert await vm.add_nic(None) == 2
        assert vm.nics[2].link == "down"
        await vm.turn_off()
        await vm.start()
        assert await ports(host) == ["web/0"]
        assert sorted(vm.nics) == [0, 2]
        assert vm.nics[0].mac == first
        assert "nic2" in vm.devices


async def test_a_cable_is_pulled_and_plugged_elsewhere(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """The guest sees its link; the switch that it left knows it no more; off, it is where it will be."""
    async with host_of(tmp_path) as host:  # type: ignore[attr-defined]
        vm = host["web"]
        await vm.start()
        name = vm.nics[0].mac
        await said(vm, f"{name} up")
        await vm.connect_nic(0, None)
        await said(vm, f"{name} down")
        assert vm.nics[0].link == "down"
        assert await host.inspect("switch/lan/stations", depth=1) == {}
        await vm.connect_nic(0, "wan")
        assert vm.nics[0].link == "up"
        await trio.sleep(1)
        assert vm.console.text.count(f"{name} up") == 2
        assert (await ports(host), await ports(host, "wan")) == ([], ["web/0"])
        assert host.update("switch/wan/ports/web/0/link", "down") == "down"
        await trio.sleep(1)
        assert vm.console.text.count(f"{name} down") == 2
        await vm.turn_off()
        await vm.connect_nic(0, "lan")
        await vm.start()
        assert await ports(host) == ["web/0"]


async def test_what_cannot_be_done_to_adapters_is_said(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """With the words of the topology, and nothing has changed."""
    async with host_of(tmp_path) as host:  # type: ignore[attr-defined]
        vm = host["web"]
        for on in (False, True):
            if on:
                await vm.start()
            before = dict(vm.nics)
            for keys, words in (
                ({"switch": "lam"}, r'switch: no switch is called "lam"; did you mean "lan"\?'),
                ({"switch": "lan", "mac": "00"}, "mac: must be an address"),
                ({"switch": "lan", "mac": vm.nics[0].mac}, "is the address of web/0"),
                ({"switch": "lan", "vlna": 3}, r'vlna: unknown key; did you mean "vlan"\?'),
                ({"switch": "lan", "vlan": 5000}, "vlan: must be at most 4094"),
                ({"switch": "lan", "number": 0}, "number 0 is taken"),
                ({"switch": "lan", "acl": [{"action": "deny", "remote": "x"}]}, "acl.0.remote: must be"),
            ):
                with pytest.raises(NicError, match=words):
                    await vm.add_nic(**keys)
            with pytest.raises(NicError, match="there is no adapter 7; there are: 0"):
                await vm.remove_nic(7)
            with pytest.raises(NicError, match="there is no adapter 0; the VM has none: `partita add-nic`"):
                await host["db"].remove_nic(0)
            with pytest.raises(NicError, match='no switch is called "x"'):
                await vm.connect_nic(0, "x")
            assert vm.nics == before


async def test_a_host_without_switches_takes_adapters_with_loose_cables(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """And says that there is nothing to plug them into."""
    text = '[[vm]]\nname = "web"\nprogram = "guest.py"\n'
    async with host_of(tmp_path, text) as host:  # type: ignore[attr-defined]
        assert host["web"].nics == {}
        assert host.network.made is None
        assert dict(host.switches) == {}
        assert await host["web"].add_nic() == 0
        with pytest.raises(NicError, match="there is none: add a"):
            await host["web"].add_nic("lan")
        await host["web"].start()
        assert host["web"].nics[0].link == "down"


TALKS = """
import trio
async def main(guest):
    ip = await guest.ip("10.0.0.%d/24" % (1 if guest.name == "web" else 2))
    if guest.name == "db":
        await guest.sleep(1000)
    rounds = 0
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(talk, ip)
        async for change in guest.device_changes():
            pass

async def talk(ip):
    while True:
        try:
            await ip.ping("10.0.0.2", size=4000, timeout=0.05)
        except OSError:
            pass
        await trio.sleep(0.005)
"""


async def test_adapters_go_in_the_middle_of_traffic_and_leave_nothing(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """Pulled out, plugged in, cable out and in, reset: ports and addresses are as before, and frames go again."""
    text = TWO.replace(
        'name = "db"\nprogram = "guest.py"\n', 'name = "db"\nprogram = "guest.py"\n[[vm.nic]]\nswitch = "lan"\n'
    )
    async with host_of(tmp_path, text, TALKS) as host:  # type: ignore[attr-defined]
        await host.start_all()
        web, db = host["web"], host["db"]
        await trio.sleep(1)
        for number in range(1, 11):
            assert await web.add_nic("lan") == number
            await web.connect_nic(0, None)
            await trio.sleep(0.02)
            await web.connect_nic(0, "lan")
            await trio.sleep(0.02)
            await web.remove_nic(number)
        before = await host.inspect("switch/lan/ports/db/0/received/frames")
        await trio.sleep(1)
        assert await host.inspect("switch/lan/ports/db/0/received/frames") > before, "they talk again"
        await db.remove_nic(0)
        await trio.sleep(0.1)
        await web.reset()
        await trio.sleep(1)
        assert await ports(host) == ["web/0"]
        assert list(await host.inspect("switch/lan/stations", depth=1)) == [web.nics[0].mac]
        assert list(web.nics) == [0]
        assert web.exit is None, web.exit
        switches = host.network.switches()
        assert list(switches.ports) == ["web/0"]
        await web.turn_off()
        assert not switches.ports
        assert not switches.switches["lan"]._owners
        assert list(switches._addresses._given) == ["web/0"]


async def test_addresses_of_a_vm_that_is_forgotten_are_free(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Hosts live longer than VMs."""
    async with host_of(tmp_path) as host:  # type: ignore[attr-defined]
        mac = host["web"].nics[0].mac
        with pytest.raises(NicError, match="is the address of web/0"):
            await host["db"].add_nic("lan", mac=mac)
        host.destroy("web")
        await host["db"].add_nic("lan", mac=mac)
        assert host["db"].nics[0].mac == mac


# --- captures


@needs_tshark
async def test_a_capture_follows_its_ports_over_restarts(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Two ports in one file, each an interface; a port that comes later is in it from its first frame."""
    text = TWO.replace(
        'name = "db"\nprogram = "guest.py"\n', 'name = "db"\nprogram = "guest.py"\n[[vm.nic]]\nswitch = "lan"\n'
    )
    speaks = """
async def main(guest):
    await guest.ip("10.0.0.1/24")
    await guest.sleep(5)
"""
    path = tmp_path / "both.pcapng"
    async with host_of(tmp_path, text, speaks) as host:  # type: ignore[attr-defined]
        with host.capture(path, "web/0", "db/0") as capture:
            with pytest.raises(NicError, match="web/0 is captured already"), host.capture(tmp_path / "x", "web/0"):
                pass
            await host["web"].start()
            await trio.sleep(1)
            await host["db"].start()
            await host.wait_all()
        assert not capture.dropped
        with (
            pytest.raises(NicError, match=r'no port is called "web/1"; did you mean "web/0"\?'),
            host.capture(path, "web/1"),
        ):
            pass
    fields = (
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "frame.packet_flags_direction",
        "-e",
        "arp.src.hw_mac",
    )
    rows = [line.split("\t") for line in run_tshark(path, *fields).splitlines()]
    own = {name: MICROSOFT.hex(":") for name in ("web/0", "db/0")}
    sent = {name for name, way, _ in rows if way.endswith("2")}
    assert sent == own.keys()
    assert any(name == "web/0" and way.endswith("1") for name, way, _ in rows), "what db announced"


@needs_tshark
def test_a_capture_shows_what_went_no_further_and_why(tmp_path: Path) -> None:
    """As a comment at the packet."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)
    capture = EthernetCapture(lambda: lan.now)
    for plug in (a, b):
        plug.port.watch(capture.tap(plug.port.name))
    b.room = 1
    a.port.transmit(
        [ethernet(mac(2), mac(1), bytes(46)), ethernet(mac(2), mac(9), bytes(46)), ethernet(mac(2), mac(1), bytes(46))]
    )
    a.port.set_enabled(False)
    a.port.transmit([ethernet(mac(2), mac(1), bytes(46))])
    capture.finish()
    path = tmp_path / "drops.pcapng"
    path.write_bytes(capture.take())
    rows = run_tshark(path, "-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment").splitlines()
    assert [row.split("\t") for row in rows] == [
        ["vm1/0", ""],
        ["vm1/0", "dropped: spoofed"],
        ["vm1/0", ""],
        ["vm2/0", ""],
        ["vm2/0", "dropped: adapter_full"],
        ["vm1/0", "dropped: link_down"],
    ]


def test_what_a_capture_has_no_room_for_is_counted() -> None:
    """At its interface, and it goes on when there is room again."""
    capture = EthernetCapture(lambda: 0, limit=2000)
    tap = capture.tap("web/0")
    for _ in range(10):
        tap.sent(bytes(500), None)
    assert (capture.written.packets, capture.dropped.packets) == (3, 7)
    capture.take()
    tap.sent(bytes(500), None)
    capture.finish()
    tap.sent(bytes(500), Drop.SPOOFED)
    assert (tap.received, tap.dropped) == (11, 7)
    assert capture.take().count(b"\x05\x00\x00\x00") >= 2, "statistics at the gap and at the end"


def test_a_watched_port_costs_no_frame() -> None:
    """What is captured goes the same ways, and the known way is used again when nobody watches."""
    lan = Lan()
    a, b = lan.plug(1), lan.plug(2)
    a.port.transmit([ethernet(mac(2), mac(1))])
    capture = EthernetCapture(lambda: 0)
    a.port.watch(capture.tap("vm1/0"))
    a.port.transmit([ethernet(mac(2), mac(1))] * 3)
    a.port.watch(None)
    a.port.transmit([ethernet(mac(2), mac(1))])
    assert len(b.got) == 5
    assert capture.written.packets == 3
    assert isinstance(b.port, Port)
    assert a.port.routes
