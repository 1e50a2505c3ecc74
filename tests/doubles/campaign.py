"""How many examples a test of random input tries: what it names in `make test`, a hundred times that in `make fuzz`."""

from __future__ import annotations

from hypothesis import settings

SHORT = 60
"""Examples of a test that names no number, in `make test`."""
TIMES = 100
LONG = 100 * TIMES
"""The same in `make fuzz`: a hundred times Hypothesis's own number."""


def examples(usual: int) -> int:
    """`usual`, scaled as the chosen profile scales tests that name no number."""
    return usual * TIMES if settings().max_examples == LONG else usual
