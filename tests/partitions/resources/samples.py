"""Samples to show: a host with two pools, made up."""

from __future__ import annotations

from partitions.resources.sample import Cpu, Disk, Heading, Memory, Network, Node, Sample

MS = 1_000_000
WINDOW = 100 * MS
HEADING = Heading(
    partita_samples=1, topology="/home/me/farm", clock="virtual", window=WINDOW, logical_processors=1, memory=1 << 30
)


def vm(
    name: str, run: int, *, depth: int = 1, ready: int = 0, capped: int = 0, weight: int = 100, **cpu: float
) -> Node:
    """A VM with one processor that was on for the whole window."""
    halted = WINDOW - (run + ready + capped) * MS
    return Node(
        path=f"vm/{name}",
        kind="vm",
        depth=depth,
        state="running",
        cpu=Cpu(
            vps=1,
            elapsed=WINDOW,
            run=run * MS,
            ready=ready * MS,
            capped=capped * MS,
            halted=halted,
            dispatches=10,
            weight=weight,
            **cpu,  # type: ignore[arg-type]
        ),
        memory=Memory(assigned=64 << 20, ballooned=16 << 20, demand=32 << 20, pressure=50.0),
    )


FARM = Sample(
    time=12.3,
    window=WINDOW,
    contended=True,
    nodes=[
        Node(path="host", kind="host", cpu=Cpu(vps=4, elapsed=WINDOW, run=100 * MS, ready=200 * MS, contended=True)),
        Node(path="pool/prod", kind="pool", depth=1, cpu=Cpu(vps=2, elapsed=WINDOW, run=60 * MS, weight=200)),
        vm("web", 20, depth=2, ready=80, weight=400, entitled=20.0),
        Node(path="vm/off", kind="vm", depth=2, state="turning_off"),
        Node(path="pool/test", kind="pool", depth=1, cpu=Cpu(vps=1, elapsed=WINDOW, run=40 * MS, weight=100)),
        vm("try", 40, depth=2, ready=60, weight=100, entitled=40.0),
        vm("capped", 40, capped=60, limit=40.0),
    ],
)
DISKS = Sample(
    time=1.0,
    window=WINDOW,
    nodes=[
        Node(path="host", kind="host", disk=Disk(elapsed=WINDOW, normalized=50, contended=False)),
        Node(
            path="vm/db",
            kind="vm",
            depth=1,
            cpu=Cpu(vps=1, elapsed=WINDOW),
            disk=Disk(
                requests=20,
                normalized=50,
                bytes=409_600,
                elapsed=WINDOW,
                busy=40 * MS,
                waited=10 * MS,
                limit=500,
                weight=100,
            ),
            network=Network(elapsed=WINDOW, sent_bits=800_000, sent=100, dropped=3, limit=8_000_000),
        ),
    ],
)
