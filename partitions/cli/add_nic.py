"""`partita add-nic`: give a VM another network adapter, while it runs or not. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from partitions.cli.common import OK, Verbs
from partitions.cli.hosts import add_vms, ask
from partitions.cli.output import chosen, plain, show

if TYPE_CHECKING:
    import argparse

NIC_COLUMNS: Final = [
    ("NIC", plain("number")),
    ("PORT", plain("port")),
    ("NAME", plain("name")),
    ("SWITCH", plain("switch")),
    ("MAC", plain("mac")),
    ("VLAN", plain("vlan")),
    ("MTU", plain("mtu")),
    ("LINK", plain("link")),
]
_GUARDS: Final = {
    "spoofing": "it may send from other addresses than its own",
    "dhcp_guard": "what only a DHCP server sends is dropped",
    "router_guard": "router advertisements and redirects are dropped",
    "isolated": "it reaches no other isolated port",
}


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "add-nic",
        help="give a VM another network adapter",
        description="Give a VM of a running host another network adapter; a guest that runs is told, and looks. "
        "The options are the keys of [[vm.nic]] in a topology. Prints the adapter with its number and address.",
        allow_abbrev=False,
    )
    add_vms(parser, several=False)
    parser.add_argument(
        "switch", metavar="SWITCH", nargs="?", help="what its cable is plugged into; else it hangs loose"
    )
    parser.add_argument("--name", help="what you call it")
    parser.add_argument("--number", type=int, metavar="N", help="by default one that no adapter had before")
    parser.add_argument("--mac", help="such as 00-15-5D-01-02-03; by default one is made")
    parser.add_argument("--vlan", type=int, metavar="ID", help="of its untagged frames")
    parser.add_argument("--trunk", metavar="IDS", help='VLANs that come and go with a tag: "1-10, 20"')
    parser.add_argument("--mtu", type=int, metavar="BYTES", help="of a packet (1500)")
    for key, words in _GUARDS.items():
        parser.add_argument(f"--{key.replace('_', '-')}", action="store_true", default=None, help=words)
    parser.add_argument("--mirroring", choices=("none", "source", "destination"), help="as in a topology (none)")
    parser.add_argument("--storm-limit", type=int, metavar="N", help="frames to many in a second (10000)")
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Add it; the row has its number."""
    keys = ("switch", "name", "number", "mac", "vlan", "trunk", "mtu", *_GUARDS, "mirroring", "storm_limit")
    nic = ask(options, "add-nic", vm=options.vm, **{key: getattr(options, key) for key in keys})
    show([nic], NIC_COLUMNS, chosen(options))
    return OK
