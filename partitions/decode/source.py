"""What a person has: hexadecimal digits, a dump of some tool's, plain bytes, a trace. Root side.

    plain digits      0800 0000 05, 0x08 0x00, 08:00:00, \\x08\\x00
    xxd, hexdump -C   00000000: 0800 0000 0500 0000  ........
    Wireshark, od     0000   08 00 00 00 05 00
    gdb, QEMU's xp    0x7f00: 0x08 0x00 0x00 0x00, or words of four or eight bytes, the least significant byte first
    WinDbg            fffff800`12340000  08 00 00 00 05 00 00 00-10 1e (db), or words (dw, dd, dq, dc)

Everything that is no trace becomes bytes; what cannot be read is a `SourceError` that names the place.
"""

from __future__ import annotations

import enum
import re

import msgspec

from partitions.decode.ftrace import NO_EVENTS, REMEDY, is_ftrace

PCAPNG = b"\x0a\x0d\x0d\x0a"
_FOREIGN = (
    (b"\xd4\xc3\xb2\xa1", "an old pcap capture; only recordings of this program in pcapng are read"),
    (b"\xa1\xb2\xc3\xd4", "an old pcap capture; only recordings of this program in pcapng are read"),
    (b"tracing", "trace-cmd's binary file; make lines of it with `trace-cmd report`"),
    (b"\x17\x08\x44", "trace-cmd's binary file; make lines of it with `trace-cmd report`"),
    (b"PERFILE2", "perf's binary file; make lines of it with `perf script`"),
    (b"\x1f\x8b", "compressed with gzip; unpack it with `zcat` first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it with `zstdcat` first"),
)


class Form(enum.Enum):
    """What is in a source."""

    BYTES = "bytes"
    JSON = "JSON lines"
    FTRACE = "ftrace"
    RECORDING = "recording"


class Source(msgspec.Struct, frozen=True):
    """Something read and told apart."""

    form: Form
    data: bytes
    """Bytes to decode, or the trace as it is."""
    words: str
    """How it was read, for people."""


class SourceError(ValueError):
    """This cannot be read. The text says where, why and what would do."""

    def __init__(self, place: str, reason: str, remedy: str = "") -> None:
        super().__init__(": ".join(filter(None, (place, reason))) + (f"; {remedy}" if remedy else ""))
        self.place = place
        self.reason = reason
        self.remedy = remedy


def read_source(data: bytes, place: str, *, binary: bool | None = None) -> Source:
    """Tell what a file or standard input holds. `binary` says that its bytes are meant, or that it is text."""
    if not data:
        raise SourceError(place, "it is empty")
    if binary:
        return Source(Form.BYTES, data, "bytes as they are")
    if data.startswith(PCAPNG):
        return Source(Form.RECORDING, data, "a recording")
    for magic, words in _FOREIGN:
        if data.startswith(magic):
            raise SourceError(place, f"it is {words}")
    if binary is None and not _is_text(data):
        return Source(Form.BYTES, data, "bytes as they are")
    text = data.decode("utf-8", "replace")
    if text.lstrip().startswith("{"):
        return Source(Form.JSON, data, "JSON lines")
    lines = text.splitlines()
    if any(is_ftrace(line) for line in lines[:2000]):
        return Source(Form.FTRACE, data, "an ftrace of a Linux guest")
    if text.startswith("# tracer:"):
        raise SourceError(place, f"it is {NO_EVENTS}", REMEDY)
    return from_text(text, place)


def _is_text(data: bytes) -> bool:
    return not data.translate(None, _TEXT)


_TEXT = bytes([9, 10, 12, 13, *range(0x20, 0x7F), *range(0x80, 0x100)])


