"""What the verbs share: exit statuses, refusals and reading a topology. Root side."""

from __future__ import annotations

import difflib
import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import argparse

    from partitions.topology import Topology
    from partitions.trace.filters import Filter

OK = 0
FAILED = 1
USAGE = 2
TIMED_OUT = 124
"""As coreutils' timeout has it."""
INTERRUPTED = 130
"""128 and the number of SIGINT, as shells have it."""

TARGET_HELP = "a folder with a topology.toml, a topology file, or an example's name, number or word (03, disk)"


class Refusal(Exception):
    """What a person asked cannot be done; the text says why and what would help. Ends the command with `status`."""

    def __init__(self, message: str, status: int = USAGE) -> None:
        super().__init__(message)
        self.status = status


class Verbs(Protocol):
    """argparse's collection of subcommands, which has no public name."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """One more verb."""


def read_topology(target: str, *, programs: bool = True) -> Topology:
    """`load_topology`, its errors as a refusal."""
    from partitions.topology import TopologyError, load_topology

    try:
        return load_topology(target, programs=programs)
    except TopologyError as error:
        raise Refusal(str(error)) from None


def warn_of_controls(topology: Topology, target: str) -> None:
    """On standard error, what of its resource control does not do what it looks like."""
    from partitions.topology_controls import has_controls

    if has_controls(topology.vm, topology.pool):
        from partitions.topology_warnings import control_warnings

        for warning in control_warnings(topology, lambda: _text(target)):
            print(f"warning: {warning}", file=sys.stderr)


def _text(target: str) -> str:
    """Of a topology that has been read; empty where it is gone since."""
    from partitions.topology import TopologyError, find_topology

    try:
        return find_topology(target).read_text(encoding="utf-8")
    except (TopologyError, OSError, UnicodeDecodeError):
        return ""


def read_filter(text: str | None) -> Filter | None:
    """What `--filter` says, its errors as a refusal."""
    if text is None:
        return None
    from partitions.trace.filters import FilterError, parse_filter

    try:
        return parse_filter(text)
    except FilterError as error:
        raise Refusal(f"--filter: {error}") from None


def unknown_vm(name: str, names: Sequence[str]) -> str:
    """Why a VM's name is refused, with the nearest that there is."""
    near = difflib.get_close_matches(name, names, n=1)
    hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(names)}"
    return f'no VM is called "{name}"; {hint}'


def collect_garbage() -> None:
    """From now on, but not among what there is: a verb that runs for long calls this when it has started."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def port_number(text: str) -> int:
    """A TCP port from the command line; 0 is any that is free."""
    if not text.isdecimal() or int(text) > 65535:
        from argparse import ArgumentTypeError

        raise ArgumentTypeError(
            f'"{text}" is no port; it takes a number up to 65535, or none, as in: partita run 03-disk --watch'
        )
    return int(text)


def print_json(document: object) -> None:
    """One JSON document on standard output, indented for people who look at it."""
    import msgspec

    sys.stdout.write(spelled_out(msgspec.json.format(msgspec.json.encode(document), indent=2).decode()) + "\n")


def spelled_out(made: str) -> str:
    """The same JSON, with what JSON lets through and a terminal obeys as `\\u` escapes: guests' words are in it."""
    if made.isascii() and "\x7f" not in made:
        return made
    from json.encoder import encode_basestring_ascii

    return "".join(char if char.isprintable() or char == "\n" else encode_basestring_ascii(char)[1:-1] for char in made)
