"""Where a trace is shown, behind a filter that can be changed while it is. Root side."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hypervisor.inspect import Branch, Setting
from hypervisor.trace import Level, Sink, Trace, TraceEvent
from partitions.logs import vm_name
from partitions.trace.filters import Filter, Predicate, at_least, parse_filter

HELP = "a filter as --trace-filter takes it; all events if empty"


class TraceOutlet:
    """A sink in front of another: it passes on what its filter likes, and is found by its name in the tree."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        trace: Trace,
        chosen: Filter | None,
        *,
        least: Level = Level.DEBUG,
        vms: Callable[[], Iterable[str]],
    ) -> None:
        """`least`: what an event must be besides, until somebody sets another filter. `vms`: those that there are."""
        self.name = name
        self.passed = 0
        self._sink = sink
        self._names = trace.names
        self._trace = trace
        self.wants_scheduler = chosen is not None and chosen.wants_scheduler
        """Whether it is to get the scheduler's events."""
        # A filter by device has to see every event, so it is asked first.
        self._tests: list[Predicate] = [] if chosen is None else [chosen]
        texts = [] if chosen is None else [chosen.text]
        if least > Level.DEBUG:
            self._tests.append(at_least(least))
            texts.append(f"level={least.name.lower()}")
        self._text = ",".join(texts)
        self._vms = vms

    def __call__(self, event: TraceEvent) -> None:
        """A sink."""
        vm = vm_name(self._names, event)
        for test in self._tests:
            if not test(event, vm):
                return
        self.passed += 1
        self._sink(event)

    def inspect(self) -> Branch:
        """What it lets through, and how much it has."""
        return Branch({"filter": Setting(self._text, self._set, HELP), "passed": self.passed})

    def _set(self, text: str) -> None:
        """Raises `FilterError`."""
        text = text.strip()
        chosen = parse_filter(text, vms=self._vms()) if text else None
        self._tests = [] if chosen is None else [chosen]
        self._text = text
        self.wants_scheduler = chosen is not None and chosen.wants_scheduler
        self._trace.review_sinks()
