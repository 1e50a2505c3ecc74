"""`partita top`: who gets how much of a host, window by window, live or from a file of samples. Root side."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from partitions.cli.common import FAILED, OK, Refusal, Verbs
from partitions.cli.hosts import run

if TYPE_CHECKING:
    from partitions.remote import Stream
    from partitions.resources.sample import Heading, Sample

LEAST_DELAY: Final = 0.05
MOST_DELAY: Final = 3600.0
VIEWS: Final = ("cpu", "memory", "disk", "network")


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "top",
        help="watch who gets how much of a host",
        description="Pools and VMs of a running host as a tree, or what `partita run --samples FILE` has written: what "
        "each is entitled to and gets of processors, memory, disks and network, by the names that esxtop has for it, "
        "and whether anybody contends at all. Keys: c m d n for the views, l for all counters by Hyper-V's names, "
        "arrows to scroll, space to hold still, q to quit. docs/top-and-plot.md explains the columns.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        metavar="HOST|FILE",
        nargs="?",
        help="a running host by name, process number or socket, the only one by default; or a file of samples",
    )
    parser.add_argument("--host", metavar="NAME|PATH", help="the same as HOST, as other verbs have it")
    parser.add_argument("--view", choices=VIEWS, default="cpu", help="what to begin with")
    parser.add_argument("-l", "--long", action="store_true", help="every counter, by Hyper-V's names where it has one")
    parser.add_argument(
        "-d", "--delay", type=_delay, metavar="SECONDS", help="how long a window is, of a running host (1)"
    )
    parser.add_argument(
        "-b",
        "--batch",
        action="store_true",
        help="print window after window; so it is, too, where there is no terminal",
    )
    parser.add_argument("-n", "--count", type=_count, metavar="N", help="end after so many windows; implies --batch")
    parser.add_argument(
        "-o", "--output", choices=("table", "json", "csv"), default="table", help="how --batch prints them"
    )
    parser.set_defaults(call=call)


def _delay(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not LEAST_DELAY <= value <= MOST_DELAY:
        raise argparse.ArgumentTypeError(f'"{text}" must be seconds, {LEAST_DELAY:g} to {MOST_DELAY:g}')
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'"{text}" must be a number of windows, 1 or more')
    return int(text)


def call(options: argparse.Namespace) -> int:
    """Watch, or print."""
    if options.source is None:
        options.source = options.host
    elif options.host is not None and options.host != options.source:
        raise Refusal(f"{options.source} and --host {options.host}: give one of them")
    batch = options.batch or options.count is not None or options.output != "table" or not _terminal()
    path = _file(options.source)
    if path is not None:
        if options.delay is not None:
            raise Refusal(f"--delay is for a running host; the windows of {path} are as they were taken")
        return _from_file(options, path, batch)
    if batch:
        run(lambda: _print_host(options))
    else:
        run(lambda: _watch_host(options))
    return OK


def _terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def _file(source: str | None) -> Path | None:
    """The file of samples that is meant, if it is one and not a host or its socket."""
    if source is None:
        return None
    path = Path(source)
    if path.is_file():
        return path
    if path.suffix in (".jsonl", ".json") and not path.exists():
        raise Refusal(f"{source}: there is no such file; `partita run --samples {source}` writes one")
    return None


# --- a file


def _from_file(options: argparse.Namespace, path: Path, batch: bool) -> int:
    from partitions.resources.files import SamplesError, read_samples

    with ExitStack() as stack:
        try:
            heading, samples = read_samples(stack.enter_context(open(path, "rb")), path.name)
        except SamplesError as error:
            raise Refusal(str(error), FAILED) from None
        except OSError as error:
            raise Refusal(f"{path}: {error.strerror}") from None
        if batch:
            _print_all(options, heading, _read(path, samples))
            return OK
        kept = list(_read(path, samples))
    from partitions.cli import top_screen

    run(lambda: top_screen.browse(heading, kept, top_screen.Chosen(view=options.view, long=options.long)))
    return OK


def _read(path: Path, samples: Iterator[Sample]) -> Iterator[Sample]:
    """Windows; what is wrong with the file is told apart from what is wrong with standard output."""
    from partitions.resources.files import SamplesError

    try:
        yield from samples
    except SamplesError as error:
        raise Refusal(str(error), FAILED) from None
    except OSError as error:
        raise Refusal(f"{path}: {error.strerror}") from None


def _print_all(options: argparse.Namespace, heading: Heading, samples: Iterator[Sample]) -> None:
    printer = Printer(options, heading)
    for number, sample in enumerate(samples, 1):
        printer.show(sample)
        if number == options.count:
            return


# --- a host


@asynccontextmanager
async def followed(source: str | None, delay: float) -> AsyncIterator[tuple[Heading, Stream]]:
    """A host's samples from now on. Raises as `partitions.remote` does."""
    import msgspec

    from partitions.logs import printable
    from partitions.remote import connect
    from partitions.resources.sample import Heading

    async with connect(source) as host:
        name = (await host.hello()).name
        async with host.stream("samples", window=delay) as stream:
            first = await anext(aiter(stream.lines()))
            try:
                heading = msgspec.json.decode(first, type=Heading)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                raise host.no_host() from None
            yield msgspec.structs.replace(heading, topology=printable(name)), stream


async def _print_host(options: argparse.Namespace) -> None:
    from partitions.resources.files import decode_sample

    async with followed(options.source, options.delay or 1.0) as (heading, stream):
        printer, number = Printer(options, heading), 0
        async for line in stream.lines():
            printer.show(decode_sample(line))
            number += 1
            if number == options.count:
                return


async def _watch_host(options: argparse.Namespace) -> None:
    from partitions.cli import top_screen

    async with followed(options.source, options.delay or 1.0) as (heading, stream):
        await top_screen.watch(heading, stream, top_screen.Chosen(view=options.view, long=options.long))


# --- printing


class Printer:
    """Samples one after the other, on standard output."""

    def __init__(self, options: argparse.Namespace, heading: Heading) -> None:
        self._options = options
        self._heading = heading
        self._first = True

    def show(self, sample: Sample) -> None:
        """One more."""
        import msgspec

        match self._options.output:
            case "json":
                if self._first:
                    print(msgspec.json.encode(self._heading).decode())
                print(msgspec.json.encode(sample).decode())
            case "csv":
                from partitions.cli.output import write_csv

                write_csv([flat(sample, node) for node in sample.nodes], heading=self._first)
            case _:
                self._table(sample)
        self._first = False
        sys.stdout.flush()

    def _table(self, sample: Sample) -> None:
        import shutil

        from partitions.resources.render import Look, rendered
        from partitions.resources.view import View

        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        look = Look(view=View(self._options.view), long=self._options.long, width=width, color=may_color())
        if not self._first:
            print()
        print("\n".join(rendered(sample, self._heading, look)))


def may_color() -> bool:
    """On a terminal, unless NO_COLOR is set to anything (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def flat(sample: Sample, node: Any) -> dict[str, Any]:
    """One node in one window as a row of stable names: its own fields, then those of its parts as `cpu_run`."""
    from partitions.resources.measure import fields

    row: dict[str, Any] = {"time": sample.time, "window": sample.window, "path": node.path, "kind": node.kind}
    for name in fields():
        part, _, field = name.rpartition(".")
        place = getattr(node, part) if part else node
        row[name.replace(".", "_")] = None if place is None else getattr(place, field)
    return row
