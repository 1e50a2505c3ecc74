"""What people have: digits as they come, dumps of the usual tools, and why something cannot be read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from partitions.decode.hexdump import hexdump
from partitions.decode.source import Form, SourceError, from_digits, from_text, read_source

# Bytes whose characters look like digits are the hard ones: a dump shows them again at the end of each line.
BYTES = st.one_of(
    st.binary(min_size=1, max_size=80),
    st.text("abcdef0123456789 .", min_size=1, max_size=80).map(str.encode),
    st.integers(1, 200).map(bytes),
)


def shown(data: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)


def xxd(data: bytes, group: int = 2, width: int = 16) -> str:
    """As `xxd` prints it."""
    lines = []
    for at in range(0, len(data), width):
        piece = data[at : at + width]
        groups = " ".join(piece[place : place + group].hex() for place in range(0, len(piece), group))
        lines.append(f"{at:08x}: {groups:<{2 * width + width // group - 1}}  {shown(piece)}")
    return "\n".join(lines)


def hexdump_c(data: bytes) -> str:
    """As `hexdump -C` prints it, repeated lines left out."""
    lines: list[str] = []
    previous = b""
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        if piece == previous and len(piece) == 16:
            if lines[-1] != "*":
                lines.append("*")
            continue
        previous = piece
        lines.append(f"{at:08x}  {piece[:8].hex(' '):<23}  {piece[8:].hex(' '):<23}  |{shown(piece)}|")
    return "\n".join([*lines, f"{len(data):08x}"])


def od(data: bytes) -> str:
    """As `od -Ax -tx1 -v` prints it."""
    rows = [f"{at:06x} {data[at : at + 16].hex(' ')}" for at in range(0, len(data), 16)]
    return "\n".join([*rows, f"{len(data):06x}"])


def monitor(data: bytes) -> str:
    """As QEMU's `xp /xb` prints it, far into memory."""
    rows = [data[at : at + 8] for at in range(0, len(data), 8)]
    return "\n".join(
        f"{0x6001000 + 8 * n:016x}: {' '.join(f'0x{byte:02x}' for byte in row)}" for n, row in enumerate(rows)
    )


@given(BYTES, st.sampled_from([xxd, hexdump_c, od, monitor, lambda data: "\n".join(hexdump(data))]))
def test_dumps(data: bytes, tool: object) -> None:
    """Each tool's dump is the bytes that it was made of, whatever their characters look like."""
    assert callable(tool)
    assert from_text(tool(data), "dump").data == data


@given(BYTES, st.lists(BYTES, max_size=2))
def test_several_dumps_of_one_packet(data: bytes, others: list[bytes]) -> None:
    """tshark -x writes a heading over each where dissectors have put bytes together: the first is the frame."""
    dumps = [("Frame", data), *(("SCSI command", other) for other in others)]
    text = "\n\n".join(f"{name} ({len(part)} bytes):\n" + "\n".join(hexdump(part)) for name, part in dumps)
    source = from_text(text, "dump")
    assert source.data == data
    assert ("the first of" in source.words) == bool(others)


@given(BYTES, st.sampled_from([(1, 16), (4, 32), (8, 16), (2, 8)]))
def test_dumps_in_other_widths(data: bytes, shape: tuple[int, int]) -> None:
    """xxd -g and -c."""
    assert from_text(xxd(data, *shape), "dump").data == data


@given(BYTES, st.sampled_from([" ", "", ":", ", ", " 0x", "\\x", "\n", "_"]))
def test_digits(data: bytes, between: str) -> None:
    """Digits with whatever people put between bytes."""
    text = between.join(f"{byte:02x}" for byte in data)
    assert from_digits(("0x" if between == " 0x" else "\\x" if between == "\\x" else "") + text, "here") == data


def test_words_of_memory() -> None:
    """gdb's and QEMU's words have their least significant byte first."""
    assert from_text("0x7f00 <ring>: 0x00000108 0x0000000c", "dump").data.hex() == "080100000c000000"
    assert from_text("6001000: 0x0000000600000005", "dump").data.hex() == "0500000006000000"


