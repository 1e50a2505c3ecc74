"""`partita run`: start every VM of a topology, show what happens, end when all have ended. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import FAILED, INTERRUPTED, OK, TARGET_HELP, TIMED_OUT, Refusal, Verbs, read_topology

if TYPE_CHECKING:
    import argparse

    from partitions.topology import Topology


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    import argparse

    parser = verbs.add_parser(
        "run",
        help="run a topology until all its guests have ended",
        description="Start every VM of a topology and wait until all have ended. Exit status: 0 all ended well, 1 "
        "a guest or a worker failed, 2 usage or topology, 124 timeout, 130 interrupted. Ctrl-C presses the power "
        "buttons, a second one cuts the power, a third leaves at once.",
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", help=TARGET_HELP)
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="VM=PATH",
        help="give a VM one disk more, read-only; VM=PATH:rw lets it write",
    )
    parser.add_argument(
        "--clock",
        choices=("real", "virtual"),
        default="real",
        help="virtual: time jumps when nothing can run, and a run is repeatable to the byte",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="task order and random numbers; the topology's by default"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="turn everything off after that long")
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_argument(
        "--console",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print what guests print, VM by VM (on, unless --json is given)",
    )
    parser.add_argument("--trace", metavar="FILE", help="write every event to a file as JSON lines")
    parser.add_argument("--trace-filter", metavar="FILTER", help="such as 'vm=web,layer=packet|control'")
    parser.add_argument(
        "--log-format", choices=("human", "json"), default=None, help="how -v writes events to standard error"
    )
    parser.add_argument(
        "-v", dest="verbose", action="count", default=0, help="show state changes; -vv everything on the bus"
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Run it."""
    if options.seed is not None and options.seed < 0:
        raise Refusal("--seed must not be negative")
    if options.timeout is not None and not options.timeout >= 0:
        raise Refusal("--timeout must be a number of seconds, 0 or more")
    topology = with_disks(read_topology(options.target), options.disk)

    from partitions import determinism
    from partitions.cli import session

    seed = topology.host.seed if options.seed is None else options.seed
    with session.Viewer(options, [vm.name for vm in topology.vm]) as viewer:
        try:
            outcome = determinism.run(session.run, topology, viewer, options.timeout, clock=options.clock, seed=seed)
        except determinism.NotRepeatable as error:
            raise Refusal(str(error)) from None
        viewer.finish(outcome)
    if outcome.ending is session.Ending.INTERRUPTED:
        return INTERRUPTED
    if outcome.ending is session.Ending.TIMED_OUT:
        return TIMED_OUT
    return OK if all(row.ok for row in outcome.vms) else FAILED


def with_disks(topology: Topology, wanted: list[str]) -> Topology:
    """The topology with the disks of `--disk` added."""
    from partitions.topology import TopologyError, add_disk

    for item in wanted:
        vm, equals, path = item.partition("=")
        if not equals or not path:
            raise Refusal(f"--disk {item}: must be VM=PATH or VM=PATH:rw, as in --disk {topology.vm[0].name}=data.img")
        writable = path.endswith(":rw")
        try:
            topology = add_disk(topology, vm, path.removesuffix(":rw"), read_only=not writable)
        except TopologyError as error:
            raise Refusal(str(error)) from None
    return topology
