"""What the verbs share that ask running hosts: which host, which VMs, requests and their answers. Root side."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from partitions.cli.common import FAILED, OK, USAGE, Refusal
from partitions.cli.output import Row, add_output_option, chosen, duration, plain, show, size

if TYPE_CHECKING:
    import argparse

    from partitions.remote import Remote

T = TypeVar("T")

AT_ONCE: Final = 16
"""Requests to one host at the same time; it has 64 connections."""
_USAGE: Final = ("bad_line", "unknown_vm", "unknown_path")
_ABOUT: Final = "Exit status: 0 done, 1 the host could not or would not, 2 usage, an unknown VM or host."


def add_host_option(parser: argparse.ArgumentParser) -> None:
    """`--host`, and what to know of exit statuses."""
    parser.add_argument(
        "--host",
        metavar="NAME|PATH",
        help="which running host: its topology's name, process number or socket; needed where several have such a VM",
    )
    parser.description = f"{parser.description} {_ABOUT}" if parser.description else _ABOUT


def add_vms(parser: argparse.ArgumentParser, *, several: bool = True) -> None:
    """Which VMs."""
    if several:
        parser.add_argument("vm", metavar="VM", nargs="*", help="names of VMs")
        parser.add_argument("--all", action="store_true", help="every VM that is in a state for it")
    else:
        parser.add_argument("vm", metavar="VM", help="name of a VM")
    add_host_option(parser)
    add_output_option(parser)


def ask(options: argparse.Namespace, op: str, **members: Any) -> Any:
    """One request to the host that is meant. Raises `Refusal`."""

    async def one(host: Remote) -> Any:
        return await host.ask(op, **members)

    return with_host(options, one)


def with_host(options: argparse.Namespace, action: Callable[[Remote], Awaitable[T]]) -> T:
    """Do something with the host that is meant, on Trio. Raises `Refusal`."""
    from partitions.remote import connect

    async def main() -> T:
        async with connect(options.host, vms=_named(options)) as host:
            return await action(host)

    return run(main)


def _named(options: argparse.Namespace) -> Sequence[str]:
    """The VMs that the command line names: they say which host is meant, where only one has them."""
    named: str | Sequence[str] = getattr(options, "vm", None) or ()
    return (named,) if isinstance(named, str) else named


def run(main: Callable[[], Awaitable[T]]) -> T:
    """`trio.run`, what goes wrong with hosts as a `Refusal`, and Ctrl-C as itself."""
    import trio

    from partitions.remote import RemoteError

    try:
        return trio.run(main)
    except RemoteError as error:
        raise refused(error) from None
    except BaseExceptionGroup as group:
        interrupted, others = group.split(KeyboardInterrupt)
        if interrupted is not None and others is None:
            raise KeyboardInterrupt from None
        raise


def refused(error: Exception) -> Refusal:
    """An error of `partitions.remote` as the command's."""
    from partitions.remote import NoHost, RequestDenied

    usage = isinstance(error, NoHost) or (isinstance(error, RequestDenied) and error.kind in _USAGE)
    return Refusal(str(error), USAGE if usage else FAILED)


def change_vms(options: argparse.Namespace, op: str, **members: Any) -> int:
    """One request for each VM that was named, all at once; the VMs as they are then, and the exit status."""
    import trio

    from partitions.logs import printable
    from partitions.remote import RemoteError, RequestDenied, connect

    if not options.vm and not options.all:
        raise Refusal("name the VMs, or give --all")
    if options.vm and options.all:
        raise Refusal("name the VMs or give --all, not both")
    rows: dict[str, Row] = {}
    problems: dict[str, RemoteError] = {}

    async def change(vm: str, remote: Remote) -> None:
        try:
            async with limit, connect(remote.path) as own:
                rows[vm] = await own.ask(op, vm=vm, **members)
        except RemoteError as error:
            if not (options.all and isinstance(error, RequestDenied) and error.kind == "wrong_state"):
                problems[vm] = error

    async def change_all(remote: Remote) -> list[str]:
        names = list(dict.fromkeys(options.vm)) or (await remote.hello()).vms
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(change, name, remote)
        return names

    limit = trio.CapacityLimiter(AT_ONCE)
    names = with_host(options, change_all)
    if rows or not problems:
        show([rows[name] for name in names if name in rows], VM_COLUMNS, chosen(options))
    status = OK
    for name in names:
        if name in problems:
            refusal = refused(problems[name])
            text = f"error: {refusal}" if name in str(refusal) else f"error: {name}: {refusal}"
            print(printable(text), file=sys.stderr)
            status = max(status, refusal.status)
    return status


