"""M12: on a host with processors to spare, what is waited for is a switch."""

from __future__ import annotations

from pathlib import Path

import trio

from partitions.host import open_host
from partitions.resources.alarms import Marks
from partitions.resources.sampler import Sampler
from partitions.topology import parse_topology

PROGRAM = """
async def main(guest):
    await guest.sleep(0.005 * (guest.name == "b"))
    for _ in range(20):
        await guest.cpu.run(0.001)
        await guest.sleep(0.009)
"""


async def test_an_idle_host_waits_for_switches(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Two take turns on one processor, never at the same time: each turn waits for the switch, 7 us, and nothing is
    marked."""
    (tmp_path / "turns.py").write_text(PROGRAM)
    text = "host = { logical_processors = 1, switch_us = 7 }\n"
    text += "".join(f'[[vm]]\nname = "{name}"\nprogram = "turns.py"\nmemory = "2MiB"\n' for name in "ab")
    async with open_host(parse_topology(text, tmp_path)) as host:
        with Sampler(host) as sampler:
            await host.start_all()
            await trio.sleep(0.05)
            sampler.sample()  # the very first turn of all costs no switch
            await trio.sleep(0.1)
            sample = sampler.sample()
        for path in ("vm/a", "vm/b"):
            node = sample.node(path)
            assert node is not None
            assert (node.cpu.dispatches, node.cpu.wait_per_dispatch_us) == (10, 7.0)
        whole = sample.node("host")
        assert whole is not None
        assert whole.cpu.wait_per_dispatch_us == 7.0
        assert not sample.contended
        assert not Marks(sample, ["WAIT/DISP", "%RDY", "%MLMTD"]).grades
