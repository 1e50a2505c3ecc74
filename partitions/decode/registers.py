"""Synthetic MSRs as trees of fields: which one, and what its value says. Root side."""

from __future__ import annotations

from hypervisor import msr as registers
from hypervisor.msr import Msr
from hypervisor.synic.timer_registers import CONFIG_BITS
from partitions.decode.field import Bits, Field, Hint, group, number, raw
from partitions.decode.words import enum_words, yes_no

_NAME = enum_words(Msr)


def _page(value: int) -> str:
    return f"GPA {value << 12:#x}"


def _vendor(value: int) -> str:
    return "Microsoft" if value == 1 else "none is set" if value == 0 else "unknown"


_OPEN_SOURCE_SYSTEMS = {1: "Linux", 2: "FreeBSD", 3: "Xen", 4: "Illumos"}
_OPEN_SOURCE = Hint(
    bits=(
        Bits("open_source", 63, 63, yes_no),
        Bits("system", 62, 56, lambda value: _OPEN_SOURCE_SYSTEMS.get(value, "unknown")),
        Bits("distribution", 55, 48),
        Bits("version", 47, 16, lambda value: f"{value >> 16}.{value >> 8 & 0xFF}.{value & 0xFF}"),
        Bits("build", 15, 0),
    )
)
_PROPRIETARY = Hint(
    bits=(
        Bits("open_source", 63, 63, yes_no),
        Bits("vendor", 62, 48, _vendor),
        Bits("system", 47, 40),
        Bits("major", 39, 32),
        Bits("minor", 31, 24),
        Bits("service_pack", 23, 16),
        Bits("build", 15, 0),
    )
)
_PLACE = Hint(bits=(Bits("page", 63, 12, _page), Bits("reserved", 11, 1), Bits("enable", 0, 0, yes_no)))
_HYPERCALL = Hint(
    bits=(
        Bits("page", 63, 12, _page),
        Bits("reserved", 11, 2),
        Bits("locked", 1, 1, yes_no),
        Bits("enable", 0, 0, yes_no),
    )
)
_SCONTROL = Hint(bits=(Bits("reserved", 63, 1), Bits("enable", 0, 0, yes_no)))
_SINT = Hint(
    bits=(
        Bits("reserved2", 63, 20),
        Bits("as_intercept", 19, 19, yes_no),
        Bits("polling", 18, 18, yes_no),
        Bits("auto_eoi", 17, 17, yes_no),
        Bits("masked", 16, 16, yes_no),
        Bits("reserved1", 15, 8),
        Bits("vector", 7, 0, lambda value: f"{value:#04x}"),
    )
)
_TIMER = Hint(
    bits=(
        Bits("reserved2", 63, 20),
        Bits("sint", 19, 16),
        Bits("reserved1", 15, 13),
        Bits("direct", 12, 12, lambda value: "an interrupt with the vector" if value else "a message to the SINT"),
        Bits("vector", 11, 4, lambda value: f"{value:#04x}"),
        Bits("auto_enable", 3, 3, yes_no),
        Bits("lazy", 2, 2, yes_no),
        Bits("periodic", 1, 1, yes_no),
        Bits("enable", 0, 0, yes_no),
    )
)
_CRASH = Hint(
    bits=(
        Bits("notify", 63, 63, yes_no),
        Bits("message", 62, 62, lambda value: "P3 is the address of a text, P4 its length" if value else "no text"),
        Bits("no_dump", 61, 61, yes_no),
        Bits("pre_os", 60, 58),
        Bits("reserved", 57, 0),
    )
)
_FLAG = Hint(bits=(Bits("reserved", 63, 1), Bits("set", 0, 0, yes_no)))


def _ticks(value: int) -> str:
    return f"{value / 10_000_000:.7f} s"


