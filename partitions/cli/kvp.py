"""`partita kvp`: key-value pairs between host and guest. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Refusal, Verbs
from partitions.cli.hosts import add_vms, ask
from partitions.cli.output import chosen, plain, show

if TYPE_CHECKING:
    import argparse

POOLS: Final = ("external", "guest", "auto", "auto-external", "auto-internal")
COLUMNS: Final = [("POOL", plain("pool")), ("KEY", plain("key")), ("VALUE", plain("value"))]


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "kvp",
        help="read or change key-value pairs of a guest",
        description="List what a guest and its host tell each other by key-value pairs, or the items of one key; with "
        "a value, store it in the guest. A guest answers that has a driver: Linux with hv_kvp_daemon, and a program "
        'whose topology says integration = ["kvp"]. What a guest says is its own text.',
        allow_abbrev=False,
    )
    add_vms(parser, several=False)
    parser.add_argument("key", metavar="KEY", nargs="?", help="only items of this name")
    parser.add_argument("value", metavar="VALUE", nargs="?", help="store this text")
    parser.add_argument(
        "--pool",
        choices=POOLS,
        help="external: the host's, for the guest, and the default for changes; guest: of its programs; auto: what its "
        "system says; auto-external: what the host says of itself",
    )
    parser.add_argument("--delete", action="store_true", help="remove the item instead")
    parser.add_argument("--number", action="store_true", help="VALUE is a number, not a text")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Ask, and show the items."""
    if options.delete and options.key is None:
        raise Refusal("--delete: name the KEY")
    if options.delete and options.value is not None:
        raise Refusal("--delete takes no VALUE")
    value: str | int | None = options.value
    if options.number:
        try:
            value = int(options.value or "", 0)
        except ValueError:
            raise Refusal(f'--number: VALUE must be a number, is "{options.value or ""}"') from None
    members = {"key": options.key, "value": value, "pool": options.pool, "delete": options.delete or None}
    show(ask(options, "kvp", vm=options.vm, **members), COLUMNS, chosen(options))
    return OK
