"""How many examples a test of random input tries: what it names in `make test`, a hundred times that in `make fuzz`."""

from __future__ import annotations

from hypothesis import settings

_SHORT = 100
"""Hypothesis's own number, which the short profile leaves alone."""


def examples(usual: int) -> int:
    """`usual`, scaled as the chosen profile scales tests that name no number."""
    return usual * settings().max_examples // _SHORT
