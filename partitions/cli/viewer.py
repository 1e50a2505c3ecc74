"""Where a run is shown, and what it comes to: consoles, traces, recordings, samples, the results. Root side.

What only some runs show is imported by those.
"""

from __future__ import annotations

import enum
import os
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Literal

import msgspec
import trio

from hypervisor.trace import Level
from partitions.cli.common import Refusal, print_json
from partitions.cli.outlets import Outlets
from partitions.cli.summary import Screen, VmRow, can_redraw, console_line, live_block, table
from partitions.cli.terminal import Terminal
from partitions.host import ExitReason, Host, Vm
from partitions.logs import filtered, human_sink, json_sink, vm_name
from partitions.topology_schema import Backend
from partitions.trace.filters import FilterError, parse_filter
from partitions.trace.outlet import TraceOutlet

if TYPE_CHECKING:
    import argparse
    import socket

    from hypervisor.trace import TraceEvent
    from partitions.cli.observing import Observer
    from partitions.explain import Explainer
    from partitions.explain_steps import Explanation
    from partitions.question import Verdict
    from partitions.recording.file import FileRecording
    from partitions.resources.sample import Sample
    from partitions.topology import Topology
    from partitions.trace.timeline import Timeline

REDRAW_SECONDS = 0.25
NOTABLE = 0.02
"""Seconds of lateness from which on a run's figures have a word about it."""
CONSOLE_LINES = 100_000
"""Lines that may wait for a slow terminal, a VM."""


class Ending(enum.StrEnum):
    """Why a run is over."""

    ENDED = "ended"
    """Every guest has ended."""
    TIMED_OUT = "timed out"
    INTERRUPTED = "interrupted"
    NOTHING_LEFT = "nothing left to happen"
    """On the virtual clock: every guest waits, and no timer is set that could wake one."""
    DOWN = "taken down"
    """By `partita down` from another terminal."""
    UNWATCHED = "nobody reads the output any more"
    """The other end of a pipe was closed, as `head` does when it has enough."""


class Outcome(msgspec.Struct, kw_only=True):
    """What `--json` prints, by stable names."""

    topology: str
    clock: Literal["real", "virtual"]
    seed: int | None
    ending: Ending
    seconds: float
    """On the host's clock."""
    vms: list[VmRow]
    not_saved: list[str] = []
    """VMs that `--save` names and that were not saved when it was time."""
    explanations: list[Explanation] = []
    """How far each guest got, where that was asked for."""
    resources: Sample | None = None
    """Who had how much over the whole run, where somebody asked for control or processors were contended for."""
    question: Verdict | None = None
    """What the topology asks, what was predicted, and what came of it."""
    lateness: float = 0.0
    """Seconds by which a guest, or the scheduler, was woken too late at worst: a real clock on a busy machine."""
    late_wakes: int = 0
    """How often that was a millisecond or more."""


