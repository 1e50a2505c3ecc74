"""A file of samples: a heading and then a window a line, as `partita run --samples` writes it. Root side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Final

import msgspec

from partitions.logs import printable, short_name
from partitions.resources.sample import FORMAT, Heading, Sample

_HEADING: Final = msgspec.json.Decoder(Heading)
_SAMPLE: Final = msgspec.json.Decoder(Sample)
_BAD: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class SamplesError(Exception):
    """What is wrong with a file of samples, and where."""


def read_samples(file: IO[bytes], name: str) -> tuple[Heading, Iterator[Sample]]:
    """The heading, and the windows as they are read. Raises `SamplesError`; a last line that breaks off is the end."""
    first = file.readline()
    try:
        heading = _HEADING.decode(first)
    except _BAD:
        heading = Heading()
    if not heading.partita_samples:
        raise SamplesError(f"{name} is no file of samples; write one with: partita run TOPOLOGY --samples FILE")
    if heading.partita_samples != FORMAT:
        raise SamplesError(f"{name} has samples of format {heading.partita_samples}, and this version reads {FORMAT}")
    return msgspec.structs.replace(heading, topology=short_name(heading.topology)), _samples(file, name)


def _samples(file: IO[bytes], name: str) -> Iterator[Sample]:
    for number, line in enumerate(file, 2):
        try:
            yield _decode(line)
        except _BAD as error:
            if not line.endswith(b"\n"):
                return
            raise SamplesError(f"{name}, line {number}: no sample: {error}") from None


def is_samples(file: IO[bytes]) -> bool:
    """Whether a file begins as one of samples; it is as if nobody had looked."""
    place = file.tell()
    first = file.readline(1 << 16)
    file.seek(place)
    return b'"partita_samples"' in first


def decode_sample(line: bytes) -> Sample:
    """One line. Raises `SamplesError`."""
    try:
        return _decode(line)
    except _BAD as error:
        raise SamplesError(f"no sample: {error}") from None


def _decode(line: bytes) -> Sample:
    """Raises `_BAD`, also for names that would drive the terminal that shows them."""
    sample = _SAMPLE.decode(line)
    for node in sample.nodes:
        words = f"{node.path}{node.state}{node.backend}{node.cpu_pool}{node.memory.state or ''}{node.memory.cause}"
        if not words.isprintable():
            raise msgspec.DecodeError(f"control characters in the words of {printable(node.path)}")
    return sample
