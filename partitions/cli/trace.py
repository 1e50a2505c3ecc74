"""`partita trace`: what was recorded, or happens now, as lines, stories, tables and pictures. Root side."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from partitions.cli.common import INTERRUPTED, OK, Refusal, Verbs, read_filter

if TYPE_CHECKING:
    import argparse

    from partitions.cli.trace_sources import Reading
    from partitions.cli.trace_views import View
    from partitions.trace.filters import Filter


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "trace",
        help="show what was recorded, or what happens in a running host",
        description="Show a recording (partita run --pcap FILE), JSON lines (partita run --trace FILE), or what "
        "happens in a running host: as lines, as the story of one request or of a connection, as a table of "
        "requests, as a sequence diagram or a timeline. Exit status: 0 shown, 1 what was asked for is not there, or "
        "the file is damaged, 2 usage.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="a recording or JSON lines; - is standard input")
    parser.add_argument("--host", metavar="NAME", nargs="?", const="", help="a running host; without NAME the only one")
    parser.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="of --host: end after that long")
    parser.add_argument(
        *("-w", "--write"),
        metavar="PART",
        help="show nothing, but record a running host (--host), or what --filter chooses of FILE, to another file, or "
        "for - to standard output",
    )
    parser.add_argument("--filter", metavar="FILTER", help="such as 'vm=web,layer=packet|control,time=1.2..1.5'")
    parser.add_argument(
        "-o", "--output", choices=("human", "json"), default="human", help="json: a line an event, or one document"
    )
    parser.add_argument(
        "-x",
        "--hex",
        action="count",
        default=0,
        help="show below each line, or each packet of a story, what its bytes say; -xx: the bytes by themselves too",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on when the file grows, until Ctrl-C")
    parser.add_argument("--limit", type=int, metavar="N", help="no more than N lines, requests or arrows")
    parser.add_argument("--tail", type=int, metavar="N", help="show the last N lines only; with -f then what comes")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--story",
        metavar="REQUEST",
        help="one request through every layer and back: its name (reader/1/0x4), slowest, first or last, each also "
        "with a filter (first:text=READ); or the life of a channel (reader/1) or of a VM and its connection (reader)",
    )
    what.add_argument("--requests", action="store_true", help="a table of requests, and percentiles by device")
    what.add_argument(
        "--sequence", action="store_true", help="draw who said what to whom, as Mermaid text; choose little by --filter"
    )
    what.add_argument(
        "--timeline", metavar="FILE", help="write a time axis of it to a file: Chrome trace events, for Perfetto"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--mermaid", action="store_true", help="of --sequence: as text, which GitHub draws; so without")
    form.add_argument("--svg", action="store_true", help="of --sequence: as a picture")
    parser.add_argument("-O", dest="picture", metavar="FILE", help="where --sequence goes, in place of standard output")
    parser.add_argument(
        "--sort", choices=("duration", "time", "name"), default="duration", help="how --requests orders them"
    )
    parser.set_defaults(call=partial(call, parser))


def call(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """Show it."""
    _give_way(parser, options)
    _check(options)
    from partitions.cli.trace_sources import Reading, open_trace, read_file, tell_nothing_fitted

    condition = read_filter(options.filter)
    if options.write is not None:
        if options.file is None:
            return _record(options)
        from partitions.cli.trace_copy import copy_part

        return copy_part(options.file, options.write, condition)
    view = _view(options, condition)
    if options.file is None:
        return _live(options, Reading(view, options.host or "the host"))
    name = "standard input" if options.file == "-" else options.file
    with open_trace(options.file) as file:
        reading = Reading(view, name)
        try:
            read_file(reading, file, follow=options.follow)
        except KeyboardInterrupt:
            reading.end()
            # Whoever follows has no other way to say that it is enough.
            return OK if options.follow or options.file == "-" else INTERRUPTED
        reading.end()
    if condition is not None and not view.fitted:
        tell_nothing_fitted(name, condition)
    return OK


def _give_way(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What the environment says for every `partita trace` is not meant where it does not go with the command line."""
    drawn = not _only_lines(options)
    unfit = {
        "host": options.file is not None,
        "seconds": options.file is not None,
        "follow": options.file is None,
        "filter": options.story is not None,
        "hex": drawn and options.story is None,
        "tail": drawn,
    }
    for name, does_not_fit in unfit.items():
        # The environment's values are the parser's defaults by now.
        default = parser.get_default(name)
        if does_not_fit and default and getattr(options, name) == default:
            setattr(options, name, {"follow": False, "hex": 0}.get(name))


