"""What a topology's `args` may tell the guest's kernel about the bus, as a boot command line tells Linux's. Child side.

args = { vmbus = "4.1" }                                a version, or a list of versions to try in this order
args = { vmbus = "6.0", vmbus_features = ["pause_resume"] }
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmbus.protocol import IMPLEMENTED, Feature


def bus_options(args: Mapping[str, Any]) -> tuple[Sequence[int], int]:
    """Versions to try, and the features to ask for at 6.0. `ValueError` for words that mean nothing."""
    wanted = args.get("vmbus")
    versions: Sequence[int] = IMPLEMENTED
    if wanted is not None:
        versions = [_version(word) for word in _words(wanted)]
        if not versions:
            raise ValueError("vmbus: names no version; leave it out, and all are tried")
    features = Feature.NONE
    for word in _words(args.get("vmbus_features", [])):
        feature = Feature.__members__.get(str(word).upper())
        if feature is None:
            known = ", ".join(name.lower() for name in Feature.__members__ if name != "NONE")
            raise ValueError(f"vmbus_features: {word!r} is none of {known}")
        features |= feature
    return versions, int(features)


def _words(value: Any) -> Sequence[Any]:
    """One word may stand without its list."""
    return value if isinstance(value, (list, tuple)) else [value]


def _version(word: Any) -> int:
    """Any version may be asked for: one that there is not is refused by the host."""
    major, dot, minor = str(word).partition(".")
    if not (dot and major.isdigit() and minor.isdigit() and int(major) < 1 << 16 and int(minor) < 1 << 16):
        raise ValueError(f'vmbus: {word!r} is no version such as "5.3"')
    return int(major) << 16 | int(minor)
