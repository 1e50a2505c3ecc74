"""`partita boundary`: be the guest of one VM, in JSON lines on standard input and output. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import OK, TARGET_HELP, Refusal, Verbs, collect_garbage, read_topology, unknown_vm

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "boundary",
        help="be a VM's guest yourself, in JSON lines",
        description="Start one VM without a guest program and take its guest's part: commands on standard input, "
        "answers and events on standard output, one JSON object a line. docs/boundary.md has a whole session.",
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TOPOLOGY", help=TARGET_HELP)
    parser.add_argument("--vm", metavar="NAME", help="which VM; needed where the topology has several")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="task order and random numbers; the topology's by default"
    )
    parser.add_argument("--trace", metavar="FILE", help="write every event to a file as JSON lines")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Speak until `quit` or the end of the input."""
    topology = read_topology(options.target, programs=False)
    names = [vm.name for vm in topology.vm]
    name = options.vm or (names[0] if len(names) == 1 else None)
    if name is None:
        raise Refusal(f"the topology has several VMs; choose one with --vm: {', '.join(names)}")
    if name not in names:
        raise Refusal(f"--vm: {unknown_vm(name, names)}")
    from partitions import determinism
    from partitions.boundary import driver, stdio

    topology = driver.alone(topology, name)

    seed = topology.host.seed if options.seed is None else options.seed
    if seed is not None and seed < 0:
        raise Refusal("--seed must not be negative")
    from partitions.backends import refuse_threads

    try:
        refuse_threads(topology)
    except ValueError as error:
        raise Refusal(str(error)) from None
    collect_garbage()
    try:
        determinism.run(stdio.speak, topology, options.trace, clock="virtual", seed=seed, autojump=False)
    except determinism.NotRepeatable as error:
        raise Refusal(str(error)) from None
    except driver.CannotStart as error:
        raise Refusal(str(error)) from None
    return OK