def windbg(data: bytes, width: int, *, characters: bool = False) -> str:
    """As WinDbg prints it: db, dw, dd or dc, dq."""
    rows = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        words = [piece[n : n + width][::-1].hex() for n in range(0, len(piece), width)]
        if width == 8:
            words = [f"{word[:8]}`{word[8:]}" for word in words]
        joined = (
            " ".join(words[: 8 // width])
            + ("-" if width == 1 and len(words) > 8 else " ")
            + " ".join(words[8 // width :])
        )
        tail = f"  {shown(piece)}" if characters or width == 1 else ""
        rows.append(f"ffffa305`{0x12340000 + at:08x}  {joined.rstrip()}{tail}")
    return "\n".join(rows)


@given(
    st.binary(min_size=2, max_size=5).map(lambda piece: (piece * 16)[:64]), st.sampled_from([1, 2, 4, 8]), st.booleans()
)
def test_windbg(data: bytes, width: int, characters: bool) -> None:
    """The debugger that the other side of the bus is looked at with."""
    data = data[: len(data) // width * width]
    assert from_text(windbg(data, width, characters=characters), "dump").data == data


@given(st.binary(max_size=200) | st.text("0123456789abcdefx:* |\n#.g", max_size=120).map(str.encode))
def test_anything(data: bytes) -> None:
    """Any file is something, or a refusal that says where."""
    try:
        source = read_source(data, "file")
    except SourceError as error:
        told = str(error)
    else:
        assert source.form in Form
        told = f"file: {source.words}"
    assert told.startswith("file")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("08 0g", "it, character 5: 'g' is no hexadecimal digit"),
        ("08 00\n00 zz\n", "it, line 2, column 4: 'z' is no hexadecimal digit"),
        (
            "0800 000",
            "it: 7 digits; two make a byte, so one is missing or one too many; group 2 has an odd number of them",
        ),
        ("080", "it: 3 digits; two make a byte, so one is missing or one too many"),
        ("  \n", "it: there are no digits in it"),
        ("00000000: 0800\n00000010: 0900", "it, line 2: offset 0x10 where 0x2 comes next; lines are missing, or"),
        ("00000000: 0800\nhello", "it, line 2: a dump's line begins with an offset, and this one does not"),
        ("00000000: 08zz", 'it, line 1: "08zz" is no group of hexadecimal digits'),
        ("0000: 0x123", 'it, line 1: "0x123" has 3 digits; words have 2, 4, 8 or 16'),
        ("*\n00000000: 00", "it, line 1: a line * stands for lines like the one before, and there is none"),
        ("00000000: 00\n*\n00000003:\n", None),
    ],
)
def test_complaints(text: str, complaint: str | None) -> None:
    """What cannot be read is named with its line or character."""
    if complaint is None:
        assert from_text(text, "it").data == bytes(3)
        return
    with pytest.raises(SourceError) as caught:
        from_text(text, "it")
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "file: it is empty"),
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "file: it is an old pcap capture"),
        (b"\x17\x08Dtracing6", "file: it is trace-cmd's binary file; make lines of it with `trace-cmd report`"),
        (b"PERFILE2" + bytes(30), "file: it is perf's binary file; make lines of it with `perf script`"),
        (b"\x1f\x8b\x08", "file: it is compressed with gzip"),
        (b"# tracer: nop\n#\n", "file: it is an ftrace without events of the bus; turn them on"),
    ],
)
def test_foreign_files(data: bytes, complaint: str) -> None:
    """A file of another program is called by its name, with what would do."""
    with pytest.raises(SourceError) as caught:
        read_source(data, "file")
    assert str(caught.value).startswith(complaint)


def test_bytes_as_they_are() -> None:
    """What is no text is bytes; text is too where somebody says so."""
    assert read_source(bytes(range(20)), "file").data == bytes(range(20))
    assert read_source(b"0800", "file").data == b"\x08\x00"
    assert read_source(b"0800", "file", binary=True).data == b"0800"
