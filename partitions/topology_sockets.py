"""The rules for a topology's Unix sockets: paths that a socket can have, each once. Root side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from partitions.control_folder import MAX_ADDRESS
from partitions.topology_schema import TopologyFile
from partitions.topology_source import KeyPath

if TYPE_CHECKING:
    from partitions.topology_check import Check


def check_sockets(check: Check, file: TopologyFile) -> None:
    """The `[vm.sockets]` of all VMs."""
    users: dict[str, KeyPath] = {}
    for index, vm in enumerate(file.vm):
        if vm.sockets is None:
            continue
        keys = ("vm", index, "sockets")
        said = any(place[: len(keys)] == keys for place in check.found)
        if not (vm.sockets.path or vm.sockets.ports or said):
            check.problem(keys, "has neither a path nor ports: name one, or remove [vm.sockets]")
        places: list[tuple[KeyPath, str]] = [((*keys, "path"), vm.sockets.path)] if vm.sockets.path else []
        places += [((*keys, "ports", path), path) for path in vm.sockets.ports]
        for place, path in places:
            _path(check, users, place, path)


def _path(check: Check, users: dict[str, KeyPath], place: KeyPath, path: str) -> None:
    from partitions.topology_words import spell

    if not path or "\0" in path:
        return check.problem(place, "is no path")
    whole = check.folder / path
    length = len(os.fsencode(os.path.normpath(whole)))
    if length > MAX_ADDRESS:
        words = f"a Unix socket's path has at most {MAX_ADDRESS} bytes, this one {length}; name one elsewhere"
        return check.problem(place, words)
    real = os.path.realpath(whole)
    if real in users:
        return check.problem(place, f"{spell(check.raw, users[real])} is this path too")
    users[real] = place
    if not whole.parent.is_dir():
        return check.problem(place, f'the folder "{whole.parent}" is missing')
    if os.path.lexists(whole) and not whole.is_socket():
        return check.problem(place, f'"{whole}" is there and no socket; remove it, or name another path')
    if not os.access(whole.parent, os.W_OK):
        return check.problem(place, f'cannot be made: the folder "{whole.parent}" is read-only; name one elsewhere')
    return None
