"""Adapters' addresses in both layouts, as bytes and between the real VSP and the real VSC."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.integration import serving
from vsp_vsc.integration.kvp.ip_info import IP_MESSAGE_SIZE, IpInfo, decode_ip, encode_ip
from vsp_vsc.integration.kvp.protocol import Operation
from vsp_vsc.integration.kvp.vsc import KvpDriver
from vsp_vsc.integration.kvp.vsp import KvpRefused, KvpVsp
from vsp_vsc.integration.protocol import VERSIONS, Component, Version
from vsp_vsc.integration.responder import Responder, responding

MAC = "00:15:5D:01:02:03"
INFO = IpInfo(
    MAC,
    True,
    (ipaddress.ip_interface("10.0.0.2/24"), ipaddress.ip_interface("fe80::1/64")),
    (ipaddress.ip_address("10.0.0.1"),),
    (ipaddress.ip_address("9.9.9.9"), ipaddress.ip_address("2620:fe::9")),
)
every_version = pytest.mark.parametrize("version", VERSIONS[Component.KVP], ids=str)


def interfaces(version: int) -> st.SearchStrategy[Any]:
    return st.builds(
        lambda address, prefix: ipaddress.ip_interface(f"{address}/{prefix}"),
        st.ip_addresses(v=version),  # type: ignore[arg-type]
        st.integers(0, 32 if version == 4 else 128),
    )


@given(
    four=st.lists(interfaces(4), max_size=20),
    six=st.lists(interfaces(6), max_size=10),
    gateways=st.lists(st.ip_addresses(v=4), max_size=5),
    dhcp=st.booleans(),
    version=st.sampled_from(VERSIONS[Component.KVP]),
)
def test_there_and_back(four: list[Any], six: list[Any], gateways: list[Any], dhcp: bool, version: Version) -> None:
    """What goes in comes out, IPv4 first, in messages of the one size that Linux takes."""
    info = IpInfo(MAC, dhcp, (*four, *six), tuple(gateways))
    message = encode_ip(Operation.SET_IP_INFO, info, version)
    assert len(message) == IP_MESSAGE_SIZE
    assert decode_ip(message, version) == info


def test_where_linux_looks() -> None:
    """Texts begin behind two bytes (hv_kvp_ip_msg), numbers behind four."""
    texts = encode_ip(Operation.GET_IP_INFO, IpInfo(MAC), Version(4, 0))
    assert texts[2 : 2 + 2 * len(MAC)].decode("utf-16-le") == MAC
    numbers = encode_ip(Operation.GET_IP_INFO, INFO, Version(5, 0))
    assert numbers[4:12] == bytes([1, 0, 0, 0, 1, 0, 0, 0])


@pytest.mark.parametrize("version", [Version(4, 0), Version(5, 0)], ids=str)
def test_more_than_there_is_room_for(version: Version) -> None:
    """Is the caller's mistake."""
    many = tuple(ipaddress.ip_interface(f"fe80:1111:2222:3333:4444:5555:6666:{n:x}/128") for n in range(65))
    with pytest.raises(ValueError, match="limit"):
        encode_ip(Operation.SET_IP_INFO, IpInfo(MAC, addresses=many), version)


@every_version
async def test_asked_and_set(version: Version) -> None:
    """An adapter that is there, one that is not, and a guest that takes new addresses or does not."""
    driver = KvpDriver()
    driver.adapters[MAC] = INFO
    async with (
        serving(KvpVsp) as served,
        responding(served.guest_end, Responder(Component.KVP, driver.answer, [version])),
    ):
        await trio.testing.wait_all_tasks_blocked()
        assert await served.vsp.ip_info(MAC) == INFO
        assert await served.vsp.ip_info("00:00:00:00:00:00") is None
        wanted = IpInfo(MAC, False, (ipaddress.ip_interface("10.1.0.2/16"),))
        with pytest.raises(KvpRefused, match="set addresses"):
            await served.vsp.set_ip_info(wanted)
        driver.on_set_addresses = lambda info: info == wanted
        await served.vsp.set_ip_info(wanted)
        assert await served.vsp.ip_info(MAC) == wanted
