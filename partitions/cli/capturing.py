"""`--capture PORT=FILE`: Ethernet at ports of switches while a topology runs. Root side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from partitions.cli.common import Refusal

if TYPE_CHECKING:
    from partitions.host import Host
    from partitions.topology import Topology


def parse(items: list[str], topology: Topology) -> dict[str, list[str]]:
    """Ports by file. Raises `Refusal` for what is no port of this topology, or no place for a file."""
    if not items:
        return {}
    from partitions.topology_networks import ports_of
    from partitions.topology_source import nearest

    known = ports_of(topology)
    found: dict[str, list[str]] = {}
    for item in items:
        port, _, file = item.partition("=")
        if not file:
            example = known[0] if known else "web/0"
            raise Refusal(f"--capture {item}: must be PORT=FILE, as in --capture {example}=frames.pcapng")
        if port not in known:
            near = nearest(port, known)
            hint = f'did you mean "{near}"?' if near else f"there are {', '.join(known) or 'none'}"
            raise Refusal(f'--capture {item}: no port is called "{port}"; {hint}')
        if any(port in ports for ports in found.values()):
            raise Refusal(f"--capture {item}: {port} has a file already")
        if not Path(file).absolute().parent.is_dir():
            raise Refusal(f"--capture {item}: there is no folder {Path(file).absolute().parent}")
        found.setdefault(file, []).append(port)
    return found


@contextlib.contextmanager
def capturing(host: Host, files: dict[str, list[str]], note: Callable[[str], object]) -> Iterator[None]:
    """All of them, until the block ends. Raises `Refusal` for a file that cannot be written."""
    if not files:
        yield
        return
    from partitions.root.captures import captured

    with contextlib.ExitStack() as stack:
        writers = []
        for file, ports in files.items():

            def tell(text: str, file: str = file) -> None:
                note(f"note: --capture {file}: {text}")

            try:
                writers.append((file, stack.enter_context(captured(host, file, ports, tell))))
            except OSError as error:
                raise Refusal(f"--capture {file}: {error.strerror}") from None
        try:
            yield
        finally:
            stack.close()
            for file, writer in writers:
                if writer.dropped:
                    note(f"note: --capture {file}: {writer.dropped} are not in it")
