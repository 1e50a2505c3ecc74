"""Switches and adapters in a topology: what is refused, in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.topology import TopologyError, parse_topology
from partitions.topology_links import bandwidth_of, link_of
from partitions.topology_networks import port_settings
from partitions.topology_schema import AclTable, NicTable, numbers_of
from partitions.topology_units import Duration, duration_words
from vsp_vsc.network.shaping.settings import CERTAIN, Bandwidth, LinkSettings
from vsp_vsc.network.switch.kinds import Action, Direction, LinkDirection, Mirroring, SwitchKind

VM = '[[vm]]\nname = "web"\nprogram = "web.py"\n'
LAN = '[[switch]]\nname = "lan"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a guest's program."""
    (tmp_path / "web.py").write_text("async def main(guest): ...\n")
    return tmp_path


def test_every_key_arrives(folder: Path) -> None:
    """In the port's settings."""
    topology = parse_topology(
        LAN
        + 'kind = "internal"\ntap = "lan0"\naddress = "10.0.0.1/24"\nvlan = 7\nmtu = 9000\n'
        + VM
        + """
        [[vm.nic]]
        switch = "lan"
        name = "front"
        number = 3
        mac = "00:15:5d:00:00:01"
        vlan = 7
        trunk = "8-9"
        mtu = 9000
        connected = false
        spoofing = true
        dhcp_guard = true
        router_guard = true
        isolated = true
        mirroring = "source"
        storm_limit = 5
        [[vm.nic.acl]]
        action = "deny"
        direction = "out"
        remote = "10.0.0.0/8"
        """,
        folder,
    )
    (switch,), (nic,) = topology.switch, topology.vm[0].nic
    assert (switch.kind, switch.tap, switch.address, switch.vlan) == (SwitchKind.INTERNAL, "lan0", "10.0.0.1/24", 7)
    assert nic.acl == [AclTable(action=Action.DENY, direction=Direction.OUT, remote="10.0.0.0/8")]
    settings = port_settings(nic)
    assert (settings.vlan, settings.trunk, settings.mtu, settings.storm_limit) == (7, frozenset({8, 9}), 9000, 5)
    assert settings.spoofing
    assert settings.dhcp_guard
    assert settings.router_guard
    assert settings.isolated
    assert settings.mirroring is Mirroring.SOURCE
    assert [str(rule) for rule in settings.acl.rules] == ["deny out 10.0.0.0/8"]


def test_numbers_are_the_lowest_that_are_left() -> None:
    """As LUNs are."""
    assert numbers_of([NicTable(number=number) for number in (None, 1, None, 0)]) == [2, 1, 3, 0]


def nic(keys: str) -> str:
    """A topology with a switch and this adapter."""
    return LAN + VM + f'[[vm.nic]]\nswitch = "lan"\n{keys}\n'