def from_text(text: str, place: str) -> Source:
    """Digits or a dump. Raises `SourceError`."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip() and line[:1] != "#"]
    if not lines:
        raise SourceError(place, "there are no digits in it")
    headings = [index for index, (_, line) in enumerate(lines) if _HEADING.match(line)]
    if headings and not headings[0] and len(lines) > 1:
        dumps = [*headings, len(lines)]
        first = _from_dump(lines[1 : dumps[1]], place)
        if len(headings) == 1:
            return first
        return Source(first.form, first.data, f"{first.words}, the first of {len(headings)}")
    if any(_OFFSET.match(line) or _WINDBG.match(line) for _, line in lines):
        return _from_dump(lines, place)
    try:
        if len(lines) > 1 or _dump_bytes(_split(lines[0][1], "")[1], "")[1]:
            return _from_dump(lines, place)
    except SourceError:
        pass  # offsets that do not fit are no offsets
    return Source(Form.BYTES, from_digits(text, place), "hexadecimal digits")


_OFFSET = re.compile(
    r"^\s*(?:\[[ \d.]+\]\s*)?(?:[\w.\-]+:? )*?(?:0x)?(?P<at>[0-9a-fA-F]{4,16})(?:\s*<[^>]*>)?:(?=\s|$)"
)
"""Where an offset, which a colon ends, tells that this is a dump."""
_HEADING = re.compile(r"^\S.* \(\d+ bytes?\):$")
"""What Wireshark writes over each dump where a packet has several: the frame, and what dissectors have made of it."""
_BARE_OFFSET = re.compile(r"^\s*(?P<at>[0-9a-fA-F]{4,16})(?=\s|$)")
_WORD = re.compile(r"0x[0-9a-fA-F]+$")
_GROUP = re.compile(r"(?:[0-9a-fA-F]{2}){1,8}$")
_TOKEN = re.compile(r"\S+")


_WINDBG = re.compile(r"^\s*(?P<high>[0-9a-f]{8})`(?P<low>[0-9a-f]{8})\s\s?(?P<rest>.*)$", re.IGNORECASE)
_HALVES = re.compile(r"\b([0-9a-f]{8})`([0-9a-f]{8})\b", re.IGNORECASE)
_LINE_BYTES = 16


def _windbg(rest: str) -> str:
    """Words with 0x in front, and the dash between two halves of a line left out."""
    rest = _HALVES.sub(r"0x\1\2", rest)
    first = rest.split(maxsplit=1)[0] if rest.strip() else ""
    if len(first) in (4, 8):
        return re.sub(rf"\b(?=[0-9a-fA-F]{{{len(first)}}}\b)", "0x", rest, count=2 * _LINE_BYTES // len(first))
    return re.sub(r"(?<=\b[0-9a-fA-F]{2})-(?=[0-9a-fA-F]{2}\b)", " ", rest, count=1)


def _split(line: str, where: str) -> tuple[int, str]:
    """The offset in front of a line, and the rest of it."""
    windbg = _WINDBG.match(line)
    if windbg is not None:
        return int(windbg["high"] + windbg["low"], 16), _windbg(windbg["rest"])
    found = _OFFSET.match(line) or _BARE_OFFSET.match(line)
    if found is None:
        raise SourceError(where, "a dump's line begins with an offset, and this one does not")
    return int(found["at"], 16), line[found.end() :]


def _from_dump(lines: list[tuple[int, str]], place: str) -> Source:
    made = bytearray()
    first = 0
    previous = b""
    starred = False
    for index, (number, line) in enumerate(lines):
        where = f"{place}, line {number}"
        if line.strip() == "*":
            if not previous:
                raise SourceError(where, "a line * stands for lines like the one before, and there is none")
            starred = True
            continue
        at, rest = _split(line, where)
        if not index:
            first = at
        gap = at - first - len(made)
        if starred and gap > 0 and not gap % len(previous) and at - first <= _LONGEST:
            made += previous * (gap // len(previous))
            gap = 0
        if gap:
            reason = f"offset {at:#x} where {first + len(made):#x} comes next"
            raise SourceError(where, reason, "lines are missing, or have another number of bytes than they say")
        starred = False
        if index and index == len(lines) - 1 and rest.strip() in ("", ":"):
            break  # hexdump and od end with the offset behind the last byte
        previous = _dump_bytes(rest.lstrip(" :\t"), where)[0]
        made += previous
    start = f", which begin at {first:#x}" if first else ""
    return Source(Form.BYTES, bytes(made), f"a dump of {len(made)} bytes{start}")


_LONGEST = 1 << 26


def _dump_bytes(rest: str, where: str) -> tuple[bytes, bool]:
    """The bytes of one line, and whether they stand behind them as characters again."""
    made = bytearray()
    end = 0
    for token in _TOKEN.finditer(rest):
        word = token.group()
        gap = token.start() - end
        if made and gap > 1 and _is_characters(rest[token.start() :], bytes(made)):
            return bytes(made), True
        if _WORD.match(word):
            digits = word[2:]
            if len(digits) not in (2, 4, 8, 16):
                raise SourceError(where, f'"{word}" has {len(digits)} digits; words have 2, 4, 8 or 16')
            made += int(digits, 16).to_bytes(len(digits) // 2, "little")
        elif _GROUP.match(word):
            made += bytes.fromhex(word)
        elif made and gap > 1:
            return bytes(made), True
        else:
            raise SourceError(where, f'"{word}" is no group of hexadecimal digits')
        end = token.end()
    if not made:
        raise SourceError(where, "there are no bytes behind the offset")
    return bytes(made), False


def _is_characters(rest: str, data: bytes) -> bool:
    shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
    return rest.strip().strip("|").replace(" ", "") == shown.replace(" ", "")


_DIGITS = frozenset("0123456789abcdefABCDEF")
_WITHOUT_SEPARATORS = str.maketrans("", "", " \t\r\n,:;-_|{}[]()\"'")
_SEPARATORS = frozenset(" \t\r\n,:;-_|{}[]()\"'")


def from_digits(text: str, place: str) -> bytes:
    """Pairs of digits, with whatever people put between them. Raises `SourceError` naming the character."""
    plain = text.translate(_WITHOUT_SEPARATORS)
    if plain and not len(plain) % 2 and _DIGITS.issuperset(plain):
        return bytes.fromhex(plain)
    digits: list[str] = []
    column, line = 0, 1
    position = 0
    groups: list[int] = [0]
    while position < len(text):
        character = text[position]
        column += 1
        if character == "\n":
            line, column = line + 1, 0
        pair = text[position : position + 2].lower()
        if pair == "\\x" or (pair == "0x" and (position == 0 or text[position - 1] not in _DIGITS)):
            position += 2
            column += 1
            groups.append(0)
            continue
        if character in _SEPARATORS:
            groups.append(0)
        elif character in _DIGITS:
            digits.append(character)
            groups[-1] += 1
        else:
            at = f"character {position + 1}" if "\n" not in text.rstrip("\n") else f"line {line}, column {column}"
            raise SourceError(f"{place}, {at}", f"{character!r} is no hexadecimal digit")
        position += 1
    if not digits:
        raise SourceError(place, "there are no digits in it")
    if len(digits) % 2:
        short = next((index for index, size in enumerate(group for group in groups if group) if size % 2), 0)
        reason = f"{len(digits)} digits; two make a byte, so one is missing or one too many"
        many = sum(1 for group in groups if group) > 1
        raise SourceError(place, reason, f"group {short + 1} has an odd number of them" if many else "")
    return bytes.fromhex("".join(digits))