class Viewer:
    """Where a run is shown: standard output, standard error, a trace file; what the options ask for and no more."""

    def __init__(self, options: argparse.Namespace, vms: Sequence[str]) -> None:
        self.options = options
        self.json: bool = options.json
        self.console: bool = not options.json if options.console is None else options.console
        self.outlets = Outlets()
        self.terminal = None if options.terminal is None else Terminal(options.terminal)
        self.not_saved: list[str] = []
        self.explainers = _explainers(vms) if options.explain or options.explain_only else {}
        if self.terminal is not None:
            self.console = False
        stream = sys.stderr if options.json or options.pcap == "-" else sys.stdout
        live = not options.json and options.clock == "real" and self.terminal is None and can_redraw(stream)
        self.screen = Screen(stream, live=live, outlets=self.outlets)
        self._width = max(map(len, vms))
        try:
            self._filter = None if options.trace_filter is None else parse_filter(options.trace_filter, vms=vms)
        except FilterError as error:
            raise Refusal(f"--trace-filter: {error}") from None
        self._level = self._log_level()
        self._file = None if options.trace is None else _open("--trace", options.trace)
        self._timeline_file = None if options.timeline is None else _open("--timeline", options.timeline)
        self._samples_file = None if options.samples is None else _open("--samples", options.samples)
        self._timeline: Timeline | None = None
        self.recording: FileRecording | None = None
        """Where the run is recorded, from `attach` on."""
        self._output = None if options.pcap is None else _open_recording(options.pcap)
        self.page: socket.socket | None = None if options.watch is None else _claim(options)

    def __enter__(self) -> Viewer:
        if self.terminal is not None:
            keys = "Ctrl-] opens a menu of keys, everything else is the guest's" if self.terminal.typing else "copied"
            self.note(f"console of {self.terminal.vm}: {keys}")
            self.terminal.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the block away and finish the trace file."""
        if self.terminal is not None:
            self.terminal.close()
        if self.page is not None:
            self.page.close()
        self.screen.clear()
        file, self._file = self._file, None
        if file is not None:
            self.outlets.attempt(f"--trace {self.options.trace}", file.close)
        file, self._timeline_file = self._timeline_file, None
        if file is not None:
            if self._timeline is not None:
                self._timeline.finish()
            self.outlets.attempt(f"--timeline {self.options.timeline}", file.close)
        file, self._samples_file = self._samples_file, None
        if file is not None:
            self.outlets.attempt(f"--samples {self.options.samples}", file.close)
        recording, output = self.recording, self._output
        self._output = None
        if recording is not None:
            recording.close()
        elif output is not None:
            os.close(output)

    def recording_notes(self) -> list[str]:
        """What is missing in the recording, once it is closed."""
        recording = self.recording
        if recording is None:
            return []
        notes = []
        if recording.stalled:
            notes.append("its reader has stopped reading, and was not waited for")
        if recording.dropped:
            least = "" if recording.error is None else "at least "
            notes.append(f"{least}{recording.dropped} are not in it")
        if recording.error is not None and not isinstance(recording.error, BrokenPipeError):
            self.outlets.fail(f"--pcap {self.options.pcap}", recording.error)
        return [f"note: --pcap {self.options.pcap}: {note}" for note in notes]

    def _log_level(self) -> Level | None:
        """What goes to standard error. A filter or a format alone means that somebody wants to see something."""
        if self.options.verbose:
            return Level.INFO if self.options.verbose == 1 else Level.DEBUG
        nowhere_else = self.options.trace is self.options.timeline is self.options.pcap is None
        if self._filter is not None and nowhere_else:
            return Level.DEBUG
        return None if self.options.log_format is None else Level.INFO

    def attach(self, host: Host) -> None:
        """Add the sinks. Without options there are none, and trace points cost one attribute test."""
        if self.explainers:
            host.trace.add_sink(self._explain_to(host))
        if self._file is not None:
            sink = self.outlets.guarded(json_sink(self._file, host.trace), f"--trace {self.options.trace}")
            host.trace.add_sink(TraceOutlet("file", sink, host.trace, self._filter, vms=lambda: host))
        if self._timeline_file is not None:
            self._draw(host, self._timeline_file)
        if self._output is not None:
            self._record(host, self._output)
        if self._level is None:
            return
        if self.options.log_format == "json":
            sink = json_sink(sys.stderr.buffer, host.trace, flush=True)
        else:
            together = self.screen.live and sys.stderr.isatty()
            sink = human_sink(self.screen if together else sys.stderr, host.trace)  # type: ignore[arg-type]
        sink = self.outlets.guarded(sink, "standard error")
        host.trace.add_sink(TraceOutlet("log", sink, host.trace, self._filter, least=self._level, vms=lambda: host))

    def _draw(self, host: Host, file: IO[bytes]) -> None:
        from partitions.trace.timeline import Timeline

        names = host.trace.names
        timeline = self._timeline = Timeline(self.outlets.guarded_write(file, f"--timeline {self.options.timeline}"))

        def sink(event: TraceEvent) -> None:
            timeline.feed(event, vm_name(names, event))

        host.trace.add_sink(TraceOutlet("timeline", sink, host.trace, self._filter, vms=lambda: host))

    def _record(self, host: Host, output: int) -> None:
        from partitions.recording.file import FileRecording

        wanted, virtual = self._filter, self.options.clock == "virtual"
        self.recording = FileRecording(
            host.trace,
            output,
            started=host.started,
            inline=virtual,
            tell=lambda text: self.note(f"note: --pcap {self.options.pcap}: {text}"),
            select_from=None if wanted is None else lambda sink: filtered(sink, host.trace, wanted),
        )

    def _explain_to(self, host: Host) -> Callable[[TraceEvent], None]:
        names, explainers = host.trace.names, self.explainers

        def sink(event: TraceEvent) -> None:
            explainer = explainers.get(vm_name(names, event))
            if explainer is not None:
                explainer.feed(event)

        return sink

    def explanations(self, host: Host) -> list[Explanation]:
        """How far each guest got, as of now; nothing where nobody asked."""
        if not self.explainers:
            return []
        from partitions.explain_steps import explain

        return [
            explain(
                explainer,
                vm=name,
                kvm=host[name].settings.backend is Backend.KVM,
                processors=host[name].settings.processors,
                failure=_failure(host[name]),
            )
            for name, explainer in self.explainers.items()
        ]

    def observer(self, host: Host) -> Observer | None:
        """Who takes samples and measures what the topology asks; None where nobody needs to."""
        question = None if self.options.explain_only else host.topology.question
        if self._samples_file is None and question is None:
            return None
        from partitions.cli.observing import Observer

        observer = Observer(host, self.options, question)
        if self._samples_file is not None:
            outlet = f"--samples {self.options.samples}"
            observer.write_to(self.outlets.guarded_write(self._samples_file, outlet))
        return observer

    def ask(self, topology: Topology) -> None:
        """The question, before the run."""
        if topology.question is not None and not (self.json or self.options.explain_only):
            from partitions.question import words_before

            for line in words_before(topology.question, self.options.predict):
                self.screen.line(line)

    async def follow(self, vm: Vm, *, task_status: trio.TaskStatus[None]) -> None:
        """Print a VM's console lines as they come, until its console is closed."""
        with vm.console.follow(capacity=CONSOLE_LINES) as lines:
            task_status.started()
            async for line in lines:
                if self.console:
                    self.screen.line(console_line(vm.name, line.text, self._width))
            if self.console and lines.dropped:
                self.note(f"note: {lines.dropped} console lines of {vm.name} came too fast and are not shown")

    async def redraw(self, host: Host) -> None:
        """Keep the block fresh. Never on the virtual clock, where its sleep would make time pass."""
        while True:
            if self.options.explain_only:
                self.screen.draw([line for told in self.explanations(host) for line in _lines(told)])
            else:
                self.screen.draw(live_block(host))
            await trio.sleep(REDRAW_SECONDS)

    def note(self, text: str) -> None:
        """A line for the person, beside the results."""
        self.screen.clear()
        self.outlets.attempt("standard error", lambda: print(text, file=sys.stderr, flush=True))

    def problems(self, host: Host) -> list[str]:
        """Why VMs failed, with the traceback where the fault is ours."""
        found = []
        for vm in host.values():
            record = vm.exit
            if record is None or record.ok:
                continue
            found.append(f"error: VM {vm.name}: {record}")
            if record.reason is ExitReason.WORKER_FAILED:
                found.append(record.traceback.rstrip())
        if self._level is None and (count := mistakes(host)):
            words = "1 mistake of a guest was" if count == 1 else f"{count} mistakes of guests were"
            found.append(f"note: {words} answered; -v shows what")
        if self.terminal is not None and self.terminal.lost_output:
            found.append(f"note: {self.terminal.lost_output} bytes of the console came too fast and are not shown")
        if self.terminal is not None and self.terminal.lost_input:
            found.append(f"note: {self.terminal.lost_input} typed bytes were lost: the guest did not read them")
        return found

    def finish(self, outcome: Outcome) -> None:
        """The results."""
        self.close()
        for note in self.recording_notes():
            self.note(note)
        if outcome.ending is not Ending.ENDED:
            cut = any(row.exit == ExitReason.TURNED_OFF.value for row in outcome.vms)
            rest = ": VMs that were still on have been turned off" if cut else ""
            self.note(f"note: {outcome.ending}{rest}")
        if self.json:
            print_json(outcome)
            return
        shown = [] if self.options.explain_only else table(outcome.vms)
        if outcome.resources is not None and not self.options.explain_only:
            from partitions.resources.render import summary

            shown += ["", *summary(outcome.resources, self.screen.width)]
        for told in outcome.explanations:
            shown += [*([""] if shown else []), *_lines(told)]
        if outcome.question is not None:
            from partitions.question import words_after

            shown += ["", *words_after(outcome.question)]
        if outcome.lateness >= NOTABLE and (outcome.resources is not None or outcome.question is not None):
            shown.append(_late(outcome))
        for line in shown:
            self.screen.line(line)


