"""The way into the command `partita`. Root side.

Verbs import what they need when they run: `partita --help` and shell completion stay at the interpreter's own speed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from partitions.cli import boundary, doctor, examples, explain, run, schema, validate
from partitions.cli.common import INTERRUPTED, OK, Refusal

VERBS = (run, explain, validate, examples, doctor, boundary, schema)


class _Version(argparse.Action):
    """Prints the version; importlib.metadata is slow to import and wanted only here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"partita {version('partita')}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="partita",
        description="Host virtual machines the way Hyper-V does, and watch the bus between them and their host.",
        epilog="Start with `partita examples`, then `partita run 01`.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status: 0 done, 1 a guest failed, 2 usage or topology, 124 timeout."""
    options = make_parser().parse_args(arguments)
    try:
        status: int = options.call(options)
        sys.stdout.flush()
        return status
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return refusal.status
    except BrokenPipeError:
        # The reader of a pipe has gone, as `head` does; what is left in the buffer must not fail at exit again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
