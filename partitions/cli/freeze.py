"""`partita freeze`: hold a guest's file systems still for a copy of its disks. Root side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from partitions.cli.common import Refusal, Verbs
from partitions.cli.hosts import add_vms, change_vms

if TYPE_CHECKING:
    import argparse

SECONDS: Final = 60.0


def add_parser(verbs: Verbs) -> None:
    """Declare the verb."""
    parser = verbs.add_parser(
        "freeze",
        help="hold guests' file systems still",
        description="Have guests write out what they hold in memory and keep their file systems still, so that their "
        "disks can be copied, until `partita thaw`. Linux does that with hv_vss_daemon, a program whose topology says "
        'integration = ["vss"] as well as it can.',
        allow_abbrev=False,
    )
    add_vms(parser)
    parser.add_argument(
        "--seconds",
        type=float,
        default=SECONDS,
        metavar="N",
        help=f"of the guest's time, after which it thaws in any case ({SECONDS:g})",
    )
    parser.set_defaults(call=call)


def call(options: argparse.Namespace) -> int:
    """Freeze them, all at the same time."""
    if not 0 < options.seconds <= 3600:
        raise Refusal(f"--seconds {options.seconds:g}: must be more than 0 and 3600 at most")
    return change_vms(options, "freeze", seconds=options.seconds)
