"""What `partita run` looks at beside the guests: samples for a file, and what its topology's question asks. Root side.

On the virtual clock nothing here is a timer, which would be one more thing left to happen: who moves that clock asks
when the next look is due, and everything else of that moment has happened when it is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from partitions.cli.common import Refusal
from partitions.question import AnswerError, Verdict, judge, read_answer

if TYPE_CHECKING:
    import argparse

    from partitions.host import Host
    from partitions.resources.measure import Amount, Measure
    from partitions.resources.sample import Sample
    from partitions.resources.sampler import Reading, Sampler
    from partitions.topology import Topology
    from partitions.topology_question import QuestionTable

SECOND: Final = 1_000_000_000
MIN_WINDOW_MS: Final = 1
MAX_WINDOW_MS: Final = 3_600_000


def check_options(options: argparse.Namespace, topology: Topology) -> None:
    """What can be refused before anything starts; the answer becomes a value. Raises `Refusal`."""
    if options.predict is not None:
        if topology.question is None:
            raise Refusal("--predict: this topology asks nothing; it would need a [question] table")
        try:
            options.predict = read_answer(topology.question, options.predict)
        except AnswerError as error:
            raise Refusal(f"--predict: {error}") from None
    if options.window is not None and options.samples is None:
        raise Refusal("--window goes with --samples FILE: it is the time that each of them is of")
    if options.samples is not None and (options.record is not None or options.replay is not None):
        option = "--record" if options.record is not None else "--replay"
        raise Refusal(f"--samples does not go with {option}, which is told turn by turn what happened")


def window(text: str) -> int:
    """Nanoseconds of a window, from milliseconds on the command line."""
    import argparse

    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not MIN_WINDOW_MS <= value <= MAX_WINDOW_MS:
        raise argparse.ArgumentTypeError(f'"{text}" is no window; it takes milliseconds, 1 or more, as in --window 100')
    return round(value * 1e6)


class Observer:
    """The looks of one run: one at the end of each window, and one at each moment that a question names."""

    def __init__(self, host: Host, options: argparse.Namespace, question: QuestionTable | None) -> None:
        from partitions.resources.measure import parse_measure
        from partitions.resources.sampler import WINDOW_MS, Sampler

        self._host = host
        self._question = question
        self._prediction: float | str | None = options.predict
        self._measure: Measure | None = None if question is None else parse_measure(question.measure)
        marks = [] if self._measure is None else self._measure.marks
        self._marks = [round(mark * SECOND) for mark in marks]
        self._marked: dict[int, Reading] = {}
        self._sampling = False
        self._write: Callable[[bytes], object] = lambda _: None
        self._window = options.window or WINDOW_MS * 1_000_000
        self._target = str(options.target)
        self._encode = msgspec.json.Encoder().encode
        self.sampler: Sampler = Sampler(host)
        self._next = self._window

    def write_to(self, write: Callable[[bytes], object]) -> None:
        """Samples go there, line by line, from now on."""
        self._sampling, self._write = True, write
        self._write(self._encode(self.sampler.heading(topology=self._target, window=self._window)) + b"\n")

    @property
    def due(self) -> float:
        """Seconds from now to the next look; infinite where there is none to come."""
        due = self._due()
        return float("inf") if due is None else max(0.0, (due - self.sampler.now()) / SECOND)

    def _due(self) -> int | None:
        wanted = [*self._marks[:1], *([self._next] if self._sampling else [])]
        return min(wanted, default=None)

    def look(self) -> None:
        """Take what is due by now, at one go: where time stands still meanwhile."""
        now = self.sampler.now()
        self._mark(now)
        if self._sampling and self._next <= now:
            self._line(self.sampler.sample())
            self._next = (now // self._window + 1) * self._window

    def _mark(self, now: int) -> None:
        while self._marks and self._marks[0] <= now:
            self._marked[self._marks.pop(0)] = self.sampler.read()

    def _line(self, sample: Sample) -> None:
        self._write(self._encode(sample) + b"\n")

    async def keep_looking(self) -> None:
        """On the real clock, until it is cancelled."""
        while (due := self._due()) is not None:
            await trio.sleep((due - self.sampler.now()) / SECOND if due > self.sampler.now() else 0)
            now = self.sampler.now()
            self._mark(now)
            if self._sampling and self._next <= now:
                self._line(await self.sampler.sample_in_turns())
                # A look that came late is no reason for two at once.
                self._next = (self.sampler.now() // self._window + 1) * self._window

    def finish(self) -> None:
        """The last window, which is shorter."""
        if self._sampling and self.sampler.now() > self.sampler.last.time:
            self._line(self.sampler.sample())
        self._sampling = False

    def final(self) -> Sample:
        """The whole run as one window."""
        return self.sampler.between(self.sampler.first, self.sampler.read(), whole=True)

    def verdict(self) -> Verdict | None:
        """What the question's answer is; None where none was asked."""
        from partitions.resources.measure import MeasureError, evaluate

        question, measure = self._question, self._measure
        if question is None or measure is None:
            return None
        try:
            measured = evaluate(measure, self._figure, numeric=not question.choices)
        except MeasureError as error:
            return judge(question, self._prediction, None, str(error))
        return judge(question, self._prediction, measured)

    def _figure(self, amount: Amount) -> float | str:
        from partitions.resources.measure import MeasureError, figure, said

        kind, _, name = amount.node.partition("/")
        if amount.says:
            try:
                return said(self._host[name].console.lines(), amount.says)
            except MeasureError as error:
                raise MeasureError(f"{amount.node}: {error}") from None
        if amount.span is None:
            sample = self.final()
        else:
            begin, end = (self._marked.get(round(moment * SECOND)) for moment in amount.span)
            if begin is None or end is None:
                raise MeasureError(f"the run was over before second {amount.span[0 if begin is None else 1]:g}")
            sample = self.sampler.between(begin, end, whole=True)
        node = sample.node(amount.node)
        if node is None:
            raise MeasureError(f"there is no {kind} {name} in this run")
        return figure(node, amount.field)
