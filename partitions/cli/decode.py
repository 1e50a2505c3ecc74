"""`partita decode`: bytes put into words, from the command line, a dump, a recording or a guest's ftrace. Root side.

No host is needed: whoever has bytes of a bus can read them here.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from partitions.cli.common import FAILED, INTERRUPTED, OK, Refusal, Verbs, print_json

if TYPE_CHECKING:
    import argparse

    from partitions.cli.trace_views import Lines
    from partitions.decode.field import Field
    from partitions.decode.ftrace import FtraceReader
    from partitions.decode.kinds import Context, Guess
    from partitions.decode.source import Form, Source
    from partitions.filters import Filter

_CHUNK: Final = 1 << 16
_MOST_BYTES: Final = 64 << 20
KIND_NAMES: Final = (
    *("message", "packet", "payload", "ring", "recorded", "cdb", "sense", "rndis", "hypercall", "result", "msr"),
    *("synic", "message-page", "event-page", "monitor-page", "tsc-page"),
)
DEVICE_NAMES: Final = (
    *("storage", "ide", "heartbeat", "shutdown", "time-sync", "kvp", "vss", "file-copy", "network", "keyboard"),
    *("mouse", "video", "dynamic-memory", "hv-socket"),
)
_DESCRIPTION = """\
Put bytes of VMBus into words: a tree of fields with offsets, values and what they mean.

INPUT is hexadecimal digits (0x, blanks, commas and colons do not matter), a file, or - for standard input. A file holds
bytes, digits, a dump (xxd, hexdump -C, od, Wireshark, gdb, QEMU), a recording (partita run --pcap), JSON lines, or the
ftrace of a Linux guest (events hyperv:*), which becomes the story of its bus.

What the bytes are is told by looking at them, and said; --as and --device decide it.

    partita decode 0e00000000000000 0300050000000000 0200000000000000 0040000600000000 0050000600000000
    partita decode --as hypercall 0x1005d 0x10005
    partita decode --as msr SINT2 0x200f3
    partita decode --as ring --device storage dump.bin
    ssh guest cat /sys/kernel/tracing/trace_pipe | partita decode -
"""
_EPILOG = f"""\
KIND: {", ".join(KIND_NAMES[:10])},
      {", ".join(KIND_NAMES[10:])}
NAME: {", ".join(DEVICE_NAMES[:9])},
      {", ".join(DEVICE_NAMES[9:])}

Exit status: 0 decoded, 1 something is wrong with the bytes (marked ! in the tree), 2 the input cannot be read.
"""


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    from argparse import RawDescriptionHelpFormatter

    parser = verbs.add_parser(
        "decode",
        help="put bytes into words: messages, packets, hypercalls, dumps, a Linux guest's ftrace",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", nargs="*", metavar="INPUT", help="digits, a file, or - for standard input")
    parser.add_argument("--as", dest="kind", metavar="KIND", help="what the bytes are")
    parser.add_argument("--device", metavar="NAME", help="whose channel a packet is from")
    parser.add_argument("--direction", metavar="WAY", help="root or child: where it goes")
    parser.add_argument("--vmbus-version", metavar="VERSION", help="what was negotiated, such as 5.3")
    parser.add_argument("--features", metavar="BITS", help="the feature bits of 6.0 that were negotiated, such as 0x1f")
    parser.add_argument("--binary", action="store_true", help="take a file's bytes as they are, text or not")
    parser.add_argument("--filter", metavar="FILTER", help="of a trace: such as 'layer=control,channel=1'")
    parser.add_argument("-o", "--output", choices=("tree", "json"), default="tree", help="json: one document, or lines")
    parser.add_argument("-x", "--hexdump", action="store_true", help="show all bytes by themselves first")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Read, tell what it is, and show it."""
    from partitions.decode.source import Form, Source, SourceError, from_digits

    context = _context(options)
    if options.kind is not None and options.kind not in KIND_NAMES:
        raise Refusal(f'--as: there is no kind "{options.kind}"; {_nearest(options.kind, KIND_NAMES)}')
    given: list[str] = options.input
    name = _file(given, options.kind)
    try:
        if name is not None:
            return _from_file(name, options, context)
        if options.kind in ("hypercall", "result", "msr"):
            source = Source(Form.BYTES, _numbers(given, options.kind), "numbers")
        else:
            source = Source(Form.BYTES, from_digits(" ".join(given), "the command line"), "hexadecimal digits")
    except SourceError as error:
        raise Refusal(str(error)) from None
    return _show(source, options, context)