_TIME = Hint(_ticks)
_FREQUENCY = Hint(lambda value: f"{value / 1_000_000:.3f} MHz")
_HINTS: dict[int, Hint] = {
    Msr.HYPERCALL: _HYPERCALL,
    Msr.RESET: _FLAG,
    Msr.VP_RUNTIME: _TIME,
    Msr.TIME_REF_COUNT: _TIME,
    Msr.REFERENCE_TSC: _PLACE,
    Msr.TSC_FREQUENCY: _FREQUENCY,
    Msr.APIC_FREQUENCY: _FREQUENCY,
    Msr.VP_ASSIST_PAGE: _PLACE,
    Msr.SCONTROL: _SCONTROL,
    Msr.SIEFP: _PLACE,
    Msr.SIMP: _PLACE,
    **dict.fromkeys(range(Msr.SINT0, Msr.SINT15 + 1), _SINT),
    **dict.fromkeys(range(Msr.STIMER0_CONFIG, Msr.STIMER3_CONFIG + 1, 2), _TIMER),
    **dict.fromkeys(range(Msr.STIMER0_COUNT, Msr.STIMER3_COUNT + 1, 2), _TIME),
    Msr.STIME_UNHALTED_TIMER_CONFIG: _TIMER,
    Msr.STATS_PARTITION_RETAIL_PAGE: _PLACE,
    Msr.STATS_PARTITION_INTERNAL_PAGE: _PLACE,
    Msr.STATS_VP_RETAIL_PAGE: _PLACE,
    Msr.STATS_VP_INTERNAL_PAGE: _PLACE,
    Msr.CRASH_CTL: _CRASH,
    Msr.TSC_INVARIANT_CONTROL: _FLAG,
}
MSR_SIZE = 4
VALUE_SIZE = 8


def msr_number(text: str) -> int | None:
    """The number of a register by its name: `SIMP`, `hv_x64_msr_simp`. None where there is none."""
    name = text.upper().removeprefix("HV_X64_MSR_").removeprefix("HV_MSR_")
    return int(Msr[name]) if name in Msr.__members__ else None


def decode_msr(data: bytes) -> Field:
    """A register's number in 4 bytes and, if they are there, its value in 8; both little-endian."""
    register = number("msr", data, 0, MSR_SIZE, Hint(_NAME))
    if register.fault or not isinstance(register.value, int):
        return group("register", data, 0, len(data), [register] if data else [], "", register.fault or "no bytes")
    known = register.value in tuple(Msr)
    words = register.words if known else f"MSR {register.value:#x}"
    parts, fault = [register], "" if known else "no synthetic register has this number"
    if len(data) > MSR_SIZE:
        value = number("value", data, MSR_SIZE, VALUE_SIZE, _hint(register.value, data))
        parts.append(value)
        if not value.fault and isinstance(value.value, int):
            words += f" = {_said(register.value, value.value)}"
        fault = fault or value.fault
        if value.end < len(data):
            parts.append(raw("beyond", data, value.end, len(data)))
    return group("register", data, 0, len(data), parts, words, fault)


def _hint(register: int, data: bytes) -> Hint | None:
    if register == Msr.GUEST_OS_ID:
        return _OPEN_SOURCE if data[-1] & 0x80 else _PROPRIETARY
    return _HINTS.get(register)


def _said(register: int, value: int) -> str:
    """A value in words, for the registers that people look at."""
    hint = _HINTS.get(register)
    text = f"{value:#x}"
    if hint is _PLACE or hint is _HYPERCALL:
        locked = ", locked" if hint is _HYPERCALL and value & registers.HYPERCALL_LOCKED else ""
        return (
            f"{text}: page at GPA {value & ~0xFFF:#x}{locked}" if value & registers.PAGE_ENABLE else f"{text}: disabled"
        )
    if hint is _SINT:
        flags = [
            name
            for bit, name in ((16, "masked"), (17, "auto EOI"), (18, "polling"), (19, "as intercept"))
            if value >> bit & 1
        ]
        return f"{text}: vector {value & 0xFF:#04x}{''.join(', ' + flag for flag in flags)}"
    if hint is _SCONTROL:
        return f"{text}: {'enabled' if value & 1 else 'disabled'}"
    if hint is _TIMER and value & ~CONFIG_BITS:
        return f"{text}: reserved bits are set"
    if (hint is _TIME or hint is _FREQUENCY) and hint.words is not None:
        return f"{value}: {hint.words(value)}"
    if register == Msr.GUEST_OS_ID and value >> 63:
        version = value >> 16 & 0xFFFF_FFFF
        system = _OPEN_SOURCE_SYSTEMS.get(value >> 56 & 0x7F, "unknown system")
        return f"{text}: {system} {version >> 16}.{version >> 8 & 0xFF}.{version & 0xFF}"
    return text
