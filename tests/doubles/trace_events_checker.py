"""Whether a file follows the rules of the Trace Event Format, as Perfetto reads it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]


def read(data: bytes) -> list[Record]:
    """The records; of a file without its end, those that are whole, as readers of the array form take them."""
    text = data.decode()
    if not text.rstrip().endswith("]"):
        text = text[: text.rindex(",\n")] + "]"
    records: list[Record] = json.loads(text)
    return records


def by_time(records: list[Record]) -> list[Record]:
    """As a reader sorts them: by time, ties by place in the file."""
    return sorted((record for record in records if record["ph"] != "M"), key=lambda record: nanoseconds(record["ts"]))


def nanoseconds(microseconds: float) -> int:
    """The format has microseconds with a fraction."""
    return round(microseconds * 1000)


def check(records: list[Record], *, whole: bool = True) -> None:
    """Raises AssertionError with the record that breaks a rule."""
    for record in records:
        assert record["ph"] in "MXBEbenstfC", record
        assert ("ts" in record) == (record["ph"] != "M"), record
        assert record.get("ts", 0) >= 0, record
        assert isinstance(record["pid"], int), record
        assert isinstance(record["tid"], int), record
    _names(records)
    slices = _threads(records, whole=whole)
    _asynchronous(records, whole=whole)
    _flows(records, slices, whole=whole)
    for record in records:
        if record["ph"] == "C":
            assert record["args"], record
            assert all(isinstance(value, int) for value in record["args"].values()), record


def _names(records: list[Record]) -> None:
    """Each process and thread has one name, told before it is used; a tid is of one process and is no process's ID."""
    processes: dict[int, str] = {}
    threads: dict[int, int] = {}
    for record in records:
        if record["ph"] == "M":
            if record["name"] == "process_name":
                assert record["pid"] not in processes, record
                processes[record["pid"]] = record["args"]["name"]
            elif record["name"] == "thread_name":
                assert record["tid"] not in threads, record
                threads[record["tid"]] = record["pid"]
            continue
        assert record["pid"] in processes, record
        assert threads.get(record["tid"]) == record["pid"], record
    assert not set(processes) & set(threads)


def _threads(records: list[Record], *, whole: bool) -> dict[int, list[tuple[int, int]]]:
    """Slices of a thread nest: none ends within another that began before. Returns them, as begin and end, by tid."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    begun: dict[int, list[int]] = defaultdict(list)
    for record in by_time(records):
        at, tid = nanoseconds(record["ts"]), record["tid"]
        match record["ph"]:
            case "X":
                found[tid].append((at, at + nanoseconds(record["dur"])))
            case "B":
                begun[tid].append(at)
            case "E":
                assert begun[tid], f"ends nothing: {record}"
                found[tid].append((begun[tid].pop(), at))
            case _:
                pass
    assert not whole or not any(begun.values()), "begun and never ended"
    for tid, slices in found.items():
        open_ends: list[int] = []
        for start, end in sorted(slices, key=lambda one: (one[0], -one[1])):
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1], f"slices of thread {tid} overlap at {start}..{end}"
            open_ends.append(end)
    return found


def _asynchronous(records: list[Record], *, whole: bool) -> None:
    """Each `b` has its `e` of the same name on the same track, and they nest."""
    stacks: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for record in by_time(records):
        if record["ph"] in "ben":
            stack = stacks[record["pid"], record["cat"], record["id2"]["local"]]
            if record["ph"] == "b":
                stack.append(record["name"])
            elif record["ph"] == "e":
                assert stack, record
                assert stack.pop() == record["name"], record
    assert not whole or not any(stacks.values()), "begun and never ended"


def _flows(records: list[Record], slices: dict[int, list[tuple[int, int]]], *, whole: bool) -> None:
    """Each arrow begins once, ends once, runs forward in time, and binds to a slice at each of its points."""
    flows: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record["ph"] in "stf":
            flows[record["id"]].append(record)
    for flow in flows.values():
        phases = "".join(record["ph"] for record in flow)
        assert re.fullmatch("st*f" if whole else "st*f?", phases), flow
        assert [record["ts"] for record in flow] == sorted(record["ts"] for record in flow), flow
        for record in flow:
            at = nanoseconds(record["ts"])
            assert any(start <= at <= end for start, end in slices[record["tid"]]), f"binds to nothing: {record}"
        if phases[-1] == "f":
            assert flow[-1]["bp"] == "e", flow[-1]


def requests(records: list[Record]) -> Iterator[Record]:
    """The outermost asynchronous slices: one each request."""
    return (record for record in records if record["ph"] == "b" and "args" in record)
