"""`partita explain`: run a topology and say how far each guest got, and what its next step needs. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli import run
from partitions.cli.common import FAILED, INTERRUPTED, OK, Refusal, Verbs, unknown_vm

if TYPE_CHECKING:
    import argparse

TIMEOUT = 60.0
"""Seconds that a guest has to get where it is going."""


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "explain",
        help="say how far a guest gets, and what the next step needs",
        description="Start the VMs and watch what crosses the boundary: guest OS ID, hypercall page, SynIC, the VMBus "
        "contact, offers, each channel's open and first packet. When all have ended, at the timeout or at Ctrl-C, say "
        "how far each got and what its next step needs; VMs that are still on are turned off. The answer to "
        '"my kernel does not see its disk". Exit status: 0 nothing is missing, 1 something is, 2 usage or topology.',
        allow_abbrev=False,
    )
    run.add_run_options(parser)
    parser.add_argument("--vm", metavar="NAME", help="start and explain only this VM")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(
        call=call,
        timeout=TIMEOUT,
        explain=True,
        explain_only=True,
        save={},
        save_after=None,
        restore={},
        console=False,
        terminal=None,
        trace=None,
        pcap=None,
        timeline=None,
        trace_filter=None,
        log_format=None,
        verbose=0,
    )


def call(options: argparse.Namespace) -> int:
    """Run, and print nothing but the explanations."""
    import msgspec

    topology = run.read(options)
    if options.vm is not None:
        names = [vm.name for vm in topology.vm]
        if options.vm not in names:
            raise Refusal(f"--vm: {unknown_vm(options.vm, names)}")
        topology = msgspec.structs.replace(topology, vm=[vm for vm in topology.vm if vm.name == options.vm])
    outcome = run.run(options, topology)
    from partitions.cli.viewer import Ending

    if outcome.ending is Ending.INTERRUPTED:
        return INTERRUPTED
    return OK if all(told.complete for told in outcome.explanations) else FAILED
