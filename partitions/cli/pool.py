"""`partita pool`: the resource pools of a running host: list, add, remove and move them. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Refusal, Verbs
from partitions.cli.hosts import add_host_option, ask
from partitions.cli.output import Column, Row, add_output_option, chosen, show
from partitions.cli.set import pairs

if TYPE_CHECKING:
    import argparse

WHOLE: Final = 65536
"""A logical processor in the units of the answer."""


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
    parser.add_argument("action", metavar="ACTION", choices=("list", "add", "remove", "move"), help="what to do")
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


def _percent(units: int) -> str:
    return f"{round(units * 100 / WHOLE, 1):g} %"


def _processors(row: Row) -> str:
    return _amount(row, "cpu", _percent)


def _memory(row: Row) -> str:
    from partitions.topology_units import size_words

    return _amount(row, "memory", size_words)


def _disk(row: Row) -> str:
    return _amount(row, "disk", lambda iops: f"{iops} IOPS")


def _network(row: Row) -> str:
    from partitions.topology_units import rate_words

    return _amount(row, "network", rate_words)


def _amount(row: Row, kind: str, words: object) -> str:
    """What is reserved in it, and of how much; nothing where nothing is said."""
    assert callable(words)
    used, free = row["reserved"][kind], row["free"].get(kind)
    if not used and not free:
        return ""
    return words(used) if free is None else f"{words(used)} of {words(max(used, used + free))}"


COLUMNS: Final[list[Column]] = [
    ("POOL", lambda row: str(row["node"])),
    ("IN", lambda row: str(row["parent"])),
    ("CPU RESERVED", _processors),
    ("MEMORY RESERVED", _memory),
    ("DISK RESERVED", _disk),
    ("NETWORK RESERVED", _network),
    ("LIMIT", lambda row: _words_of(row, "limit")),
    ("WEIGHT", lambda row: _words_of(row, "weight")),
    ("HAS", lambda row: " ".join(row["inside"])),
]


def _words_of(row: Row, which: str) -> str:
    """The limits or weights that are not as everybody's."""
    default = {"memory.weight": 5000}.get
    found = []
    for kind in ("cpu", "memory", "disk", "network"):
        key = f"{kind}.{which}"
        value = row["controls"].get(key)
        if value not in (None, 0, 0.0) and (which == "limit" or value != default(key, 100)):
            found.append(f"{kind} {value:g}")
    return ", ".join(found)
