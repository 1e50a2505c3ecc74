"""The dissector and our own decoder, written apart, say the same of ten thousand packets."""

from __future__ import annotations

from pathlib import Path

from tests.doubles.bus_traffic import bus_traffic
from tests.doubles.captures import MESSAGE, Unit, write_capture
from tests.doubles.tshark import ALWAYS_WRONG, FAULTS, needs_tshark, read_fields
from tests.partitions.dissector.agreement import expected, granted_features, plain, read_value

pytestmark = needs_tshark


def compare(capture: Path, units: list[Unit]) -> int:
    """Each value that the decoder finds is in tshark's output, and no other of such a field; returns how many."""
    wanted: list[dict[str, list[str | int]]] = []
    for unit in units:
        values: dict[str, list[str | int]] = {}
        for name, value in expected(unit, granted_features(unit.version)):
            values.setdefault(name, []).append(plain(value))
        wanted.append(values)
    kinds = {name: values[0] for each in wanted for name, values in each.items()}
    faults = [*ALWAYS_WRONG, *(f"vmbus.fault.{kind}" for kind in FAULTS)]
    rows = read_fields(capture, [*sorted(kinds), *faults], two_passes=False)
    assert len(rows) == len(units)
    compared = 0
    for number, (row, values) in enumerate(zip(rows, wanted, strict=True), 1):
        found = {name: [read_value(text, kinds.get(name, "")) for text in texts] for name, texts in row.items()}
        assert found == values, f"frame {number}"
        compared += sum(map(len, values.values()))
    return compared


def test_ten_thousand_packets(tmp_path: Path) -> None:
    """Each value of each packet is the same, every device and every message takes part, and no packet has a fault."""
    units = list(bus_traffic(10_000))
    assert len(units) >= 10_000
    capture = write_capture(tmp_path / "a.pcapng", units)
    assert compare(capture, units) > 200_000
    assert {unit.device for unit in units} == set(range(14))
    assert {unit.data[0] for unit in units if unit.kind == MESSAGE} == set(range(1, 30))
