"""The pictures in docs/ that come from real runs; `python -m tests.partitions.trace.pictures` draws them again."""

from __future__ import annotations

import functools
import io
import tempfile
from pathlib import Path

from hypervisor.trace import Layer, TraceEvent
from partitions import determinism
from partitions.examples import examples
from partitions.host import open_host
from partitions.logs import vm_name
from partitions.topology import load_topology
from partitions.trace.sequence import Diagram, Sequence
from partitions.trace.sequence_mermaid import mermaid
from partitions.trace.sequence_svg import svg
from partitions.trace.timeline import Timeline
from tests.doubles import trace_events_checker
from tests.partitions.copies import copied_example
from tests.partitions.trace.timeline_picture import draw

DOCS = Path(__file__).parents[3] / "docs"


@functools.cache
def events_of(example: str) -> tuple[tuple[TraceEvent, str], ...]:
    """All events of an example on the virtual clock, with the names of their VMs. It runs as a copy: its images are
    locked, and another worker may run it too.
    """
    name = next(known.name for known in examples() if known.name.startswith(example))
    events: list[tuple[TraceEvent, str]] = []

    async def run() -> None:
        async with open_host(load_topology(place), clock="virtual", seed=1) as host:
            host.trace.add_sink(lambda event: events.append((event, vm_name(host.trace.names, event))))
            for vm in host.values():
                await vm.start()
            await host.wait_all()

    with tempfile.TemporaryDirectory() as folder:
        place = copied_example(name, Path(folder))
        determinism.run(run, clock="virtual", seed=1)
    return tuple(events)


def _one_read() -> Diagram:
    """The writer's read of its disk's last block, from its signal to the end of its interrupt."""
    events = [(event, vm) for event, vm in events_of("03")]
    reads = [n for n, (event, vm) in enumerate(events) if vm == "writer" and "READ(10) lba=16383" in event.words]
    start = max(n for n in range(reads[0]) if events[n][0].layer is Layer.SYNIC and events[n][1] == "writer")
    end = next(n for n in range(reads[0], len(events)) if events[n][0].words == "EOI" and events[n][1] == "writer")
    own_id = events[reads[0]][0].partition
    drawn = Sequence()
    for number, (event, vm) in enumerate(events):
        # What the root does for the other VM meanwhile is left out.
        own = vm == "writer" or event.layer is Layer.INTERRUPT or "HvSignalEvent" in event.words
        own = own and event.partition in (1, own_id)
        drawn.feed(event, vm, wanted=own and start <= number <= end)
    return drawn.diagram()


def sequence_picture() -> str:
    """docs/sequence.svg."""
    return svg(_one_read(), title="A read from a disk, from the guest's signal to its interrupt")


def sequence_text() -> str:
    """The Mermaid text in docs/sequence.md."""
    return mermaid(_one_read())


def timeline_picture() -> str:
    """docs/timeline.svg: eight reads of the writer's in one batch, without what the other VM did meanwhile."""
    file = io.BytesIO()
    timeline = Timeline(file.write)
    for event, vm in events_of("03"):
        of_root = event.layer is Layer.INTERRUPT and event.partition == 1
        if vm == "writer" or of_root or (event.layer is Layer.HYPERCALL and "HvSignalEvent" in event.words):
            timeline.feed(event, vm)
    timeline.finish()
    records = trace_events_checker.read(file.getvalue())
    reads = [one for one in trace_events_checker.requests(records) if "READ(10) lba=3584 " in one["name"]]
    started, ended = (
        reads[0]["ts"],
        next(
            one["ts"] for one in records if one["ph"] == "e" and one["name"] == reads[0]["name"] and "args" not in one
        ),
    )
    return draw(records, round(started * 1000) - 1, round(ended * 1000) + 2, 2, "Eight reads in one batch")


def main() -> None:
    """Draw them."""
    (DOCS / "sequence.svg").write_text(sequence_picture())
    (DOCS / "timeline.svg").write_text(timeline_picture())
    page = DOCS / "sequence.md"
    if page.exists():
        before, _, rest = page.read_text().partition("```mermaid\n")
        page.write_text(f"{before}```mermaid\n{sequence_text()}```{rest.partition('```')[2]}")


if __name__ == "__main__":
    main()
