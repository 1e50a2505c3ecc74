"""A few words of AML, the byte code of ACPI tables: enough to describe a VMBus device. Root side.

Source: ACPI specification 6.5, chapter 20 (AML) and section 6.4 (resource data types). Each function returns the bytes
of one term, so a table is an expression. `iasl -d` reads the result back.
"""

from __future__ import annotations

import struct

_ZERO, _ONE, _NAME, _BYTE, _WORD, _DWORD, _STRING, _SCOPE, _BUFFER = (
    0x00,
    0x01,
    0x08,
    0x0A,
    0x0B,
    0x0C,
    0x0D,
    0x10,
    0x11,
)
_EXTENDED, _DEVICE, _METHOD, _RETURN, _PACKAGE = 0x5B, 0x82, 0x14, 0xA4, 0x12


def _with_length(head: bytes, body: bytes) -> bytes:
    """A PkgLength counts itself: one byte up to 63, then four bits in the lead byte and up to three bytes more."""
    if len(body) + 1 < 0x40:
        return head + bytes([len(body) + 1]) + body
    for extra in (1, 2, 3):
        total = len(body) + 1 + extra
        if total < 1 << (4 + 8 * extra):
            lead = bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
            return head + lead + body
    raise ValueError(f"an AML package of {len(body)} bytes is too long")


def _segment(name: str) -> bytes:
    """One name of at most four characters, padded with underscores."""
    return name.ljust(4, "_").encode("ascii")


def integer(value: int) -> bytes:
    """The shortest term for a constant of up to 32 bits."""
    if value in (0, 1):
        return bytes([value])
    for opcode, code, top in ((_BYTE, "<BB", 0xFF), (_WORD, "<BH", 0xFFFF), (_DWORD, "<BI", 0xFFFF_FFFF)):
        if value <= top:
            return struct.pack(code, opcode, value)
    raise ValueError(f"{value:#x} does not fit 32 bits")


def string(text: str) -> bytes:
    """A string constant."""
    return bytes([_STRING]) + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed seven-character device ID such as PNP0A05."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | (ord(letter) - 0x40)
    value = struct.pack(">HH", letters, int(text[3:], 16))
    return bytes([_DWORD]) + value


def name(label: str, value: bytes) -> bytes:
    """Name (label, value)."""
    return bytes([_NAME]) + _segment(label) + value


def scope(label: str, *terms: bytes) -> bytes:
    r"""Scope (\label) { terms }."""
    return _with_length(bytes([_SCOPE]), b"\\" + _segment(label) + b"".join(terms))


def device(label: str, *terms: bytes) -> bytes:
    """Device (label) { terms }."""
    return _with_length(bytes([_EXTENDED, _DEVICE]), _segment(label) + b"".join(terms))


def method_returning(label: str, value: bytes) -> bytes:
    """Method (label, 0) { Return (value) }."""
    return _with_length(bytes([_METHOD]), _segment(label) + b"\0" + bytes([_RETURN]) + value)


def package(*elements: bytes) -> bytes:
    """Package () { elements }."""
    return _with_length(bytes([_PACKAGE]), bytes([len(elements)]) + b"".join(elements))


def resources(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }, closed by an end tag without a checksum."""
    data = b"".join(descriptors) + b"\x79\0"
    return _with_length(bytes([_BUFFER]), integer(len(data)) + data)


def memory_window(base: int, length: int) -> bytes:
    """DWordMemory, produced for the devices below: fixed minimum and maximum, read and write (ACPI 6.4.3.5.2)."""
    last = base + length - 1
    return struct.pack("<BHBBBIIIII", 0x87, 23, 0, 0x0C, 0x01, 0, base, last, 0, length)


def io_ports(base: int, length: int) -> bytes:
    """IO (Decode16, base, base, 1, length) (ACPI 6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, length)


def irq(line: int) -> bytes:
    """IRQNoFlags () {line}: edge, active high (ACPI 6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << line)
