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

from partitions.cli.common import Refusal, Verbs

if TYPE_CHECKING:
    import argparse

    from partitions.decode.kinds import Context

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
_DESCRIPTION = f"""\
Put bytes of VMBus into words: a tree of fields with offsets, values and what they mean.

INPUT is hexadecimal digits (0x, blanks, commas and colons do not matter), a file, or - for standard input. A file holds
bytes, digits, a dump (xxd, hexdump -C, od, Wireshark, gdb, QEMU, WinDbg), a recording (partita run --pcap), JSON lines,
or the ftrace of a Linux guest (events hyperv:*), which becomes the story of its bus.

What the bytes are is told by looking at them, and said; --as and --device decide it.

    partita decode 0e00000000000000 0300050000000000 0200000000000000 0040000600000000 0050000600000000
    partita decode --as hypercall 0x1005d 0x10005
    partita decode --as msr SINT2 0x200f3
    partita decode --as ring --device storage dump.bin
    ssh guest cat /sys/kernel/tracing/trace_pipe | partita decode -

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
    parser.add_argument("-s", "--summary", action="store_true", help="one line in place of a tree")
    parser.add_argument("--lines", action="store_true", help="each line of the input is one of many, in digits")
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
        if options.lines:
            raise Refusal("--lines goes with a file or standard input")
        if options.kind in ("hypercall", "result", "msr"):
            source = Source(Form.BYTES, _numbers(given, options.kind), "numbers")
        else:
            source = Source(Form.BYTES, from_digits(" ".join(given), "the command line"), "hexadecimal digits")
    except SourceError as error:
        raise Refusal(str(error)) from None
    from partitions.cli.decode_views import show

    return show(source, options, context)


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
    if len(given) == 1 and (given[0] == "-" or _is_file(given[0])):
        return given[0]
    for word in given:
        if word == "-" or (len(given) > 1 and _is_file(word) and not _digits_only(word)):
            raise Refusal(f"{word}: one file at a time, and not beside digits")
    first = given[0]
    if not _digits_only(first) and kind not in ("hypercall", "result", "msr") and _path_like(first):
        try:
            near = difflib.get_close_matches(Path(first).name, os.listdir(Path(first).parent), n=1)
        except OSError:
            near = []
        if near and near[0] == Path(first).name:
            raise Refusal(f"{first}: a folder; name a file in it")
        hint = f'did you mean "{Path(first).parent / near[0]}"?' if near else "and it is no hexadecimal digits"
        raise Refusal(f"{first}: there is no such file; {hint}")
    return None


def _is_file(word: str) -> bool:
    """Whatever can be read, a pipe of the shell's too. Digits may be more than a name can have letters."""
    try:
        return Path(word).exists() and not Path(word).is_dir()
    except OSError:
        return False


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
    from partitions.cli.decode_traces import check_options, form_of, read_piece, show_ftrace, show_trace
    from partitions.cli.decode_views import show, show_lines
    from partitions.decode.source import Form, read_source

    if options.lines:
        return show_lines(file, name, options, context)
    head = read_piece(file, name)
    if not options.binary:
        form = form_of(head)
        if form is not None:
            check_options(form, options)
        if form is Form.FTRACE:
            return show_ftrace(file, head, name, options)
        if form is not None:
            return show_trace(file, head, name, options)
    data = bytearray(head)
    while len(data) <= _MOST_BYTES and (piece := read_piece(file, name)):
        data += piece
    if len(data) > _MOST_BYTES:
        raise Refusal(f"{name}: more than {_MOST_BYTES >> 20} MiB; cut out what is meant, as with dd bs=4096 skip=..")
    source = read_source(bytes(data), name, binary=options.binary or None)
    return show(source, options, context)
