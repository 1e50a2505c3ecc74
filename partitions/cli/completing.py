"""What a shell offers at the Tab key: `partita __complete WORDS`, which completion scripts call. Root side.

The last word is the one to complete, perhaps empty. A line is printed for each candidate, with a tab and its
description; `:files` alone says that the shell's own file names are wanted.

All knowledge is here and in the parsers, so that the three scripts are a few lines each and never out of date. It
answers within the time of one interpreter's start, so running hosts are asked without Trio.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

FILES: Final = ":files"
LONGEST_LINE: Final = 1 << 20
PATIENCE: Final = 0.5
"""Seconds that a host may take: somebody waits at the Tab key."""

Candidate = tuple[str, str]


def complete(words: Sequence[str]) -> int:
    """Print the candidates."""
    found = list(dict.fromkeys(candidates(words or [""])))
    for name, about in found:
        print(f"{name}\t{about}" if about else name)
    return 0


def candidates(words: Sequence[str]) -> Iterator[Candidate]:
    """What can stand in the place of the last word."""
    from partitions.cli.main import VERBS, parsers

    *before, current = _joined(words)
    if not before:
        _, verbs = parsers(None)
        options = [("--help", "show help"), ("--version", "print the version")]
        offered = [(name, verbs.helps.get(name, "")) for name in VERBS] if not current.startswith("-") else options
        yield from _matching(offered, current)
        return
    verb, *given = before
    if verb not in VERBS:
        return
    parser = parsers(verb)[1].choices[verb]
    option, equals, start = current.partition("=")
    if current.startswith("--") and equals:
        action = _option(parser, option)
        if action is not None:
            # What a shell inserts replaces the word from where its own splitting began, which is behind the "=".
            yield from _values(action, verb, given, start)
        return
    waiting = _option(parser, given[-1]) if given else None
    if waiting is not None and waiting.nargs != 0:
        yield from _values(waiting, verb, given, current)
    elif current.startswith("-"):
        yield from _matching(_options(parser), current)
    else:
        action = _positional(parser, given)
        if action is not None:
            yield from _values(action, verb, given, current)


def _joined(words: Sequence[str]) -> list[str]:
    """Words as the command will get them: bash hands `--host=web` over as three."""
    joined: list[str] = []
    glue = False
    for word in words:
        if joined and (glue or (word == "=" and joined[-1].startswith("--"))):
            joined[-1] += word
            glue = word == "=" and not glue
        else:
            joined.append(word)
    return joined


def _matching(offered: Iterable[Candidate], start: str) -> Iterator[Candidate]:
    return (pair for pair in offered if pair[0].startswith(start))


def _options(parser: argparse.ArgumentParser) -> list[Candidate]:
    return [
        (option, (action.help or "").partition(";")[0].replace("%%", "%"))
        for action in parser._actions
        if action.help is not argparse.SUPPRESS
        for option in action.option_strings
        if option.startswith("--")
    ]


def _option(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    return next((action for action in parser._actions if word in action.option_strings), None)


def _positional(parser: argparse.ArgumentParser, given: Sequence[str]) -> argparse.Action | None:
    """The argument whose turn it is."""
    place, passing = 0, False
    for word in given:
        if passing:
            passing = False
        elif word.startswith("-") and len(word) > 1:
            action = _option(parser, word)
            passing = action is not None and action.nargs != 0
        else:
            place += 1
    for action in parser._actions:
        if action.option_strings:
            continue
        if place == 0 or action.nargs in ("*", "+"):
            return action
        place -= 1
    return None


def _values(action: argparse.Action, verb: str, given: Sequence[str], start: str) -> Iterator[Candidate]:
    if action.choices is not None:
        yield from _matching([(str(choice), "") for choice in action.choices], start)
        return
    offered: list[Candidate]
    match action.dest:
        case "host":
            offered = [(name, "") for name in _hosts()]
        case "vm" if any(one.dest == "host" for one in _actions(verb)):
            offered = [pair for pair in _vms(_host_in(given)) if pair[0] not in given]
        case "keys" if verb == "keys":
            yield from _matching(_keys(start), start)
            return
        case "path" if verb == "inspect":
            yield from _matching(_paths(_host_in(given), start), start)
            return
        case "source" if verb == "top":
            offered = [(name, "") for name in _hosts()]
        case "node" if verb == "set":
            host = _host_in(given)
            offered = [*_vms(host), *((f"pool/{name}", "") for name in _pools(host))]
        case "values" if verb == "set":
            from partitions.cli.set import POOL_KEYS, VM_KEYS

            keys = POOL_KEYS if any(word.startswith("pool/") for word in given) else VM_KEYS
            yield from _matching([(f"{key}=", about) for key, about in keys.items()], start)
            return
        case "pool" if verb == "pool":
            offered = [(name, "") for name in _pools(_host_in(given)) if "add" not in given]
        case "values" if verb == "pool":
            yield from _matching(_of_a_pool(given), start)
            return
        case "target":
            offered = _examples()
        case "capture_port":
            offered = [(port, "") for port in _ports(_host_in(given)) if port not in given]
        case "switch":
            offered = [(path.split("/")[1], "") for path, _ in _paths(_host_in(given), "switch/")]
        case "port":
            return  # the guest's to know
        case _:
            offered = []
    found = list(_matching(offered, start))
    yield from found or [(FILES, "")]


def _actions(verb: str) -> list[argparse.Action]:
    from partitions.cli.main import parsers

    return parsers(verb)[1].choices[verb]._actions


def _examples() -> list[Candidate]:
    from partitions.examples import examples

    return [(example.name, example.title) for example in examples()]


def _keys(start: str) -> Iterator[Candidate]:
    """Keys behind those that are written already."""
    from vsp_vsc.keyboard.scan_codes import KEYS

    before = start[: start.rfind("-") + 1]
    yield "ctrl-alt-del", ""
    yield from ((f"{before}{name}", "") for name in KEYS)


def _host_in(given: Sequence[str]) -> str | None:
    for number, word in enumerate(given):
        if word.startswith("--host="):
            return word.partition("=")[2]
        if word == "--host" and number + 1 < len(given):
            return given[number + 1]
    return os.environ.get("PARTITA_HOST") or None


def _greetings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Socket names and what their hosts say; those that do not answer at once are passed over."""
    from partitions import control_folder

    for path in control_folder.sockets():
        greeting = _ask(path)
        if greeting is not None:
            yield path.name.removesuffix(control_folder.SUFFIX), greeting


