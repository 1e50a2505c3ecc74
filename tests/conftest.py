"""How long Hypothesis searches: `make test` a moment, `make fuzz` (profile `long`) a hundred times that. Both sides.

The moment is the same each time, so what a change breaks is the change's doing; chance is for `make fuzz`.
"""

from __future__ import annotations

from hypothesis import settings

# No deadlines: how long one example takes says how busy the machine is, and the suite has a limit of its own.
settings.register_profile("short", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=100 * settings().max_examples)
settings.load_profile("short")