def _check(options: argparse.Namespace) -> None:
    if options.file is not None and options.host is not None:
        raise Refusal("takes a FILE or --host, not both: what is to be shown is in a file or happens in a host")
    if options.file is None and options.host is None:
        raise Refusal("takes a FILE, or --host for a host that runs; `partita run --pcap FILE` records one")
    for name in ("limit", "tail"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise Refusal(f"--{name} must not be negative")
    if options.seconds is not None and (options.host is None or not options.seconds >= 0):
        raise Refusal("--for takes seconds, 0 or more, and goes with --host")
    if options.follow and options.file is None:
        raise Refusal("--follow goes with a FILE; --host shows what comes anyway")
    drawn = options.sequence or options.timeline is not None
    lines = _only_lines(options)
    shown = not lines or options.hex or options.follow or options.tail is not None or options.limit is not None
    if options.write is not None and (shown or options.output == "json"):
        raise Refusal("-w records a running host, or a part of a FILE, and shows nothing of it")
    if options.hex and not lines and options.story is None:
        raise Refusal("--hex goes with lines and with --story")
    if options.tail is not None and not lines:
        raise Refusal("--tail goes with lines, not with --story, --requests or a picture")
    for name, given in (("--mermaid", options.mermaid), ("--svg", options.svg), ("-O", options.picture is not None)):
        if given and not options.sequence:
            raise Refusal(f"{name} says how --sequence is drawn")
    if drawn and options.output == "json":
        raise Refusal(f"-o json does not go with {'--sequence' if options.sequence else '--timeline'}")
    if options.story is not None and options.filter is not None:
        raise Refusal("--story takes its filter itself, as in --story slowest:vm=web")


def _only_lines(options: argparse.Namespace) -> bool:
    return options.story is None and not options.requests and not options.sequence and options.timeline is None


def _view(options: argparse.Namespace, condition: Filter | None) -> View:
    from partitions.cli import trace_views as views

    json = options.output == "json"
    if options.story is not None:
        return _story(options.story, json=json, with_bytes=bool(options.hex))
    if options.requests:
        from partitions.trace.request_table import RequestTable

        return views.Requests(RequestTable(options.sort, options.limit, condition), json=json)
    if options.sequence:
        from partitions.cli.trace_pictures import SequencePicture

        most = {} if options.limit is None else {"most_rows": options.limit}
        return SequencePicture(condition, svg=options.svg, output=options.picture, **most)
    if options.timeline is not None:
        from partitions.cli.trace_pictures import TimelineFile

        return TimelineFile(condition, options.timeline)
    return views.Lines(
        sys.stdout,
        json=json,
        wanted=condition,
        bytes_shown=options.hex,
        limit=options.limit,
        tail=options.tail,
    )


def _story(text: str, *, json: bool, with_bytes: bool) -> View:
    from partitions.cli import trace_views as views
    from partitions.trace.filters import FilterError, parse_filter
    from partitions.trace.life_story import LifeTeller
    from partitions.trace.story import Storyteller, read_choice

    try:
        choice = read_choice(text, parse_filter)
    except FilterError as error:
        raise Refusal(f"--story {text}: {error}") from None
    if choice is not None:
        return views.RequestStory(Storyteller(choice, with_bytes=with_bytes), json=json)
    vm, slash, channel = text.partition("/")
    if not vm or (slash and not channel.isdecimal()):
        raise Refusal(
            f"--story {text}: takes a request (reader/1/0x4), slowest, first or last, a channel (reader/1) or a VM"
        )
    return views.LifeStory(LifeTeller(vm, int(channel) if slash else None), json=json)


def _live(options: argparse.Namespace, reading: Reading) -> int:
    import trio

    from partitions.cli.trace_sources import read_host

    # What is made of several events needs all of them, so only lines are filtered where events come from.
    condition = (options.filter or "") if _only_lines(options) else ""
    if not _only_lines(options) and options.seconds is None:
        print("note: it is shown at Ctrl-C, or when the host ends; --for SECONDS sets a time", file=sys.stderr)
    try:
        trio.run(partial(read_host, reading.take_live, options.host or None, condition, options.seconds))
    except KeyboardInterrupt:
        pass
    reading.end()
    return OK


def _record(options: argparse.Namespace) -> int:
    import trio

    from partitions.cli.trace_sources import Copy, read_host

    copy = Copy(options.write)
    try:
        trio.run(partial(read_host, copy.take, options.host or None, options.filter or "", options.seconds))
    except KeyboardInterrupt:
        pass
    copy.close()
    return OK