def all_rows(options: argparse.Namespace, op: str) -> list[Row]:
    """The rows of one host, or of every one that runs; each begins with its host's name."""
    import trio

    from partitions.remote import Found, HostGone, connect, running_hosts

    async def collect() -> list[Row]:
        if options.host is not None:
            async with connect(options.host) as host:
                name = (await host.hello()).name
                return [{"host": name, **row} for row in await host.ask(op, vm=options.vm)]
        found = await running_hosts()
        names = [one.name for one in found]
        made: dict[str, list[Row]] = {}

        async def one_of(one: Found) -> None:
            # Hosts of one topology are told apart by their sockets' names.
            label = one.name if names.count(one.name) == 1 else one.label
            try:
                async with connect(one.path) as host:
                    made[one.label] = [{"host": label, **row} for row in await host.ask(op)]
            except HostGone:
                pass  # between the list and the question

        async with trio.open_nursery() as nursery:
            for one in found:
                if one.greeting is None:
                    print(f"note: host {one.label} does not answer", file=sys.stderr)
                else:
                    nursery.start_soon(one_of, one)
        rows = [row for one in found for row in made.get(one.label, ())]
        if options.vm is None:
            return rows
        wanted = [row for row in rows if row["vm"] == options.vm]
        if not wanted:
            raise Refusal(f'no host that runs has a VM "{options.vm}"; {_nearest(options.vm, rows)}')
        return wanted

    return run(collect)


def _nearest(vm: str, rows: Sequence[Row]) -> str:
    near = difflib.get_close_matches(vm, {row["vm"]: None for row in rows}, n=1)
    return f'did you mean "{near[0]}"?' if near else "`partita ps` lists them"


def shown(columns: Sequence[tuple[str, Callable[[Row], str]]], rows: Sequence[Row]) -> Sequence[Any]:
    """The columns, without the host's where there is only one."""
    return columns if len({row["host"] for row in rows}) > 1 else [pair for pair in columns if pair[0] != "HOST"]


def _ending(row: Row) -> str:
    if row["exit"] is None:
        return ""
    code = "" if row["exit_code"] is None else f" ({row['exit_code']})"
    by = f", by {row['by']}" if row["by"] else ""
    why = f": {row['detail']}" if row["detail"] and row["exit"] == "turned off" else ""
    return f"{row['exit']}{code}{by}{why}"


def _restarts(row: Row) -> str:
    return str(row["restarts"] or "")


def _heartbeat(row: Row) -> str:
    return "" if row["heartbeat"] == "no contact" else str(row["heartbeat"])


VM_COLUMNS: Final = [
    ("HOST", plain("host")),
    ("VM", plain("vm")),
    ("STATE", plain("state")),
    ("UPTIME", duration("uptime")),
    ("MEMORY", size("memory")),
    ("VPS", plain("processors")),
    ("HEARTBEAT", _heartbeat),
    ("RESTARTS", _restarts),
    ("MAC", plain("mac")),
    ("VNC", plain("vnc")),
    ("FILE SYSTEMS", plain("file_systems")),
    ("EXIT", _ending),
    ("FILE", plain("path")),
]
