"""Captures written by hand, as the recorder writes them: pcapng, link type 147, one interface a VM."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

USER0 = 147
TO_ROOT, TO_CHILD = 0, 1
MESSAGE, PACKET = 1, 2
UNKNOWN, STORAGE, NETWORK, HEARTBEAT, SHUTDOWN, TIME_SYNC, KVP, VSS, FILE_COPY, KEYBOARD, MOUSE, MEMORY, VIDEO = range(
    13
)
SOCKET = 14
INBAND, TRANSFER_PAGES, GPA_DIRECT, COMPLETION = 6, 7, 9, 11


class Unit(NamedTuple):
    """What crossed, and where."""

    kind: int
    direction: int
    data: bytes
    device: int = UNKNOWN
    channel: int = 0
    partition: int = 2
    version: int = 0x50003
    ticks: int | None = None
    """100 ns units; counted where not given."""
    interface: int = 0


def message(direction: int, data: bytes, **more: int) -> Unit:
    """A channel message."""
    return Unit(MESSAGE, direction, data, **more)


def packet(
    direction: int,
    kind: int,
    payload: bytes,
    *,
    transaction: int = 0,
    flags: int = 0,
    extended: bytes = b"",
    device: int = STORAGE,
    channel: int = 1,
    **more: int,
) -> Unit:
    """A ring packet, padded as the ring pads it."""
    extended += bytes(-len(extended) % 8)
    body = extended + payload + bytes(-len(payload) % 8)
    words = 2 + len(extended) // 8, 2 + len(body) // 8
    head = struct.pack("<HHHHQ", kind, *words, flags, transaction)
    return Unit(PACKET, direction, head + body, device, channel, **more)


def pages(*gpns: int, size: int | None = None, offset: int = 0) -> bytes:
    """The extended header of a GPA-direct packet with one range."""
    count = len(gpns) * 4096 if size is None else size
    return struct.pack(f"<IIII{len(gpns)}Q", 0, 1, count, offset, *gpns)


def link_header(unit: Unit) -> bytes:
    """The 16 bytes in front of every unit."""
    return struct.pack(
        "<BBBBIII", 1, unit.kind, unit.direction, unit.device, unit.partition, unit.channel, unit.version
    )


def _block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack("<II", kind, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def raw_capture(frames: Iterable[tuple[int, int, bytes]], names: Sequence[str] = ("reader",)) -> bytes:
    """A capture of (interface, ticks, bytes)."""
    made = [_block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    for name in names:
        options = _option(2, name.encode()) + _option(9, b"\7") + _option(0, b"")
        made.append(_block(1, struct.pack("<HHI", USER0, 0, 0) + options))
    for interface, ticks, data in frames:
        head = struct.pack("<IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
        made.append(_block(6, head + data))
    return b"".join(made)


def event_block(payload: bytes) -> bytes:
    """A custom block with a trace event in it, to stand behind a capture."""
    return _block(0x0BAD, struct.pack("<I4sI", 32473, b"PTE1", len(payload)) + payload)


def write_capture(path: Path, units: Iterable[Unit], names: Sequence[str] = ("reader",)) -> Path:
    """A capture of units, each a microsecond after the one before unless it says when."""
    frames = []
    now = 0
    for unit in units:
        now = now + 10 if unit.ticks is None else unit.ticks
        frames.append((unit.interface, now, link_header(unit) + unit.data))
    path.write_bytes(raw_capture(frames, names))
    return path


def read_units(path: Path) -> list[Unit]:
    """The units of a recording, in order; whatever else it holds is passed over."""
    data = path.read_bytes()
    units = []
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == 6:
            interface, high, low, captured, _ = struct.unpack_from("<IIIII", data, at + 8)
            frame = data[at + 28 : at + 28 + captured]
            _, what, direction, device, partition, channel, version = struct.unpack_from("<BBBBIII", frame)
            place = (device, channel, partition, version, high << 32 | low, interface)
            units.append(Unit(what, direction, frame[16:], *place))
        at += size
    return units
