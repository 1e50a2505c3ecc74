"""`make bench`: every figure that has a bar or is reported, as a table and as benchmarks/latest.json. Both sides."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import attrs

from benchmarks import host, network, ring_channel, scale, scheduler, sockets, trace

LATEST = Path(__file__).with_name("latest.json")


@attrs.frozen
class Bar:
    """How good a figure has to be."""

    limit: float
    at_least: bool

    def met(self, value: float) -> bool:
        """Whether the figure is good enough."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


BARS = {
    "ring.batch64.vs_trio_channel": Bar(6, at_least=True),
    "channel.batch64.vs_trio_channel": Bar(3, at_least=True),
    "storage.randread4k_qd32.vs_trio_open_file": Bar(8, at_least=True),
    "storage.randread4k_qd32.vs_preadv": Bar(round(1 / 12, 4), at_least=True),
    "storage.seqread256k_qd8.vs_preadv": Bar(0.35, at_least=True),
    "network.frames64.vs_unix_dgram": Bar(1, at_least=True),
    "network.frames1500.vs_unix_dgram": Bar(1, at_least=True),
    "network.multi64.vs_unix_dgram": Bar(2, at_least=True),
    "network.multi1500.vs_unix_dgram": Bar(2, at_least=True),
    "root.rss_mib": Bar(48, at_least=False),
    "boot.idle_child_ms": Bar(5, at_least=False),
    "scale.1024.start_s": Bar(5, at_least=False),
    "scale.1024.rss_kib_each": Bar(160, at_least=False),
    "scale.packet_cost_1024_vs_1": Bar(1.3, at_least=False),
    "inspect.1024_ms": Bar(500, at_least=False),
    "inspect.longest_stall_ms": Bar(2, at_least=False),
    "socket.stream16k.vs_trio_unix": Bar(0.6, at_least=True),
    "scheduler.dispatch_us": Bar(6, at_least=False),
    "scheduler.vs_real_time": Bar(20, at_least=True),
    "scheduler.growth_128_to_1024": Bar(1.5, at_least=False),
    "scheduler.hour_of_64_on_8_s": Bar(60, at_least=False),
    "trace.off_cost_ratio": Bar(1.02, at_least=False),
    "trace.record_slowdown": Bar(2.5, at_least=False),
}
"""Figures that are not here are reported only."""


def main() -> int:
    """Measure, print, write the file; 1 where a bar is missed."""
    figures = ring_channel.measure() | host.measure() | network.measure() | sockets.measure()
    figures |= scale.measure() | scheduler.measure() | trace.measure()
    machine = f"Python {platform.python_version()}, {os.cpu_count()} processors, {platform.machine()}"
    print(f"\n{machine}; ratios are medians of interleaved rounds, higher is better unless the bar says otherwise\n")
    width = max(map(len, figures))
    missed = 0
    for key, value in figures.items():
        bar = BARS.get(key)
        met = bar is None or bar.met(value)
        missed += not met
        verdict = "reported" if bar is None else f"{bar!s:16}  {'met' if met else 'MISSED'}"
        print(f"{key:{width}}  {value:8.3f}  {verdict}")
    LATEST.write_text(json.dumps({"machine": machine, "figures": figures}, indent=2) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
