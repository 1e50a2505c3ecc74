"""What a row of `test_decoders` is; the rows are in `decoder_rows_*`, a family of decoders each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeVar

import attrs

from hypervisor.wire import WireError
from vmbus.ring import Packet, PacketType

T = TypeVar("T")
NONE = ()


@attrs.frozen
class Decoder:
    """One row."""

    take: Callable[[bytes, int], object]
    """Gets the bytes, and a number for whatever else there is to choose."""
    seeds: tuple[bytes, ...] = ()
    """Good ones; what is tried is near to them, or nowhere near."""
    errors: type[Exception] | tuple[()] = WireError
    """`NONE` where any bytes have a value."""


@attrs.frozen
class Rows:
    """A family's."""

    decoders: dict[str, Decoder]
    """By module and name."""
    elsewhere: dict[str, str]
    """Decoders without a row: why."""
    reached: dict[str, str]
    """Modules with `untrusted` values and no decoder: by which test any values reach them."""


def stateless(function: Callable[[bytes], object]) -> Callable[[bytes, int], object]:
    """For decoders that get the bytes and nothing else."""
    return lambda data, number: function(data)


def at_once(answer: Awaitable[T]) -> T:
    """The result of what has nothing to wait for."""
    steps: Generator[object, object, T] = answer.__await__()
    try:
        next(steps)
    except StopIteration as stop:
        result: T = stop.value
        return result
    raise AssertionError("it waits")


def packet_of(data: bytes, number: int) -> Packet:
    """As a ring reader hands it out."""
    body = data[: len(data) & ~7]
    offset = number % (len(body) // 8 + 1) * 8
    return Packet(PacketType.INBAND, 0, number, offset if number & 1 << 20 else 0, body)
