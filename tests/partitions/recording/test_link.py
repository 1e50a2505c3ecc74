"""What stands in front of a recorded packet."""

from __future__ import annotations

import pytest

from hypervisor.wire import Guid
from partitions.recording.link import CODES, DEVICES, NAMES, OWN, UNKNOWN, LinkHeader, device_code, device_name
from vsp_vsc.device import KINDS


def test_the_header_is_sixteen_bytes_little_endian() -> None:
    """Others read this: it changes with its version number only."""
    header = LinkHeader(version=1, kind=2, direction=1, device=3, partition=0x04050607, channel=8, bus_version=0x50003)
    assert header.encode() == bytes.fromhex("01020103 07060504 08000000 03000500")


def test_devices_of_ours_are_called_what_topologies_call_them() -> None:
    assert {kind.name: device_name(kind.interface) for kind in KINDS} == {kind.name: kind.name for kind in KINDS}


def test_codes_are_unique_and_fixed() -> None:
    assert {device.code for device in DEVICES} == set(range(1, 15))
    assert len(CODES) == len(NAMES) == 14
    assert (CODES["storage"], CODES["network"], CODES["ide"], CODES["hv-socket"]) == (1, 2, 13, 14)


@pytest.mark.parametrize(
    ("interface", "name", "code"),
    [
        ("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f", "storage", 1),
        ("00000050-facb-11e6-bd58-64006a7986d3", "hv-socket", 14),
        ("11111111-2222-3333-4444-555555555555", "", OWN),
    ],
)
def test_an_interface_has_a_name_and_a_code(interface: str, name: str, code: int) -> None:
    assert (device_name(Guid(interface)), device_code(name)) == (name, code)


def test_a_message_about_no_channel_has_no_device() -> None:
    assert device_code(None) == UNKNOWN == 0
