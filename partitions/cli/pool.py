"""`partita pool`: the resource pools of a running host: list, add, remove and move them. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Refusal, Verbs
from partitions.cli.hosts import add_host_option, ask
from partitions.cli.output import Column, Row, add_output_option, chosen, show
from partitions.cli.set import pairs

if TYPE_CHECKING:
    import argparse

    from partitions.topology_figures import Kind


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "pool",
        help="list, add, remove and move resource pools",
        description="Resource pools of a running host. list: the tree with what is reserved in each; "
        "add NAME [KEY=VALUE...]: one more, such as `partita pool add prod cpu.limit=150 parent=company`; "
        "remove NAME: one less, when nothing is in it any more; move NAME PARENT: into another, or to `host`. "
        "VMs are moved by `partita set VM pool=NAME`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "action",
        metavar="ACTION",
        nargs="?",
        choices=("list", "add", "remove", "move"),
        default="list",
        help="what to do; list by default",
    )
    parser.add_argument("pool", metavar="NAME", nargs="?", help="the pool")
    parser.add_argument("values", metavar="KEY=VALUE|PARENT", nargs="*", help="its controls, or where it goes")
    add_host_option(parser)
    add_output_option(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Do it, and show the pools that it is about."""
    action, pool, words = options.action, options.pool, options.values
    if (pool is None) != (action == "list"):
        raise Refusal("pool list takes no name" if pool else f"pool {action} needs the NAME of a pool")
    if action in ("remove", "list") and words:
        raise Refusal(f'"{words[0]}" is a word too many')
    match action:
        case "list":
            rows = ask(options, "pools")
        case "add":
            rows = [ask(options, "add-pool", pool=pool, values=pairs(words))]
        case "remove":
            rows = ask(options, "remove-pool", pool=pool)
        case _:
            if len(words) != 1:
                raise Refusal("pool move needs the NAME of a pool and the one that it goes to, or host")
            rows = [ask(options, "move-pool", pool=pool, parent=words[0])]
    show(rows, COLUMNS, chosen(options))
    return OK


def _reserved(row: Row, kind: Kind) -> str:
    """What is reserved in it, and of how much; nothing where nothing is said."""
    from partitions.topology_figures import WORDS

    words = _percent if kind == "cpu" else WORDS[kind]
    used, free = row["reserved"][kind], row["free"].get(kind)
    if not used and not free:
        return ""
    return words(used) if free is None else f"{words(used)} of {words(max(used, used + free))}"


def _percent(value: float) -> str:
    return f"{round(value, 1):g} %"


def _limits(row: Row) -> str:
    from partitions.topology_figures import KINDS
    from partitions.topology_resources import TABLE_WORDS

    limits = {kind: row["controls"].get(f"{kind}.limit") for kind in KINDS}
    return ", ".join(f"{kind} {TABLE_WORDS[kind](limit)}" for kind, limit in limits.items() if limit)


def _weights(row: Row) -> str:
    """Those that are not as everybody's."""
    from partitions.topology_controls import DEFAULT_MEMORY_WEIGHT, DEFAULT_WEIGHT
    from partitions.topology_figures import KINDS

    usual = {"memory": DEFAULT_MEMORY_WEIGHT}
    weights = {kind: row["controls"].get(f"{kind}.weight") for kind in KINDS}
    return ", ".join(
        f"{kind} {weight}" for kind, weight in weights.items() if weight not in (None, usual.get(kind, DEFAULT_WEIGHT))
    )


COLUMNS: Final[list[Column]] = [
    ("POOL", lambda row: str(row["node"])),
    ("IN", lambda row: str(row["parent"])),
    ("CPU RESERVED", lambda row: _reserved(row, "cpu")),
    ("MEMORY RESERVED", lambda row: _reserved(row, "memory")),
    ("DISK RESERVED", lambda row: _reserved(row, "disk")),
    ("NETWORK RESERVED", lambda row: _reserved(row, "network")),
    ("LIMIT", _limits),
    ("WEIGHT", _weights),
    ("HAS", lambda row: " ".join(row["inside"])),
]
