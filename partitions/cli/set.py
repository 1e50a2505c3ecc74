"""`partita set`: change limits, reservations and shares of a VM or a pool while the host runs. Root side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Refusal, Verbs
from partitions.cli.hosts import add_host_option, ask
from partitions.cli.output import Row, add_output_option, chosen, show

if TYPE_CHECKING:
    import argparse

VM_KEYS: Final = {
    "cpu.reserve": "percent of one logical processor, for each virtual one",
    "cpu.limit": "the same; 100 is none",
    "cpu.weight": "1 to 10000, each virtual processor's",
    "cpu.period_ms": "milliseconds in which the limit is counted",
    "cpu.class": '"normal" or "batch"',
    "cpu.pool": "a pool for its processors alone",
    "pool": 'where it is; "host" for no pool',
    "memory": "such as 1GiB; of dynamic memory what it starts with",
    "dynamic_memory.minimum": "such as 512MiB; reserved",
    "dynamic_memory.maximum": "such as 2GiB",
    "dynamic_memory.buffer": "percent of its demand on top",
    "dynamic_memory.weight": "1 to 10000",
    "disk.0.iops.reserve": "normalized IOPS, of the disk at LUN 0",
    "disk.0.iops.limit": "the same; 0 is none",
    "disk.0.iops.weight": "1 to 10000",
    "nic.0.bandwidth.reserve": "such as 8Mbit, of adapter 0",
    "nic.0.bandwidth.limit": "the same; 0 is none",
    "nic.0.bandwidth.weight": "1 to 10000",
}
POOL_KEYS: Final = {
    "cpu.reserve": "percent of one logical processor, for all in it together",
    "cpu.limit": "the same; 0 is none",
    "cpu.weight": "1 to 10000",
    "cpu.period_ms": "milliseconds in which the limit is counted",
    "memory.reserve": "such as 1GiB",
    "memory.limit": "such as 1GiB; 0 is none",
    "memory.weight": "1 to 10000",
    "disk.reserve": "normalized IOPS",
    "disk.limit": "normalized IOPS; 0 is none",
    "disk.weight": "1 to 10000",
    "network.reserve": "such as 8Mbit",
    "network.limit": "such as 8Mbit; 0 is none",
    "network.weight": "1 to 10000",
    "parent": 'the pool that it is in; "host" for none',
    "expandable": "true or false",
    "processors": "logical processors such as 0-3, of a pool without parent",
}
"""What can be set, with a word on it; the host has the last word."""


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "set",
        help="change what a VM or a pool may have",
        description="Change limits, reservations and shares of a VM or a pool of a running host: "
        "`partita set web cpu.limit=50`, `partita set pool/prod cpu.limit=150 disk.weight=200`. All that is given is "
        "changed, or nothing, and it holds within a tenth of a second. docs/resources.md has the keys.",
        allow_abbrev=False,
    )
    parser.add_argument("node", metavar="NODE", help="a VM's name, or pool/NAME")
    parser.add_argument("values", metavar="KEY=VALUE", nargs="+", help="such as cpu.limit=50")
    add_host_option(parser)
    add_output_option(parser)
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Change it; how it is then."""
    if not options.node.startswith("pool/"):
        options.vm = options.node.removeprefix("vm/").partition("/")[0]  # says which host is meant
    row = ask(options, "set", node=options.node, values=pairs(options.values))
    form = chosen(options)
    if form == "table":
        show([{"key": key, "value": value} for key, value in row["controls"].items()], CONTROL_COLUMNS, form)
    else:
        show([row], [], form)
    return OK


def pairs(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as a table. Raises `Refusal`."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise Refusal(f'"{word}" is no KEY=VALUE, such as cpu.limit=50')
        if key in found:
            raise Refusal(f"{key} is given twice")
        found[key] = value
    return found


def _value(row: Row) -> str:
    from partitions.topology_units import rate_words, size_words

    key, value = row["key"], row["value"]
    if key in ("pool", "parent"):
        return value or "host"
    if key == "memory" or (
        key.startswith(("memory.", "dynamic_memory.")) and key.endswith(("reserve", "limit", "imum"))
    ):
        return size_words(value) if value else "0"
    if value and (key.startswith("network.") or ".bandwidth." in key) and key.endswith(("reserve", "limit")):
        return rate_words(value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


CONTROL_COLUMNS: Final = [("KEY", lambda row: str(row["key"])), ("VALUE", _value)]
