"""Ranges of guest pages as they stand in GPADLs and packets. Root side."""

from __future__ import annotations

from hypervisor.pages import PAGE_MASK, pages_for
from partitions.decode.field import Field, Hint, group, layout_field, number, raw
from partitions.decode.layouts import ByteRange
from partitions.decode.words import page

_PAGE = Hint(page)


def page_ranges(data: bytes, at: int, end: int, count: int, *, whole: bool = True) -> list[Field]:
    """`count` ranges with their page numbers, as far as there are bytes. What is missing is a fault only if `whole`."""
    fields: list[Field] = []
    for index in range(count):
        if at >= end:
            break
        field = _range(f"range[{index}]", data, at, end, whole)
        fields.append(field)
        at = field.end
    if at < end:
        fields.append(page_list(data, at, end) if not fields else raw("beyond", data, at, end, "behind the ranges"))
    if fields and whole and len([field for field in fields if field.name.startswith("range")]) < count:
        fields[-1].fault = fields[-1].fault or f"{count} ranges are said to be here, and there is no room for more"
    return fields


def _range(name: str, data: bytes, at: int, end: int, whole: bool) -> Field:
    head = layout_field(name, ByteRange, data, at, end)
    if head.fault:
        return head
    byte_count, byte_offset = (int.from_bytes(data[at + skip : at + skip + 4], "little") for skip in (0, 4))
    needed = pages_for(byte_count, byte_offset) if byte_count else 0
    start = at + ByteRange.SIZE
    there = min(needed, (end - start) // 8)
    stop = min(start + 8 * there, end)
    fault = ""
    if not byte_count:
        fault = "a range of no bytes"
    elif byte_offset > PAGE_MASK:
        fault = f"begins {byte_offset:#x} bytes into its first page"
    words = f"{byte_count} bytes in {needed} page{'s' * (needed != 1)}"
    if byte_offset:
        words += f" from {byte_offset:#x} on"
    if there < needed:
        words += f", {there} named here"
        if whole:
            fault = fault or f"{needed} pages needed, {there} named"
            stop = end
    pages = [number(f"page[{index}]", data, start + 8 * index, 8, _PAGE) for index in range(there)]
    return group(name, data, at, stop, [*head.children, *pages], words, fault)


def page_list(data: bytes, at: int, end: int) -> Field:
    """Nothing but page numbers, as in the body of a GPADL."""
    count = (end - at) // 8
    pages = [number(f"page[{index}]", data, at + 8 * index, 8, _PAGE) for index in range(count)]
    return group("pages", data, at, end, pages, f"{count} page number{'s' * (count != 1)}")
