"""`partita plot`: pictures of who got what, from files of samples and traces. Root side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from partitions.cli.common import FAILED, OK, Refusal, Verbs

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from hypervisor.trace import TraceEvent
    from partitions.resources.slices import Slice

NAMES: Final = ("cpu", "all", "entitled", "lps", "schedule", "pauses", "memory", "iops", "latency", "network")
MOST_SLICES: Final = 20_000
_PIECE: Final = 1 << 20


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "plot",
        help="draw who got what",
        description="Draw what `partita run --samples FILE` has written: how each VM's processors spent their time, "
        "what was due and what was delivered, logical processors, memory, IOPS, latency and network; and of a trace "
        "with the scheduler's layer (`--trace FILE --trace-filter layer=scheduler`) who ran where. A picture for which "
        "there is no data is not drawn. docs/top-and-plot.md shows them.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", nargs="+", help="files of samples, and traces")
    parser.add_argument(
        "--out", metavar="FOLDER", help="where pictures go; beside RUN by default, as RUN-cpu.png and so on"
    )
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of the pictures")
    parser.add_argument(
        "--only", action="append", choices=NAMES, default=[], metavar="NAME", help=f"of {', '.join(NAMES)}"
    )
    parser.add_argument("--from", dest="begin", type=float, metavar="SECONDS", default=0.0, help="where to begin")
    parser.add_argument("--to", dest="end", type=float, metavar="SECONDS", help="where to end")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Draw them, and say where they are."""
    end = float("inf") if options.end is None else options.end
    if not 0 <= options.begin < end:
        raise Refusal("--from and --to are seconds of the run, the first before the second")
    folder = None if options.out is None else Path(options.out)
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        pictures = _library()
        drawn = [target for name in options.run for target in _draw(options, pictures, Path(name), folder, end)]
    except OSError as error:
        raise Refusal(f"{error.filename or options.out}: {error.strerror}", FAILED) from None
    if not drawn:
        what = f" of {', '.join(options.only)}" if options.only else ""
        raise Refusal(f"there is no data for a picture{what} in {', '.join(options.run)}", FAILED)
    for target in drawn:
        print(target)
    return OK


def _library() -> Any:
    try:
        from partitions.resources import pictures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "numpy"):
            raise
        raise Refusal("pictures need the package matplotlib; install it with: pip install 'partita[plot]'") from None
    return pictures


def _draw(options: argparse.Namespace, pictures: Any, path: Path, folder: Path | None, end: float) -> list[Path]:
    """All pictures of one file; where they are."""
    found = _from_samples(options, pictures, path, end)
    made = dict(_from_trace(options, pictures, path, end) if found is None else found)
    targets = {name: (folder or path.parent) / f"{path.stem}-{name}.{options.format}" for name in made}
    for name, figure in made.items():
        pictures.write(figure, str(targets[name]), options.format)
    return list(targets.values())


def _wanted(options: argparse.Namespace, name: str) -> bool:
    return not options.only or name in options.only


def _from_samples(options: argparse.Namespace, pictures: Any, path: Path, end: float) -> list[tuple[str, Any]] | None:
    """Pictures of a file of samples; None if it is no such file. Raises `OSError`, `Refusal`."""
    from partitions.resources import series
    from partitions.resources.files import SamplesError, is_samples, read_samples

    with open(path, "rb") as file:
        if not is_samples(file):
            return None
        try:
            heading, samples = read_samples(file, path.name)
            # A window that begins before the end has something of the span in it.
            kept = [one for one in samples if one.time > options.begin and one.time - one.window / 1e9 < end]
        except SamplesError as error:
            raise Refusal(str(error), FAILED) from None
    curves = series.read(heading, kept)
    found = []
    for name, picture in pictures.PICTURES.items():
        if curves.windows and _wanted(options, name) and (figure := picture(curves)) is not None:
            found.append((name, figure))
    return found


def _from_trace(options: argparse.Namespace, pictures: Any, path: Path, end: float) -> Iterator[tuple[str, Any]]:
    """Pictures of a trace. Raises `OSError`, `Refusal`."""
    from partitions.logs import vm_name
    from partitions.recording.reader import RecordingError
    from partitions.resources.slices import slices_of
    from partitions.trace.source import TraceReader

    wanted = [name for name in pictures.TRACE_PICTURES if _wanted(options, name)]
    if not wanted:
        return
    reader = TraceReader(name=path.name)

    def events() -> Iterator[tuple[TraceEvent, str]]:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(_PIECE), b""):
                for event in reader.feed(piece):
                    yield event, vm_name(reader.names, event)
            reader.finish()

    try:
        slices: list[Slice] = slices_of(events(), begin=options.begin, end=end)
    except RecordingError as error:
        raise Refusal(
            f"{path.name} is neither a file of samples (partita run --samples) nor a trace (--trace): {error}", FAILED
        ) from None
    if len(slices) > MOST_SLICES and "schedule" in wanted:
        raise Refusal(
            f"{path.name} has {len(slices):,} slices, more than a picture can show: give a span, such as --from "
            f"{slices[0].begin:g} --to {slices[MOST_SLICES // 20].end:g}"
        )
    for name in wanted:
        if (figure := pictures.TRACE_PICTURES[name](slices)) is not None:
            yield name, figure
