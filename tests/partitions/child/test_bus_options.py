"""What a topology tells the guest's kernel about the bus."""

from __future__ import annotations

from typing import Any

import pytest

from partitions.child.bus_options import bus_options
from vmbus.protocol import IMPLEMENTED, Feature


def test_nothing_said() -> None:
    """Every version, highest first, and no feature; the program's own arguments are not looked at."""
    assert bus_options({"rounds": 3}) == (IMPLEMENTED, 0)


def test_versions_and_features() -> None:
    """One version or a list in its order, of numbers that there need not be; features by name."""
    assert bus_options({"vmbus": "0.13"}) == ([0xD], 0)
    assert bus_options({"vmbus": ["7.1", "6.0"], "vmbus_features": ["client_id", "pause_resume"]}) == (
        [0x70001, 0x60000],
        Feature.CLIENT_ID | Feature.PAUSE_RESUME,
    )
    assert bus_options({"vmbus_features": "client_id"}) == (IMPLEMENTED, Feature.CLIENT_ID), "one needs no list"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"vmbus": "newest"}, "newest"),
        ({"vmbus": "5"}, "5"),
        ({"vmbus": "5.x"}, "5.x"),
        ({"vmbus": "70000.0"}, "70000.0"),
        ({"vmbus": []}, "names no version"),
        ({"vmbus_features": "speed"}, "'speed' is none of"),
        ({"vmbus_features": ["speed"]}, "none of guest_specified"),
    ],
)
def test_words_that_mean_nothing(args: dict[str, Any], words: str) -> None:
    """The error has the word, and for a feature what there is instead."""
    with pytest.raises(ValueError, match=words):
        bus_options(args)
