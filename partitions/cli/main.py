"""The way into the command `partita`. Root side.

Verbs import what they need when they run: `partita --help` and shell completion stay at the interpreter's own speed.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import gc
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from partitions.cli.common import FAILED, INTERRUPTED, OK, USAGE, Refusal

VERBS = (
    *("run", "explain", "trace", "decode", "watch", "plot", "validate", "examples"),
    *("ps", "top", "stats", "inspect", "events", "capture", "console", "connect", "screenshot"),
    *("start", "stop", "pause", "resume", "reset", "save", "down"),
    *("set", "pool", "add-disk", "remove-disk", "add-nic", "remove-nic", "connect-nic"),
    *("kvp", "copy", "freeze", "thaw"),
    *("type", "keys"),
    *("doctor", "boundary", "schema", "dissector", "completion"),
)
"""In the order of `partita --help`. Each is a module of `partitions.cli`, imported when its verb is wanted."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class _Version(argparse.Action):
    """Prints the version; importlib.metadata is slow to import and wanted only here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"partita {version('partita')}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Says what is wrong as all of the command does: the usage of a large verb would push that off the screen."""

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"invalid (?:int|float) value: '(.*)'", r'must be a number, is "\1"', message)
        raise Refusal(f"{message.removeprefix('argument ')}; see {self.prog} --help")


class VerbParsers:
    """The verbs' own parsers, and what the list of verbs says of each."""

    def __init__(self, verbs: Any) -> None:
        self._verbs = verbs
        self.choices: dict[str, argparse.ArgumentParser] = {}
        """By verb."""
        self.helps: dict[str, str] = {}

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """As argparse's own collection."""
        self.helps[name] = options.get("help", "")
        made: argparse.ArgumentParser = self._verbs.add_parser(name, **options)
        self.choices[name] = made
        return made


def parsers(only: str | None = None) -> tuple[argparse.ArgumentParser, VerbParsers]:
    """The whole command line, or what there is of it for one verb: a parser for each takes longer than the parsing."""
    parser = _Parser(
        prog="partita",
        description="Host virtual machines the way Hyper-V does, and watch the bus between them and their host.",
        epilog="Start with `partita examples`, then `partita run 01`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = VerbParsers(parser.add_subparsers(dest="verb", metavar="VERB", required=True))
    for name in VERBS if only is None else (only,):
        importlib.import_module(f"partitions.cli.{name.replace('-', '_')}").add_parser(verbs)
    return parser, verbs


def _parse(given: Sequence[str]) -> argparse.Namespace:
    """The command line, and behind it the environment. Raises `Refusal`."""
    verb = given[0] if given[0] in VERBS else None
    parser, verbs = parsers(verb)
    if verb is not None:
        wants_help = "-h" in given or "--help" in given
        if wants_help or any(name.startswith("PARTITA_") for name in os.environ):
            from partitions.cli import environment

            if wants_help:
                environment.show_in_help(verbs.choices[verb], verb)
            else:
                environment.apply(verbs.choices[verb], verb, given[1:], os.environ)
    options, left = parser.parse_known_args(given)
    if left and verb is not None and not any(word.startswith("-") for word in left):
        # argparse gives up words that may be missing at the first option; here they may stand behind it, too.
        found, left = verbs.choices[verb].parse_known_intermixed_args(given[1:])
        vars(options).update(vars(found))
    if left:
        raise Refusal(_left_over(left[0], parser if verb is None else verbs.choices[verb]))
    return options


def _left_over(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f'"{word}" is a word too many; see {parser.prog} --help'
    option = word.partition("=")[0]
    near = difflib.get_close_matches(option, parser._option_string_actions, n=1)
    hint = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"
    return f"{parser.prog} has no option {option}; {hint}"


def _unknown_verb(word: str, names: Sequence[str]) -> str:
    from partitions.examples import example_names, find_example

    near = difflib.get_close_matches(word, names, n=1)
    # An example's whole name is no slip of a verb's, however near.
    if word in example_names() or (not near and (find_example(word) is not None or Path(word).exists())):
        return f'there is no verb "{word}"; did you mean "partita run {word}"?'
    if near:
        return f'there is no verb "{word}"; did you mean "{near[0]}"?'
    return f'there is no verb "{word}"; there are {", ".join(names)}'


def _shown(refusal: Refusal) -> str:
    """Its text, which may have names out of files in it; lines stay lines."""
    text = str(refusal)
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 a guest failed, 2 usage or topology, 124 timeout."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given:
        parsers()[0].print_help()
        return USAGE
    if arguments is None:
        # Modules make objects that stay: looking for garbage among them again and again is a tenth of a verb's start.
        # In the process of somebody who calls this with arguments the collector is theirs.
        gc.disable()
    try:
        if given[0] == "__complete":
            from partitions.cli.completing import complete

            return complete(given[1:])
        if not given[0].startswith("-") and given[0] not in VERBS:
            raise Refusal(_unknown_verb(given[0], list(VERBS)))
        options = _parse(given)
        status: int = options.call(options)
        sys.stdout.flush()
        return status
    except Refusal as refusal:
        print(f"error: {_shown(refusal)}", file=sys.stderr)
        return refusal.status
    except BrokenPipeError:
        # The reader of a pipe has gone, as `head` does; what is left in the buffer must not fail at exit again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.filename is not None or error.errno not in _FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: output cannot be written: {error.strerror}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
