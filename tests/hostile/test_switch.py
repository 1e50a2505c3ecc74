"""A guest that tries to be somebody else, or elsewhere, on its switch: its neighbours see nothing of it.

The number is that of the list of malformed inputs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from partitions.host import ExitReason, open_host
from partitions.topology import parse_topology
from tests.doubles.switch import IPV4, IPV6, Lan, ethernet, ip6, mac, udp4
from vsp_vsc.network.switch.acl import AccessList, Rule, parse_end
from vsp_vsc.network.switch.frames import TAGS
from vsp_vsc.network.switch.kinds import Action, Direction
from vsp_vsc.network.switch.ports import Drop

TOPOLOGY = """
[[vm]]
name = "evil"
program = "evil.py"
[[vm.nic]]
switch = "lan"
vlan = 10
mac = "00-15-5D-00-00-01"
[[vm]]
name = "neighbour"
program = "neighbour.py"
[[vm.nic]]
switch = "lan"
vlan = 10
mac = "00-15-5D-00-00-02"
[[vm]]
name = "elsewhere"
program = "neighbour.py"
[[vm.nic]]
switch = "lan"
vlan = 20
mac = "00-15-5D-00-00-03"
[[switch]]
name = "lan"
"""
EVIL = """
def frame(to, source, vlan=b"", payload=b"evil"):
    return bytes.fromhex(to) + bytes.fromhex(source) + vlan + b"\\x88\\xb5" + payload.ljust(46)

ME, NEIGHBOUR, ELSEWHERE, ALL = "00155d000001", "00155d000002", "00155d000003", "ff" * 6
VLAN10, VLAN20, PROVIDER = b"\\x81\\x00\\x00\\x0a", b"\\x81\\x00\\x00\\x14", b"\\x88\\xa8\\x00\\x14"

async def main(guest):
    network = await guest.network()
    await guest.sleep(1)
    for to in (NEIGHBOUR, ELSEWHERE, ALL):
        for source in (NEIGHBOUR, ELSEWHERE, "020000000001", "000000000000", ALL):
            await network.send(frame(to, source))
        for tags in (VLAN20, VLAN10, VLAN10 + VLAN20, VLAN20 + VLAN10, PROVIDER, PROVIDER + VLAN20):
            await network.send(frame(to, ME, tags))
    await network.send(frame(ELSEWHERE, ME))
    await network.send(frame(NEIGHBOUR, ME, payload=b"honest"))
    await guest.sleep(1)
"""
NEIGHBOUR = """
async def main(guest):
    network = await guest.network()
    while True:
        frame = await network.receive()
        print(frame[14:].decode(errors="replace").strip())
"""


async def test_78_a_guest_that_forges_reaches_nobody(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Each source that is not its own and each tag is dropped and counted by its reason; it goes on, and is heard."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    async with open_host(parse_topology(TOPOLOGY, tmp_path)) as host:
        await host.start_all()
        await trio.sleep(1.5)
        drops = await host.inspect("switch/lan/ports/evil/0/drops")
        record = await host["evil"].wait()
        assert record.reason is ExitReason.POWERED_OFF, record
        heard = {name: host[name].console.text.split() for name in ("neighbour", "elsewhere")}
    assert heard == {"neighbour": ["honest"], "elsewhere": []}
    assert drops == {"bad_source": 6, "spoofed": 9, "tag": 6, "tag_stack": 12, "vlan": 1}


@pytest.mark.parametrize("tag", sorted(TAGS))
@pytest.mark.parametrize("behind", [b"", *sorted(TAGS)])
def test_78_no_tag_leads_out_of_a_vlan(tag: bytes, behind: bytes) -> None:
    """Whatever ethertype a switch or a driver somewhere takes for one."""
    lan = Lan()
    evil, inside = lan.plug(1, vlan=10), lan.plug(2, vlan=10)
    outside, trunk = lan.plug(3, vlan=20), lan.plug(4, vlan=10, trunk=frozenset({20}))
    for vlan in (10, 20):
        tags = tag + vlan.to_bytes(2, "big") + (behind + b"\x00\x14" if behind else b"")
        for to in (b"\xff" * 6, mac(2), mac(3), mac(4)):
            evil.port.transmit([to + mac(1) + tags + b"\x88\xb5evil"])
    assert not [frame for plug in (inside, outside, trunk) for frame in plug.got]
    assert sum(evil.port.drops.values()) == 8


@pytest.mark.parametrize("oui", [b"\0\0\0", b"\0\0\xf8"])
@pytest.mark.parametrize("length", [b"\0\0", b"\0\x10", b"\x05\xff"])
@pytest.mark.parametrize("tag", [b"", b"\x81\0\0\0", b"\x88\xa8\0\0"])
def test_78_no_guard_is_passed_behind_llc_and_snap(oui: bytes, length: bytes, tag: bytes) -> None:
    """Some systems take IP that is packed so, with any length, and a tag inside of it (CVE-2021-27854, -27862)."""
    lan = Lan()
    rules = AccessList([Rule(Action.DENY, Direction.OUT, parse_end("10.0.0.0/8"))])
    evil = lan.plug(1, dhcp_guard=True), lan.plug(2, router_guard=True), lan.plug(3, acl=rules)
    neighbour = lan.plug(4)
    snap = length + b"\xaa\xaa\x03" + oui + tag
    packets = IPV4 + udp4(67, 68), IPV6 + ip6(58, b"\x86"), IPV4 + udp4(1, 2, to="10.0.0.9")
    for number, (plug, packet) in enumerate(zip(evil, packets, strict=True), 1):
        plug.port.transmit([b"\xff" * 6 + mac(number) + snap + packet])
    assert not neighbour.got
    assert [list(plug.port.drops) for plug in evil] == [[Drop.DHCP_GUARD], [Drop.ROUTER_GUARD], [Drop.ACL_OUT]]
    spanning_tree = b"\xff" * 6 + mac(1) + b"\0\x26\x42\x42\x03" + bytes(35)
    evil[0].port.transmit([spanning_tree])
    assert neighbour.take() == [spanning_tree], "LLC without SNAP is no IP"


@pytest.mark.parametrize("size", [0, 1, 13, 1523, 9000, 65535])
def test_79_frames_of_no_length_that_there_is(size: int) -> None:
    """Dropped and counted; a frame between them goes."""
    lan = Lan()
    evil, neighbour = lan.plug(1), lan.plug(2)
    good = ethernet(mac(2), mac(1))
    bad = (good + bytes(70000))[:size]
    for _ in range(2):
        evil.port.transmit([bad, good, bad])
    assert neighbour.take() == [good] * 2
    assert evil.port.drops == {Drop.TOO_SHORT if size < 14 else Drop.TOO_LONG: 4}
