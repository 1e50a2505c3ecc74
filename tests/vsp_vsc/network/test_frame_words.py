"""Frames in a few words: what a reader of a trace needs to follow a ping through ARP, RNDIS and the bus."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsp_vsc.network.frame_words import batch_words, frame_words
from vsp_vsc.network.switch.frames import tagged

ONE, TWO = bytes.fromhex("00155d000001"), bytes.fromhex("00155d000002")
A, B = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6 = bytes.fromhex("fe80" + "00" * 13 + "01"), bytes.fromhex("fe80" + "00" * 13 + "02")


def arp(operation: int, sender: bytes, target: bytes) -> bytes:
    return b"".join(
        (TWO, ONE, b"\x08\x06\x00\x01\x08\x00\x06\x04", operation.to_bytes(2, "big"), ONE, sender, bytes(6), target)
    )


def ipv4(protocol: int, carried: bytes, *, fragment: int = 0, options: int = 0) -> bytes:
    first = bytes((0x45 + options, 0, 0, 0, 0, 0)) + fragment.to_bytes(2, "big") + bytes((64, protocol, 0, 0))
    return TWO + ONE + b"\x08\x00" + first + A + B + bytes(4 * options) + carried


def ipv6(protocol: int, carried: bytes) -> bytes:
    return TWO + ONE + b"\x86\xdd" + bytes((0x60, 0, 0, 0, 0, 0, protocol, 64)) + A6 + B6 + carried


UDP = (49152).to_bytes(2, "big") + (7).to_bytes(2, "big") + bytes(4)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (arp(1, A, B), "ARP who has 10.0.0.2? tell 10.0.0.1"),
        (arp(2, A, B), "ARP 10.0.0.1 is at 00-15-5D-00-00-01"),
        (arp(1, A, A), "ARP 10.0.0.1 is at 00-15-5D-00-00-01"),
        (arp(1, A, B)[:41], "ARP 00-15-5D-00-00-01 > 00-15-5D-00-00-02"),
        (ipv4(1, b"\x08"), "ICMP echo request 10.0.0.1 > 10.0.0.2"),
        (ipv4(1, b"\x00", options=2), "ICMP echo reply 10.0.0.1 > 10.0.0.2"),
        (ipv4(1, b"\x63"), "ICMP type 99 10.0.0.1 > 10.0.0.2"),
        (ipv4(1, b""), "ICMP 10.0.0.1 > 10.0.0.2"),
        (ipv4(58, b"\x80"), "ICMPv6 10.0.0.1 > 10.0.0.2"),
        (ipv4(1, b"\x08", fragment=0x2000), "ICMP echo request 10.0.0.1 > 10.0.0.2, first fragment"),
        (ipv4(1, b"\x08", fragment=0x2000 + 185), "ICMP 10.0.0.1 > 10.0.0.2, fragment at 1480"),
        (ipv4(17, UDP), "UDP 10.0.0.1:49152 > 10.0.0.2:7"),
        (ipv4(17, UDP[:3]), "UDP 10.0.0.1 > 10.0.0.2"),
        (ipv4(6, UDP + bytes((0, 0, 0, 0, 0x50, 0x12))), "TCP SYN ACK 10.0.0.1:49152 > 10.0.0.2:7"),
        (ipv4(132, UDP), "IP protocol 132 10.0.0.1 > 10.0.0.2"),
        (ipv6(17, UDP), "UDP [fe80::1]:49152 > [fe80::2]:7"),
        (ipv6(58, b"\x87"), "ICMPv6 neighbour solicitation fe80::1 > fe80::2"),
        (tagged(arp(1, A, B), 7), "VLAN 7, ARP who has 10.0.0.2? tell 10.0.0.1"),
        (TWO + ONE + b"\x88\xcc", "ethertype 0x88cc 00-15-5D-00-00-01 > 00-15-5D-00-00-02"),
        (ONE, "6 bytes, no frame"),
    ],
)
def test_what_a_frame_is_about(frame: bytes, words: str) -> None:
    """Who asks whom, by address and port; of what is cut off or unknown, what there is."""
    assert frame_words(frame) == words


def test_a_batch_names_its_first_frames() -> None:
    """Their number always stands first, and no batch makes a line without end."""
    assert batch_words([arp(1, A, B)]) == "1 frame: ARP who has 10.0.0.2? tell 10.0.0.1"
    assert batch_words([ipv4(17, UDP)] * 2) == "2 frames: " + "; ".join(["UDP 10.0.0.1:49152 > 10.0.0.2:7"] * 2)
    assert batch_words([ipv4(17, UDP)] * 64).endswith("; ...")
    assert len(batch_words([ipv4(17, UDP)] * 64)) < 200


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x06", b"\x08\x00", b"\x86\xdd", b"\x81\x00"]))
def test_any_bytes_have_words(untrusted: bytes, ethertype: bytes) -> None:
    """A guest's frame is whatever it is; telling of it never raises, and stays one line of letters."""
    frame = TWO + ONE + ethertype + untrusted
    assert frame_words(frame).isprintable()
    assert frame_words(untrusted).isprintable()
