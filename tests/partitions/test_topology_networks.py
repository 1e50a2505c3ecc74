"""Switches and adapters in a topology: what is refused, in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.topology import TopologyError, parse_topology
from partitions.topology_networks import port_settings
from partitions.topology_schema import AclTable, NicTable, numbers_of
from vsp_vsc.network.switch.kinds import Action, Direction, Mirroring, SwitchKind

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
