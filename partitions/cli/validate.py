"""`partita validate`: read a topology and say all that is wrong in it. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import OK, TARGET_HELP, Verbs, read_topology, warn_of_controls

if TYPE_CHECKING:
    import argparse


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "validate",
        help="check a topology without starting anything",
        description="Check a topology and the guest programs and devices that it names, without running any of them. "
        "Prints all that is wrong, with lines. Exit status: 0 fine, 2 not.",
        allow_abbrev=False,
    )
    parser.add_argument("target", metavar="TARGET", help=TARGET_HELP)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Print one line when all is well; all problems are one refusal."""
    topology = read_topology(options.target)
    warn_of_controls(topology, options.target)
    from partitions.topology import size_words

    machines = "1 VM" if len(topology.vm) == 1 else f"{len(topology.vm)} VMs"
    memory = size_words(sum(vm.memory for vm in topology.vm))
    print(f"{options.target}: fine, {machines} ({', '.join(vm.name for vm in topology.vm)}), {memory} together")
    return OK
