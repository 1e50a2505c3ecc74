"""Layouts: declared once, checked at import, read in one fetch."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisor.wire import Guid, ShortMessage, Wire, WireError, at, wire
from hypervisor.wire.scalars import bytes4, guid, u8, u16, u32, u64


@wire(size=40, spec="made up for this test")
class Sample(Wire):
    """A layout with a gap, a GUID, bytes and a tail of padding."""

    KIND: ClassVar[int] = 7

    kind: u8 = at(0x00)
    flags: u16 = at(0x02, default=0)
    length: u32 = at(0x04, default=0)
    address: u64 = at(0x08, default=0)
    instance: guid = at(0x10, default=Guid())
    tag: bytes4 = at(0x20, default=b"\0\0\0\0")

    def doubled(self) -> int:
        return self.kind * 2


@wire(size=8, spec="made up for this test", order=">")
class BigEndian(Wire):
    """SCSI's byte order."""

    operation: u8 = at(0)
    block: u32 = at(2)


def test_bytes_follow_the_declared_offsets() -> None:
    sample = Sample(
        kind=1,
        flags=0x0302,
        length=0x07060504,
        address=0x0F0E0D0C0B0A0908,
        instance=Guid(bytes(range(16, 32))),
        tag=b"abcd",
    )

    expected = bytes([1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, *range(16, 32)]) + b"abcd" + bytes(4)

    assert expected == sample.encode()
    assert sample == Sample.decode(expected)


def test_big_endian_layouts() -> None:
    assert BigEndian(operation=0x28, block=0x01020304).encode() == bytes.fromhex("2800010203040000")


def test_encode_into_writes_at_an_offset_and_nowhere_else() -> None:
    memory = bytearray(b"\xff" * 60)
    Sample(kind=9).encode_into(memory, 10)

    assert memory[:10] == b"\xff" * 10
    assert memory[50:] == b"\xff" * 10
    assert Sample.decode(memory, 10) == Sample(kind=9)


def test_padding_is_written_as_zero_and_ignored_when_read() -> None:
    dirty = bytearray(Sample(kind=1).encode())
    dirty[1] = dirty[39] = 0xEE

    assert Sample.decode(dirty) == Sample(kind=1)


def test_class_members_survive_the_decorator() -> None:
    assert Sample.KIND == 7
    assert Sample(kind=4).doubled() == 8
    assert [(field.name, field.offset) for field in Sample.FIELDS][-1] == ("tag", 0x20)
    assert Sample.__doc__ is not None


def test_values_are_snapshots() -> None:
    """A decoded value never changes with the memory it came from."""
    memory = bytearray(Sample(kind=1).encode())
    sample = Sample.decode(memory)
    memory[0] = 2

    assert sample.kind == 1
    with pytest.raises(AttributeError):
        sample.kind = 3  # type: ignore[misc]


@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_give_a_value_or_a_wire_error(data: bytes, offset: int) -> None:
    try:
        sample = Sample.decode(data, offset)
    except WireError:
        assert len(data) - offset < Sample.SIZE
    else:
        assert Sample.decode(sample.encode()) == sample


def test_a_short_message_says_what_was_needed() -> None:
    with pytest.raises(ShortMessage, match="Sample: 40 bytes needed, 5 there"):
        Sample.decode(bytes(5))


def test_an_overlap_is_refused_at_import() -> None:
    with pytest.raises(TypeError, match="overlaps"):

        @wire(size=8, spec="")
        class Bad(Wire):
            first: u32 = at(0)
            second: u32 = at(2)


def test_a_wrong_size_is_refused_at_import() -> None:
    with pytest.raises(TypeError, match="its fields end at 8"):

        @wire(size=4, spec="")
        class Bad(Wire):
            first: u64 = at(0)


def test_a_field_without_an_offset_is_refused_at_import() -> None:
    with pytest.raises(TypeError, match="has no at"):

        @wire(size=4, spec="")
        class Bad(Wire):
            first: u32 = 5


def test_a_guid_reads_as_people_write_it() -> None:
    """The SCSI interface GUID, bytes as Linux's driver declares them."""
    scsi = Guid("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f")

    assert bytes.fromhex("d96361baa104294db60572e2ffb1dc7f") == scsi
    assert str(scsi) == "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f"
    with pytest.raises(ValueError, match="16 bytes"):
        Guid(b"short")
