"""Amounts as people write them in a topology: sizes, rates, times, and sets of processors. Root side."""

from __future__ import annotations

import re
from typing import Final

UNITS: Final = {"B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
RATE_UNITS: Final = {"BIT": 1, "KBIT": 10**3, "MBIT": 10**6, "GBIT": 10**9, "TBIT": 10**12}
TIME_UNITS: Final = {"NS": 1, "US": 10**3, "MS": 10**6, "S": 10**9}
LARGEST_SIZE: Final = 1 << 60
LARGEST_RATE: Final = 10**15
LONGEST: Final = 3600 * 10**9
"""Nanoseconds: an hour."""
_NUMBER: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)(?:/s)?")


class Size(int):
    """A number of bytes, written in the file as a whole number or with a unit: `"64MiB"`."""

    @classmethod
    def parse(cls, written: object) -> Size:
        """Bytes from what stands in the file. Raises `ValueError` with words for people."""
        if isinstance(written, bool) or not isinstance(written, int | str):
            raise ValueError('must be a size such as "64MiB" or a whole number of bytes')
        if isinstance(written, int):
            if written < 0:
                raise ValueError(f"must not be negative, is {written}")
            return cls(_at_most(written, LARGEST_SIZE, "bytes"))
        match = _NUMBER.fullmatch(written.strip())
        if match is None or written.strip().endswith("/s"):
            raise ValueError(f'must be a size such as "64MiB", is "{written}"')
        number, unit = match.groups()
        if (factor := UNITS.get(unit.upper() or "B")) is None:
            meant = f"{unit[0].upper()}iB"
            if unit.upper() in {"K", "M", "G", "T", "KB", "MB", "GB", "TB"}:
                raise ValueError(f'has the unit "{unit}"; write "{number}{meant}" (powers of 1024)')
            raise ValueError(f'has the unknown unit "{unit}"; known are B, KiB, MiB, GiB, TiB')
        return cls(_at_most(_whole(number, factor, written, "bytes"), LARGEST_SIZE, "bytes"))


class Rate(int):
    """Bits a second, written in the file as a whole number or with a unit: `"8Mbit"`."""

    @classmethod
    def parse(cls, written: object) -> Rate:
        """Bits a second from what stands in the file. Raises `ValueError` with words for people."""
        if isinstance(written, bool) or not isinstance(written, int | str):
            raise ValueError('must be a rate such as "8Mbit" or a whole number of bits a second')
        if isinstance(written, int):
            if written < 0:
                raise ValueError(f"must not be negative, is {written}")
            return cls(_at_most(written, LARGEST_RATE, "bits a second"))
        match = _NUMBER.fullmatch(written.strip())
        if match is None:
            raise ValueError(f'must be a rate such as "8Mbit", is "{written}"')
        number, unit = match.groups()
        if (factor := RATE_UNITS.get(unit.upper() or "BIT")) is None:
            known = "bit, Kbit, Mbit, Gbit, Tbit (powers of 1000)"
            raise ValueError(f'has the unknown unit "{unit}"; known are {known}, each a second')
        whole = _whole(number, factor, written, "bits a second")
        return cls(_at_most(whole, LARGEST_RATE, "bits a second"))


class Duration(int):
    """Nanoseconds, written in the file with a unit: `"50ms"`."""

    @classmethod
    def parse(cls, written: object) -> Duration:
        """Nanoseconds from what stands in the file. Raises `ValueError` with words for people."""
        if isinstance(written, int | float) and not isinstance(written, bool):
            if written == 0 and isinstance(written, int):
                return cls(0)
            raise ValueError(f'has no unit; write "{written}ms" for milliseconds (known are ns, us, ms, s)')
        text = written.strip() if isinstance(written, str) else ""
        match = _NUMBER.fullmatch(text)
        if match is None or text.endswith("/s"):
            raise ValueError('must be a time such as "50ms"')
        number, unit = match.groups()
        if (factor := TIME_UNITS.get(unit.upper())) is None:
            unknown = f'has the unknown unit "{unit}"' if unit else f'has no unit; write "{number}ms" for milliseconds'
            raise ValueError(f"{unknown}; known are ns, us, ms, s")
        whole = _whole(number, factor, text, "nanoseconds")
        if whole > LONGEST:
            raise ValueError(f'must be at most an hour, is "{written}"')
        return cls(whole)


def _whole(number: str, factor: int, written: str, what: str) -> int:
    """Digits, perhaps with a point, times the factor; exactly."""
    before, _, behind = number.partition(".")
    tens: int = 10 ** len(behind)
    whole, left = divmod(int(before + behind) * factor, tens)
    if left:
        raise ValueError(f'must be a whole number of {what}, "{written}" is not')
    return whole


def _at_most(amount: int, most: int, what: str) -> int:
    if amount > most:
        raise ValueError(f"must be at most {most} {what}, is {amount}")
    return amount


def size_words(size: int) -> str:
    """Bytes for people: the largest unit that divides them, so nothing is rounded."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"


def rate_words(rate: int) -> str:
    """Bits a second for people, not rounded."""
    for unit, factor in (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("Kbit/s", 10**3)):
        if rate >= factor and rate % (factor // 1000) == 0:
            return f"{rate / factor:.3f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{rate} bit/s"


def duration_words(duration: int) -> str:
    """Nanoseconds as `Duration` takes them, not rounded."""
    for unit, factor in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if duration and duration % (factor // 1000) == 0 and duration >= factor:
            return f"{duration / factor:.10g}{unit}"
    return f"{duration}ns" if duration else "0ms"


def parse_processors(written: str) -> frozenset[int]:
    """Logical processors as people list them: `"0-3, 8"`. Raises `ValueError` with words for people."""
    found: set[int] = set()
    for part in written.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if match is None:
            raise ValueError(f'must list logical processors such as "0-3" or "0, 2-5", is "{written}"')
        first = int(match[1])
        last = first if match[2] is None else int(match[2])
        if last < first:
            raise ValueError(f'"{part.strip()}" goes backwards; write "{last}-{first}"')
        twice = found.intersection(range(first, last + 1))
        if twice:
            raise ValueError(f"names processor {min(twice)} twice")
        found.update(range(first, last + 1))
    return frozenset(found)


def processors_words(processors: frozenset[int]) -> str:
    """The same list, as short as it can be written."""
    ranges: list[list[int]] = []
    for number in sorted(processors):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