def _ask(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Who a host is."""
    lines = _say(path, {"op": "hello"}, 1)
    greeting: dict[str, Any] | None = lines[0]["result"] if lines else None
    return greeting


def _say(path: str | os.PathLike[str], request: dict[str, Any], answers: int) -> list[Any]:
    """The first documents that come back, a line each; none of them where a host does not answer, or not so."""
    from partitions import control_folder

    path = os.fspath(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            with control_folder.address(path) as address:
                connection.connect(address)
            connection.sendall(json.dumps(request).encode() + b"\n")
            lines = connection.makefile("rb")
            found = [json.loads(lines.readline(LONGEST_LINE))]
            if not found[0]["ok"]:
                return []
            return found + [json.loads(lines.readline(LONGEST_LINE)) for _ in range(1, answers)]
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _hosts() -> list[str]:
    found = list(_greetings())
    names = [greeting["name"] for _, greeting in found]
    return [name if names.count(name) == 1 else label for (label, _), name in zip(found, names, strict=True)]


def _meant(host: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sockets and greetings of those that a name, a socket or nothing at all stands for."""
    from partitions import control_folder

    if host is not None and os.sep in host:
        greeting = _ask(host)
        if greeting is not None:
            yield host, greeting
        return
    for path in control_folder.sockets():
        greeting = _ask(path)
        label = path.name.removesuffix(control_folder.SUFFIX)
        if greeting is not None and host in (None, label, greeting["name"], str(greeting["pid"])):
            yield os.fspath(path), greeting


def _vms(host: str | None) -> list[Candidate]:
    there = list(_meant(host))
    return [(vm, f"on {greeting['name']}") for _, greeting in there for vm in greeting["vms"]]


def _pools(host: str | None) -> Iterator[str]:
    """Resource pools."""
    for path, _ in _meant(host):
        for answer in _say(path, {"op": "pools"}, 1):
            yield from (row["node"].removeprefix("pool/") for row in answer["result"] if row["node"] != "host")


def _of_a_pool(given: Sequence[str]) -> list[Candidate]:
    """What follows the name of a pool: a parent to move it to, or controls of a new one."""
    from partitions.cli.set import POOL_KEYS

    if "move" in given:
        return [("host", ""), *((name, "") for name in _pools(_host_in(given)) if name not in given)]
    return [(f"{key}=", about) for key, about in POOL_KEYS.items()] if "add" in given else []


def _ports(host: str | None) -> Iterator[str]:
    """Ports of switches that somebody is at."""
    for path, _ in _meant(host):
        answers = _say(path, {"op": "inspect", "path": "switch", "depth": 3, "form": "json"}, 2)
        for switch in answers[1].values() if answers else ():
            yield from switch["ports"]


def _paths(host: str | None, start: str) -> Iterator[Candidate]:
    """What lives beside a path that is half written; a branch ends in a slash."""
    place = start.rpartition("/")[0]
    for path, _ in _meant(host):
        answers = _say(path, {"op": "inspect", "path": place, "depth": 1, "form": "json"}, 2)
        tree = answers[1] if answers else None
        if isinstance(tree, dict):
            for name, value in tree.items():
                yield f"{place}/{name}".lstrip("/") + ("/" if value == "/" else ""), ""
