"""The dissector and our own decoder, written apart, say the same: of ten thousand packets, and of every example."""

from __future__ import annotations

from pathlib import Path

import pytest

from partitions.cli.main import main
from tests.doubles.bus_traffic import bus_traffic
from tests.doubles.captures import MESSAGE, read_units, write_capture
from tests.doubles.tshark import needs_tshark
from tests.partitions.dissector.agreement import compare

pytestmark = needs_tshark

EXAMPLES = {"01": 2, "02": 0, "03": 0, "04": 0, "05": 0, "06": 0, "07": 0, "21": 0}
"""By number, and how many of its packets are wrong on purpose. Example 20 is a real kernel's."""


def test_ten_thousand_packets(tmp_path: Path) -> None:
    """Each value of each packet is the same, every device and every message takes part, and no packet has a fault."""
    units = list(bus_traffic(10_000))
    assert len(units) >= 10_000
    capture = write_capture(tmp_path / "a.pcapng", units)
    assert compare(capture, units) > 200_000
    assert {unit.device for unit in units} == set(range(14))
    assert {unit.data[0] for unit in units if unit.kind == MESSAGE} == set(range(1, 30))


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of each example is recorded and read without a fault; its trace events have words."""
    monkeypatch.chdir(tmp_path)
    capture = tmp_path / "run.pcapng"
    main(["run", example, "--clock", "virtual", "--pcap", str(capture)])
    units = read_units(capture)
    assert compare(capture, units, faulty=EXAMPLES[example]) > 20
