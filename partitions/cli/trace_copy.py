"""`partita trace FILE -w PART`: the chosen events of a recording as a recording of their own. Root side."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from partitions.cli.common import FAILED, OK, USAGE, Refusal
from partitions.cli.trace_sources import CHUNK_BYTES, Copy, open_trace
from partitions.recording.copier import RecordingCopier
from partitions.recording.reader import RecordingError

if TYPE_CHECKING:
    from partitions.trace.filters import Filter


def copy_part(source: str, target: str, condition: Filter | None) -> int:
    """What the filter lets through, all without one; blocks go over as they are. Returns the exit status."""
    name = "standard input" if source == "-" else source
    wanted = None if condition is None else condition.wanted()
    copier = RecordingCopier(lambda event: condition is None or condition(event, event.vm), wanted, name=name)
    with open_trace(source) as file:
        if os.path.exists(target) and os.path.samestat(os.stat(target), os.fstat(file.fileno())):
            raise Refusal(f"-w {target}: that is what is read; name another file")
        copy = None
        try:
            while data := file.read(CHUNK_BYTES):
                copier.feed(data)
                copy = copy or Copy(target)  # not before what is read is known for a recording
                copy.take(copier.take())
            copier.finish()
        except RecordingError as error:
            raise Refusal(str(error), USAGE if copy is None else FAILED) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise Refusal(f"{name}: {error.strerror}") from None
    if copy is not None:
        copy.close(f"{copier.kept} events in ")
    if copier.truncated_at is not None:
        print(f"note: {name} breaks off at byte {copier.truncated_at}; all whole before it is there", file=sys.stderr)
    return OK
