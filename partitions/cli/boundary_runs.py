"""`partita run --record` and `--replay`: one VM's boundary to a file, and against the root again. Root side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from partitions.cli.common import Refusal, unknown_vm

if TYPE_CHECKING:
    import argparse

    from partitions.boundary.runs import BoundaryRun
    from partitions.topology import Topology


def add_options(parser: argparse.ArgumentParser) -> None:
    """To the verb's."""
    parser.add_argument(
        "--record",
        metavar="[VM=]FILE",
        help="write all that crosses one VM's boundary, memory included, as lines of the boundary driver; with --clock "
        "virtual (docs/boundary.md)",
    )
    parser.add_argument(
        "--replay",
        metavar="[VM=]FILE",
        help="the guest of that VM does what the file of --record says, and every answer is compared; exit status 1 "
        "where one is another",
    )


def boundary_run(options: argparse.Namespace, topology: Topology, seed: int | None) -> BoundaryRun | None:
    """What the options ask for; None where it is nothing."""
    if options.record is None and options.replay is None:
        return None
    if options.record is not None and options.replay is not None:
        raise Refusal("--record does not go with --replay: a replay that parts is told line by line anyway")
    option, value = ("--record", options.record) if options.record is not None else ("--replay", options.replay)
    if options.clock != "virtual":
        raise Refusal(f"{option} needs --clock virtual: only there is one order of what guest and root did")
    if options.save or options.restore:
        raise Refusal(f"{option} does not go with --save or --restore: a record begins at power on")
    vm, path = _vm_and_file(option, value, [table.name for table in topology.vm])
    from partitions.boundary import runs

    try:
        if option == "--record":
            return runs.RecordedRun(topology, vm, path, 0 if seed is None else seed)
        return runs.ReplayedRun(topology, vm, path, seed)
    except runs.RecordError as error:
        raise Refusal(f"{option}: {error}") from None


def _vm_and_file(option: str, value: str, names: list[str]) -> tuple[str, Path]:
    """A name may be left out where there is one VM only."""
    vm, equals, path = value.partition("=")
    if equals and vm in names:
        return vm, Path(path)
    if len(names) == 1 and not equals:
        return names[0], Path(value)
    if not equals:
        raise Refusal(f"{option} {value}: the topology has several VMs; name one, as in {option} {names[0]}={value}")
    raise Refusal(f"{option}: {unknown_vm(vm, names)}")
