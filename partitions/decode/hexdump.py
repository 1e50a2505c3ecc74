"""Bytes as people read them: sixteen a line, with their characters. Root side."""

from __future__ import annotations

WIDTH = 16


def hexdump(data: bytes, start: int = 0, *, indent: str = "") -> list[str]:
    """`0010  08 00 00 00 05 00 00 00  10 1e 0e 00 48 00 01 00  ........ ....H...`; repeated lines become `*`."""
    lines: list[str] = []
    previous = b""
    repeated = False
    for at in range(0, len(data), WIDTH):
        piece = data[at : at + WIDTH]
        if piece == previous and at + WIDTH < len(data):
            if not repeated:
                lines.append(f"{indent}*")
                repeated = True
            continue
        previous, repeated = piece, False
        lines.append(f"{indent}{start + at:04x}  {hex_columns(piece)}  {characters(piece)}")
    return lines


def hex_columns(piece: bytes) -> str:
    """Two columns of eight bytes, as wide as if they were full."""
    left, right = piece[:8].hex(" "), piece[8:].hex(" ")
    return f"{left:<23}  {right:<23}"


def characters(piece: bytes) -> str:
    """ASCII where there is some, dots elsewhere."""
    shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in piece)
    return f"{shown[:8]} {shown[8:]}".rstrip() if len(shown) > 8 else shown
