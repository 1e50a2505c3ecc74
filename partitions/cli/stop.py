"""`partita stop`: shut VMs of a running host down, restart or hibernate them, or turn them off. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from partitions.cli.common import Refusal, Verbs
from partitions.cli.hosts import add_vms, change_vms

if TYPE_CHECKING:
    import argparse

GRACE = 10.0


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "stop",
        help="shut VMs down, or turn them off",
        description="Ask the guests to power off, by the shutdown component or the power button, and cut the power of "
        "those that are still on after a while. With --restart or --hibernate the guests are asked for that, which the "
        "shutdown component alone can do, and stay on if they do not. `partita down` ends the whole host.",
        allow_abbrev=False,
    )
    add_vms(parser)
    add_ways(parser)
    others = parser.add_mutually_exclusive_group()
    others.add_argument("--restart", action="store_true", help="ask the guests to boot again")
    others.add_argument("--hibernate", action="store_true", help="ask them to write their memory to their own disks")
    parser.add_argument("--reason", default="", metavar="TEXT", help="what the guests' people are told")
    parser.add_argument("--insist", action="store_true", help="programs in the guests may not object")
    parser.set_defaults(call=call)


def add_ways(parser: argparse.ArgumentParser) -> None:
    """How hard to stop."""
    parser.add_argument("-f", "--force", action="store_true", help="cut the power at once, without asking")
    parser.add_argument(
        "--grace", type=float, default=GRACE, metavar="SECONDS", help=f"before the power is cut ({GRACE:g})"
    )


def check(options: argparse.Namespace) -> None:
    """Raises `Refusal`."""
    if not 0 <= options.grace <= 3600:
        raise Refusal(f"--grace {options.grace:g}: must be 0 to 3600 seconds")


def call(options: argparse.Namespace) -> int:
    """Stop them, all at the same time."""
    check(options)
    if options.force and (options.restart or options.hibernate):
        raise Refusal("--force cuts the power without asking; leave it out to ask the guests")
    members = {name: getattr(options, name) or None for name in ("restart", "hibernate", "reason", "insist")}
    return change_vms(options, "stop", force=options.force, grace=options.grace, **members)