def _late(outcome: Outcome) -> str:
    """Beside figures that came about on a machine which was too busy for them."""
    times = "once" if outcome.late_wakes == 1 else f"{outcome.late_wakes} times"
    return (
        f"late:     this machine woke somebody {1000 * outcome.lateness:.0f} ms late at worst, and {times} by 1 ms"
        " or more: what guests say of times may be off by that; --clock virtual is never late"
    )


def _open(option: str, name: str) -> IO[bytes]:
    try:
        return open(name, "wb")  # closed with the viewer
    except OSError as error:
        raise Refusal(f"{option} {name}: {error.strerror}") from None


def _claim(options: argparse.Namespace) -> socket.socket:
    from partitions.cli.watching import claim

    if options.clock == "virtual":
        raise Refusal(
            "--watch does not go with --clock virtual, where time jumps while browsers wait; record it with "
            "--pcap FILE, and make a page of that with: partita watch FILE"
        )
    return claim(options.watch)


def _open_recording(name: str) -> int:
    from partitions.recording.file import open_output

    try:
        return open_output(name)
    except OSError as error:
        raise Refusal(f"--pcap {name}: {error.strerror}") from None


def mistakes(host: Host) -> int:
    """How many a guest made, without the probes for devices that a kernel for PCs makes wherever it runs."""
    from partitions.explain import HARMLESS

    return sum(count for (_, event), count in host.trace.warnings.items() if event not in HARMLESS)


def _explainers(vms: Sequence[str]) -> dict[str, Explainer]:
    from partitions.explain import Explainer

    return {name: Explainer() for name in vms}


def _lines(told: Explanation) -> list[str]:
    from partitions.explain_steps import lines

    return lines(told)


def _failure(vm: Vm) -> str:
    return "" if vm.exit is None or vm.exit.ok else str(vm.exit)
