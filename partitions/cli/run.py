"""`partita run`: start every VM of a topology, show what happens, end when all have ended. Root side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from partitions.cli import boundary_runs, capturing
from partitions.cli.common import (
    FAILED,
    INTERRUPTED,
    OK,
    TARGET_HELP,
    TIMED_OUT,
    Refusal,
    Verbs,
    port_number,
    read_topology,
    unknown_vm,
    warn_of_controls,
)

if TYPE_CHECKING:
    from partitions.cli.viewer import Outcome
    from partitions.topology import Topology


METRICS_PORT = 9464
"""The one that Prometheus exporters of OpenTelemetry have, too."""


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "run",
        help="run a topology until all its guests have ended",
        description="Start every VM of a topology and wait until all have ended. Exit status: 0 all ended well, 1 "
        "a guest or a worker failed, 2 usage or topology, 124 timeout, 130 interrupted. Ctrl-C presses the power "
        "buttons, a second one cuts the power, a third leaves at once.",
        allow_abbrev=False,
    )
    add_run_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document at the end")
    parser.add_argument(
        "--console",
        dest="terminal",
        metavar="VM",
        help="this terminal becomes the serial port of one VM; Ctrl-] opens a menu of keys, all others are the guest's",
    )
    parser.add_argument(
        "--lines",
        dest="console",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="print what guests print, line by line with their VM in front (on, unless --json is given)",
    )
    parser.add_argument(
        "--save",
        action="append",
        default=[],
        metavar="VM=FILE",
        help="save a VM to a file in place of ending it: at Ctrl-C, or when --save-after has passed",
    )
    parser.add_argument("--save-after", type=float, metavar="SECONDS", help="when to save what --save names")
    parser.add_argument(
        "--restore",
        action="append",
        default=[],
        metavar="VM=FILE",
        help="start a VM from a file of --save, where it goes on",
    )
    boundary_runs.add_options(parser)
    parser.add_argument("--explain", action="store_true", help="say at the end how far each guest got")
    parser.add_argument("--trace", metavar="FILE", help="write every event to a file as JSON lines")
    parser.add_argument("--trace-filter", metavar="FILTER", help="such as 'vm=web,layer=packet|control'")
    parser.add_argument(
        *("-w", "--pcap"),
        metavar="FILE",
        help="record every event as pcapng, for `partita trace` and Wireshark; - is standard output, as in "
        "`-w - | tshark -r -`, and what is printed there goes to standard error",
    )
    parser.add_argument(
        "--capture",
        action="append",
        default=[],
        metavar="PORT=FILE",
        help="record Ethernet at a switch port as pcapng, for Wireshark: web/0 is the first adapter of VM web, "
        "lan:host or lan:uplink the host's side of a switch",
    )
    parser.add_argument(
        "--timeline", metavar="FILE", help="draw the run on a time axis: Chrome trace events, for Perfetto"
    )
    parser.add_argument(
        "--samples",
        metavar="FILE",
        help="write what every pool and VM got of each resource, window by window, as JSON lines: for `partita top` "
        "and `partita plot`",
    )
    parser.add_argument(
        "--window", type=_window, metavar="MS", help="milliseconds that a sample is of (100), with --samples"
    )
    parser.add_argument(
        "--predict",
        metavar="ANSWER",
        help="what you think that the answer to the topology's question is; the run says whether it fits",
    )
    parser.add_argument(
        "--watch",
        type=port_number,
        metavar="PORT",
        nargs="?",
        const=0,
        help="show the run as a picture in the browser; it begins when the page is open (docs/watch.md)",
    )
    parser.add_argument(
        "--log-format", choices=("human", "json"), default=None, help="how -v writes events to standard error"
    )
    parser.add_argument(
        "-v",
        "--verbose",
        dest="verbose",
        action="count",
        default=0,
        help="show state changes; -vv everything on the bus",
    )
    parser.add_argument(
        "--stay",
        action="store_true",
        default=False,
        help="go on when all guests have ended, so that they can be started again: until Ctrl-C or `partita down`",
    )
    parser.add_argument(
        "--control",
        metavar="PATH",
        default=None,
        help="where `partita ps` and others reach this run: a socket's path, or auto, for one in the usual "
        "place, which a run on the virtual clock has only if it is asked for",
    )
    parser.add_argument("--no-control", action="store_true", default=False, help="nobody reaches it")
    parser.add_argument(
        "--metrics",
        metavar="PORT",
        nargs="?",
        type=_port,
        const=METRICS_PORT,
        default=None,
        help="answer Prometheus at http://localhost:PORT/metrics, reached from this machine alone; "
        f"{METRICS_PORT} if none is given, any that is free for 0",
    )
    parser.set_defaults(call=call, explain_only=False)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """What every verb has that runs a topology."""
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
    # What not every verb offers that runs a topology.
    parser.set_defaults(stay=False, control=None, no_control=True, metrics=None, watch=None, record=None, replay=None)
    parser.set_defaults(capture={}, samples=None, window=None, predict=None)


def _window(text: str) -> int:
    from partitions.cli.observing import window

    return window(text)


def _port(text: str) -> int:
    """A number that is a port and does not look like an example's."""
    if not text.isdecimal() or str(int(text)) != text or int(text) > 65535:
        raise argparse.ArgumentTypeError(f'"{text}" is no port; write the topology first, or --metrics=PORT')
    return int(text)


