"""Files of samples that nobody's host has written: refused with the line named, or read; never a terminal's master."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from partitions.resources.files import SamplesError, decode_sample, read_samples
from partitions.resources.render import Look, rendered
from partitions.resources.sample import FORMAT
from partitions.resources.view import View

NODE = {"path": "vm/a", "kind": "vm"}


def file(*samples: dict[str, Any], **heading: object) -> io.BytesIO:
    lines = [{"partita_samples": FORMAT, **heading}, *samples]
    return io.BytesIO(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def sample(**node: object) -> dict[str, Any]:
    return {"time": 1.0, "window": 10**8, "nodes": [{**NODE, **node}]}


@pytest.mark.parametrize(
    "bad",
    [
        sample(depth=2**62),
        sample(depth=-1),
        sample(cpu={"vps": 2**40}),
        sample(cpu={"run": 2**63}),
        sample(cpu={"entitled": 1e308}),
        sample(disk={"latency": [[2**63 - 1, 2**63 - 1]]}),
        {**sample(), "time": 1e308},
        {**sample(), "window": -(2**63)},
        sample(path="vm/\x1b]0;mine\x07"),
        sample(path="vm/\u202egnp"),
        sample(state="\x9b2J"),
        sample(backend="\n"),
        sample(cpu_pool="\r"),
        sample(memory={"state": "\x1b[2J"}),
    ],
    ids=str,
)
def test_what_no_host_writes_is_refused(bad: dict[str, Any]) -> None:
    """Numbers that cannot be drawn, depths that make a line a gigabyte, words that drive a terminal."""
    _, samples = read_samples(file(sample(), bad), "f")
    next(samples)
    with pytest.raises(SamplesError, match="f, line 3: no sample"):
        next(samples)
    with pytest.raises(SamplesError, match="no sample"):
        decode_sample(json.dumps(bad).encode())


@pytest.mark.parametrize("view", View)
def test_the_most_that_is_read_can_be_shown(view: View) -> None:
    """At the ends of what is allowed nothing overflows, and the heading is text."""
    ends = {"elapsed": 1, "run": 2**61, "ready": -(2**61), "entitled": 1e18, "demand": -1e18, "vps": 10**6}
    disk = {"latency": [[-1, 2**61], [2**61, -1]], "elapsed": 0, "normalized": 2**61}
    node = sample(depth=100, cpu=ends, disk=disk, network={"sent_bits": 2**61}, memory={"assigned": -(2**61)})
    heading, samples = read_samples(file(node, topology="\x1b]0;mine\x07" + "x" * 10**6), "f")
    for one in samples:
        for long in (False, True):
            lines = rendered(one, heading, Look(view=view, long=long))
            assert all(line.isprintable() for line in lines)
            assert max(map(len, lines)) < 1000
