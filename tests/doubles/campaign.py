"""How many examples a test of random input tries: what it names in `make test`, a hundred times that in `make fuzz`."""

from __future__ import annotations

from hypothesis import settings

SHORT = 60
"""Examples of a test that names no number, in `make test`."""


def examples(usual: int) -> int:
    """`usual`, scaled as the chosen profile scales tests that name no number."""
    return usual * settings().max_examples // SHORT