def call(options: argparse.Namespace) -> int:
    """Run it."""
    topology = read(options)
    names = [vm.name for vm in topology.vm]
    options.save = _files("--save", options.save, names)
    options.restore = _files("--restore", options.restore, names)
    options.capture = capturing.parse(options.capture, topology)
    _check_saves(options.save)
    _check_restores(options.restore)
    if options.save_after is not None and not (options.save and options.save_after >= 0):
        raise Refusal("--save-after takes a number of seconds, 0 or more, and a --save VM=FILE")
    if not options.predict is options.samples is options.window is None:
        from partitions.cli.observing import check_options

        check_options(options, topology)
    if options.metrics is not None and options.clock == "virtual":
        raise Refusal("--metrics does not go with --clock virtual: a run whose time jumps is over before it is asked")
    if options.terminal is not None:
        if options.terminal not in names:
            raise Refusal(f"--console: {unknown_vm(options.terminal, names)}")
        if options.json or options.clock == "virtual":
            raise Refusal(f"--console {options.terminal} does not go with --json or --clock virtual")
    if options.pcap == "-":
        if options.json or options.terminal is not None:
            raise Refusal(
                f"-w - does not go with {'--json' if options.json else '--console'}: both are standard output"
            )
        if sys.stdout.isatty():
            raise Refusal("-w -: a recording is bytes and no text; name a file, or a reader: -w - | tshark -r -")
    outcome = run(options, topology)
    from partitions.cli.viewer import Ending

    match outcome.ending:
        case Ending.INTERRUPTED:
            return INTERRUPTED
        case Ending.TIMED_OUT:
            return TIMED_OUT
        case _:
            return OK if all(row.ok for row in outcome.vms) and not outcome.not_saved else FAILED


def _files(option: str, items: list[str], names: list[str]) -> dict[str, Path]:
    """VM names and files; the files as they are from here, since a topology's paths start elsewhere."""
    found: dict[str, Path] = {}
    for item in items:
        vm, _, path = item.partition("=")
        if not path:
            raise Refusal(f"{option} {item}: must be VM=FILE, as in {option} {names[0]}={names[0]}.saved")
        if vm not in names:
            raise Refusal(f"{option}: {unknown_vm(vm, names)}")
        if vm in found:
            raise Refusal(f"{option} {item}: VM {vm} has a file already, {found[vm]}")
        found[vm] = Path(path).absolute()
    return found


def _check_saves(files: dict[str, Path]) -> None:
    """Whoever waits to save a VM should not learn only then that there is no place for it."""
    for vm, path in files.items():
        if not path.parent.is_dir():
            raise Refusal(f"--save {vm}={path}: there is no folder {path.parent}")
        if path.is_dir():
            raise Refusal(f"--save {vm}={path}: is a folder; name a file in it")


def _check_restores(files: dict[str, Path]) -> None:
    for vm, path in files.items():
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "there is no such file"
            raise Refusal(f"--restore {vm}={path}: {what}; `partita run --save` makes one")


def read(options: argparse.Namespace) -> Topology:
    """The topology, with the disks that were asked for; everything that can be refused without starting is."""
    if options.seed is not None and options.seed < 0:
        raise Refusal("--seed must not be negative")
    if options.timeout is not None and not options.timeout >= 0:
        raise Refusal("--timeout must be a number of seconds, 0 or more")
    topology = with_disks(read_topology(options.target), options.disk)
    warn_of_controls(topology, options.target)
    return topology


def run(options: argparse.Namespace, topology: Topology) -> Outcome:
    """Run it and show it, as the options say."""
    from partitions import determinism
    from partitions.cli import session
    from partitions.cli.viewer import Viewer

    seed = topology.host.seed if options.seed is None else options.seed
    boundary = boundary_runs.boundary_run(options, topology, seed)
    if boundary is not None:
        options.seed = seed = boundary.seed
    with Viewer(options, [vm.name for vm in topology.vm]) as viewer:
        try:
            outcome = determinism.run(
                session.run,
                topology,
                viewer,
                options.timeout,
                None if boundary is None else boundary.backends,
                clock=options.clock,
                seed=seed,
                order=None if boundary is None else boundary.turns,
            )
        except determinism.NotRepeatable as error:
            raise Refusal(str(error)) from None
        except BaseExceptionGroup as group:
            # What a run is refused for once it is under way has gone through its nurseries.
            refusals = group.subgroup(Refusal)
            if refusals is None or group.split(Refusal)[1] is not None:
                raise
            raise leaf(refusals) from None
        viewer.finish(outcome)
        if viewer.outlets.problems:
            raise Refusal(viewer.outlets.problems[0], FAILED)
        if boundary is not None:
            told = boundary.finish()
            if not boundary.ok:
                raise Refusal(told, FAILED)
            viewer.note(f"note: {told}")
    return outcome


def leaf(group: BaseExceptionGroup[Refusal]) -> Refusal:
    """The first of a group of groups."""
    first = group.exceptions[0]
    return leaf(first) if isinstance(first, BaseExceptionGroup) else first


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