def _context(options: argparse.Namespace) -> Context:
    from hypervisor.trace import TO_CHILD, TO_ROOT
    from partitions.decode.kinds import Context
    from vmbus.protocol.versions import VERSIONS, version_text

    if options.device is not None and options.device not in DEVICE_NAMES:
        raise Refusal(f'--device: there is no device "{options.device}"; {_nearest(options.device, DEVICE_NAMES)}')
    ways = {"root": TO_ROOT, TO_ROOT: TO_ROOT, "child": TO_CHILD, TO_CHILD: TO_CHILD, None: ""}
    if options.direction not in ways:
        raise Refusal(f'--direction: "{options.direction}"; it is root (from the guest) or child (to the guest)')
    versions = {version_text(row.version): int(row.version) for row in VERSIONS}
    if options.vmbus_version is not None and options.vmbus_version not in versions:
        known = ", ".join(versions)
        raise Refusal(f'--vmbus-version: there is no version "{options.vmbus_version}"; there are {known}')
    features = None
    if options.features is not None:
        try:
            features = int(options.features, 16)
        except ValueError:
            raise Refusal(f'--features: "{options.features}" is no hexadecimal number') from None
    version = None if options.vmbus_version is None else versions[options.vmbus_version]
    return Context(options.device or "", ways[options.direction], version, features)


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"


def _file(given: list[str], kind: str | None) -> str | None:
    """The file that is meant, `-` for standard input; None where the words are digits themselves."""
    if not given:
        if sys.stdin.isatty():
            raise Refusal("takes digits, a file, or - for standard input; partita decode --help has examples")
        return "-"
    if len(given) == 1 and (given[0] == "-" or Path(given[0]).is_file()):
        return given[0]
    for word in given:
        if word == "-" or (len(given) > 1 and Path(word).is_file() and not _digits_only(word)):
            raise Refusal(f"{word}: one file at a time, and not beside digits")
    first = given[0]
    if not _digits_only(first) and kind not in ("hypercall", "result", "msr") and _path_like(first):
        try:
            near = difflib.get_close_matches(Path(first).name, os.listdir(Path(first).parent), n=1)
        except OSError:
            near = []
        hint = f'did you mean "{Path(first).parent / near[0]}"?' if near else "and it is no hexadecimal digits"
        raise Refusal(f"{first}: there is no such file; {hint}")
    return None


def _digits_only(word: str) -> bool:
    return not set(word) - set("0123456789abcdefABCDEFx,:;_- \\")


def _path_like(word: str) -> bool:
    """Letters beyond the digits, in numbers: a name rather than a slip of the finger."""
    strange = sum(character not in "0123456789abcdefABCDEFx,:;_- \\" for character in word)
    return strange > 2 or "/" in word or "." in word


def _numbers(words: list[str], kind: str) -> bytes:
    """What registers hold: 0x1005d is a number, and becomes its eight bytes; digits without 0x are bytes."""
    from partitions.decode.registers import msr_number
    from partitions.decode.source import SourceError, from_digits

    made = b""
    for index, word in enumerate(words):
        size = 4 if kind == "msr" and not index else 8
        number = msr_number(word) if kind == "msr" and not index else None
        if number is None and (word.lower().startswith("0x") or (kind == "msr" and word.isdecimal())):
            try:
                number = int(word, 0)
            except ValueError:
                raise SourceError("the command line", f'"{word}" is no number') from None
        if number is None:
            if kind == "msr" and not index and not _digits_only(word):
                from hypervisor.msr import Msr

                raise SourceError(
                    "the command line", f'there is no MSR "{word}"', _nearest(word.upper(), Msr.__members__)
                )
            made += from_digits(word, "the command line")
        elif number >> 8 * size:
            raise SourceError("the command line", f'"{word}" has more than {8 * size} bits')
        else:
            made += number.to_bytes(size, "little")
    return made


def _from_file(name: str, options: argparse.Namespace, context: Context) -> int:
    if name == "-":
        return _from_stream(sys.stdin.buffer, "standard input", options, context)
    from partitions.cli.trace_sources import open_trace

    with open_trace(name) as file:
        return _from_stream(file, name, options, context)


def _from_stream(file: BinaryIO, name: str, options: argparse.Namespace, context: Context) -> int:
    from partitions.decode.source import Form, read_source

    head = _read(file, name)
    if not options.binary:
        form = _stream_form(head)
        if form is not None:
            _check_trace_options(form, options)
        if form is Form.FTRACE:
            return _ftrace(file, head, name, options)
        if form is not None:
            return _trace(file, head, name, options)
    data = bytearray(head)
    while len(data) <= _MOST_BYTES and (piece := _read(file, name)):
        data += piece
    if len(data) > _MOST_BYTES:
        raise Refusal(f"{name}: more than {_MOST_BYTES >> 20} MiB; cut out what is meant, as with dd bs=4096 skip=..")
    source = read_source(bytes(data), name, binary=options.binary or None)
    return _show(source, options, context)


def _read(file: BinaryIO, name: str) -> bytes:
    """What is there: a pipe does not wait for a whole chunk."""
    try:
        read: bytes = file.read1(_CHUNK) if hasattr(file, "read1") else file.read(_CHUNK)
    except OSError as error:
        raise Refusal(f"{name}: {error.strerror}") from None
    return read


def _stream_form(head: bytes) -> Form | None:
    from partitions.decode.ftrace import is_ftrace
    from partitions.decode.source import PCAPNG, Form

    if head.startswith(PCAPNG):
        return Form.RECORDING
    if head.lstrip().startswith(b"{"):
        return Form.JSON
    lines = head.decode("utf-8", "replace").splitlines()
    return Form.FTRACE if any(is_ftrace(line) for line in lines) else None


