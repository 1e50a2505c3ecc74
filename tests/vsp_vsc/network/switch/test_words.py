"""Addresses, VLANs and rules as people write them."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.network.switch.acl import EVERYWHERE, Rule, parse_end
from vsp_vsc.network.switch.addresses import mac_words, parse_mac
from vsp_vsc.network.switch.frames import says, tagged, untagged, vlan_of
from vsp_vsc.network.switch.settings import parse_vlans, vlan_words


@given(st.binary(min_size=6, max_size=6))
def test_addresses_come_back(address: bytes) -> None:
    """In each of the three ways of writing."""
    words = mac_words(address)
    assert (
        parse_mac(words) == parse_mac(words.replace("-", ":").lower()) == parse_mac(words.replace("-", "")) == address
    )


@pytest.mark.parametrize("written", ["", "00-15-5D", "00-15:5D-01-02-03", "00-15-5D-01-02-0G", "00-15-5D-01-02-03-04"])
def test_what_is_no_address_is_said(written: str) -> None:
    """With one that is."""
    with pytest.raises(ValueError, match="00-15-5D-01-02-03"):
        parse_mac(written)


@given(st.frozensets(st.integers(1, 4094), min_size=1))
def test_vlans_come_back(vlans: frozenset[int]) -> None:
    """As ranges."""
    assert parse_vlans(vlan_words(vlans)) == vlans


@pytest.mark.parametrize("written", ["", "0", "4095", "5-4", "1,,2", "a"])
def test_what_is_no_vlan_is_said(written: str) -> None:
    """1 to 4094, the lower first."""
    with pytest.raises(ValueError, match="VLANs"):
        parse_vlans(written)


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_prefixes_fit_what_the_standard_library_says(base: object, prefix: int, other: object) -> None:
    """For either version."""
    network = ipaddress.ip_network((str(base), min(prefix, 128 if ":" in str(base) else 32)), strict=False)
    address = ipaddress.ip_address(str(other))
    end = parse_end(str(network))
    assert end.fits(address.packed) == (address in network)
    assert str(end) == str(network)


def test_ends_of_rules() -> None:
    """Words for what was probably meant."""
    assert parse_end("Any") is EVERYWHERE
    with pytest.raises(ValueError, match=r'write "10\.0\.0\.0/8"'):
        parse_end("10.1.2.3/8")
    with pytest.raises(ValueError, match="an IP prefix"):
        parse_end("ten")
    with pytest.raises(ValueError, match="of one kind"):
        Rule("deny", "in", parse_end("10.0.0.0/8"), parse_end("00-15-5D-01-02-03"))  # type: ignore[arg-type]


@given(st.binary(min_size=14, max_size=200), st.integers(1, 4094))
def test_tags_come_off_as_they_went_on(frame: bytes, vlan: int) -> None:
    """And any bytes can be looked at."""
    assert untagged(tagged(frame, vlan)) == frame
    assert vlan_of(tagged(frame, vlan)) == vlan
    for kind in (b"\x08\x00", b"\x86\xdd"):
        says(frame[:12] + kind + frame[14:])


@given(st.text(max_size=40) | st.from_regex(r"[0-9a-f:./ -]*", fullmatch=True))
def test_any_words_are_a_value_or_an_error_with_words(written: str) -> None:
    """People write them, and programs by the control socket."""
    for parse in (parse_end, parse_mac, parse_vlans):
        with contextlib.suppress(ValueError):
            parse(written)
