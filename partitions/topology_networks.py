"""The rules of switches and network adapters in a topology, and what their keys come to. Root side."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from partitions.topology_links import BandwidthTable, LinkTable
from partitions.topology_schema import MAX_NICS, NicTable, SwitchTable, TopologyFile, numbers_of
from partitions.topology_source import KeyPath, nearest
from partitions.topology_units import rate_words, size_words
from vsp_vsc.network.port import FRAME_OVERHEAD
from vsp_vsc.network.switch.acl import AccessList, Rule, parse_end
from vsp_vsc.network.switch.addresses import NO_ADDRESS, is_group, mac_words, parse_mac
from vsp_vsc.network.switch.kinds import SwitchKind
from vsp_vsc.network.switch.settings import PortSettings, parse_vlans

if TYPE_CHECKING:
    from partitions.topology_check import Check

_DEVICE: Final = re.compile(r"[^\s/:%]{1,15}")
"""What Linux takes for a network device's name."""
_OUTSIDE: Final = ("tap", "listen", "connect", "bridge", "address")


def ports_of(topology: TopologyFile) -> list[str]:
    """The names of all ports: of VMs' adapters, and of the host."""
    ports = [port_name(vm.name, number) for vm in topology.vm for number in numbers_of(vm.nic)]
    for switch in topology.switch:
        if switch.kind is not SwitchKind.PRIVATE:
            ports.append(host_port_name(switch))
    return ports


def port_name(vm: str, number: int) -> str:
    """What the port of a VM's adapter is called."""
    return f"{vm}/{number}"


def host_port_name(switch: SwitchTable) -> str:
    """What the host's own port of a switch is called."""
    return f"{switch.name}:{'host' if switch.kind is SwitchKind.INTERNAL else 'uplink'}"


def port_settings(nic: NicTable) -> PortSettings:
    """How its port is set up. Raises `ValueError` for keys that `check_nic` complains about."""
    return PortSettings(
        mtu=nic.mtu,
        vlan=nic.vlan,
        trunk=parse_vlans(nic.trunk) if nic.trunk else None,
        spoofing=nic.spoofing,
        dhcp_guard=nic.dhcp_guard,
        router_guard=nic.router_guard,
        isolated=nic.isolated,
        mirroring=nic.mirroring,
        storm_limit=nic.storm_limit,
        acl=AccessList(
            [Rule(rule.action, rule.direction, parse_end(rule.remote), parse_end(rule.local)) for rule in nic.acl]
        ),
    )


def own_address(nic: NicTable) -> bytes | None:
    """The address that its table has; None if it is to be made. Raises `ValueError`."""
    if not nic.mac:
        return None
    address = parse_mac(nic.mac)
    if is_group(address):
        raise ValueError(f'"{nic.mac}" is an address of a group: the first byte must be even')
    if address == NO_ADDRESS:
        raise ValueError(f'"{nic.mac}" is nobody\'s address; leave it out, and one is made')
    return address


def check_networks(check: Check, file: TopologyFile) -> None:
    """All switches and adapters of a topology."""
    _check_reservations(check, file)
    taps: dict[str, int] = {}
    for index, switch in enumerate(file.switch):
        _check_switch(check, switch, ("switch", index))
        if switch.tap and switch.tap in taps:
            check.problem(
                ("switch", index, "tap"), f'"{switch.tap}" is the TAP device of switch[{taps[switch.tap]}] too'
            )
        taps.setdefault(switch.tap, index)
    owners: dict[bytes, str] = {}
    for vm_index, vm in enumerate(file.vm):
        numbers: dict[int, int] = {}
        for index, nic in enumerate(vm.nic):
            keys = ("vm", vm_index, "nic", index)
            check_nic(check, nic, [switch.name for switch in file.switch], keys)
            if nic.number is not None:
                if nic.number in numbers:
                    words = f"{nic.number} is the number of nic[{numbers[nic.number]}] too"
                    check.problem((*keys, "number"), words)
                numbers.setdefault(nic.number, index)
            try:
                address = own_address(nic)
            except ValueError:
                continue
            if address is not None:
                here = f"vm[{vm_index}] {vm.name!r}.nic[{index}]".replace("'", '"')
                if address in owners:
                    check.problem((*keys, "mac"), f"{mac_words(address)} is the address of {owners[address]} too")
                owners.setdefault(address, here)
        if len(vm.nic) > MAX_NICS:
            check.problem(("vm", vm_index, "nic"), f"must be at most {MAX_NICS} adapters, are {len(vm.nic)}")


def check_nic(check: Check, nic: NicTable, switches: Sequence[str], keys: KeyPath) -> None:
    """The rules of one adapter."""
    if nic.switch and nic.switch not in switches:
        near = nearest(nic.switch, switches)
        there = f"there are {', '.join(switches)}" if switches else "there is none: add a [[switch]] table"
        hint = f'did you mean "{near}"?' if near else there
        check.problem((*keys, "switch"), f'no switch is called "{nic.switch}"; {hint}')
    try:
        own_address(nic)
    except ValueError as error:
        check.problem((*keys, "mac"), str(error))
    if nic.trunk:
        try:
            parse_vlans(nic.trunk)
        except ValueError as error:
            check.problem((*keys, "trunk"), str(error))
    check_controls(check, nic, keys)
    for index, rule in enumerate(nic.acl):
        place = (*keys, "acl", index)
        ends = []
        for key in ("remote", "local"):
            try:
                ends.append(parse_end(getattr(rule, key)))
            except ValueError as error:
                check.problem((*place, key), str(error))
        if len(ends) == 2:
            try:
                Rule(rule.action, rule.direction, ends[0], ends[1])
            except ValueError as error:
                check.problem(place, str(error))