def switch(keys: str) -> str:
    """A topology with this switch."""
    return LAN + keys + "\n" + VM


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            LAN + VM + '[[vm.nic]]\nswitch = "lam"\n',
            'line 7: vm[0] "web".nic[0].switch: no switch is called "lam"; did you mean "lan"?',
        ),
        (
            VM + '[[vm.nic]]\nswitch = "lan"\n',
            'line 5: vm[0] "web".nic[0].switch: no switch is called "lan"; there is none: add a [[switch]] table',
        ),
        (
            nic('mac = "00-15-5D-01-02"'),
            'line 8: vm[0] "web".nic[0].mac: must be an address such as "00-15-5D-01-02-03", is "00-15-5D-01-02"',
        ),
        (
            nic('mac = "01-15-5D-01-02-03"'),
            'line 8: vm[0] "web".nic[0].mac: "01-15-5D-01-02-03" is an address of a group: the first byte must be even',
        ),
        (
            nic('mac = "00-00-00-00-00-00"'),
            'line 8: vm[0] "web".nic[0].mac: "00-00-00-00-00-00" is nobody\'s address; leave it out, and one is made',
        ),
        (
            nic('mac = "02-00-00-00-00-0a"') + '[[vm.nic]]\nmac = "02000000000A"\n',
            'line 10: vm[0] "web".nic[1].mac: 02-00-00-00-00-0A is the address of vm[0] "web".nic[0] too',
        ),
        (
            nic("number = 1") + "[[vm.nic]]\nnumber = 1\n",
            'line 10: vm[0] "web".nic[1].number: 1 is the number of nic[0] too',
        ),
        (nic("vlan = 4095"), 'line 8: vm[0] "web".nic[0].vlan: must be at most 4094, is 4095'),
        (
            nic('trunk = "1-5000"'),
            'line 8: vm[0] "web".nic[0].trunk: VLANs are 1 to 4094, the lower first; 1-5000 is not',
        ),
        (nic("mtu = 100"), 'line 8: vm[0] "web".nic[0].mtu: must be at least 576, is 100'),
        (
            nic('mirroring = "sourc"'),
            'line 8: vm[0] "web".nic[0].mirroring: must not be "sourc"; did you mean "source"?',
        ),
        (
            nic('[[vm.nic.acl]]\naction = "deny"\nremote = "10.0.0.1/8"'),
            'line 10: vm[0] "web".nic[0].acl[0].remote: "10.0.0.1/8" has bits behind its prefix; write "10.0.0.0/8"',
        ),
        (
            nic('[[vm.nic.acl]]\naction = "deny"\nremote = "::/0"\nlocal = "10.0.0.1"'),
            'line 8: vm[0] "web".nic[0].acl[0]: local and remote must be addresses of one kind',
        ),
        (LAN + LAN + VM, 'line 4: switch[1] "lan".name: "lan" is the name of switch[0] too'),
        (
            switch('kind = "extern"'),
            'line 3: switch[0] "lan".kind: must not be "extern"; did you mean "external"?',
        ),
        (
            switch('tap = "x"'),
            'line 3: switch[0] "lan".tap: is for kind = "internal" or "external"; a private switch joins VMs only',
        ),
        (
            switch('kind = "external"\ntap = "much/too/long"'),
            'line 4: switch[0] "lan".tap: must be 1 to 15 characters without "/", ":", "%" and spaces, '
            'is "much/too/long"',
        ),
        (
            switch('kind = "external"\ntap = "a"\nlisten = "b"'),
            'line 5: switch[0] "lan".listen: does not go with tap: a switch has one way out',
        ),
        (
            switch('kind = "external"\naddress = "10.0.0.1/24"'),
            'line 4: switch[0] "lan".address: is for kind = "internal"; outside, the network gives addresses',
        ),
        (
            switch('kind = "internal"\naddress = "10.0.0/24"'),
            'line 4: switch[0] "lan".address: must be an address with its prefix such as "10.0.0.1/24", is "10.0.0/24"',
        ),
        (
            switch('kind = "internal"\naddress = "10.0.0.0/24"'),
            'line 4: switch[0] "lan".address: is the network itself; write "10.0.0.1/24"',
        ),
        (
            switch('kind = "internal"\naddress = "10.0.0.1"'),
            'line 4: switch[0] "lan".address: has no prefix; write "10.0.0.1/24" or how long it is',
        ),
        (
            switch('kind = "internal"\nlisten = "x"\naddress = "10.0.0.1/24"'),
            'line 5: switch[0] "lan".address: does not go with listen: it is a TAP device\'s',
        ),
        (
            switch('kind = "internal"\nbridge = "br0"'),
            'line 4: switch[0] "lan".bridge: is for kind = "external"; an internal switch reaches the host itself',
        ),
        (
            switch('kind = "external"\nvlan = 5'),
            'line 4: switch[0] "lan".vlan: is for kind = "internal"; outside, VLANs have tags',
        ),
        (
            switch(
                '[[switch]]\nname = "b"\nkind = "external"\ntap = "t"\n'
                '[[switch]]\nname = "c"\nkind = "external"\ntap = "t"'
            ),
            'line 10: switch[2] "c".tap: "t" is the TAP device of switch[1] too',
        ),
    ],
)
def test_what_is_wrong_is_said(folder: Path, text: str, expected: str) -> None:
    """Where, why, and what helps."""
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, folder)
    assert "\n".join(map(str, caught.value.problems)) == expected


