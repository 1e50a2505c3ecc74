"""Ports, services and what an offer says of a socket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import Guid
from vmbus.protocol import hvsocket
from vmbus.protocol.features import OfferFlag


@given(st.integers(0, 0xFFFF_FFFF))
def test_a_port_is_a_service(port: int) -> None:
    """A port's number stands in the first group of the template, and comes out of it again."""
    service = hvsocket.service_of(port)
    assert str(service) == f"{port:08x}-facb-11e6-bd58-64006a7986d3"
    assert hvsocket.port_of(service) == port
    assert hvsocket.parse_service(str(port)) == hvsocket.parse_service(str(service).upper()) == service
    assert hvsocket.service_words(service) == f"port {port}"


def test_a_service_of_its_own_has_no_port() -> None:
    """A GUID that does not follow the template is a service all the same."""
    service = Guid("ee59b4bf-a573-48d0-9c51-bb0e72c2b139")
    assert hvsocket.port_of(service) is None
    assert hvsocket.parse_service("EE59B4BF-A573-48D0-9C51-BB0E72C2B139") == service
    assert hvsocket.service_words(service) == "ee59b4bf-a573-48d0-9c51-bb0e72c2b139"


@pytest.mark.parametrize(
    "text", ["", "-1", "4294967296", "80 ", "0x50", "\u0668\u0660", "web", "{00000050-facb-11e6-bd58-64006a7986d3}"]
)
def test_what_is_no_service(text: str) -> None:
    """Only a decimal port or a bare GUID names a service."""
    with pytest.raises(ValueError, match=r"neither a port|no port"):
        hvsocket.parse_service(text)


def test_an_offer_of_a_socket() -> None:
    """The bytes that openvmm's offers have: a byte pipe, who asked, and version 1 where it is not aligned."""
    expected = bytes.fromhex("00000000 01 00 01000000") + bytes(110)
    assert hvsocket.user_defined(is_for_guest_accept=True) == expected
    assert hvsocket.user_defined(is_for_guest_accept=False) == bytes(6) + b"\1" + bytes(113)
    assert hvsocket.OFFER_FLAGS == 0x2011
    assert hvsocket.is_socket(hvsocket.OFFER_FLAGS)
    assert not hvsocket.is_socket(OfferFlag.NAMED_PIPE_MODE)