def _check_trace_options(form: Form, options: argparse.Namespace) -> None:
    for name in ("kind", "device", "direction", "vmbus_version", "features"):
        if getattr(options, name) is not None:
            option = "--as" if name == "kind" else f"--{name.replace('_', '-')}"
            raise Refusal(f"{option} goes with bytes; this is a trace ({form.value}), which says that itself")


def _lines(options: argparse.Namespace) -> Lines:
    from partitions.cli.trace_views import Lines

    shown = 2 if options.hexdump else 1
    return Lines(sys.stdout, json=options.output == "json", wanted=_filter(options.filter), bytes_shown=shown)


def _filter(text: str | None) -> Filter | None:
    if text is None:
        return None
    from partitions.filters import FilterError, parse_filter

    try:
        return parse_filter(text)
    except FilterError as error:
        raise Refusal(f"--filter: {error}") from None


def _trace(file: BinaryIO, head: bytes, name: str, options: argparse.Namespace) -> int:
    """A recording or JSON lines: the events, and what their bytes say."""
    from partitions.cli.trace_sources import Reading

    reading = Reading(_lines(options), name)
    piece = head
    try:
        while piece and reading.take(piece):
            piece = _read(file, name)
    except KeyboardInterrupt:
        reading.end()
        return INTERRUPTED
    reading.end()
    return OK


def _ftrace(file: BinaryIO, head: bytes, name: str, options: argparse.Namespace) -> int:
    """A Linux guest's trace: events as they come, and at the end the story of the bus."""
    from partitions.decode.ftrace import NO_EVENTS, REMEDY, FtraceReader

    reader, view = FtraceReader(), _lines(options)
    rest = b""
    piece = head
    status = OK
    try:
        while piece:
            *lines, rest = (rest + piece).split(b"\n")
            _take(reader, view, lines)
            view.settle()
            piece = _read(file, name)
    except KeyboardInterrupt:
        status = OK if name == "standard input" else INTERRUPTED
    _take(reader, view, [rest] if rest else [])
    view.finish()
    if not reader.story.count:
        raise Refusal(f"{name}: {NO_EVENTS}; {REMEDY}")
    if options.output == "tree":
        print()
        print("\n".join(reader.story.lines()))
        sys.stdout.flush()
    for note in reader.notes():
        print(f"note: {note}", file=sys.stderr)
    return status


def _take(reader: FtraceReader, view: Lines, lines: list[bytes]) -> None:
    for line in lines:
        event = reader.feed(line.decode("utf-8", "replace").rstrip("\r"))
        if event is not None:
            view.feed(event, event.vm)


def _show(source: Source, options: argparse.Namespace, context: Context) -> int:
    from partitions.decode.kinds import KINDS, guess

    if options.filter is not None:
        raise Refusal("--filter goes with a trace, and these are bytes")
    data = source.data
    found: Guess | None = None
    kind = options.kind
    if kind is None:
        found = guess(data)
        if found is None:
            size = f"{len(data)} byte{'s' * (len(data) != 1)}"
            raise Refusal(
                f"{size} ({source.words}), and they look like nothing that is known here; say what they are with --as: "
                + ", ".join(KIND_NAMES)
            )
        kind = found.kind
    device = context.device
    assumed = [] if found is None else [f"{KINDS[kind].words}: {found.why}"]
    if not device and kind in ("packet", "payload"):
        device = _device(data, kind)
        if device:
            assumed.append(f"of {device}: so its payload looks")
    import msgspec

    field = KINDS[kind].decode(data, msgspec.structs.replace(context, device=device))
    if options.output == "json":
        _print_document(field, data, kind, device, assumed)
    else:
        _print_tree(field, data, source, assumed, options)
    return FAILED if field.faults else OK


def _device(data: bytes, kind: str) -> str:
    from partitions.decode.kinds import guess_device
    from partitions.decode.packet import payload_span

    start, end = payload_span(data) if kind == "packet" else (0, len(data))
    return guess_device(data[start:end])


def _print_document(field: Field, data: bytes, kind: str, device: str, assumed: list[str]) -> None:
    from partitions.decode.text import plain

    document = {
        "kind": kind,
        **({"device": device} if device else {}),
        **({"assumed": assumed} if assumed else {}),
        "words": field.words,
        "faults": [f"{one.name} at {one.offset}: {one.fault}" for one in field.faults],
        "data": data.hex(),
        "fields": plain(field),
    }
    print_json(document)


def _print_tree(field: Field, data: bytes, source: Source, assumed: list[str], options: argparse.Namespace) -> None:
    from partitions.decode.hexdump import hexdump
    from partitions.decode.text import render
    from partitions.logs import wants_colour

    if assumed:
        print(f"taken for {', '.join(assumed)} (--as and --device decide)")
    if source.words != "hexadecimal digits" and source.words != "numbers":
        print(f"read as {source.words}")
    if options.hexdump:
        print("\n".join(hexdump(data)) + "\n")
    for line in render(field, data, colour=wants_colour(sys.stdout)):
        print(line)