def test_a_topology_without_networks_loads_no_switch() -> None:
    """Who has none does not pay for one."""
    import subprocess
    import sys

    program = (
        "import sys; from partitions.topology import load_topology; load_topology('01');"
        "print([name for name in sys.modules if name.startswith('vsp_vsc.network')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        "['vsp_vsc.network',",
        "'vsp_vsc.network.switch',",
        "'vsp_vsc.network.switch.kinds']",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (nic('bandwidth = { limit = "8MB" }'), 'bandwidth.limit: has the unknown unit "MB"; known are bit, Kbit, Mbit'),
        (nic("bandwidth = { limit = -1 }"), "bandwidth.limit: must not be negative, is -1"),
        (nic("bandwidth = { weight = 0 }"), "bandwidth.weight: must be at least 1, is 0"),
        (
            nic('bandwidth = { reserve = "2Mbit", limit = "1Mbit" }'),
            "bandwidth.reserve: must not be above its limit of 1 Mbit/s, is 2 Mbit/s: lower it, or raise the limit",
        ),
        (
            nic('mtu = 9000\nbandwidth = { limit = "1Mbit", burst = 9000 }'),
            "bandwidth.burst: must hold a frame, 9022 bytes with this MTU, is 9000 bytes; leave it out",
        ),
        (nic("link = { delay = 50 }"), 'link.delay: has no unit; write "50ms" for milliseconds'),
        (nic('link = { delay = "50" }'), 'link.delay: has no unit; write "50ms" for milliseconds'),
        (nic('link = { delay = "-1ms" }'), 'link.delay: must be a time such as "50ms"'),
        (nic('link = { jitter = "2h" }'), 'link.jitter: has the unknown unit "h"; known are ns, us, ms, s'),
        (nic('link = { jitter = "2000000s" }'), 'link.jitter: must be at most an hour, is "2000000s"'),
        (nic('link = { delay = "0.5ns" }'), 'link.delay: must be a whole number of nanoseconds, "0.5ns" is not'),
        (nic("link = { loss = 101 }"), "link.loss: must be at most 100, is 101"),
        (nic("link = { los = 1 }"), 'link.los: unknown key; did you mean "loss"?'),
        (nic("link = { loss = 1, burst_loss = { p = 1 } }"), "link.loss: does not go with burst_loss"),
        (nic("link = { burst_loss = { p = 1, r = 0 } }"), "link.burst_loss.r: must be more than 0, or the bad state"),
        (nic("link = { gap = 5 }"), "link.gap: does nothing without reorder; add reorder = 100 for each such frame"),
        (nic("link = { limit = 0 }"), "link.limit: must be at least 1, is 0"),
        (switch('link = { delay = "1ms" }'), 'switch[0] "lan".link: is of the host\'s own port: for kind ='),
        (switch('kind = "internal"\nlink = { gap = 2 }'), 'switch[0] "lan".link.gap: does nothing without reorder'),
        (switch("default_weight = 0"), 'switch[0] "lan".default_weight: must be at least 1, is 0'),
        (
            switch('bandwidth = "10Mbit"') + '[[vm.nic]]\nswitch = "lan"\nbandwidth = { reserve = "6Mbit" }\n' * 2,
            'nic[1].bandwidth.reserve: with it, 12 Mbit/s are reserved on switch "lan", which has 10 Mbit/s: lower it',
        ),
    ],
)
def test_what_a_slow_network_cannot_be(folder: Path, text: str, expected: str) -> None:
    """The key is named, and what it takes."""
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, folder)
    assert expected in str(caught.value)


def test_every_key_of_a_slow_network_arrives(folder: Path) -> None:
    """In bits a second, bytes, nanoseconds and parts of 2**32."""
    topology = parse_topology(
        nic(
            'bandwidth = { reserve = "1Mbit", limit = "8Mbit", weight = 7, burst = "16KiB", queue = 9 }\n'
            'link = { rate = "1Gbit", delay = "50ms", jitter = "1.5ms", duplicate = 50, reorder = 25, gap = 3, '
            'corrupt = 100, limit = 5, direction = "in", seed = 4, '
            "burst_loss = { p = 50, r = 25, bad = 75, good = 12.5 } }"
        ),
        folder,
    )
    (table,) = topology.vm[0].nic
    assert bandwidth_of(table.bandwidth) == Bandwidth(1_000_000, 8_000_000, 7, 16384, 9)
    part = CERTAIN // 8
    assert link_of(table.link) == LinkSettings(
        rate=10**9,
        delay=50_000_000,
        jitter=1_500_000,
        loss=part,
        to_bad=4 * part,
        to_good=2 * part,
        bad_loss=6 * part,
        duplicate=4 * part,
        reorder=2 * part,
        gap=3,
        corrupt=CERTAIN,
        limit=5,
        direction=LinkDirection.IN,
        seed=4,
    )
    assert bandwidth_of(None) is link_of(None) is None


@pytest.mark.parametrize("written", ["0ms", "1ns", "50ms", "1.5ms", "250us", "2s", "1.000001s", "3600s"])
def test_times_are_shown_as_they_are_written(written: str) -> None:
    """Nothing is rounded."""
    assert Duration.parse(duration_words(Duration.parse(written))) == Duration.parse(written)