def _check_reservations(check: Check, file: TopologyFile) -> None:
    """What adapters have reserved on a switch fits it. Of the host and its pools that is seen when a VM starts."""
    for switch in file.switch:
        if not switch.bandwidth:
            continue
        reserved = 0
        for vm_index, vm in enumerate(file.vm):
            for index, nic in enumerate(vm.nic):
                if nic.switch != switch.name or nic.bandwidth is None or not nic.bandwidth.reserve:
                    continue
                reserved += nic.bandwidth.reserve
                if reserved > switch.bandwidth:
                    words = (
                        f'with it, {rate_words(reserved)} are reserved on switch "{switch.name}", which has '
                        f"{rate_words(switch.bandwidth)}: lower it, or raise the switch's bandwidth"
                    )
                    check.problem(("vm", vm_index, "nic", index, "bandwidth", "reserve"), words)


def check_controls(check: Check, nic: NicTable, keys: KeyPath) -> None:
    """The rules of what one adapter may send, and of its cable."""
    if nic.bandwidth is not None:
        check_bandwidth(check, nic.bandwidth, nic.mtu, (*keys, "bandwidth"))
    if nic.link is not None:
        check_link(check, nic.link, (*keys, "link"))


def check_bandwidth(check: Check, bandwidth: BandwidthTable, mtu: int, keys: KeyPath) -> None:
    """The rules of what one adapter may send."""
    if bandwidth.limit and bandwidth.reserve > bandwidth.limit:
        words = f"must not be above its limit of {rate_words(bandwidth.limit)}, is {rate_words(bandwidth.reserve)}"
        check.problem((*keys, "reserve"), f"{words}: lower it, or raise the limit")
    longest = mtu + FRAME_OVERHEAD
    if bandwidth.burst and bandwidth.burst < longest:
        words = f"must hold a frame, {longest} bytes with this MTU, is {size_words(bandwidth.burst)}"
        check.problem((*keys, "burst"), f"{words}; leave it out, and it is large enough")


def check_link(check: Check, link: LinkTable, keys: KeyPath) -> None:
    """The rules of one cable."""
    bursts = link.burst_loss
    if bursts is not None:
        if link.loss:
            check.problem((*keys, "loss"), "does not go with burst_loss, whose `good` is the same: remove one")
        if bursts.p and not bursts.r:
            check.problem((*keys, "burst_loss", "r"), "must be more than 0, or the bad state never ends")
    if link.gap > 1 and not link.reorder:
        check.problem((*keys, "gap"), "does nothing without reorder; add reorder = 100 for each such frame")


def _check_switch(check: Check, switch: SwitchTable, keys: KeyPath) -> None:
    given = [key for key in _OUTSIDE if getattr(switch, key)]
    if switch.link is not None:
        check_link(check, switch.link, (*keys, "link"))
    if switch.kind is SwitchKind.PRIVATE:
        if switch.link is not None:
            check.problem(
                (*keys, "link"),
                'is of the host\'s own port: for kind = "internal" or "external"; '
                "an adapter's cable is the link of its [[vm.nic]]",
            )
        for key in given:
            kinds = {"address": '"internal"', "bridge": '"external"'}.get(key, '"internal" or "external"')
            check.problem((*keys, key), f"is for kind = {kinds}; a private switch joins VMs only")
        return
    ways = [key for key in ("tap", "listen", "connect") if key in given]
    if len(ways) > 1:
        check.problem((*keys, ways[1]), f"does not go with {ways[0]}: a switch has one way out")
    if switch.tap and not _DEVICE.fullmatch(switch.tap):
        check.problem((*keys, "tap"), f'must be 1 to 15 characters without "/", ":", "%" and spaces, is "{switch.tap}"')
    if switch.bridge:
        if switch.kind is not SwitchKind.EXTERNAL:
            check.problem((*keys, "bridge"), 'is for kind = "external"; an internal switch reaches the host itself')
        elif ways and ways[0] != "tap":
            check.problem((*keys, "bridge"), f"does not go with {ways[0]}: only a TAP device joins a bridge")
    if switch.vlan and switch.kind is not SwitchKind.INTERNAL:
        check.problem((*keys, "vlan"), 'is for kind = "internal"; outside, VLANs have tags')
    if switch.address:
        if switch.kind is not SwitchKind.INTERNAL:
            check.problem((*keys, "address"), 'is for kind = "internal"; outside, the network gives addresses')
        elif ways and ways[0] != "tap":
            check.problem((*keys, "address"), f"does not go with {ways[0]}: it is a TAP device's")
        else:
            _check_address(check, switch.address, (*keys, "address"))


def _check_address(check: Check, written: str, keys: KeyPath) -> None:
    try:
        address = ipaddress.ip_interface(written)
    except ValueError:
        check.problem(keys, f'must be an address with its prefix such as "10.0.0.1/24", is "{written}"')
        return
    network = address.network
    if "/" not in written:
        check.problem(keys, f'has no prefix; write "{address.ip}/24" or how long it is')
    elif network.num_addresses > 2 and address.ip == network.network_address:
        check.problem(keys, f'is the network itself; write "{network.network_address + 1}/{network.prefixlen}"')
